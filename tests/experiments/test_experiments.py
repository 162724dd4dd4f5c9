"""The main job and the benchmark, as small as they go: what they leave behind, and that a kill costs nothing."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from agents import AGENTS
from experiments import (
    benchmark,
    contest,
    credit,
    defaults,
    direction,
    horizon,
    leaderboard,
    noise,
    reinforce,
    runs,
    temporal,
)
from experiments import job as recording
from permenv import CheckpointError, ConfigurationError, DataError, embedded_clips
from permenv.permutations import reverse_of
from permenv.training import trunk_of
from tests.helpers import ROOT, SMALL

SETTINGS = tuple(
    f"{name}={value}"
    for name, value in {**SMALL, "num_scenes": 80}.items()
    if name not in ("device", "free_iterations", "total_updates")
)

TASKS = {"spatial": ("spatial",), "temporal": ("temporal",), "spatiotemporal": ("spatial", "temporal")}
COMMON = ["update", "iteration", "loss", "error", "baseline_error", "reward", "diverged"]
OF_A_TASK = ["loss", "error", "baseline_error", "reward", "entropy"]
OF_A_TASK += [f"{kind}_{group}" for kind in ("group", "size") for group in range(4)]


def job(out, **options):
    return reinforce.Config(
        **{"out": out, "updates": 3, "free_iterations": 1, "device": "cpu", "set": SETTINGS, **options}
    )


def metrics(folder, *without):
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in ("seconds", *without)} for row in csv.DictReader(file)]


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    """Leave out what takes most of the time of a run this small; those of `finished` are drawn."""
    monkeypatch.setattr(runs.RunFolder, "picture", lambda *_: None)


@pytest.fixture(scope="module", params=TASKS)
def finished(request, tmp_path_factory):
    """A run of each task: the names of its parts, its folder, its summary, what it said."""
    folder, said = tmp_path_factory.mktemp(request.param) / "run", io.StringIO()
    with contextlib.redirect_stdout(said):
        summary = reinforce.main(job(folder, task=request.param))
    return TASKS[request.param], folder, summary, said.getvalue()


def test_a_run_leaves_everything_behind(finished):
    names, folder, _, _ = finished
    config = json.loads((folder / "config.json").read_text())
    assert config["environment"]["num_permutations"] == 24
    assert config["machine"]["device"] == "cpu"
    assert "torch" in config["machine"]["versions"]
    assert list(config["data"]) == list(config["permutations"]) == list(names)
    for name in names:
        assert np.load(folder / f"permutations-{name}.npy").shape == (24, {"spatial": 9, "temporal": 8}[name])
        assert config["permutations"][name]["minimum"] >= 2
    assert {path.name for path in folder.glob("*.npy")} == {f"permutations-{name}.npy" for name in names}
    pictures = {
        "dashboard.png",
        "error.png",
        *(f"{kind}-{name}.png" for kind in ("choices", "shuffles") for name in names),
    }
    assert {path.name for path in folder.glob("*.png")} == pictures
    for name in pictures:
        assert min(cv2.imread(str(folder / name)).shape[:2]) > 300
    assert any((folder / "tensorboard").iterdir())


def test_the_summary_is_of_each_task_and_the_words_say_it(finished):
    names, folder, summary, said = finished
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert list(summary["tasks"]) == list(names)
    assert 0 <= summary["policy_cost"] < 1
    for name in names:
        its = summary["tasks"][name]
        assert (its["permutations"], its["samples"], its["chance"]) == (24, 12, pytest.approx(23 / 24))
        assert its["queries"] == {"spatial": "fresh scenes", "temporal": "fresh clips"}[name]
        assert f"{name}: {its['error_first']:.3f} untrained, {its['error_last']:.3f} after 9 iterations" in said
        assert f"{name}: {its['top1_untrained']:.1%} untrained, {its['top1_trained']:.1%} trained" in said
        errors = [float(row[f"{name}/error"]) for row in metrics(folder)]
        assert (its["error_last"], its["error_best"]) == (errors[-1], min(errors))
    for key in ("error_first", "error_last"):
        assert summary[key] == pytest.approx(np.mean([summary["tasks"][name][key] for name in names]))
    assert summary["error_best"] == min(float(row["error"]) for row in metrics(folder))


def test_the_metrics_have_the_same_columns_for_every_task(finished):
    names, folder, _, _ = finished
    rows = metrics(folder)
    assert list(rows[0]) == COMMON + [f"{name}/{column}" for name in names for column in OF_A_TASK]
    assert [row["update"] for row in rows] == ["1", "2", "3"]
    assert [row["iteration"] for row in rows] == ["3", "6", "9"]
    rows = [{column: float(value) for column, value in row.items()} for row in rows]
    for row in rows:
        for name in names:
            for kind in ("group", "size"):
                assert sum(row[f"{name}/{kind}_{group}"] for group in range(4)) == pytest.approx(1)
            assert row[f"{name}/reward"] == pytest.approx(row[f"{name}/baseline_error"] - row[f"{name}/error"])
            assert 0 <= row[f"{name}/entropy"] <= np.log(4) + 1e-9
        for column in ("error", "baseline_error", "reward"):
            assert row[column] == pytest.approx(np.mean([row[f"{name}/{column}"] for name in names]))
        assert row["loss"] == pytest.approx(sum(row[f"{name}/loss"] for name in names))


def test_the_entropy_is_that_of_the_choices(finished):
    names, folder, _, _ = finished
    for row in metrics(folder):
        for name in names:
            shares = np.array([float(row[f"{name}/group_{group}"]) for group in range(4)])
            shares = shares[shares > 0]
            assert float(row[f"{name}/entropy"]) == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-12)


def test_the_same_seed_gives_the_same_metrics(tmp_path):
    for name in ("a", "b"):
        reinforce.main(job(tmp_path / name))
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    reinforce.main(job(tmp_path / "c", seed=1))
    assert metrics(tmp_path / "a") != metrics(tmp_path / "c")


@pytest.mark.parametrize(
    ("task", "policy"),
    [
        *(("spatial", policy) for policy in ("reinforce", "random", "inverse")),
        ("temporal", "reinforce"),
        ("spatiotemporal", "reinforce"),
        ("spatiotemporal", "inverse"),
    ],
)
def test_a_prolonged_run_equals_an_uninterrupted_one(tmp_path, task, policy):
    whole = reinforce.main(job(tmp_path / "whole", task=task, policy=policy, updates=4))
    reinforce.main(job(tmp_path / "parts", task=task, policy=policy, updates=2))
    parts = reinforce.main(job(tmp_path / "parts", task=task, policy=policy, updates=4, resume=True))
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert parts["tasks"] == whole["tasks"]


@pytest.mark.parametrize("policy", AGENTS)
def test_an_interrupted_run_of_any_policy_equals_an_uninterrupted_one(tmp_path, monkeypatch, policy):
    config = job(tmp_path / "whole", policy=policy)
    reinforce.main(config)
    saved = runs.RunFolder.save

    def save_and_stop(folder, *arguments, **options):
        saved(folder, *arguments, **options)
        if len(folder.rows) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs.RunFolder, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        reinforce.main(dataclasses.replace(config, out=tmp_path / "parts"))
    monkeypatch.setattr(runs.RunFolder, "save", saved)
    assert len(metrics(tmp_path / "parts")) == 2
    reinforce.main(dataclasses.replace(config, out=tmp_path / "parts", resume=True))
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_a_killed_run_resumes_to_the_same_metrics(tmp_path):
    reinforce.main(job(tmp_path / "whole", updates=12))
    command = [
        *(sys.executable, "-m", "experiments.reinforce", "--out", str(tmp_path / "killed"), "--updates", "12"),
        *("--free-iterations", "1", "--device", "cpu", "--set", *SETTINGS),
    ]
    root = ROOT
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


@pytest.mark.parametrize("task", ["temporal", "spatiotemporal"])
def test_compare_random_trains_both(tmp_path, task, capsys):
    config = job(tmp_path / "run", task=task, compare_random=True, updates=2)
    summary = reinforce.main(config)
    assert len(metrics(tmp_path / "run")) == len(metrics(tmp_path / "run" / "random")) == 2
    assert summary["relative_accuracy"] > 0
    said = capsys.readouterr().out
    for name in TASKS[task]:
        assert summary["tasks"][name]["relative_accuracy"] > 0
        assert f"Against random permutations, same seed, {name}: error" in said
    longer = dataclasses.replace(config, updates=3, resume=True)
    reinforce.main(longer)
    assert len(metrics(tmp_path / "run")) == len(metrics(tmp_path / "run" / "random")) == 3


def test_the_inverse_of_a_trained_policy(tmp_path):
    joint = {"task": "spatiotemporal"}
    reinforce.main(job(tmp_path / "trained", **joint))
    trained = tmp_path / "trained" / runs.CHECKPOINT
    reinforce.main(job(tmp_path / "inverse", policy="inverse", policy_from=trained, **joint))
    assert len(metrics(tmp_path / "inverse")) == 3
    with pytest.raises(CheckpointError, match="holds no REINFORCE policy"):
        reinforce.main(job(tmp_path / "x", policy_from=tmp_path / "inverse" / runs.CHECKPOINT, **joint))


def test_a_policy_of_another_kind_of_task_is_refused(tmp_path):
    reinforce.main(job(tmp_path / "joint", task="spatiotemporal", updates=1))
    with pytest.raises(CheckpointError, match=r"joint.*does not fit an agent"):
        reinforce.main(job(tmp_path / "x", policy_from=tmp_path / "joint" / runs.CHECKPOINT))
    assert not (tmp_path / "x").exists()


def test_space_and_time_in_series(tmp_path, capsys):
    first = reinforce.main(job(tmp_path / "first", set=(*SETTINGS, "iterations_per_update=20"), updates=1))
    then = {"task": "temporal", "trunk_from": tmp_path / "first" / runs.CHECKPOINT}
    capsys.readouterr()
    whole = reinforce.main(job(tmp_path / "whole", **then))
    assert "% with the given trunk" in capsys.readouterr().out
    assert "spatial" in first["tasks"]
    assert "spatial" not in whole["tasks"]
    reinforce.main(job(tmp_path / "parts", **then, updates=1))
    reinforce.main(job(tmp_path / "parts", **then, resume=True))
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    reinforce.main(job(tmp_path / "still", **then, updates=1, set=(*SETTINGS, "learning_rate=0")))
    given, taken = (
        trunk_of(runs.checkpoint.read(tmp_path / name / runs.CHECKPOINT)["environment"]["trainer"])
        for name in ("first", "still")
    )
    weights = [name for name in given if name.endswith(("weight", "bias"))]  # the batch statistics moved on
    assert weights
    for name in weights:
        np.testing.assert_allclose(taken[name], given[name], rtol=1e-5)


def test_what_a_joint_policy_is_credited_with_is_the_users_choice(tmp_path):
    for choice in ("own", "sum"):
        reinforce.main(job(tmp_path / choice, task="spatiotemporal", credit=choice, updates=5))
    own, both = metrics(tmp_path / "own"), metrics(tmp_path / "sum")
    assert own[0] == both[0]  # before the first step of the policy
    assert own != both


def test_a_run_that_diverges_is_summed_up_all_the_same(tmp_path, capsys):
    config = job(tmp_path / "run", task="spatiotemporal", set=(*SETTINGS, "learning_rate=1e12"))
    summary = reinforce.main(config)
    said = capsys.readouterr().out
    assert summary["diverged"]
    assert [its["error_last"] for its in summary["tasks"].values()] == [1, 1]
    assert "The loss was not finite" in said
    assert "Nearest neighbours, temporal: the features are not finite any more." in said
    assert float(metrics(tmp_path / "run")[-1]["diverged"])


def test_a_reset_does_not_begin_another_run_and_the_policys_time_is_what_passes_outside(tmp_path):
    with recording.Recorder(job(tmp_path / "run", updates=2)) as run:
        run.begin(dict)
        observation, info = run.reset(seed=5)
        assert info["iteration"] == 0
        while not run.over:
            time.sleep(0.01)
            observation, *_, info = run.step(0)
        again, same = run.reset()
        np.testing.assert_array_equal(again, observation)
        assert same["iteration"] == info["iteration"] == 6
        summary = run.finish()
    assert 0.01 * 2 * 3 * 4 <= summary["seconds_policy"] <= summary["seconds"]
    assert metrics(tmp_path / "run")[1]["spatial/group_0"] == "1.0"


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
    assert summary["tasks"]["spatial"]["queries"].endswith("val")
    assert 0 <= summary["tasks"]["spatial"]["top1_trained"] <= 1
    assert "Skipped, spatial: 1: class0/broken.jpg (" in capsys.readouterr().out


def test_unlabelled_images_are_trained_on_and_not_evaluated(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PERMENV_CACHE", str(tmp_path / "cache"))
    write_photos(tmp_path / "data", classes=1, each=30)
    summary = reinforce.main(job(tmp_path / "run", images=tmp_path / "data" / "class0", updates=1))
    assert summary["tasks"]["spatial"]["top1_trained"] is None
    assert "no labels" in capsys.readouterr().out


def film(path, frames=12):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 25, (48, 40))
    for _ in range(frames):
        writer.write(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
    writer.release()
    return path


@pytest.fixture
def videos(tmp_path):
    """Three classes of six clips, and four files that are not what they should be."""
    folder = tmp_path / "films"
    for label in ("bend", "jump", "walk"):
        for number in range(6):
            film(folder / label / f"v{number}.avi")
    (folder / "bend" / "empty.avi").touch()
    (folder / "jump" / "text.avi").write_text("no video")
    film(folder / "walk" / "short.avi", frames=3)
    whole = film(folder / "walk" / "cut.avi", frames=30).read_bytes()
    (folder / "walk" / "cut.avi").write_bytes(whole[: len(whole) // 2])
    return folder


BAD_VIDEOS = ("bend/empty.avi (empty file)", "jump/text.avi (", "walk/short.avi (fewer than 8 frames: 3)")


def test_a_folder_of_videos_with_bad_files_in_it(tmp_path, videos, capsys):
    summary = reinforce.main(job(tmp_path / "run", task="temporal", videos=videos, updates=1))
    said = capsys.readouterr().out
    assert "Skipped, temporal: 3: " in said
    for bad in BAD_VIDEOS:
        assert bad in said
    assert "Used but lacking frames, temporal: 1: walk/cut.avi (" in said
    data = json.loads((tmp_path / "run" / "config.json").read_text())["data"]["temporal"]
    # of 19 clips, at most a fifth is held out; of each, ten frames are kept
    assert {name: data[name] for name in ("clips", "frames", "skipped", "irregular", "held_out")} == {
        "clips": 19,
        "frames": 190,
        "skipped": 3,
        "irregular": 1,
        "held_out": 3,
    }
    assert summary["tasks"]["temporal"]["queries"] == data["queries"] == "the held-out clips"
    assert 0 <= summary["tasks"]["temporal"]["top1_trained"] <= 1


def test_the_test_list_of_the_same_split_queries(tmp_path, videos, capsys):
    for split in (1, 2):
        for part, numbers in (("train", (0, 1, 2, 3, split + 3)), ("test", (6 - split,))):
            lines = [f"{label}/v{number}.avi" for label in ("bend", "jump", "walk") for number in numbers]
            (tmp_path / f"{part}list{split:02d}.txt").write_text("\n".join(lines))
    options = {"task": "temporal", "videos": videos, "updates": 1}
    for name, split, queries, clips in (
        ("default", None, "films, test split 1", 15),
        ("second", 2, "films, test split 2", 15),
        ("all", 0, "the held-out clips", 19),
    ):
        summary = reinforce.main(job(tmp_path / name, split=split, **options))
        data = json.loads((tmp_path / name / "config.json").read_text())["data"]["temporal"]
        assert (data["clips"], data["queries"]) == (clips, queries)
        assert f"(queries: {queries})" in capsys.readouterr().out
        assert 0 <= summary["tasks"]["temporal"]["top1_trained"] <= 1
    for path in videos.glob("*/v5.avi"):  # the test clips of split 1
        path.unlink()
    summary = reinforce.main(job(tmp_path / "train only", **options))
    assert summary["tasks"]["temporal"]["queries"] == "the held-out clips"
    with pytest.raises(DataError, match=r"no split 3 .* choose one of \[1, 2\]"):
        reinforce.main(job(tmp_path / "x", split=3, **options))


def test_unlabelled_clips_are_trained_on_and_not_evaluated(tmp_path, videos, capsys):
    summary = reinforce.main(job(tmp_path / "run", task="temporal", videos=videos / "walk", updates=1))
    assert summary["tasks"]["temporal"]["top1_trained"] is None
    assert "Nearest neighbours, temporal: no labels" in capsys.readouterr().out


def test_videos_beside_scenes(tmp_path, videos, capsys):
    summary = reinforce.main(job(tmp_path / "run", task="spatiotemporal", videos=videos, updates=1))
    assert [its["queries"] for its in summary["tasks"].values()] == ["fresh scenes", "the held-out clips"]
    assert "Skipped, temporal: 3: " in capsys.readouterr().out


def test_a_folder_without_a_readable_video_ends_with_one_clear_line(tmp_path):
    (tmp_path / "films" / "jump").mkdir(parents=True)
    (tmp_path / "films" / "jump" / "text.avi").write_text("no video")
    command = [
        *(sys.executable, "experiments/reinforce.py", "--task", "temporal", "--videos", str(tmp_path / "films")),
        *("--out", str(tmp_path / "run"), "--device", "cpu"),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "error: " in result.stderr.splitlines()[-1]
    assert "films holds no clip that can be used: jump/text.avi (" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"preset": "huge"}, ConfigurationError, "unknown preset 'huge'"),
        ({"task": "colour"}, ConfigurationError, "unknown task 'colour'"),
        ({"set": ("num_grups=4",)}, ConfigurationError, "did you mean 'num_groups'"),
        ({"set": ("num_groups",)}, ConfigurationError, "write NAME=VALUE"),
        ({"images": Path("/nowhere")}, DataError, "/nowhere"),
        ({"task": "temporal", "videos": Path("/nowhere")}, DataError, "/nowhere"),
        ({"videos": Path("/nowhere")}, ConfigurationError, "task 'spatial' shuffles stills"),
        ({"task": "temporal", "images": Path("/nowhere")}, ConfigurationError, "task 'temporal' shuffles frames"),
        ({"task": "temporal", "eval_images": Path("/x")}, ConfigurationError, "--eval-images /x: task 'temporal'"),
        ({"task": "temporal", "split": 1}, ConfigurationError, "--split 1: the embedded data has no official splits"),
        ({"trunk_from": Path("/nowhere")}, CheckpointError, "no checkpoint at /nowhere"),
        ({"resume": True}, runs.RunFolderError, r"no checkpoint.safetensors"),
        ({"policy": "random", "compare_random": True}, ConfigurationError, "choose another --policy"),
        ({"policy_from": Path("/nowhere")}, CheckpointError, "no checkpoint at /nowhere"),
        ({"policy": "ucb", "policy_from": Path("/x")}, ConfigurationError, "--policy-from /x: ucb has no REINFORCE"),
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
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
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
    for task in ("spatial", "temporal"):
        assert written["validation"][task]["ratio"] == report["validation"][task]["ratio"] > 0
        assert written["validation"][task]["largest_ratio_difference"] < 1e-5
    assert set(written["joint"]["paper"]["seconds"]) == {"spatial", "temporal", "joint"}
    assert written["joint"]["paper"]["ratio_joint_to_sum"] > 0
    assert set(written["step"]["paper"]["images_per_second"]) == {"loop float32", "folded float32", "folded bf16"}
    assert {"samples_per_action=2", "samples_per_action=1"} <= set(written["env"])


@pytest.fixture
def make_it_small(monkeypatch):
    """Return a function that makes a measurement's presets and environments as small as `SMALL`."""

    def shrink(module):
        numbers = {name: value for name, value in SMALL.items() if name not in ("device", "total_updates")}
        tiny = dataclasses.replace(module.make_config("tiny"), **numbers) if hasattr(module, "make_config") else None
        monkeypatch.setattr(
            module, "make_config", lambda *_, **changes: dataclasses.replace(tiny, **changes), raising=False
        )
        if hasattr(module, "gym"):
            make = module.gym.make
            monkeypatch.setattr(module.gym, "make", lambda name, **options: make(name, **{**SMALL, **options}))

    return shrink


