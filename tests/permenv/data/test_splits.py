"""Official lists of training and test clips: where they are found, what they contain, errors about bad ones."""

import os

import pytest

from permenv.data.messages import DataError
from permenv.data.splits import official_split

CLIPS = [f"{label}/v_{label}_g{group:02}_c01.avi" for label in ("Bend", "Jump") for group in (1, 2, 3)]


@pytest.fixture
def root(tmp_path):
    """The folder of the clips, three folders deep so that nothing else is next to it."""
    folder = tmp_path / "data" / "set" / "videos"
    folder.mkdir(parents=True)
    return folder


def ucf(folder, split=1, train=CLIPS[:4], test=CLIPS[4:], end="\n"):
    """Write lists as those of UCF-101: numbered classes in training, none in test."""
    folder.mkdir(exist_ok=True)
    (folder / f"trainlist{split:02}.txt").write_text("".join(f"{clip} 1{end}" for clip in train), newline="")
    (folder / f"testlist{split:02}.txt").write_text("".join(f"{clip}{end}" for clip in test), newline="")
    return folder


def hmdb(folder, split=1, codes=(1, 2, 0), end=" \n"):
    """Write lists as those of HMDB-51: one a class, a code for every clip."""
    folder.mkdir(exist_ok=True)
    for label in ("Bend", "Jump"):
        names = [clip.split("/")[1] for clip in CLIPS if clip.startswith(label)]
        lines = [f"{name} {code}{end}" for name, code in zip(names, codes, strict=True)]
        (folder / f"{label}_test_split{split}.txt").write_text("".join(lines), newline="")
    return folder


@pytest.mark.parametrize("end", ["\n", "\r\n", "  \n", "\n\n", " \r\n \r\n"])
def test_ucf_lists(root, end):
    ucf(root / "lists", end=end)
    split = official_split(root, 1, CLIPS)
    assert (split.number, split.folder) == (1, root / "lists")
    assert split.train == set(CLIPS[:4])
    assert split.test == set(CLIPS[4:])


@pytest.mark.parametrize("end", ["\n", " \n", "\r\n", " \r\n\r\n"])
def test_hmdb_lists(root, end):
    hmdb(root / "lists", end=end)
    split = official_split(root, 1, CLIPS)
    assert split.train == {clip for clip in CLIPS if "g01" in clip}
    assert split.test == {clip for clip in CLIPS if "g02" in clip}


def test_each_split_has_its_own_lists(root):
    for number, first in enumerate((0, 2, 4), start=1):
        test = CLIPS[first : first + 2]
        ucf(root / "lists", number, [clip for clip in CLIPS if clip not in test], test)
    assert [sorted(official_split(root, number, CLIPS).test) for number in (1, 2, 3)] == [
        CLIPS[0:2],
        CLIPS[2:4],
        CLIPS[4:6],
    ]


def test_lists_are_searched_in_and_around_the_folder_in_a_fixed_order(root):
    places = [root, root.parent, root / "inside", root.parent / "beside"]
    for place in reversed(places):
        ucf(place)
        assert official_split(root, 1, CLIPS).folder == place


def test_no_lists(root):
    (root / "notes.txt").write_text("no list")
    for place in (root.parent / ".hidden", root / "too" / "deep", root.parent.parent):
        place.mkdir(parents=True, exist_ok=True)
        ucf(place)
    assert official_split(root, 1, CLIPS) is None


def test_lists_of_another_set_are_ignored(root):
    ucf(root.parent / "a", train=["Run/a.avi"], test=["Run/b.avi"])
    assert official_split(root, 1, CLIPS) is None
    hmdb(root.parent / "b")
    assert official_split(root, 1, CLIPS).folder == root.parent / "b"


def test_both_forms_in_one_folder(root):
    ucf(root, train=["Run/a.avi"], test=["Run/b.avi"])
    hmdb(root)
    assert all("g01" in clip for clip in official_split(root, 1, CLIPS).train)


@pytest.mark.parametrize("name", ["{}.mp4", "{}.AVI", "{}"])
def test_lists_are_valid_for_converted_clips(root, name):
    ucf(root / "lists")
    converted = [name.format(clip.removesuffix(".avi")) for clip in CLIPS]
    assert official_split(root, 1, converted).train == set(CLIPS[:4])


def test_a_split_that_does_not_exist(root):
    for number in (1, 3):
        ucf(root / "lists", number)
    with pytest.raises(DataError, match=r"no split 2 in .*lists; choose one of \[1, 3\]"):
        official_split(root, 2, CLIPS)


def test_a_clip_in_both_parts(root):
    ucf(root / "lists", train=CLIPS[:4], test=CLIPS[3:])
    with pytest.raises(DataError, match=r"split 1 in .*lists has 1 clips both .*Jump/v_Jump_g01_c01"):
        official_split(root, 1, CLIPS)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("trainlist01.txt", "clip.avi 1"),
        ("testlist02.txt", "Bend"),
        ("Bend_test_split1.txt", "clip.avi"),
        ("Bend_test_split1.txt", "clip.avi 3"),
    ],
)
def test_a_malformed_line(root, name, line):
    ucf(root / "lists")
    (root / "lists" / name).write_text(f"\n{'Bend/a.avi' if 'list0' in name else 'a.avi 1'}\n{line}\n")
    with pytest.raises(DataError, match=rf"{name}, line 3: '{line}' is not of the form .*clip\.avi"):
        official_split(root, 1, CLIPS)


def test_a_list_that_cannot_be_read(root):
    ucf(root / "lists")
    (root / "lists" / "trainlist02.txt").mkdir()
    with pytest.raises(DataError, match=r"trainlist02\.txt cannot be read: not a regular file"):
        official_split(root, 1, CLIPS)


@pytest.mark.parametrize("fault", ["malformed", "a folder", "a pipe"])
def test_a_faulty_list_of_another_set_is_named_and_ignored(root, fault, caplog):
    ucf(root.parent / "own")
    path = ucf(root.parent / "another", train=["Swim/x.avi"], test=["Swim/y.avi"]) / "trainlist01.txt"
    path.unlink()
    if fault == "malformed":
        path.write_text("no class\n")
    elif fault == "a folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    assert official_split(root, 1, CLIPS).train == set(CLIPS[:4])
    assert f"the lists in {root.parent / 'another'} name no clip of {root} and are ignored" in caplog.text


def test_a_list_that_is_a_pipe_is_not_waited_for(root):
    os.mkfifo(ucf(root / "lists") / "trainlist02.txt")
    with pytest.raises(DataError, match=r"trainlist02\.txt cannot be read: not a regular file"):
        official_split(root, 1, CLIPS)


# Real lists


@pytest.mark.parametrize("split", [1, 2, 3])
@pytest.mark.parametrize(("name", "total"), [("actions", 36), ("cctv", 300)])
def test_real_splits_are_disjoint_and_complete(real_data, name, total, split):
    root = real_data / name / "videos"
    clips = {path.relative_to(root).as_posix() for path in root.rglob("*.avi")}
    lists = official_split(root, split, clips)
    assert lists.train
    assert lists.test
    assert lists.train.isdisjoint(lists.test)
    assert lists.train | lists.test == clips
    assert len(clips) == total
