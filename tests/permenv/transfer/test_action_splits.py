"""Folders with official lists become clips and splits, and what is missing is named."""

import logging

import cv2
import numpy as np
import pytest

from permenv.data import DataError
from permenv.transfer.action_recognition import ActionOptions, action_recognition
from permenv.transfer.action_splits import official_action_split, read_actions
from permenv.transfer.trunks import load_trunk

pytestmark = pytest.mark.usefixtures("cache")
NAMES = ("Bend/a1", "Bend/a2", "Bend/a3", "Jump/b1", "Jump/b2", "Jump/b3")


def film(path, grey, count):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 64))
    for number in range(count):
        writer.write(np.full((64, 64, 3), grey + number, dtype=np.uint8))
    writer.release()


@pytest.fixture
def folder(tmp_path):
    """Six clips, and lists of UCF-101's form for two splits."""
    for number, name in enumerate(NAMES):
        film(tmp_path / "videos" / f"{name}.avi", 20 * number, 4 + number)
    write(tmp_path, 1, ["Bend/a1", "Bend/a2", "Jump/b1", "Jump/b2"], ["Bend/a3", "Jump/b3"])
    write(tmp_path, 2, ["Bend/a2", "Bend/a3", "Jump/b2", "Jump/b3"], ["Bend/a1", "Jump/b1"])
    return tmp_path / "videos"


def write(place, number, train, test):
    lists = place / "lists"
    lists.mkdir(exist_ok=True)
    (lists / f"trainlist0{number}.txt").write_text("".join(f"{name}.avi 1\n" for name in train))
    (lists / f"testlist0{number}.txt").write_text("".join(f"{name}.avi\n" for name in test))


def named(clips, places):
    return [clips.names[clip].removesuffix(".avi") for clip in places]


def test_clips_are_read_once_and_each_split_has_its_lists(folder, caplog):
    clips, (first, second) = read_actions(folder, 54, (1, 2), frames=6, progress=False)
    assert clips.frames.size == 62
    assert clips.lengths.tolist() == [4, 5, 6, 6, 6, 6]
    assert named(clips, first.train) == ["Bend/a1", "Bend/a2", "Jump/b1", "Jump/b2"]
    assert named(clips, first.test) == ["Bend/a3", "Jump/b3"]
    assert named(clips, second.test) == ["Bend/a1", "Jump/b1"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_lists_of_hmdb_leave_out_what_is_in_neither_part(folder):
    for name in ("trainlist01.txt", "testlist01.txt", "trainlist02.txt", "testlist02.txt"):
        (folder.parent / "lists" / name).unlink()
    (folder.parent / "lists" / "Bend_test_split1.txt").write_text("a1.avi 1\na2.avi 0\na3.avi 2\n")
    (folder.parent / "lists" / "Jump_test_split1.txt").write_text("b1.avi 2\nb2.avi 1\nb3.avi 0\n")
    clips, (split,) = read_actions(folder, 54, (1,), progress=False)
    assert named(clips, split.train) == ["Bend/a1", "Jump/b2"]
    assert named(clips, split.test) == ["Bend/a3", "Jump/b1"]


def test_clips_that_cannot_be_used_are_named(folder, caplog):
    (folder / "Jump" / "b3.avi").write_bytes(b"no video")
    (folder / "Bend" / "a1.avi").unlink()
    clips, (split, _) = read_actions(folder, 54, (1, 2), progress=False)
    assert named(clips, split.train) == ["Bend/a2", "Jump/b1", "Jump/b2"]
    assert named(clips, split.test) == ["Bend/a3"]
    assert "Jump/b3.avi (not an AVI" in caplog.text
    assert "split 1: 2 of 6 clips left out: Bend/a1.avi (in the train list, but not usable), Jump/b3" in caplog.text


def test_a_class_without_training_clips_is_named(folder, caplog):
    write(folder.parent, 1, ["Bend/a1", "Bend/a2"], ["Bend/a3", "Jump/b3"])
    read_actions(folder, 54, (1,), progress=False)
    assert "split 1: 1 of 2 classes cannot be recognised: Jump (no training clip)" in caplog.text


def test_a_split_without_clips_or_lists_is_refused(folder):
    clips, _ = read_actions(folder, 54, (1,), progress=False)
    with pytest.raises(DataError, match=r"no split 3 in .*lists; choose one of \[1, 2\]"):
        official_action_split(folder, clips, 3)
    write(folder.parent, 1, ["Bend/a1"], ["Bend/gone", "Jump/lost"])
    with pytest.raises(DataError, match=r"none of the 2 test clips of split 1 .* add the clips"):
        official_action_split(folder, clips, 1)
    for path in (folder.parent / "lists").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"no lists of the clips .* put trainlist01\.txt"):
        official_action_split(folder, clips, 1)


def test_lists_are_looked_for_before_clips_are_decoded(folder, monkeypatch):
    monkeypatch.setattr("permenv.transfer.action_splits.video_folder", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(DataError, match="no split 3"):
        read_actions(folder, 54, progress=False)
    for path in (folder.parent / "lists").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="no lists of the clips"):
        read_actions(folder, 54, progress=False)


@pytest.mark.parametrize(
    ("videos", "numbers"), [("actions/videos", [(24, 12)] * 3), ("cctv/videos", None)], ids=["actions", "cctv"]
)
@pytest.mark.ci
def test_real_splits_have_their_clips(videos, numbers, real_data):
    clips, splits = read_actions(real_data / videos, 54, frames=2, progress=False)
    sizes = [(len(split.train), len(split.test)) for split in splits]
    assert numbers is None or sizes == numbers
    for split in splits:
        assert not set(split.train) & set(split.test)
        assert set(split.train) | set(split.test) <= set(range(len(clips)))


@pytest.mark.ci
def test_the_protocol_runs_on_real_clips(real_data):
    trunk = load_trunk("random", backbone="two-convolutions")
    clips, splits = read_actions(real_data / "actions/videos", trunk.input_size, frames=4, progress=False)
    options = ActionOptions.small()
    brief = ActionOptions(batch=8, hidden=16, ten_crops=False, schedule=type(options.schedule)(2, 0.01, 2))
    result = action_recognition(trunk, clips, splits, brief, progress=False)
    assert len(result.splits) == 3
    assert 0 <= result.accuracy <= 1