def test_the_measurement_of_defaults_runs(make_it_small):
    make_it_small(defaults)
    config = defaults.Config(updates=4, seeds=1, samples_per_action=(2, 8))
    assert 0 <= defaults._final_error(8, "lean", 0, config) <= 1
    noise = defaults._noise(0, config)
    assert set(noise) == set(config.decays)
    assert all(run["reward_sd"] >= 0 and 0 <= run["error"] <= 1 for run in noise.values())


@pytest.mark.parametrize("variant", direction._VARIANTS)
def test_the_measurement_of_the_direction_of_time_runs(make_it_small, variant):
    make_it_small(direction)
    figures = direction._measure(variant, 0, direction.Config(iterations=2))
    assert figures["permutations"] == (12 if variant == "merged" else 24)
    if variant != "default":
        assert figures["permutations whose reverse is in Ψ"] == (variant == "pairs")
    assert figures["E where the reverse counts as right"] <= figures["E"]


def test_pairs_are_a_permutation_and_its_reverse():
    _, permutations = direction._permutations("pairs")
    places = direction._places(permutations, reverse_of(permutations))
    np.testing.assert_array_equal(permutations[places], permutations.max() - permutations)
    assert len(np.unique(permutations, axis=0)) == len(permutations) == 100


def test_the_measurement_of_credit_runs(make_it_small):
    make_it_small(credit)
    for policy in credit._POLICIES:
        rows = credit._run(policy, 0, credit.Config(updates=4))
        assert [set(row["rewards"]) for row in rows] == [{"spatial", "temporal"}] * 4


