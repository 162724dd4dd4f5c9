"""Features of a folder of images: the rows are those of the files, and nothing is overwritten."""

import json

import numpy as np
import pytest

from experiments import extract
from experiments.common.options import parse
from permenv import CheckpointError, ConfigurationError, DataError, StillImages, image_folder
from permenv.data.decode import decode
from permenv.transfer.retrieval import pool_features
from permenv.transfer.trunks import load_trunk, with_measured_statistics
from tests.experiments.helpers import write_photos
from tests.helpers import small_run

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def photos(tmp_path):
    """A folder of photos, with a copy of one and a file that is none."""
    folder = tmp_path / "photos"
    write_photos(folder, classes=2, each=3)
    (folder / "class0" / "a copy.jpg").write_bytes((folder / "class1" / "2.jpg").read_bytes())
    (folder / "class1" / "damaged.jpg").write_bytes(b"no picture")
    return folder


def run(*words):
    return extract.main(parse(extract.Config, arguments=[*map(str, words), "--device", "cpu"]))


def test_each_row_is_of_its_file(photos, tmp_path, capsys):
    small_run(backbone="two-convolutions").save(tmp_path / "run")
    rows, about = run(tmp_path / "run", "--images", photos, "--out", tmp_path / "out" / "mine")
    features, files = np.load(rows), json.loads(about.read_text())["files"]
    assert files == [
        "class0/0.jpg",
        "class0/1.jpg",
        "class0/2.jpg",
        "class0/a copy.jpg",
        "class1/0.jpg",
        "class1/1.jpg",
    ]
    trunk = load_trunk(tmp_path / "run")
    pixels = np.stack([decode((photos / name).read_bytes(), trunk.input_size) for name in files])
    images = StillImages(pixels, None, (), "photos", "")
    np.testing.assert_array_equal(features, pool_features(trunk.module, images, np.arange(6)))
    said = capsys.readouterr().out
    assert "6 images" in said
    assert "left out: 2: class1/2.jpg (identical to class0/a copy.jpg), class1/damaged.jpg" in said


def test_initial_weights_are_those_of_the_seed(photos, tmp_path):
    options = ("random", "--backbone", "two-convolutions", "--images", photos)
    first, same, other = (
        np.load(run(*options, "--seed", seed, "--out", tmp_path / name)[0])
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
    trunk = load_trunk("random", backbone="two-convolutions", seed=0)
    images = image_folder(photos, trunk.input_size)
    measured = with_measured_statistics(trunk, np.asarray(images.pixels))
    np.testing.assert_array_equal(first, pool_features(measured.module, images, np.arange(len(images))))


def test_nothing_is_overwritten(photos, tmp_path):
    (tmp_path / "mine.json").write_text("precious")
    with pytest.raises(ConfigurationError, match=r"mine\.json exists already"):
        run("random", "--backbone", "two-convolutions", "--images", photos, "--out", tmp_path / "mine")
    assert not (tmp_path / "mine.npy").exists()
    options = ("random", "--backbone", "two-convolutions", "--images", photos, "--out", tmp_path / "other.npy")
    rows, _ = run(*options)
    assert rows == tmp_path / "other.npy"
    with pytest.raises(ConfigurationError, match=r"other\.npy exists already"):
        run(*options)
    with pytest.raises(ConfigurationError, match="names a folder"):
        run(*options[:-1], ".")


def test_what_was_killed_between_the_two_files_is_repeated(photos, tmp_path):
    options = ("random", "--backbone", "two-convolutions", "--images", photos, "--out", tmp_path / "mine")
    rows, about = run(*options)
    before = rows.read_bytes(), about.read_bytes()
    rows.unlink()
    run(*options)
    assert (rows.read_bytes(), about.read_bytes()) == before
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "mine.npy", "mine.json"}


def test_features_that_are_not_finite_are_refused_and_leave_no_file(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "_PART", 3)
    monkeypatch.setattr(
        extract, "pool_features", lambda trunk, images, part: np.full((3, 2), np.nan if 5 in part else 1)
    )
    with pytest.raises(ConfigurationError, match="random: its features are not finite"):
        run("random", "--backbone", "two-convolutions", "--images", photos, "--out", tmp_path / "out" / "mine")
    assert not list((tmp_path / "out").iterdir())


def test_what_another_process_has_written_meanwhile_is_kept(photos, tmp_path, monkeypatch):
    def meanwhile(trunk, images, part):
        (tmp_path / "mine.npy").write_bytes(b"theirs")
        return np.ones((len(part), 2), np.float32)

    monkeypatch.setattr(extract, "pool_features", meanwhile)
    with pytest.raises(ConfigurationError, match=r"mine\.npy exists already"):
        run("random", "--backbone", "two-convolutions", "--images", photos, "--out", tmp_path / "mine")
    assert (tmp_path / "mine.npy").read_bytes() == b"theirs"
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "mine.npy"}


def test_rows_of_several_parts_are_in_order(photos, tmp_path, monkeypatch):
    options = ("random", "--backbone", "two-convolutions", "--images", photos)
    whole = np.load(run(*options, "--out", tmp_path / "whole")[0])
    monkeypatch.setattr(extract, "_PART", 4)
    parts = np.load(run(*options, "--out", tmp_path / "parts")[0])
    assert (parts.shape, parts.dtype) == ((6, whole.shape[1]), np.float32)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_a_missing_source_or_folder_is_named(photos, tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        run(tmp_path / "none.safetensors", "--images", photos, "--out", tmp_path / "mine")
    with pytest.raises(DataError, match="nothing"):
        run("random", "--backbone", "two-convolutions", "--images", tmp_path / "nothing", "--out", tmp_path / "mine")
