"""What is in the folders that options name, and in the sources: any change of a file shows, and nothing else does."""

import shutil
from pathlib import Path

import pytest

from experiments.common import content
from experiments.common.content import contents_of, digest_of_code, digest_of_folder
from experiments.common.evaluation.protocols import Data
from experiments.common.options import EnvOptions


@pytest.fixture
def root(tmp_path):
    """Return a folder of two classes, with a hidden file."""
    folder = tmp_path / "set" / "videos"
    for name in ("Walk/a.avi", "Run/b.avi", ".hidden", "trainlist01.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("Run/b.avi 1")
    return folder


CHANGES = {
    "added": lambda root: (root / "Run" / "c.avi").touch(),
    "removed": lambda root: (root / "Run" / "b.avi").unlink(),
    "renamed": lambda root: (root / "Run" / "b.avi").rename(root / "Run" / "c.avi"),
    "longer": lambda root: (root / "Run" / "b.avi").write_text("a repaired file"),
    "one label of a list": lambda root: (root / "trainlist01.txt").write_text("Run/b.avi 2"),
    "another list inside": lambda root: (root / "trainlist02.txt").touch(),
    "another list beside it": lambda root: (
        (root.parent / "lists").mkdir() or (root.parent / "lists" / "testlist01.txt").touch()
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_shows(root, change):
    before = contents_of({"videos": root})
    assert list(before) == ["videos"]
    assert contents_of({"videos": root}) == before
    CHANGES[change](root)
    assert contents_of({"videos": root}) != before


def test_what_is_no_data_does_not_show(root, tmp_path):
    before = contents_of({"videos": root})
    (root / ".hidden").write_text("changed")
    (root.parent / "note.txt").touch()
    assert contents_of({"videos": root}) == before
    shutil.copytree(root, tmp_path / "copy" / "videos", copy_function=shutil.copyfile)  # which keeps no times
    assert contents_of({"videos": tmp_path / "copy" / "videos"}) == before


def test_folders_are_found_wherever_options_name_them(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    environment = EnvOptions(images=root, videos=root.parent / "nowhere")
    options = {"data": Data(voc=root), "environments": [environment], "path": root / "Walk" / "a.avi", "seed": 0}
    assert list(contents_of(options)) == ["data.voc", "environments.0.images"]
    assert contents_of({"voc": "~/videos"}) == {}  # a text is no folder
    assert contents_of({"voc": type(root)("~/videos")}) == contents_of({"voc": root})


def test_of_voc_the_release_counts_and_not_what_lies_beside_it(tmp_path):
    release = tmp_path / "VOCdevkit" / "VOC2007"
    for name in ("JPEGImages", "ImageSets"):
        (release / name).mkdir(parents=True)
    before = contents_of({"voc": tmp_path})
    assert contents_of({"voc": release}) == before
    (tmp_path / "evaluation.json").touch()
    assert contents_of({"voc": tmp_path}) == before
    (release / "JPEGImages" / "a.jpg").touch()
    assert contents_of({"voc": tmp_path}) != before


def test_results_within_the_data_do_not_count(root):
    before = digest_of_folder(root, True)
    (root / "runs").mkdir()
    (root / "runs" / "result.json").touch()
    assert digest_of_folder(root, True, without=root / "runs") == before != digest_of_folder(root, True)


def test_a_folder_of_an_unknown_user_is_left_to_whoever_reads_it():
    assert contents_of({"images": Path("~no such user/photos")}) == {}


def test_a_change_of_the_sources_shows(tmp_path, monkeypatch):
    package = tmp_path / "sources_of_a_test"
    (package / "inside").mkdir(parents=True)
    for name in ("__init__.py", "inside/module.py", "data.json"):
        (package / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(content, "_PACKAGES", (package.name,))
    digest = digest_of_code.__wrapped__  # without its memory
    before = digest()
    (package / "data.json").write_text("{}")
    assert digest() == before
    (package / "inside" / "module.py").write_text("# a comment")
    changed = digest()
    (package / "inside" / "module.py").rename(package / "inside" / "other.py")
    assert len({before, changed, digest()}) == 3