def test_the_noise_of_two_rewards_that_are_opposites():
    rewards = [9.0, 9.0, 1.0, -1.0, 1.0, -1.0]  # the first third is left out
    noise = credit._noise([[{"rewards": {"spatial": r, "temporal": -r}} for r in rewards]])
    assert noise == pytest.approx(
        {
            "sd of the spatial reward": 1,
            "sd of the temporal reward": 1,
            "sd of the sum": 0,
            "correlation of the two": -1,
        }
    )


def test_the_measurement_of_the_temporal_defaults_runs(make_it_small):
    make_it_small(temporal)
    error = temporal._final_error("shared_crop=False", 0, temporal.Config(iterations=100))
    assert 0 <= error <= 1
    shares = temporal._smoothest(embedded_clips(15, 12, 37, 5))
    # without crops the smoothest order of a clip that pans is nearly always the true one
    assert shares["not cropped"] > 0.9
    assert shares["a place each"] < shares["one place"]


def test_noise_and_signal_are_told_apart():
    rng = np.random.default_rng(0)
    tables = [
        moment + 2 * rng.standard_normal((200, 1)) + 4 * rng.standard_normal((200, 5)) for moment in (-10.0, 0.0, 10.0)
    ]
    figures = noise.signal_to_noise(tables)
    assert figures["noise_sd"] == pytest.approx(4, rel=0.05)
    assert figures["signal_sd"] == pytest.approx(2, rel=0.15)
    assert figures["ratio"] == pytest.approx(1 / 4, rel=0.3)
    assert figures["updates"] == pytest.approx(1 / figures["ratio"])
    same = np.array([[0.0, 1.0], [1.0, 0.0]])  # the groups' means do not differ at all
    assert noise.signal_to_noise([same])["ratio"] == 0
    assert noise.signal_to_noise([same])["updates"] is None


