"""The cache returns what was written or makes it again, whatever happened to its files."""

import errno
import json
import multiprocessing
import os
import pickle
import shutil
import threading
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import platformdirs
import pytest

from permenv.data import cache
from permenv.data.cache import CacheError, cached_or_in_memory, cached_rows
from permenv.data.messages import DataError
from permenv.data.rows import CachedRows
from permenv.locks import locked
from tests.helpers import fail_to_lock
from tests.permenv.data.helpers import fail_to_open, fail_to_reach

ROW = (4, 3)
ROWS = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, *ROW)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Return the cache folder of one test."""
    place = tmp_path / "cache"
    monkeypatch.setenv("PERMENV_CACHE", str(place))
    return place


class Builder:
    """Appends ROWS in two pieces and counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, append):
        """Build the entry of all these tests."""
        self.calls += 1
        append(ROWS[:2])
        append(ROWS[2:])


def open_rows(build, planned=5):
    return cached_rows("key", (planned, *ROW), build)


def fail(append):
    raise AssertionError("built again")


def contents(folder):
    """Names of what the cache holds, without the lock files."""
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


def test_rows_come_back_on_the_first_and_the_second_start(folder):
    for build in (Builder(), fail):
        rows = open_rows(build)
        np.testing.assert_array_equal(rows, ROWS)
        assert isinstance(rows, CachedRows)
        assert not rows[:2].flags.writeable
        assert (len(rows), rows.shape, rows.ndim, rows.dtype, rows.nbytes) == (5, (5, *ROW), 3, np.uint8, 60)
    assert contents(folder) == ["key"]


def test_an_entry_that_looks_broken_while_another_process_replaces_it_is_not_deleted(folder, monkeypatch):
    """Without the lock, the index of the old entry and the rows of the new one may be read."""
    open_rows(Builder())
    whole, looked = cache._open, []

    def between(*args):
        looked.append(args)
        if len(looked) == 1:
            raise cache.BrokenError("old index, new rows")
        return whole(*args)

    monkeypatch.setattr(cache, "_open", between)
    np.testing.assert_array_equal(open_rows(fail), ROWS)


KEYS = [2, -1, slice(1, 3), slice(None, None, 2), [2, 0, 0], np.array([-1, 4]), np.arange(5) > 2, np.array([], int)]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_rows_are_read_like_those_of_an_array(key):
    rows = open_rows(Builder())
    np.testing.assert_array_equal(rows[key], ROWS[key])


def test_rows_are_read_into_tensors():
    rows = open_rows(Builder())
    np.testing.assert_array_equal(rows.read(np.array([3, 0, 3])), ROWS[[3, 0, 3]])
    with pytest.raises(IndexError):
        rows.read(np.array([5]))


def test_fewer_rows_than_planned():
    rows = open_rows(Builder(), planned=1000)
    np.testing.assert_array_equal(rows, ROWS)


def test_different_keys_are_different_entries():
    open_rows(Builder())
    rows = cached_rows("other", (1, 2), lambda append: append(np.zeros((1, 2), np.uint8)))
    assert rows.shape == (1, 2)
    open_rows(fail)


def test_rows_of_another_shape_or_type_are_refused():
    for wrong in (ROWS[:, :2], ROWS.astype(np.float32)):
        with pytest.raises(TypeError, match="rows must be uint8"):
            open_rows(lambda append, rows=wrong: append(rows))


def test_an_entry_without_rows_is_refused():
    with pytest.raises(DataError, match="no rows"):
        open_rows(lambda append: None)


def truncate(entry):
    with (entry / "array.bin").open("r+b") as file:
        file.truncate(7)


def flip_bit(entry):
    content = bytearray((entry / "array.bin").read_bytes())
    content[17] ^= 1
    (entry / "array.bin").write_bytes(content)


def remove_array(entry):
    (entry / "array.bin").unlink()


def remove_index(entry):
    (entry / "index.json").unlink()


