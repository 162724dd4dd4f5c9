"""The main job and the benchmark, as small as they go: what they leave behind, and that a kill costs nothing."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import SMALL

from experiments import benchmark, defaults, reinforce, runs
from permenv import CheckpointError, ConfigurationError, DataError

SETTINGS = tuple(
    f"{name}={value}"
    for name, value in {**SMALL, "num_scenes": 80}.items()
    if name not in ("device", "free_iterations", "total_updates")
)
PICTURES = ("error.png", "choices.png", "shuffles.png")


def job(out, **options):
    return reinforce.Config(
        **{"out": out, "updates": 3, "free_iterations": 1, "device": "cpu", "set": SETTINGS, **options}
    )


def metrics(folder, *without):
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in ("seconds", *without)} for row in csv.DictReader(file)]


@pytest.mark.parametrize("policy", ["reinforce", "random", "inverse"])
def test_a_run_leaves_everything_behind(tmp_path, policy, capsys):
    summary = reinforce.main(job(tmp_path / "run", policy=policy))
    folder = tmp_path / "run"
    rows = metrics(folder)
    assert [row["update"] for row in rows] == ["1", "2", "3"]
    assert [row["iteration"] for row in rows] == ["3", "6", "9"]
    for row in rows:
        assert sum(float(row[f"group_{g}"]) for g in range(4)) == pytest.approx(1)
        assert sum(float(row[f"size_{g}"]) for g in range(4)) == pytest.approx(1)
        assert float(row["reward"]) == float(row["baseline_error"]) - float(row["error"])
    config = json.loads((folder / "config.json").read_text())
    assert config["environment"]["num_permutations"] == 24
    assert config["machine"]["device"] == "cpu"
    assert "torch" in config["machine"]["versions"]
    assert config["permutations"]["minimum"] >= 2
    assert np.load(folder / "permutations.npy").shape == (24, 9)
    assert (
        json.loads((folder / "summary.json").read_text())["error_last"]
        == summary["error_last"]
        == float(rows[-1]["error"])
    )
    assert 0 <= summary["policy_cost"] < 1
    for name in PICTURES:
        assert min(cv2.imread(str(folder / name)).shape[:2]) > 300
    assert any((folder / "tensorboard").iterdir())
    said = capsys.readouterr().out
    assert f"{summary['error_first']:.3f} untrained, {summary['error_last']:.3f} after 9 iterations" in said
    assert f"{summary['top1_untrained']:.1%} untrained, {summary['top1_trained']:.1%} trained" in said


def test_the_same_seed_gives_the_same_metrics(tmp_path):
    for name in ("a", "b"):
        reinforce.main(job(tmp_path / name))
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    reinforce.main(job(tmp_path / "c", seed=1))
    assert metrics(tmp_path / "a") != metrics(tmp_path / "c")


@pytest.mark.parametrize("policy", ["reinforce", "random", "inverse"])
def test_a_prolonged_run_equals_an_uninterrupted_one(tmp_path, policy):
    reinforce.main(job(tmp_path / "whole", policy=policy, updates=5))
    reinforce.main(job(tmp_path / "parts", policy=policy, updates=2))
    reinforce.main(job(tmp_path / "parts", policy=policy, updates=5, resume=True))
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_a_killed_run_resumes_to_the_same_metrics(tmp_path):
    reinforce.main(job(tmp_path / "whole", updates=12))
    command = [
        *(sys.executable, "-m", "experiments.reinforce", "--out", str(tmp_path / "killed"), "--updates", "12"),
        *("--free-iterations", "1", "--device", "cpu", "--set", *SETTINGS),
    ]
    root = Path(__file__).parents[1]
    process = subprocess.Popen(command, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    rows = tmp_path / "killed" / "metrics.csv"
    while not (rows.exists() and rows.read_text().count("\n") > 3):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(metrics(tmp_path / "killed")) < 12
    reinforce.main(job(tmp_path / "killed", updates=12, resume=True))
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


def test_compare_random_trains_both(tmp_path, capsys):
    config = job(tmp_path / "run", compare_random=True, updates=2)
    summary = reinforce.main(config)
    assert len(metrics(tmp_path / "run")) == len(metrics(tmp_path / "run" / "random")) == 2
    assert summary["relative_accuracy"] > 0
    assert "Against random permutations, same seed" in capsys.readouterr().out
    longer = dataclasses.replace(config, updates=3, resume=True)
    reinforce.main(longer)
    assert len(metrics(tmp_path / "run")) == len(metrics(tmp_path / "run" / "random")) == 3


def test_the_inverse_of_a_trained_policy(tmp_path):
    reinforce.main(job(tmp_path / "trained"))
    reinforce.main(job(tmp_path / "inverse", policy="inverse", policy_from=tmp_path / "trained" / runs.CHECKPOINT))
    assert len(metrics(tmp_path / "inverse")) == 3
    with pytest.raises(CheckpointError, match="holds no REINFORCE policy"):
        reinforce.main(job(tmp_path / "x", policy_from=tmp_path / "inverse" / runs.CHECKPOINT))


def write_photos(folder, classes=3, each=12):
    rng = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(each):
            cv2.imwrite(
                str(folder / f"class{label}" / f"{number}.jpg"), rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
            )


def test_a_folder_of_images_with_its_val_beside_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PERMENV_CACHE", str(tmp_path / "cache"))
    write_photos(tmp_path / "data" / "train")
    write_photos(tmp_path / "data" / "val", each=2)
    (tmp_path / "data" / "train" / "class0" / "broken.jpg").write_text("no picture")
    summary = reinforce.main(job(tmp_path / "run", images=tmp_path / "data" / "train", updates=1))
    assert summary["top1_queries"].endswith("val")
    assert 0 <= summary["top1_trained"] <= 1
    assert "Skipped files: 1" in capsys.readouterr().out


def test_unlabelled_images_are_trained_on_and_not_evaluated(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PERMENV_CACHE", str(tmp_path / "cache"))
    write_photos(tmp_path / "data", classes=1, each=30)
    summary = reinforce.main(job(tmp_path / "run", images=tmp_path / "data" / "class0", updates=1))
    assert summary["top1_trained"] is None
    assert "no labels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"preset": "huge"}, ConfigurationError, "unknown preset 'huge'"),
        ({"task": "colour"}, ConfigurationError, "unknown task 'colour'"),
        ({"set": ("num_grups=4",)}, ConfigurationError, "did you mean 'num_groups'"),
        ({"set": ("num_groups",)}, ConfigurationError, "write NAME=VALUE"),
        ({"images": Path("/nowhere")}, DataError, "/nowhere"),
        ({"resume": True}, runs.RunFolderError, r"no checkpoint.safetensors"),
        ({"policy": "random", "compare_random": True}, ConfigurationError, "choose another --policy"),
        ({"policy_from": Path("/nowhere")}, CheckpointError, "no checkpoint at /nowhere"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        reinforce.main(job(tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten_nor_continued_with_other_options(tmp_path):
    reinforce.main(job(tmp_path / "run", updates=1))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(runs.RunFolderError, match="continue it with --resume, or name another folder with --out"):
        reinforce.main(job(tmp_path / "run", updates=1))
    with pytest.raises(CheckpointError, match=r"started with seed=0, not 1"):
        reinforce.main(job(tmp_path / "run", seed=1, resume=True))
    checkpoint = tmp_path / "run" / runs.CHECKPOINT
    checkpoint.write_bytes(before[checkpoint][:1000])
    with pytest.raises(CheckpointError, match="truncated"):
        reinforce.main(job(tmp_path / "run", resume=True))
    checkpoint.write_bytes(before[checkpoint])
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_other_files_is_left_alone(tmp_path, resume):
    (tmp_path / "config.json").write_text("somebody else's")
    with pytest.raises(runs.RunFolderError, match="is not empty and holds no run: name a new folder with --out"):
        reinforce.main(job(tmp_path, resume=resume))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == "somebody else's"


def test_errors_reach_the_user_as_one_line(tmp_path):
    command = [sys.executable, "experiments/reinforce.py", "--preset", "huge", "--out", str(tmp_path)]
    result = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.strip() == "error: unknown preset 'huge'; choose one of tiny, paper"


def test_the_benchmark_writes_ratios(tmp_path, monkeypatch):
    small = {name: value for name, value in SMALL.items() if name != "device"}
    tiny = benchmark.make_config("tiny", **small)
    monkeypatch.setattr(benchmark.permenv, "PRESETS", {"paper": tiny})
    monkeypatch.setattr(benchmark, "make_config", lambda preset, **changes: dataclasses.replace(tiny, **changes))
    make = benchmark.gym.make
    monkeypatch.setattr(benchmark.gym, "make", lambda name, **options: make(name, **{**SMALL, **options}))
    report = benchmark.main(
        benchmark.Config(device="cpu", naive_pairs=40, repeats=1, blocks=2, batch_size=8, out=tmp_path / "b.json")
    )
    written = json.loads((tmp_path / "b.json").read_text())
    assert written["validation"]["ratio"] == report["validation"]["ratio"] > 0
    assert written["validation"]["largest_ratio_difference"] < 1e-5
    assert set(written["step"]["paper"]["images_per_second"]) == {"loop float32", "folded float32", "folded bf16"}
    assert {"samples_per_action=2", "samples_per_action=1"} <= set(written["env"])


def test_the_measurement_of_defaults_runs(tmp_path, monkeypatch):
    tiny = dataclasses.replace(defaults.make_config("tiny"), **{n: v for n, v in SMALL.items() if n != "device"})
    monkeypatch.setattr(defaults, "make_config", lambda preset, **changes: dataclasses.replace(tiny, **changes))
    make = defaults.gym.make
    monkeypatch.setattr(defaults.gym, "make", lambda name, **options: make(name, **{**SMALL, **options}))
    config = defaults.Config(updates=4, seeds=1, samples_per_action=(2, 8))
    assert 0 <= defaults._final_error(8, "lean", 0, config) <= 1
    noise = defaults._noise(0, config)
    assert set(noise) == set(config.decays)
    assert all(run["reward_sd"] >= 0 and 0 <= run["error"] <= 1 for run in noise.values())
