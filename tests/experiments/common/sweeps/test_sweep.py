"""A sweep runs each job once, in any executor, and says which job failed."""

import errno
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from experiments.common.evaluation.protocols import Data
from experiments.common.files import write_json
from experiments.common.options import SweepOptions
from experiments.common.sweeps.processes import SerialExecutor, make_executor
from experiments.common.sweeps.sweep import JobError, over_seeds, sweep
from experiments.common.training.run_folder import RunFolderError, locked
from permenv import ConfigurationError, make_config

JOBS = {f"{base}-{power}": {"base": base, "power": power} for power in (2, 3) for base in (5, 4)}
RESULTS = {"5-2": 25, "4-2": 16, "5-3": 125, "4-3": 64}


def raise_to(base, power):
    """Do a job of these tests."""
    if base == 0:
        raise ZeroDivisionError("no zero")
    return base**power


def process_and_threads():
    """Return where a job runs."""
    return os.getpid(), torch.get_num_threads()


def seeded(power, seed, environment):
    """Do a job of every seed."""
    return environment.env.num_groups * seed**power


def refuse(**_):
    raise AssertionError("nothing is left to run")


@pytest.mark.parametrize("executor", [SerialExecutor, lambda: ThreadPoolExecutor(3)])
def test_results_are_in_the_order_of_the_jobs(executor):
    with executor() as pool:
        found = sweep(raise_to, JOBS, executor=pool)
    assert list(found.items()) == list(RESULTS.items())


@pytest.mark.ci
def test_processes_have_one_thread_each():
    with make_executor(2) as pool:
        found = sweep(os.getpid, {"a": {}, "b": {}}, executor=pool)
        threads = sweep(torch.get_num_threads, {"a": {}, "b": {}}, executor=pool)
    assert os.getpid() not in found.values()
    assert set(threads.values()) == {1}


def test_no_processes_is_this_process():
    with make_executor(0) as pool:
        assert sweep(process_and_threads, {"a": {}}, executor=pool)["a"] == (os.getpid(), torch.get_num_threads())


def test_what_is_there_is_not_run_again(tmp_path):
    sweep(raise_to, JOBS, executor=SerialExecutor(), folder=tmp_path)
    assert {path.name for path in tmp_path.glob("*.json")} == {f"{name}.json" for name in JOBS}
    assert sweep(refuse, JOBS, executor=SerialExecutor(), folder=tmp_path) == RESULTS


def test_only_what_is_missing_is_run(tmp_path):
    sweep(raise_to, JOBS, executor=SerialExecutor(), folder=tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / "4-2.json").unlink()
    assert sweep(raise_to, JOBS, executor=SerialExecutor(), folder=tmp_path) == RESULTS
    assert {path for path, time in times.items() if path.stat().st_mtime_ns != time} == {tmp_path / "4-2.json"}


def test_results_of_other_arguments_or_versions_are_refused_before_anything_runs(tmp_path):
    sweep(raise_to, JOBS, executor=SerialExecutor(), folder=tmp_path)
    changed = {**JOBS, "4-3": {"base": 4, "power": 9}, "new": {"base": 1, "power": 1}}
    with pytest.raises(RunFolderError, match=r"4-3.json was made with arguments.power=3, not 9 .*--runs"):
        sweep(raise_to, changed, executor=SerialExecutor(), folder=tmp_path)
    assert not (tmp_path / "new.json").exists()
    content = json.loads((tmp_path / "5-2.json").read_text())
    content["settings"]["versions"]["torch"] = "1.0"
    (tmp_path / "5-2.json").write_text(json.dumps(content))
    with pytest.raises(RunFolderError, match=r"5-2.json was made with versions.torch='1.0'"):
        sweep(raise_to, JOBS, executor=SerialExecutor(), folder=tmp_path)


