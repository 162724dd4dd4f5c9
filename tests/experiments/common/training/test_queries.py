"""Which data query the nearest-neighbour search, and what a run says of folders of images and videos."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from experiments import reinforce
from experiments.common.training.options import JobOptions
from experiments.common.training.queries import find_queries, top1
from permenv import CheckpointError, DataError
from permenv.transfer.trunks import measure_statistics, some_of
from tests.experiments.helpers import job, metrics, write_photos
from tests.helpers import ROOT


def test_a_folder_of_images_with_its_val_beside_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PERMENV_CACHE", str(tmp_path / "cache"))
    write_photos(tmp_path / "data" / "train")
    write_photos(tmp_path / "data" / "val", each=2)
    (tmp_path / "data" / "train" / "class0" / "broken.jpg").write_text("no picture")
    summary = reinforce.main(job(tmp_path / "run", images=tmp_path / "data" / "train", updates=1))
    assert summary["tasks"]["spatial"]["queries"].endswith("val")
    assert 0 <= summary["tasks"]["spatial"]["top1_trained"] <= 1
    assert "Skipped, spatial: 1: class0/broken.jpg (" in capsys.readouterr().out


def test_the_home_of_the_user_in_a_path_is_the_folder_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = JobOptions(images=Path("~/data/train"), eval_images=Path("~/data/test"), trunk_from=Path("~/a"))
    assert (options.images, options.eval_images) == (tmp_path / "data" / "train", tmp_path / "data" / "test")
    assert options.trunk_from == tmp_path / "a"
    assert JobOptions(images=Path("~nobody-of-this-name/data")).images == Path("~nobody-of-this-name/data")


def test_data_may_be_elsewhere_when_a_run_is_resumed_but_not_other_data(tmp_path, monkeypatch):
    monkeypatch.setenv("PERMENV_CACHE", str(tmp_path / "cache"))
    write_photos(tmp_path / "data" / "train")
    write_photos(tmp_path / "data" / "val", each=2)
    data = tmp_path / "data"
    reinforce.main(job(tmp_path / "run", images=data / "train", updates=1))
    data = data.rename(tmp_path / "elsewhere")
    reinforce.main(job(tmp_path / "run", images=data / "train", updates=2, resume=True))
    write_photos(data / "other", each=13)
    with pytest.raises(CheckpointError, match=r"evaluated with other images or clips than .*other \(spatial\)"):
        reinforce.main(job(tmp_path / "run", images=data / "train", eval_images=data / "other", updates=3, resume=True))
    with pytest.raises(CheckpointError, match="all differences: data"):
        reinforce.main(job(tmp_path / "run", images=data / "other", updates=3, resume=True))
    assert len(metrics(tmp_path / "run")) == 2


def test_unlabelled_images_are_trained_on_and_not_evaluated(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PERMENV_CACHE", str(tmp_path / "cache"))
    write_photos(tmp_path / "data", classes=1, each=30)
    summary = reinforce.main(job(tmp_path / "run", images=tmp_path / "data" / "class0", updates=1))
    assert summary["tasks"]["spatial"]["top1_trained"] is None
    assert "no labels" in capsys.readouterr().out


def film(path, frames=12):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(f"{path.parent.name}/{path.name}".encode()))  # of identical clips one is used
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


@pytest.mark.ci
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
        summary = reinforce.main(job(tmp_path / name, env={"split": split}, **options))
        data = json.loads((tmp_path / name / "config.json").read_text())["data"]["temporal"]
        assert (data["clips"], data["queries"]) == (clips, queries)
        assert f"(queries: {queries})" in capsys.readouterr().out
        assert 0 <= summary["tasks"]["temporal"]["top1_trained"] <= 1
    for path in videos.glob("*/v5.avi"):  # the test clips of split 1
        path.unlink()
    summary = reinforce.main(job(tmp_path / "train only", **options))
    assert summary["tasks"]["temporal"]["queries"] == "the held-out clips"
    with pytest.raises(DataError, match=r"no split 3 .* choose one of \[1, 2\]"):
        reinforce.main(job(tmp_path / "x", env={"split": 3}, **options))


def test_unlabelled_clips_are_trained_on_and_not_evaluated(tmp_path, videos, capsys):
    summary = reinforce.main(job(tmp_path / "run", task="temporal", videos=videos / "walk", updates=1))
    assert summary["tasks"]["temporal"]["top1_trained"] is None
    assert "Nearest neighbours, temporal: no labels" in capsys.readouterr().out


@pytest.mark.ci
def test_videos_beside_scenes(tmp_path, videos, capsys):
    summary = reinforce.main(job(tmp_path / "run", task="spatiotemporal", videos=videos, updates=1))
    assert [task_summary["queries"] for task_summary in summary["tasks"].values()] == [
        "fresh scenes",
        "the held-out clips",
    ]
    assert "Skipped, temporal: 3: " in capsys.readouterr().out


@pytest.mark.ci
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
    assert "films contains no usable clip: jump/text.avi (" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_an_untrained_trunk_is_evaluated_with_measured_batch_statistics(make_env, monkeypatch):
    env = make_env(num_scenes=60)
    env.reset(seed=0)
    base_env = env.unwrapped
    trunk, task = base_env.run.trainer.eval_network.trunk, base_env.tasks["spatial"]
    trained = task.trainable(base_env.run.held_out["spatial"])
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    evaluated = []

    def search(module, *arguments, **keywords):
        evaluated.append(module)
        return {1: 0.5}

    monkeypatch.setattr("permenv.transfer.retrieval", search)
    queries = find_queries(JobOptions(), base_env)
    assert top1(base_env, queries) == top1(base_env, queries, untrained=True) == {"spatial": 0.5}
    own, measured = evaluated
    assert own is trunk
    expected = measure_statistics(trunk, some_of(task.data, trained)).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in measured.state_dict().items())
    assert not all(torch.equal(value, before[name]) for name, value in measured.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())


def test_data_without_labels_or_images_have_nothing_to_evaluate(make_env):
    env = make_env()
    env.reset(seed=0)
    base_env = env.unwrapped
    base_env.tasks["spatial"].data = Numbers()
    queries = find_queries(JobOptions(), base_env)
    assert top1(base_env, queries) == {"spatial": None}


class Numbers:
    """The data of a task that shuffles neither images nor frames."""

    name, fingerprint = "numbers", "0"

    def __len__(self):
        return 60