def cut_index(entry):
    text = (entry / "index.json").read_text()
    (entry / "index.json").write_text(text[: len(text) // 2])


def empty_index(entry):
    (entry / "index.json").write_text("[]")


def edit(**changes):
    def edit_index(entry):
        index = json.loads((entry / "index.json").read_text())
        (entry / "index.json").write_text(json.dumps({**index, **changes}))

    edit_index.__name__ = f"edit_{'_'.join(changes)}"
    return edit_index


def swap_with_other_key(entry):
    cached_rows("other", (1, *ROW), lambda append: append(ROWS[:1]))
    shutil.rmtree(entry)
    (entry.parent / "other").rename(entry)


def nest_index(entry):
    (entry / "index.json").write_text("[" * 100_000)


def link_to_nowhere(entry):
    shutil.rmtree(entry)
    entry.symlink_to(entry.parent / "nowhere")


def pipe_as_array(entry):
    (entry / "array.bin").unlink()
    os.mkfifo(entry / "array.bin")


def file_as_entry(entry):
    shutil.rmtree(entry)
    entry.touch()


DAMAGE = [
    truncate,
    flip_bit,
    remove_array,
    remove_index,
    cut_index,
    empty_index,
    edit(format=999),
    edit(shape=[4, 5, 3]),
    edit(key="other"),
    edit(checksums="00"),
    edit(checksum=None),
    swap_with_other_key,
    nest_index,
    link_to_nowhere,
    pipe_as_array,
    file_as_entry,
]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_entry_is_named_and_made_again(damage, folder, caplog):
    open_rows(Builder())
    damage(folder / "key")
    again = Builder()

    rows = open_rows(again)

    np.testing.assert_array_equal(rows, ROWS)
    assert again.calls == 1
    [warning] = caplog.records
    assert warning.name == "permenv"
    assert str(folder / "key") in warning.getMessage()
    open_rows(fail)


def test_a_row_of_another_shape_under_the_same_key_is_made_again():
    open_rows(Builder())
    rows = cached_rows("key", (1, 2), lambda append: append(np.zeros((1, 2), np.uint8)))
    assert rows.shape == (1, 2)


def test_a_build_that_fails_leaves_nothing(folder):
    def build(append):
        append(ROWS)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_rows(build)
    assert contents(folder) == []
    open_rows(Builder())


LEFT = {
    "of a process that has ended": ("lock", "key/array.bin"),
    "of a process that is about to lock it": ("lock",),
    "without a lock": ("array.bin",),
}
"""Temporary folders by what is in them."""


def leave(folder, files, age_days):
    leftover = folder / "temporary-0123"
    for name in files:
        (leftover / name).parent.mkdir(parents=True, exist_ok=True)
        (leftover / name).write_bytes(b"half")
    then = time.time() - age_days * 24 * 3600
    for path in (leftover, *leftover.rglob("*")):
        os.utime(path, (then, then))
    return leftover


@pytest.mark.parametrize("age_days", [0, 2])
@pytest.mark.parametrize("left", LEFT)
def test_temporary_folders_of_ended_processes_are_deleted(folder, left, age_days):
    leftover = leave(folder, LEFT[left], age_days)
    open_rows(Builder())
    kept = age_days == 0 and left != "of a process that has ended"
    assert leftover.exists() == kept


@pytest.mark.parametrize("age_days", [0, 2])
def test_a_temporary_folder_whose_lock_is_held_is_left_alone(folder, age_days):
    leftover = leave(folder, LEFT["of a process that has ended"], age_days)
    with locked(leftover / "lock", lambda: None):
        open_rows(Builder())
    assert (leftover / "key" / "array.bin").exists()


@pytest.mark.parametrize("age_days", [0, 2])
def test_without_file_locks_the_age_of_a_temporary_folder_decides(folder, age_days, monkeypatch):
    fail_to_lock(monkeypatch, errno.ENOLCK)
    leftover = leave(folder, LEFT["of a process that has ended"], age_days)
    open_rows(Builder())
    assert leftover.exists() == (age_days == 0)


def test_what_is_being_built_is_left_alone(folder):
    def build(append):
        append(ROWS)
        [temporary] = folder.glob("temporary-*")
        for path in (temporary, *temporary.rglob("*")):
            os.utime(path, (0, 0))  # as if nothing had been written for long
        cached_rows("other", (5, *ROW), Builder())

    rows = open_rows(build)
    np.testing.assert_array_equal(rows, ROWS)
    assert sorted(contents(folder)) == ["key", "other"]


def build_until_killed(started):
    """Append one piece, set the event, and never finish."""

    def build(append):
        append(ROWS[:2])
        started.set()
        time.sleep(600)

    open_rows(build)


def test_a_process_killed_while_it_builds_leaves_no_entry_and_no_lock(folder):
    spawn = multiprocessing.get_context("spawn")
    started = spawn.Event()
    process = spawn.Process(target=build_until_killed, args=(started,))
    process.start()
    assert started.wait(60)
    process.kill()
    process.join()
    assert [name.partition("-")[0] for name in contents(folder)] == ["temporary"]

    rows = open_rows(Builder())

    np.testing.assert_array_equal(rows, ROWS)
    assert contents(folder) == ["key"]


def build_slowly(append):
    """Leave a mark for each build; take long enough for the other processes to arrive."""
    (cache.cache_folder() / f"build-{os.getpid()}.lock").touch()
    append(ROWS)
    time.sleep(0.3)


def open_at_once(barrier, results):
    """Open the entry at the same moment as other processes do, and report what was opened."""
    barrier.wait(60)
    rows = open_rows(build_slowly)
    results.put(np.array(rows))


@pytest.mark.ci
def test_processes_that_need_an_entry_at_once_build_it_once(folder):
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(3), spawn.Queue()
    processes = [spawn.Process(target=open_at_once, args=(barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    open_at_once(barrier, results)
    for _ in range(3):
        rows = results.get(timeout=60)
        np.testing.assert_array_equal(rows, ROWS)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(list(folder.glob("build-*"))) == 1
    assert contents(folder) == ["key"]


def test_threads_that_need_an_entry_at_once_build_it_once(folder):
    folder.mkdir()
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: open_rows(build_once), range(8)))
    assert all((rows == ROWS).all() for rows in opened)


def build_once(append):
    (cache.cache_folder() / "built").touch(exist_ok=False)
    time.sleep(0.1)
    append(ROWS)


def test_a_builder_that_finds_the_entry_of_a_faster_process_uses_it(folder):
    def build(append):
        append(ROWS)
        shutil.copytree(other, folder / "key")  # as on a file system without locks

    open_rows(Builder())
    other = (folder / "key").rename(folder / "copy")
    rows = open_rows(build)
    np.testing.assert_array_equal(rows, ROWS)


@pytest.mark.parametrize("name", ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "ENOTSUP"])
def test_without_file_locks_entries_are_built_all_the_same_and_one_warning_says_so(name, folder, monkeypatch, caplog):
    fail_to_lock(monkeypatch, getattr(errno, name))
    for key in ("key", "other"):
        rows = cached_rows(key, (5, *ROW), Builder())
        np.testing.assert_array_equal(rows, ROWS)
    assert [each.getMessage().partition(":")[0] for each in caplog.records] == [
        f"the cache folder {folder} has no file locks"
    ]


def test_whoever_waits_for_an_entry_says_for_which_lock(folder, caplog):
    def build(append):
        waiting.start()
        while not caplog.records and waiting.is_alive():
            time.sleep(0.01)
        Builder()(append)

    waiting = threading.Thread(target=open_rows, args=(fail,))
    rows = open_rows(build)
    waiting.join()
    np.testing.assert_array_equal(rows, ROWS)
    [warning] = caplog.records
    assert warning.levelname == "WARNING"
    assert f"waiting for another process, which holds {folder / 'key.lock'}" in warning.getMessage()


def test_rows_are_made_in_memory_where_the_cache_cannot_be_written(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PERMENV_CACHE", str(tmp_path / "file" / "cache"))
    rows = cached_or_in_memory("key", (5, *ROW), Builder())
    np.testing.assert_array_equal(rows, ROWS)
    assert not rows.flags.writeable
    [warning] = caplog.records
    assert (warning.name, warning.levelname) == ("permenv", "WARNING")
    assert "key is made in memory" in warning.getMessage()
    assert "file/cache cannot be written" in warning.getMessage()


@pytest.mark.parametrize("named", [False, True])
def test_rows_are_made_in_memory_where_the_cache_cannot_be_reached(tmp_path, monkeypatch, caplog, named):
    place = tmp_path / "home" / ".cache" / "permenv"
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: place)
    if named:
        monkeypatch.setenv("PERMENV_CACHE", str(place))
    else:
        monkeypatch.delenv("PERMENV_CACHE")
    fail_to_reach(monkeypatch, tmp_path / "home")
    rows = cached_or_in_memory("key", (5, *ROW), Builder())
    np.testing.assert_array_equal(rows, ROWS)
    assert f"the cache folder {place} cannot be written: Permission denied" in caplog.text


def test_an_error_of_the_builder_is_not_taken_for_one_of_the_cache():
    with pytest.raises(DataError, match="no rows"):
        cached_or_in_memory("key", (5, *ROW), lambda append: None)


def test_a_cache_that_cannot_be_written_is_named_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PERMENV_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"file/cache cannot be written.*PERMENV_CACHE"):
        open_rows(fail)


def test_a_disk_that_is_too_small_is_noticed_before_the_work(folder, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage(10**12, 10**12, ROWS.nbytes - 1))
    with pytest.raises(DataError, match=r"cache cannot be written.*PERMENV_CACHE"):
        open_rows(fail)


def test_a_disk_that_fills_up_during_the_work(folder):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    mebibyte = np.zeros((1, 2**20), np.uint8)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * mebibyte.nbytes, hard))  # no file may grow beyond
    try:
        with pytest.raises(DataError, match=r"cache cannot be written.*PERMENV_CACHE"):
            cached_rows("key", (5, 2**20), lambda append: [append(mebibyte) for _ in range(5)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(folder) == []


def test_a_disk_that_does_not_keep_what_is_written(folder, monkeypatch):
    rename = Path.rename

    def rename_and_damage(path, target):
        rename(path, target)
        if target.name == "key":
            flip_bit(target)

    monkeypatch.setattr(Path, "rename", rename_and_damage)
    with pytest.raises(DataError, match=r"written 3 times .*PERMENV_CACHE"):
        open_rows(Builder())
    assert contents(folder) == []


def test_a_read_error_that_may_pass_leaves_the_entry_as_it_is(folder, monkeypatch):
    open_rows(Builder())
    with monkeypatch.context() as patch:
        fail_to_open(patch, cache.ARRAY, OSError(5, "Input/output error"))
        with pytest.raises(cache.CacheError, match="cannot be read: Input/output error; start again"):
            open_rows(fail)
    rows = open_rows(fail)
    np.testing.assert_array_equal(rows, ROWS)


def test_a_home_of_an_unknown_user_is_refused(monkeypatch):
    monkeypatch.setenv("PERMENV_CACHE", "~nosuch/cache")
    with pytest.raises(cache.CacheError, match=r"PERMENV_CACHE=~nosuch/cache: .*set it to the path of a folder"):
        open_rows(Builder())


@pytest.mark.skipif(os.name != "posix", reason="the permissions are those of POSIX")
def test_the_users_cache_folder_is_used_only_if_nobody_else_may_write_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "own")
    monkeypatch.delenv("PERMENV_CACHE")
    builder = Builder()
    open_rows(builder)
    open_rows(builder)
    assert builder.calls == 1
    (tmp_path / "own").chmod(0o777)
    with pytest.raises(cache.CacheError, match="can be written by every user"):
        open_rows(builder)
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(cache.CacheError, match="belongs to another user"):
        open_rows(builder)
    monkeypatch.setenv("PERMENV_CACHE", str(tmp_path / "own"))  # named, so trusted
    open_rows(builder)
    assert builder.calls == 1


def test_by_default_the_cache_is_in_the_users_cache_folder(monkeypatch):
    monkeypatch.delenv("PERMENV_CACHE")
    assert cache.cache_folder() == platformdirs.user_cache_path("permenv")


def test_rows_are_pickled_as_the_name_of_their_file(folder):
    rows = open_rows(Builder())
    content = pickle.dumps(rows)
    assert len(content) < 1000
    np.testing.assert_array_equal(pickle.loads(content), rows)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(pickle.loads(content))), rows)
    shutil.rmtree(folder / "key")
    with pytest.raises(CacheError, match=r"key, which another process uses, is damaged or gone: start again"):
        pickle.loads(content)


