"""Files of a run are whole or absent, and read back as they were written; a folder is one process's."""

import errno
import subprocess
import sys

import numpy as np
import pytest

from experiments.common.files import as_csv, as_json, write_json, write_text
from experiments.common.training.loggers import TensorBoardLogger
from experiments.common.training.run_folder import (
    CHECKPOINT,
    LOCK,
    RunFolder,
    RunFolderError,
    locked,
    read_rows,
)
from permenv import CheckpointError, ConfigurationError, checkpoint
from tests.experiments.helpers import small

ROWS = [{"update": 1.0, "error": 0.1 + 0.2}, {"update": 2.0, "error": 1e-17}]


def test_rows_are_read_back_exactly(tmp_path):
    (tmp_path / "metrics.csv").write_text(as_csv(ROWS))
    assert read_rows(tmp_path) == ROWS


def test_a_resumed_folder_goes_back_to_the_rows_of_the_checkpoint(tmp_path):
    folder = RunFolder(tmp_path / "run", resume=False)
    folder.start([])
    folder.save({}, {}, {})
    for row in ROWS:
        folder.append(dict(row))
    folder.close()
    folder = RunFolder(tmp_path / "run", resume=True)
    folder.start(ROWS[:1])
    assert read_rows(folder.path) == ROWS[:1]
    folder.append({"update": 2.0, "error": 0.5})
    folder.close()
    assert read_rows(folder.path) == [ROWS[0], {"update": 2.0, "error": 0.5}]


def test_an_unfinished_file_leaves_the_old_one(tmp_path):
    write_json(tmp_path / "a.json", {"number": 1})

    class Broken:
        def __str__(self):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_json(tmp_path / "a.json", {"number": Broken()})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == '{\n  "number": 1\n}\n'


def test_dataclasses_and_paths_become_json(tmp_path):
    assert as_json({"env": small(), "path": tmp_path})["env"]["num_permutations"] == 24
    assert as_json({"path": tmp_path}) == {"path": str(tmp_path)}


def test_a_run_is_neither_overwritten_nor_invented(tmp_path):
    with pytest.raises(RunFolderError, match=r"there is no checkpoint\.safetensors"):
        RunFolder(tmp_path / "run", resume=True)
    (tmp_path / "note.txt").touch()
    with pytest.raises(RunFolderError, match="is not empty and holds no run"):
        RunFolder(tmp_path, resume=False)


# One process at a time