def test_the_measurement_of_noise_runs(make_it_small):
    make_it_small(noise)
    tables = noise._measure(0, noise.Config(moments=(1, 3), repeats=2))
    assert len(tables) == 2
    for table in tables:
        assert set(table) == {
            f"{measure}, {weights}" for measure in ("error", "cross-entropy") for weights in ("averaged", "live")
        }
        for values in table.values():
            assert values.shape == (4, 2)
            assert np.isfinite(values).all()
    assert np.any(tables[1]["error, averaged"] != tables[1]["error, live"])


@pytest.fixture
def in_this_process(monkeypatch):
    """Run a contest's runs here, one after the other."""
    monkeypatch.setattr(contest, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))


@pytest.fixture
def small_leaderboard(make_it_small, in_this_process, tmp_path):
    """Return a function that makes the comparison's options; its runs are small and in this process."""
    make_it_small(leaderboard)
    return lambda **options: leaderboard.Config(
        **{"seeds": 2, "updates": 2, "runs": tmp_path / "runs", "out": tmp_path / "board", **options}
    )


def test_the_leaderboard_compares_every_agent(small_leaderboard, tmp_path, capsys):
    report = leaderboard.main(small_leaderboard(seeds=1))
    rows = report["agents"]
    assert {row["agent"] for row in rows} == set(contest.AGENTS)
    errors = [row["final_error"] for row in rows]
    assert errors == sorted(errors)
    assert all(0 <= row["area"] <= 1 and 0 < row["cost"] < 1 for row in rows)
    by_name = {row["agent"]: row for row in rows}
    assert by_name["random"]["against_random"] == 0
    assert {path.suffix for path in tmp_path.iterdir() if path.stem == "board"} == {".json", ".csv", ".png"}
    with (tmp_path / "board.csv").open() as file:
        assert [row["agent"] for row in csv.DictReader(file)] == [row["agent"] for row in rows]
    assert "| lookahead |" in capsys.readouterr().out


