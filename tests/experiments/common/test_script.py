"""What a script shows where it cannot go on, and where it is told to stop."""

import dataclasses
import signal
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import pytest

from experiments import across_runs, leaderboard, reinforce
from experiments.common.script import run_script
from experiments.common.sweeps.sweep import JobError
from experiments.common.training.run_folder import CHECKPOINT
from permenv import ConfigurationError, DataError
from tests.experiments.helpers import job


@dataclass(frozen=True)
class Config:
    """The options of a script that has saved something."""

    out: Path = Path("somewhere")
    resume: bool = False
    saved = "somewhere holds it"


@pytest.fixture
def call(monkeypatch, capsys):
    """Return a function that runs a script with a command line and returns its exit code and what it said."""

    def call(main, *arguments, kind=Config):
        words = ["python", "a script.py", *arguments]
        monkeypatch.setattr(sys, "argv", words[1:])
        monkeypatch.setattr(sys, "orig_argv", words)
        with pytest.raises(SystemExit) as end:
            run_script(main, kind, None)
        return end.value.code, capsys.readouterr().err

    return call


def raising(error):
    def main(_):
        raise error

    return main


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_a_script_with_one_line_that_says_how_to_continue(call, name, code):
    number = getattr(signal, name)
    before = signal.default_int_handler
    outer = signal.signal(number, before)  # the tests themselves may run under nohup, which ignores SIGHUP
    cleaned = []

    def main(_):
        try:
            signal.raise_signal(number)
        finally:
            cleaned.append(True)

    command = "python 'a script.py' --out 'my runs' --resume"
    try:
        assert call(main, "--out", "my runs") == (
            code,
            f"stopped by {name}: somewhere holds it; continue with: {command}\n",
        )
        assert cleaned
        assert signal.getsignal(number) is before
        assert call(main, "--out", "my runs", "--resume")[1].endswith(f": {command}\n")
    finally:
        signal.signal(number, outer)


def test_a_signal_that_a_library_turned_into_another_error_is_a_signal_all_the_same(call):
    def main(_):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape of object type 'torch.storage.UntypedStorage'") from None

    assert call(main)[0] == 143


def test_where_nothing_is_saved_the_script_starts_again(call):
    @dataclass(frozen=True)
    class Empty(Config):
        saved = None

    _, said = call(lambda _: signal.raise_signal(signal.SIGTERM), kind=Empty)
    assert said == "stopped by SIGTERM: nothing is saved yet; start again with: python 'a script.py'\n"


def test_a_signal_that_is_to_be_ignored_is_ignored(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py"])
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run_script(lambda _: signal.raise_signal(signal.SIGHUP), Config, None)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DataError("no images\nin it"), "error: no images\\nin it\n"),
        (
            OSError(28, "No space left on device", "x.json"),
            "error: [Errno 28] No space left on device: 'x.json'; somewhere holds it; continue with: "
            "python 'a script.py' --resume\n",
        ),
        (
            BrokenProcessPool("A process in the process pool was terminated abruptly"),
            "error: a worker process was killed, perhaps because memory ran out: run fewer of them with --processes; "
            "somewhere holds it; continue with: python 'a script.py' --resume\n",
        ),
    ],
)
def test_an_error_is_one_line(call, error, said):
    assert call(raising(error)) == (1, said)


def test_the_error_of_a_job_is_one_line_if_it_names_a_remedy(call, monkeypatch):
    def main(_):
        raise JobError("random-seed0: no images") from DataError("no images")

    assert call(main)[1].startswith("error: random-seed0: no images; somewhere holds it")
    with pytest.raises(JobError):
        run_script(raising(JobError("a mistake")), Config, None)


def test_a_place_that_cannot_be_written_to_is_refused_before_the_script_begins(call, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    code, said = call(raising(AssertionError), "--out", str(tmp_path / "file" / "out.json"))
    assert (code, said) == (
        1,
        f"error: --out {tmp_path / 'file'}: {tmp_path / 'file'} is not a folder; name another place with --out\n",
    )
    monkeypatch.setattr("os.access", lambda *_: False)
    code, said = call(raising(AssertionError), "--out", str(tmp_path / "new" / "out.json"))
    assert (code, said) == (
        1,
        f"error: --out {tmp_path / 'new'}: {tmp_path} cannot be written to; name another place with --out\n",
    )


def test_what_a_job_a_sweep_and_a_policy_have_saved(tmp_path):
    config = job(tmp_path / "run")
    sweep = leaderboard.Config(runs=tmp_path / "runs")
    policy = across_runs.Config(out=tmp_path / "run")
    assert (config.saved, sweep.saved, policy.saved) == (None, None, None)
    assert dataclasses.replace(sweep, runs=None).saved is None
    for path in (tmp_path / "run" / CHECKPOINT, tmp_path / "runs" / "random-seed0.json"):
        path.parent.mkdir()
        path.touch()
    assert config.saved == f"{tmp_path / 'run'} holds the run up to its last update"
    assert policy.saved == f"{tmp_path / 'run'} holds the policy up to its last update"
    assert sweep.saved == f"{tmp_path / 'runs'} holds the finished runs"


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (reinforce.Config, {"seed": -1}, "--seed -1: must be at least 0"),
        (leaderboard.Config, {"first_seed": -5}, "--first-seed -5: must be at least 0"),
        (leaderboard.Config, {"seeds": 0}, "--seeds 0: must be at least 1"),
        (leaderboard.Config, {"processes": -1}, "--processes -1: must be at least 0"),
        (across_runs.Config, {"seed": -1}, "--seed -1: must be at least 0"),
        (across_runs.Config, {"hidden": -1}, "--hidden -1: must be at least 0"),
        (across_runs.Config, {"history": -1}, "--history -1: must be at least 0"),
        (across_runs.Config, {"episodes": 0}, "--episodes 0: must be at least 1"),
        (across_runs.Config, {"episodes_per_update": 0}, "--episodes-per-update 0: must be at least 1"),
        (across_runs.Config, {"processes": -1}, "--processes -1: must be at least 0"),
        (across_runs.Config, {"discount": 1.5}, r"--discount 1.5: must lie in \[0, 1\]"),
        (across_runs.Config, {"learning_rate": 0.0}, "--learning-rate 0.0: must be above 0"),
    ],
)
def test_numbers_that_are_out_of_range_are_refused(kind, options, message):
    with pytest.raises(ConfigurationError, match=message):
        kind(**options)
