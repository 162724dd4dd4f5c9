"""A lock keeps other processes and threads out, and is free again when its process has ended."""

import errno
import subprocess
import sys
import threading

import pytest

from permenv import locks
from permenv.locks import locked
from tests.helpers import ROOT, fail_to_lock

HOLD = """
import sys
from pathlib import Path
from permenv.locks import locked

with locked(Path(sys.argv[1])) as held:
    print(held, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Start another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.communicate()


def test_a_lock_is_free_again_after_the_block_and_its_file_stays(tmp_path):
    for _ in range(2):
        with locked(tmp_path / "lock", wait=False) as held:
            assert held
        assert (tmp_path / "lock").exists()


def test_a_lock_that_another_process_holds_is_refused_until_that_is_killed(tmp_path, holder):
    with pytest.raises(BlockingIOError, match="another process holds the lock"), locked(tmp_path / "lock", wait=False):
        pytest.fail("two processes hold it")
    holder.kill()
    holder.wait()
    with locked(tmp_path / "lock", wait=False) as held:
        assert held


def test_whoever_waits_says_so_once_and_gets_the_lock(tmp_path, monkeypatch):
    events, said = [], threading.Event()

    def warning(message):
        events.append(message)
        said.set()

    def second():
        with locked(tmp_path / "lock", message="waiting for the first") as held:
            events.append(f"second: {held}")

    monkeypatch.setattr(locks.log, "warning", warning)
    with locked(tmp_path / "lock", message="not said"):
        thread = threading.Thread(target=second)
        thread.start()
        assert said.wait(60)
        events.append("first ends")
    thread.join()
    assert events == ["waiting for the first", "first ends", "second: True"]


def test_without_fcntl_as_on_windows_a_lock_keeps_others_out_too(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with locked(tmp_path / "lock") as held:
        assert held
        with pytest.raises(BlockingIOError, match="another process"), locked(tmp_path / "lock", wait=False):
            pytest.fail("two hold it")
    with locked(tmp_path / "lock", wait=False) as held:
        assert held


@pytest.mark.parametrize("name", ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "ENOTSUP"])
def test_a_file_system_without_locks_is_told_from_a_lock(name, tmp_path, monkeypatch):
    fail_to_lock(monkeypatch, getattr(errno, name))
    for wait in (True, False):
        with locked(tmp_path / "lock", wait=wait) as held:
            assert not held


def test_other_errors_are_raised(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError), locked(tmp_path / "none" / "lock"):
        pytest.fail("there is no such folder")
    fail_to_lock(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"), locked(tmp_path / "lock"):
        pytest.fail("the disk fails")