HOLD = """
import filelock, sys

with filelock.FileLock(sys.argv[1], timeout=0):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_process():
    """Return a function that locks a folder in another process, which it returns."""
    started = []

    def start(folder):
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-c", HOLD, str(folder / LOCK)]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def begin(path):
    """Begin a run and close its folder."""
    folder = RunFolder(path, resume=False)
    folder.start([])
    folder.save({}, {}, {})
    folder.close()


def test_a_folder_is_one_process_at_a_time_and_that_of_a_dead_one_is_free(tmp_path, other_process):
    begin(tmp_path / "run")
    process = other_process(tmp_path / "run")
    for resume in (False, True):
        with pytest.raises(RunFolderError, match=f"{tmp_path / 'run'} is in use by another process: .*--out"):
            RunFolder(tmp_path / "run", resume)
    process.kill()
    process.wait()
    RunFolder(tmp_path / "run", resume=True).close()


def test_of_two_processes_that_begin_at_once_one_is_refused(tmp_path, other_process):
    folder = RunFolder(tmp_path / "run", resume=False)
    process = other_process(tmp_path / "run")
    with pytest.raises(RunFolderError, match="is in use by another process"):
        folder.start([])
    process.kill()
    process.wait()
    begin(tmp_path / "run")
    with pytest.raises(RunFolderError, match="holds a run"):  # it came too late
        folder.start([])


def test_a_run_holds_its_folder_until_it_is_closed(tmp_path):
    folder = RunFolder(tmp_path / "run", resume=False)
    folder.start([])
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run" / LOCK)]
    assert "Timeout" in subprocess.run(command, capture_output=True, text=True, check=False, input="").stderr
    with locked(tmp_path / "run", "--out"):
        pass  # the process that has it may have it twice
    assert "Timeout" in subprocess.run(command, capture_output=True, text=True, check=False, input="").stderr
    folder.close()
    assert subprocess.run(command, capture_output=True, text=True, check=False, input="").stdout == "held\n"


@pytest.mark.parametrize("answer", ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "ENOTSUP"])
def test_without_file_locks_a_run_goes_on_and_warns_once(tmp_path, monkeypatch, caplog, answer):
    def flock(*_):
        raise OSError(getattr(errno, answer), "this file system has no locks")

    monkeypatch.setattr("fcntl.flock", flock)
    begin(tmp_path / "run")
    for _ in range(2):
        RunFolder(tmp_path / "run", resume=True).close()
    assert (tmp_path / "run" / LOCK).read_bytes() == b""  # it says that the folder is a run's, not who uses it
    assert caplog.text.count("no two processes") == 1
    with locked(tmp_path / "run", "--out"), locked(tmp_path / "run", "--out"):
        pass


# Killed before the first checkpoint


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path, resume):
    folder = RunFolder(tmp_path, resume=False)
    folder.start([])
    folder.array("permutations-temporal", np.arange(3))
    folder.json("config", {})
    folder.close()
    leftover = tmp_path / f".{CHECKPOINT}.{'0a' * 16}.tmp"
    leftover.write_text("half of it")
    assert not RunFolder.holds_run(tmp_path)
    again = RunFolder(tmp_path, resume)
    again.start([])
    again.save({}, {}, {})
    again.close()
    assert {path.name for path in tmp_path.iterdir()} == {LOCK, "config.json", CHECKPOINT}


def test_a_folder_is_a_runs_from_its_first_instant(tmp_path):
    (tmp_path / LOCK).touch()
    RunFolder(tmp_path, resume=True).close()
    RunFolder(tmp_path, resume=False).close()


@pytest.mark.parametrize("resume", [False, True])
def test_metrics_without_their_checkpoint_are_not_thrown_away(tmp_path, resume):
    begin(tmp_path)
    (tmp_path / "metrics.csv").write_text(as_csv(ROWS))
    (tmp_path / CHECKPOINT).unlink()
    with pytest.raises(RunFolderError, match="is not empty and holds no run"):
        RunFolder(tmp_path, resume)
    assert read_rows(tmp_path) == ROWS


# Damaged folders


@pytest.mark.parametrize(
    ("name", "as_folder", "message"),
    [
        ("metrics.csv", True, "metrics.csv is a folder: move it away"),
        ("summary.json", True, "summary.json is a folder"),
        ("error.png", True, "error.png is a folder"),
        ("permutations-spatial.npy", True, "permutations-spatial.npy is a folder"),
        (CHECKPOINT, True, "checkpoint.safetensors is a folder"),
        ("tensorboard", False, "tensorboard is not a folder"),
    ],
)
def test_a_folder_in_the_place_of_a_file_is_named(tmp_path, name, as_folder, message):
    begin(tmp_path)
    path = tmp_path / name
    if path.is_dir():
        for each in path.iterdir():
            each.unlink()
        path.rmdir()
    path.unlink(missing_ok=True)
    path.mkdir() if as_folder else path.write_text("mine")
    with pytest.raises(RunFolderError, match=message):
        RunFolder(tmp_path, resume=True)
    assert path.is_dir() == as_folder


@pytest.mark.parametrize(
    "tree",
    [
        {"run": {}},
        {"agent": {}, "job": {"rows": []}},
        {"agent": None, "job": {"rows": [], "settings": {}}},
        {"agent": {}, "job": {"rows": {}, "settings": {}}},
        {"agent": {}, "job": {"rows": [{"update": 1.0}, {"update": 2.0, "error": 0.5}], "settings": {}}},
        {"agent": {}, "job": {"rows": [{"update": 1.0, "error": "low"}], "settings": {}}},
        {"agent": {}, "job": {"rows": [{"update": 2.0, "error": 0.5}], "settings": {}}},
    ],
)
def test_a_checkpoint_that_is_not_of_a_run_is_refused(tmp_path, tree):
    checkpoint.write(tmp_path / CHECKPOINT, tree)
    with pytest.raises(CheckpointError, match=CHECKPOINT):
        RunFolder(tmp_path, resume=True).read()


def test_a_checkpoint_is_read_as_it_was_saved(tmp_path):
    folder = RunFolder(tmp_path, resume=False)
    assert folder.read() is None
    folder.start(ROWS)
    folder.save({"run": {"seed": 0}}, {"a": 1}, {"settings": {}, "notes": {}})
    expected = {"run": {"seed": 0}, "agent": {"a": 1}, "job": {"rows": ROWS, "settings": {}, "notes": {}}}
    assert folder.read("notes") == expected
    with pytest.raises(CheckpointError, match="is not of such a run"):
        folder.read("notes", "seconds")
    folder.close()


def test_tensorboard_is_written_again_from_the_rows(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    begin(tmp_path)
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.out.tfevents.1.another.2").write_bytes(b"of a process that was killed")
    folder = RunFolder(tmp_path, resume=True, loggers=[TensorBoardLogger()])
    folder.start(ROWS, first={"update": 0, "error": 0.9})
    folder.append({"update": 3.0, "error": 0.5})
    folder.save({}, {}, {})
    folder.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("error")
    assert [event.step for event in events] == [0, 1, 2, 3]
    assert [event.value for event in events] == pytest.approx([0.9, 0.3, 1e-17, 0.5])


def test_a_file_that_is_written_again_leaves_nothing_of_a_write_that_was_killed(tmp_path):
    path = tmp_path / "board.md"
    other = tmp_path / f".board.json.{'0a' * 16}.tmp"
    for name in (f".board.md.{'0a' * 16}.tmp", other.name):
        (tmp_path / name).write_text("half of it")
    write_text(path, "a table")
    assert path.read_text() == "a table"
    assert set(tmp_path.iterdir()) == {path, other}


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "run").touch()
    for path in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(ConfigurationError, match=f"--out {path}: {tmp_path / 'run'} is not a folder"):
            RunFolder(path, resume=False)


def test_an_array_that_cannot_be_written_leaves_nothing(tmp_path):
    folder = RunFolder(tmp_path, resume=False)
    folder.start([])

    class Broken:
        def __array__(self, *_, **__):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        folder.array("psi", Broken())
    folder.close()
    assert {path.name for path in tmp_path.iterdir()} == {LOCK}