def test_results_of_other_code_are_taken_and_counted(tmp_path, capsys, monkeypatch):
    sweep(raise_to, JOBS, executor=SerialExecutor(), folder=tmp_path)
    sweep(refuse, JOBS, executor=SerialExecutor(), folder=tmp_path)
    assert capsys.readouterr().out == ""
    path = tmp_path / "4-2.json"
    content = json.loads(path.read_text())
    del content["code"]  # as of a version that did not keep it
    path.write_text(json.dumps(content))
    assert sweep(refuse, JOBS, executor=SerialExecutor(), folder=tmp_path) == RESULTS
    said = f"of the {len(JOBS)} results in {tmp_path} were made by other code of permenv, agents or experiments: "
    assert capsys.readouterr().out.startswith(f"1 {said}to make them anew, ")
    monkeypatch.setattr("experiments.common.sweeps.sweep.digest_of_code", lambda: "changed")
    assert sweep(refuse, JOBS, executor=SerialExecutor(), folder=tmp_path) == RESULTS
    assert capsys.readouterr().out.startswith(f"{len(JOBS)} {said}")


def count(data, seed):
    """Do a job on data."""
    return seed + sum(1 for path in data.images.rglob("*") if path.is_file())


def test_results_of_other_data_are_refused_before_anything_runs(tmp_path):
    (tmp_path / "images" / "cat").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (tmp_path / "images" / "cat" / name).write_text(name)
    jobs = {f"seed{seed}": {"data": Data(images=tmp_path / "images"), "seed": seed} for seed in (0, 1)}
    assert sweep(count, jobs, executor=SerialExecutor(), folder=tmp_path / "runs") == {"seed0": 2, "seed1": 3}
    assert sweep(refuse, jobs, executor=SerialExecutor(), folder=tmp_path / "runs") == {"seed0": 2, "seed1": 3}
    (tmp_path / "images" / "cat" / "b.png").write_text("repaired")
    (tmp_path / "runs" / "seed1.json").unlink()
    with pytest.raises(RunFolderError, match=r"seed0.json was made with data.data.images=.*--runs"):
        sweep(refuse, jobs, executor=SerialExecutor(), folder=tmp_path / "runs")


def test_results_of_the_same_data_in_another_place_are_taken(tmp_path):
    def jobs(place):
        data = Data(images=tmp_path / place)
        return {"one": {"data": data, "seed": 0}, "several": {"data": [data, data], "seed": 1}}

    def count_all(data, seed):
        return seed + sum(count(each, 0) for each in (data if isinstance(data, list) else [data]))

    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.png").write_text("a")
    found = sweep(count_all, jobs("here"), executor=SerialExecutor(), folder=tmp_path / "runs")
    (tmp_path / "here").rename(tmp_path / "there")
    assert sweep(refuse, jobs("there"), executor=SerialExecutor(), folder=tmp_path / "runs") == found
    (tmp_path / "there" / "b.png").write_text("b")
    with pytest.raises(RunFolderError, match=r"one.json was made with data.data.images="):
        sweep(refuse, jobs("there"), executor=SerialExecutor(), folder=tmp_path / "runs")


def test_a_long_name_of_a_job_is_a_name_of_a_file(tmp_path):
    jobs = {f"{'ä=0.01 ' * 60}{power}": {"base": 2, "power": power} for power in (2, 3)}
    assert list(sweep(raise_to, jobs, executor=SerialExecutor(), folder=tmp_path).values()) == [4, 8]
    assert list(sweep(refuse, jobs, executor=SerialExecutor(), folder=tmp_path).values()) == [4, 8]


def test_a_path_that_is_no_text_is_kept_and_read_back(tmp_path):
    jobs = {"a": {"object": Path(os.fsdecode(b"/nowhere/\xff"))}}
    assert sweep(str, jobs, executor=SerialExecutor(), folder=tmp_path) == {"a": "/nowhere/\udcff"}
    assert sweep(refuse, jobs, executor=SerialExecutor(), folder=tmp_path) == {"a": "/nowhere/\udcff"}