def test_the_leaderboard_goes_on_where_it_was_stopped(small_leaderboard, tmp_path, monkeypatch):
    config = small_leaderboard(agents=("random", "exp3"))
    whole = leaderboard.main(config)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert len(times) == 4
    missing = tmp_path / "runs" / "exp3-seed1.json"
    errors = json.loads(missing.read_text())["errors"]
    missing.unlink()
    again = leaderboard.main(config)
    assert json.loads(missing.read_text())["errors"] == errors
    assert all(path.stat().st_mtime_ns == time for path, time in times.items() if path != missing)
    assert [row["final_error"] for row in again["agents"]] == [row["final_error"] for row in whole["agents"]]
    with pytest.raises(runs.RunFolderError, match=r"'updates': 2.*'updates': 3.*--runs"):
        leaderboard.main(dataclasses.replace(config, updates=3))


def test_the_leaderboard_refuses_agents_that_there_are_not(small_leaderboard, tmp_path):
    with pytest.raises(ValueError, match="unknown agent 'randon': choose of random"):
        leaderboard.main(small_leaderboard(agents=("randon",)))
    assert not (tmp_path / "runs").exists()


def test_the_leaderboards_figures():
    assert leaderboard.area([0, 10, 40], [1.0, 0.5, 0.1]) == pytest.approx((10 * 0.75 + 30 * 0.3) / 40)
    assert contest.mean_and_interval([0.3, 0.3, 0.3]) == pytest.approx((0.3, 0.3, 0.3))
    values = list(np.random.default_rng(1).normal(0, 1, 400))
    mean, low, high = contest.mean_and_interval(values)
    assert low < mean < high
    assert mean == pytest.approx(np.mean(values))
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.1)


