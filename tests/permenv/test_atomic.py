"""Files are written whole or not at all, and nothing is left beside them."""

import contextlib
import errno
import os

import pytest

from permenv import atomic
from permenv.atomic import write_bytes
from tests.helpers import fail_to_lock


def test_a_file_is_written_with_its_folder_and_replaced(tmp_path):
    path = tmp_path / "new" / "deep" / "file"
    for content in (b"content", b"other", b""):
        write_bytes(path, content)
        assert path.read_bytes() == content
        assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_bytes(tmp_path / "file", b"content")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_bytes(tmp_path / "file", b"other")
    assert (tmp_path / "file").read_bytes() == b"content"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_has_the_usual_mode_of_new_files(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "file", b"content")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_what_a_killed_write_left_is_removed_by_the_next(tmp_path):
    for name in (".file.0123abcd.tmp", ".other.0123abcd.tmp", ".file[1].0123abcd.tmp"):
        (tmp_path / name).write_bytes(b"half a file")
    write_bytes(tmp_path / "file", b"content")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".file[1].0123abcd.tmp", ".other.0123abcd.tmp", "file"]
    write_bytes(tmp_path / "file[1]", b"content")
    assert not (tmp_path / ".file[1].0123abcd.tmp").exists()


def test_what_another_process_is_writing_is_left_alone(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / ".file.0123abcd.tmp").open("wb") as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)
        write_bytes(tmp_path / "file", b"content")
        assert (tmp_path / ".file.0123abcd.tmp").exists()
    write_bytes(tmp_path / "file", b"content")
    assert not (tmp_path / ".file.0123abcd.tmp").exists()


def test_nothing_is_removed_where_files_cannot_be_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "fcntl", None)
    (tmp_path / ".file.0123abcd.tmp").write_bytes(b"perhaps of another process")
    write_bytes(tmp_path / "file", b"content")
    assert (tmp_path / ".file.0123abcd.tmp").exists()
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize("moment", ["before it is locked", "while it is locked"])
def test_a_file_that_another_write_takes_for_a_leftover_is_made_again(moment, tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    lock, deleted = atomic._lock, []

    def deleting(file):
        (temporary,) = tmp_path.glob(".file.*.tmp")
        if not deleted:
            deleted.append(temporary)
            if moment == "while it is locked":
                with temporary.open("rb") as other:
                    lock(other)
                    try:
                        lock(file)
                    finally:
                        temporary.unlink()
            temporary.unlink()
        lock(file)

    monkeypatch.setattr(atomic, "_lock", deleting)
    write_bytes(tmp_path / "file", b"content")
    assert deleted
    assert (tmp_path / "file").read_bytes() == b"content"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_that_others_always_lock_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    fail_to_lock(monkeypatch, errno.EWOULDBLOCK)
    with pytest.raises(BlockingIOError, match="other processes lock each temporary file beside it"):
        write_bytes(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def files_of_at_most(size):
    """Let writes beyond this number of bytes fail, as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 1, 8, 500, 4000, 5000])
def test_a_write_for_which_there_is_no_room_raises_an_os_error_and_leaves_the_old_file(room, tmp_path):
    write_bytes(tmp_path / "file", b"content")
    with files_of_at_most(room), pytest.raises(OSError, match="File too large"):
        write_bytes(tmp_path / "file", bytes(8000))
    assert (tmp_path / "file").read_bytes() == b"content"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_system_that_cannot_flush_a_folder_is_no_error(tmp_path, monkeypatch):
    def fail(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(atomic, "_flush_to_disk", fail)
    write_bytes(tmp_path / "file", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"content"