# Damage that is found later


def test_a_row_is_checked_when_it_is_read_for_the_first_time(folder, caplog):
    open_rows(Builder())
    flip_bit(folder / "key")  # of row 1
    again = Builder()
    rows = open_rows(again)
    np.testing.assert_array_equal(rows[[0, 2, 4]], ROWS[[0, 2, 4]])
    assert (again.calls, caplog.records) == (0, [])
    np.testing.assert_array_equal(rows[1], ROWS[1])
    assert again.calls == 1
    [warning] = caplog.records
    assert f"{folder / 'key'} cannot be used and will be made again: the checksum of row 1" in warning.getMessage()
    np.testing.assert_array_equal(open_rows(fail), ROWS)


def test_an_entry_that_another_process_has_made_again_is_used(folder):
    open_rows(Builder())
    flip_bit(folder / "key")
    first = open_rows(fail)
    second = open_rows(Builder())
    for rows in (second, first):
        np.testing.assert_array_equal(rows, ROWS)


def test_rows_that_cannot_be_made_again_as_they_were_are_an_error(folder):
    def build(append):
        append(ROWS[::-1])

    open_rows(Builder())
    flip_bit(folder / "key")
    rows = open_rows(build)
    with pytest.raises(DataError, match=r"key was damaged, and cannot be made again as it was; start again"):
        rows[1]


def test_rows_that_were_pickled_are_made_again_at_the_next_start(folder):
    content = pickle.dumps(open_rows(Builder()))
    flip_bit(folder / "key")
    rows = pickle.loads(content)
    with pytest.raises(CacheError, match=r"key, which another process uses, is damaged or gone: start again"):
        rows[1]
    again = Builder()
    np.testing.assert_array_equal(open_rows(again), ROWS)
    assert again.calls == 1