@pytest.fixture
def small_horizon(make_it_small, in_this_process, tmp_path):
    """Return a function that makes the measurement's options; its runs are small and in this process."""
    make_it_small(horizon)
    numbers = {"seeds": 1, "moments": (1, 2), "later": 1, "updates": 4}
    files = {"runs": tmp_path / "horizon", "out": tmp_path / "horizon.json"}
    return lambda **options: horizon.Config(**{**numbers, **files, **options})


def test_the_measurement_of_the_horizon_runs(small_horizon, tmp_path, capsys):
    report = horizon.main(small_horizon())
    assert list(report["one update"]) == [name for name in contest.AGENTS if name != "lookahead"]
    assert [row["moment"] for row in report["moments"]] == [1, 2]
    for row in json.loads((tmp_path / "horizon.json").read_text())["moments"]:
        assert row["n"] == len(report["one update"])
        assert len(row["oracle"]) == 2
        assert 0 < row["leans"] <= 1
    assert "| hardest-first |" in capsys.readouterr().out


def test_the_states_of_the_horizon_are_those_of_the_leaderboards_runs(small_horizon, small_leaderboard, tmp_path):
    names = ("reinforce", "exp3", "dqn")
    horizon.main(small_horizon(agents=names))
    leaderboard.main(small_leaderboard(agents=names, seeds=1, updates=4))
    for name in names:
        errors = json.loads((tmp_path / "runs" / f"{name}-seed0.json").read_text())["errors"]
        errors = errors[::2]  # between updates there are free iterations
        states = json.loads((tmp_path / "horizon" / f"{name}-seed0.json").read_text())["states"]
        assert [(state["before"], state["own"]) for state in states] == [(errors[1], errors[2]), (errors[2], errors[3])]


