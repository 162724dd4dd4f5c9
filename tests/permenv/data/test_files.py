"""Tools for folders of files: only regular files are opened, every real folder is visited once."""

import contextlib
import logging
import os
import socket
from pathlib import Path

import pytest

from permenv.data import files
from permenv.data.files import UnusableFileError, list_some, open_regular, read_regular, walk
from permenv.data.messages import DataError, log

# Regular files


def socket_file(path):
    """Bind a socket to a path, which must be short."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


IRREGULAR = {
    "pipe": os.mkfifo,
    "socket": socket_file,
    "folder": Path.mkdir,
    "dangling link": lambda path: path.symlink_to(path.with_name("nowhere")),
    "link to itself": lambda path: path.symlink_to(path),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", IRREGULAR)
def test_what_is_not_a_regular_file_is_neither_opened_nor_waited_for(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)  # for the socket's short path
    IRREGULAR[kind](Path("a"))
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("opened"))
    with pytest.raises(UnusableFileError, match="not a regular file"):
        open_regular(Path("a"))


def test_a_file_that_is_missing_is_said_to_be(tmp_path):
    for missing in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(UnusableFileError, match="there is no such file"):
            open_regular(missing)


def test_a_file_replaced_by_a_pipe_before_it_is_opened_is_not_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"content")
    opened = os.open

    def replace_and_open(name, *args):
        path.unlink()
        os.mkfifo(path)
        return opened(name, *args)

    monkeypatch.setattr(os, "open", replace_and_open)
    with pytest.raises(UnusableFileError, match="not a regular file"):
        open_regular(path)


def test_a_link_to_a_regular_file_is_read(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert read_regular(tmp_path / "b", 7) == b"content"


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    with pytest.raises(UnusableFileError, match="larger than 6 bytes"):
        read_regular(tmp_path / "a", 6)


# Folders


def below(root):
    """Prefixes of the folders and their files, in the order of the visit."""
    return list(walk(root))


def test_folders_that_link_to_each_other_are_visited_once(tmp_path, caplog):
    names = [f"{number}" for number in range(10)]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").touch()
        for other in names:
            (tmp_path / name / f"to-{other}").symlink_to(tmp_path / other)

    found = below(tmp_path)

    assert found == [("", []), *((f"{name}/", [f"{name}.txt"]) for name in names)]
    [warning] = caplog.records
    assert "100 links to folders that are read already: 0/to-0 (the folder 0), 0/to-1 (the folder 1)" in caplog.text
    assert warning.levelname == "WARNING"


def test_a_folder_goes_by_its_own_name_and_elsewhere_by_the_first_link(tmp_path):
    (tmp_path / "root" / "z").mkdir(parents=True)
    (tmp_path / "root" / "a").symlink_to(tmp_path / "root" / "z")
    (tmp_path / "elsewhere" / "more").mkdir(parents=True)
    for name in ("c", "b"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "elsewhere")
    assert [prefix for prefix, _ in below(tmp_path / "root")] == ["", "z/", "b/", "b/more/"]


def test_links_from_linked_folders_are_followed(tmp_path):
    for name in ("root", "one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "root" / "a").symlink_to(tmp_path / "one")
    (tmp_path / "one" / "b").symlink_to(tmp_path / "two")
    (tmp_path / "two" / "c.txt").touch()
    assert below(tmp_path / "root")[-1] == ("a/b/", ["c.txt"])


@contextlib.contextmanager
def nested(root, name, count):
    """Nest folders of one name, and remove them afterwards: pytest removes its own folders by recursion."""
    opened = [os.open(root, os.O_RDONLY)]
    try:
        for _ in range(count):
            os.mkdir(name, dir_fd=opened[-1])
            opened.append(os.open(name, os.O_RDONLY, dir_fd=opened[-1]))
            os.close(opened.pop(-2))
        yield
    finally:
        for folder in opened:
            os.close(folder)
        place = root / "inner"  # the outermost folder is removed from around the others, so that paths stay short
        while (root / name).exists():
            inner = root / name / name
            if inner.exists():
                inner.rename(place)
            (root / name).rmdir()
            if place.exists():
                place.rename(root / name)


def test_1100_nested_folders(tmp_path):
    with nested(tmp_path, "d", 1100):
        assert below(tmp_path)[-1] == ("d/" * 1100, [])


def test_folders_too_deep_for_a_path_are_named(tmp_path):
    """The system opens paths of up to 4096 bytes, but folders can be nested deeper."""
    with nested(tmp_path, "d" * 200, 25):
        found = below(tmp_path)
    assert found[-1][1] is None
    assert all(names == [] for _, names in found[:-1])


# Messages

BAD_NAME = "a\nb\x1b[31m\u202e\udce9.png"
SHOWN = r"a\nb\x1b[31m\u202e\udce9.png"


def test_a_file_name_cannot_break_a_line_of_the_log_or_control_the_terminal(caplog):
    log.warning("%s: 100%% of %d files skipped", BAD_NAME, 3)
    assert caplog.records[-1].getMessage() == f"{SHOWN}: 100% of 3 files skipped"
    logging.getLogger("permenv").warning("é 猫 Ψ ± → stay as they are")
    assert caplog.records[-1].getMessage() == "é 猫 Ψ ± → stay as they are"


def test_a_file_name_cannot_break_the_line_of_an_error_or_a_list():
    assert str(DataError(f"{BAD_NAME} changed")) == f"{SHOWN} changed"
    assert list_some([(BAD_NAME, "empty\tfile")]) == rf"{SHOWN} (empty\tfile)"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", r"the image folder is an empty path; pass '\.' for the current folder; EXPECTED"),
        ("a\0b", r"the image folder a\\x00b cannot be listed: embedded null byte; EXPECTED"),
        (Path("a\0b"), r"the image folder a\\x00b cannot be listed: embedded null byte; EXPECTED"),
        ("~nosuch/photos", r"the image folder ~nosuch/photos cannot be listed: .*home directory.*; EXPECTED"),
        ("a" * 5000, r"the image folder a+ cannot be listed: File name too long; EXPECTED"),
    ],
)
def test_a_path_that_cannot_be_a_folder(given, message):
    with pytest.raises(DataError, match=message):
        files.data_folder(given, "image", "EXPECTED")


def test_a_folder_whose_path_is_no_text_has_a_fingerprint():
    assert files.fingerprint("clips of /data/\udcff", ["a.avi"], [bytes(16)]) != files.fingerprint(
        "", ["a.avi"], [bytes(16)]
    )
