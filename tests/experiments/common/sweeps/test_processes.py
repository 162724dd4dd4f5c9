"""Processes of a sweep end with the one that started them, whatever ends it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.experiments.helpers import arguments
from tests.helpers import ROOT

SWEEP = ("experiments/leaderboard.py", "--agents", "random", "--seeds", "4", "--processes", "2")
ACROSS = ("experiments/across_runs.py", "--algorithm", "ppo", "--processes", "2")

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="processes are listed in /proc")


def members(group):
    """Return the processes of a process group that are alive."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = path.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(of) == group and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def wait_until(condition):
    """Wait for a condition."""
    end = time.perf_counter() + 60
    while not condition():
        assert time.perf_counter() < end, "it took too long"
        time.sleep(0.05)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("script", "number", "code"),
    [
        (SWEEP, signal.SIGKILL, -9),
        (SWEEP, signal.SIGTERM, 143),
        (SWEEP, signal.SIGINT, 130),
        (ACROSS, signal.SIGKILL, -9),
        (ACROSS, signal.SIGINT, 130),
    ],
)
def test_workers_end_at_once_with_the_script(tmp_path, script, number, code):
    """SIGINT goes to all processes, as a terminal sends it; the others to the script alone."""
    endless = arguments(total_updates=10_000, iterations_per_update=1000)
    place = ("--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "board"))
    process = subprocess.Popen(
        [sys.executable, *script, *(place if script is SWEEP else ("--out", str(tmp_path / "runs"))), *endless],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until(lambda: len(members(process.pid)) >= 3)  # the third is multiprocessing's own helper
        time.sleep(0.5 if number == signal.SIGINT else 6)  # while they import, or while they train
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        said = process.communicate(timeout=60)[1]
        wait_until(lambda: not members(process.pid))
    finally:
        for each in members(process.pid):
            os.kill(each, signal.SIGKILL)
        process.wait()
        process.stderr.close()
    assert process.returncode == code
    if number != signal.SIGKILL:
        assert "Traceback" not in said
        assert said.splitlines()[-1].startswith(f"stopped by {number.name}: nothing is saved yet; start again with: ")