def test_the_oracles_error_is_the_one_it_was_promised(make_it_small, monkeypatch):
    make_it_small(horizon)
    promised = []
    plan = horizon.Lookahead.probabilities

    def noted(self, observation):
        chances = plan(self, observation)
        promised.append(min(self.errors.values()))
        return chances

    monkeypatch.setattr(horizon.Lookahead, "probabilities", noted)
    found = horizon._run("random", 0, moments=(1, 2), later=1, updates=4, share=0.5)
    assert [state["oracle"][0] for state in found["states"]] == promised
    assert found == horizon._run("random", 0, moments=(1, 2), later=1, updates=4, share=0.5)


def test_the_figures_of_the_horizon():
    state = {"moment": 1, "before": 0.8, "own": 0.7, "leans": True}
    state |= {"oracle": [0.5, 0.4], "random": [0.7, 0.3], "lean drawn anew": 0.6}
    late = {**state, "moment": 4, "leans": False, "own": 0.4}
    report = horizon.compare({"one": [state, state], "other": [{**state, "leans": False}, late]})
    one, other = report["one update"]["one"], report["one update"]["other"]
    assert one["moments"] == {1: pytest.approx({"own": 0.1, "oracle": 0.3, "later": -0.1})}
    assert one["difference"] == pytest.approx((0.2,) * 3)
    assert other["moments"][1] == pytest.approx({"own": 0.1, "oracle": 0.3, "later": -0.1})
    assert other["moments"][4] == pytest.approx({"own": 0.4, "oracle": 0.3, "later": -0.1})
    assert other["difference"] == pytest.approx((0.05, -0.1, 0.2))
    first, second = report["moments"]
    assert (first["moment"], first["n"], first["before"]) == (1, 3, pytest.approx(0.8))
    assert first["leans"] == pytest.approx(2 / 3)
    assert first["lean drawn anew"] == pytest.approx((0.1,) * 3)
    assert first["oracle"] == [pytest.approx((0.2,) * 3), pytest.approx((-0.1,) * 3)]
    assert (second["moment"], second["n"], second["leans"]) == (4, 1, 0)


