"""The main job in several ranks: one writes, one speaks, and one that dies ends the others."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from experiments import reinforce
from experiments.common.torchrun import Launch
from experiments.common.training.run_folder import CHECKPOINT
from permenv import ConfigurationError, checkpoint
from tests.experiments.helpers import arguments, job, metrics
from tests.helpers import ROOT
from tests.ranks import run_ranks, run_script_in_ranks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="ranks are forked from a process that is warm")

SOON = 20.0
"""Seconds within which the death of a rank must end all, on a busy machine."""


def train(out, updates, resume=False):
    """Run or continue the main job; return what its summary has of ranks."""
    return reinforce.main(job(out, env={"total_updates": updates}, resume=resume))["ranks"]


# One line


def test_without_torchrun_there_is_one_process_and_its_command_line(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "3")  # as other schedulers set it
    launch = Launch()
    assert (launch.rank, launch.size, launch.missing(), launch.command()) == (0, 1, None, sys.orig_argv)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"LOCAL_WORLD_SIZE": "1"}, "torchrun --nnodes: ranks must be on one machine; use --nproc-per-node alone"),
        ({"TORCHELASTIC_MAX_RESTARTS": "3"}, "torchrun --max-restarts 3: a run is continued with --resume; leave it"),
    ],
)
def test_what_one_machine_does_not_do_is_refused(monkeypatch, changes, message):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", **changes}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=message):
        Launch().require_one_machine()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("reinforce", "error: batch_size=9 on 2 ranks: must be a multiple of their number; set batch_size=10 or"),
        pytest.param(
            "sb3",
            "error: torchrun --nproc-per-node 2: this script does not divide a run; start it with: python experiments/",
            marks=pytest.mark.ci,
        ),
    ],
)
def test_an_error_of_all_ranks_is_one_line(tmp_path, script, said):
    place = tmp_path / "out"
    words = ("--device=cpu", "--out", str(place), *arguments(batch_size=9, samples_per_action=1))
    codes, logs = run_script_in_ranks(2, tmp_path, script, *words)
    assert codes == [1, 1]
    assert "".join(logs).startswith(said)
    assert "".join(logs).count("\n") == 1
    assert not place.exists()


# Rank 0 writes


@pytest.mark.ci
def test_one_rank_writes_and_speaks(tmp_path):
    words = ("--device=cpu", "--out", str(tmp_path / "out"), *arguments(total_updates=1))
    codes, (first, second) = run_script_in_ranks(2, tmp_path, "reinforce", *words)
    assert (codes, second) == ([0, 0], "")
    assert "Error, spatial: " in first
    assert len(list((tmp_path / "out" / "tensorboard").iterdir())) == 1
    assert len(metrics(tmp_path / "out")) == 1
    codes, logs = run_script_in_ranks(2, tmp_path / "again", "reinforce", *words)
    assert codes == [1, 1]
    refused = f"error: {tmp_path / 'out'} holds a run: continue it with --resume, or name another folder with --out"
    assert "".join(logs) == f"{refused}\n"


# A rank dies


def ranks_of(torchrun: subprocess.Popen) -> dict[int, int]:
    """The processes that torchrun has started, by rank."""
    found = {}
    for child in Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split():
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found |= {int(each[5:]): int(child) for each in variables if each.startswith(b"RANK=")}
    return found


@contextmanager
def running(place, log):
    """Start the main job with torchrun in two ranks; yield torchrun and the ranks' processes when it has two rows."""
    words = ["experiments/reinforce.py", "--device=cpu", "--out", str(place), *arguments(total_updates=10_000)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *words]
    with log.open("w") as file:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        torchrun = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
    processes = {}
    try:
        until = time.monotonic() + 240
        while not (place / "metrics.csv").exists() or len(metrics(place)) < 2:
            assert torchrun.poll() is None, log.read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
        processes = ranks_of(torchrun)
        yield torchrun, processes
    finally:
        torchrun.kill()
        torchrun.wait()
        for process in processes.values():
            if Path(f"/proc/{process}").exists():
                os.kill(process, signal.SIGKILL)


in_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds a rank's process in /proc")


@pytest.mark.ci
@in_proc
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_ends_the_others_and_the_run_is_continued_to_the_same_end(tmp_path, killed):
    place, log = tmp_path / "run", tmp_path / "log"
    with running(place, log) as (torchrun, processes):
        os.kill(processes[killed], signal.SIGKILL)
        start = time.monotonic()
        assert torchrun.wait(120) == 1
        assert time.monotonic() - start < SOON
    said = log.read_text()
    (line,) = [each for each in said.splitlines() if "continue with" in each]
    assert line.startswith(
        f"rank {killed} of 2 has ended: {place} holds the run up to its last update; continue with: "
        f"torchrun --nproc-per-node 2 experiments/reinforce.py --device=cpu"
    )
    assert line.endswith(" --resume")
    assert f'File "{ROOT}' not in said  # no traceback of this project
    updates = len(checkpoint.read(place / CHECKPOINT, "run", "agent")["job"]["rows"])
    assert updates >= 1
    assert run_ranks(2, train, place, updates + 2, True) == [2, 2]
    assert run_ranks(2, train, tmp_path / "whole", updates + 2) == [2, 2]
    assert metrics(place) == metrics(tmp_path / "whole")


@pytest.mark.ci
@in_proc
@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGINT, "stopped by SIGINT: "), (signal.SIGKILL, "torchrun has ended: ")]
)
def test_when_torchrun_is_stopped_all_ranks_end_with_one_line(tmp_path, number, said):
    place, log = tmp_path / "run", tmp_path / "log"
    with running(place, log) as (torchrun, processes):
        torchrun.send_signal(number)
        until = time.monotonic() + SOON
        while any(Path(f"/proc/{process}").exists() for process in processes.values()):
            assert time.monotonic() < until
            time.sleep(0.05)
    (line,) = [each for each in log.read_text().splitlines() if "continue with" in each]
    assert line.startswith(f"{said}{place} holds the run up to its last update; continue with: torchrun ")
    checkpoint.read(place / CHECKPOINT, "run", "agent")


@pytest.mark.ci
def test_the_comparison_with_random_permutations_is_written_once(tmp_path):
    config = job(tmp_path / "run", env={"total_updates": 1}, compare_random=True)
    first, second = (each["ranks"] for each in run_ranks(2, reinforce.main, config))
    assert first == second == 2
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["relative_accuracy"] >= 0
    assert (tmp_path / "run" / "random" / "summary.json").exists()