@pytest.mark.parametrize("executor", [SerialExecutor, lambda: ThreadPoolExecutor(1)])
def test_an_error_names_the_job_and_keeps_what_was_done(executor, tmp_path):
    jobs = {"first": {"base": 2, "power": 1}, "bad one": {"base": 0, "power": 1}, "last": {"base": 3, "power": 1}}
    with executor() as pool, pytest.raises(JobError, match="bad one: no zero") as caught:
        sweep(raise_to, jobs, executor=pool, folder=tmp_path)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert (tmp_path / "first.json").exists()
    assert not (tmp_path / "bad one.json").exists()


def test_jobs_that_run_while_another_fails_are_kept(tmp_path):
    failed = threading.Event()

    def work(fails):
        if fails:
            failed.set()
            raise ZeroDivisionError("no zero")
        failed.wait()
        return "done"

    with ThreadPoolExecutor(2) as pool, pytest.raises(JobError, match="bad one"):
        sweep(work, {"slow": {"fails": False}, "bad one": {"fails": True}}, executor=pool, folder=tmp_path)
    assert json.loads((tmp_path / "slow.json").read_text())["result"] == "done"


def test_results_that_a_full_disk_refused_are_written_when_there_is_room(tmp_path, monkeypatch):
    """Of three jobs the first one's result cannot be written, nor, at first, that of the one that still runs."""
    refused, all_run = threading.Event(), threading.Barrier(3)
    attempts = []

    def write(path, content):
        attempts.append(path.stem)
        if len(attempts) < 3:
            refused.set()
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_json(path, content)

    def work(waits):
        all_run.wait()
        if waits:
            refused.wait()
        return "done"

    monkeypatch.setattr("experiments.common.sweeps.sweep.write_json", write)
    jobs = {"quick": {"waits": False}, "slow": {"waits": True}, "slower": {"waits": True}}
    with ThreadPoolExecutor(3) as pool, pytest.raises(OSError, match="No space left"):
        sweep(work, jobs, executor=pool, folder=tmp_path)
    assert {json.loads(path.read_text())["result"] for path in tmp_path.glob("*.json")} == {"done"}
    assert {path.stem for path in tmp_path.glob("*.json")} == set(jobs)


def test_every_variant_is_run_with_every_seed(tmp_path):
    options = SweepOptions(seeds=3, processes=0, runs=tmp_path, env=make_config("tiny", num_groups=2))
    assert over_seeds(seeded, {"square": {"power": 2}, "cube": {"power": 3}}, options) == {
        "square": [0, 2, 8],
        "cube": [0, 2, 16],
    }
    assert {path.name for path in tmp_path.glob("*.json")} == {
        f"{n}-seed{s}.json" for n in ("square", "cube") for s in range(3)
    }


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"settings": {}}', None])
def test_a_damaged_result_is_named(tmp_path, damage):
    sweep(raise_to, JOBS, executor=SerialExecutor(), folder=tmp_path)
    path = tmp_path / "4-2.json"
    path.unlink()
    path.mkdir() if damage is None else path.write_text(damage)
    with pytest.raises(RunFolderError, match=r"4-2.json is not a result of a job .*: remove it"):
        sweep(refuse, JOBS, executor=SerialExecutor(), folder=tmp_path)


def test_what_killed_jobs_left_is_removed(tmp_path):
    leftover = tmp_path / f".4-2.json.{'ab' * 16}.tmp"
    leftover.touch()
    assert sweep(raise_to, JOBS, executor=SerialExecutor(), folder=tmp_path) == RESULTS
    assert not leftover.exists()


def test_a_folder_of_results_is_used_by_one_process(tmp_path):
    with ThreadPoolExecutor(1) as another, locked(tmp_path, "--runs"):  # a thread is kept out as a process is
        found = another.submit(sweep, refuse, JOBS, executor=SerialExecutor(), folder=tmp_path)
        with pytest.raises(RunFolderError, match=f"{tmp_path} is in use by another process: .*--runs"):
            found.result()


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(ConfigurationError, match=f"--runs {tmp_path / 'runs'}: .* is not a folder"):
        sweep(refuse, JOBS, executor=SerialExecutor(), folder=tmp_path / "runs")