def test_a_network_that_diverges_counts_as_the_worst_error(make_it_small, monkeypatch):
    make_it_small(horizon)
    start = horizon.gym.make("PermShuffle-v0", total_updates=3, device="cpu", learning_rate=1e30).unwrapped
    start.reset(seed=0)
    agent = horizon.RandomPolicy(start.observation_space, start.action_space, seed=0)
    errors = horizon._errors(start, agent, agent, later=2)
    assert len(errors) == 3
    assert errors[-1] == 1.0
    monkeypatch.setitem(SMALL, "learning_rate", 1e30)
    with pytest.raises(RuntimeError, match="random, seed 0, diverged before update 3 was over"):
        horizon._run("random", 0, moments=(2,), later=0, updates=3, share=0.5)


@pytest.mark.parametrize("moments", [(0, 1), (1, 3)])
def test_the_measurement_of_the_horizon_refuses_a_moment_outside_the_run(small_horizon, moments, tmp_path):
    with pytest.raises(ValueError, match=r"--moments .* leave 1 \+ 1 \(--later\) of the 4 updates"):
        horizon.main(small_horizon(moments=moments))
    assert not (tmp_path / "horizon").exists()


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_the_measurement_of_the_horizon_refuses_a_share_out_of_range(small_horizon, share, tmp_path):
    with pytest.raises(ValueError, match=f"--share {share}: must be above 0 and at most 1"):
        horizon.main(small_horizon(share=share))
    assert not (tmp_path / "horizon").exists()
