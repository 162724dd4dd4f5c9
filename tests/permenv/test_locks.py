"""One process or thread at a time, and none is kept out by what a process that was killed has left."""

import errno
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from permenv.locks import locked
from tests.helpers import fail_to_lock

HOLD = """
import sys
from pathlib import Path
from permenv.locks import locked

with locked(Path(sys.argv[1]), lambda: None):
    print("held", flush=True)
    sys.stdin.read()
"""


class BusyError(Exception):
    """What `refuse` raises."""


def refuse():
    raise BusyError


def is_busy(path):
    try:
        with locked(path, refuse):
            return False
    except BusyError:
        return True


def test_another_process_is_kept_out_until_it_is_killed(tmp_path):
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BusyError), locked(path, refuse):
            pass
        process.kill()
        process.wait()
        with locked(path, refuse) as held:
            assert held


def test_who_does_not_refuse_waits(tmp_path):
    path, waits, order = tmp_path / "lock", threading.Event(), []

    def second():
        with locked(path, waits.set):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(path, refuse):
        thread.start()
        assert waits.wait(30)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_the_thread_that_holds_it_may_lock_it_again_if_it_says_so(tmp_path):
    path = tmp_path / "lock"
    with locked(path, refuse, again=True), ThreadPoolExecutor(1) as another:
        with locked(path, refuse, again=True) as held:
            assert held
        assert another.submit(is_busy, path).result()
        assert is_busy(path)


@pytest.mark.parametrize("answer", ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "ENOTSUP"])
def test_a_file_system_without_locks_keeps_nobody_out_and_leaves_no_mark(tmp_path, monkeypatch, answer):
    fail_to_lock(monkeypatch, getattr(errno, answer))
    path = tmp_path / "lock"
    with locked(path, refuse) as first, locked(path, refuse) as second:
        assert not first
        assert not second
        assert path.read_bytes() == b""
    assert path.read_bytes() == b""


def test_other_errors_are_not_taken_for_a_file_system_without_locks(tmp_path, monkeypatch):
    fail_to_lock(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"), locked(tmp_path / "lock", refuse):
        pass
