"""The studies of features, as small as they go, on trees like the original releases."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

from experiments.common.evaluation.paper_tables import paper_table
from experiments.common.evaluation.protocols import Data
from experiments.common.evaluation.sources import Source
from experiments.common.options import parse
from experiments.studies import conditions, features
from permenv import ConfigurationError, DataError, StillImages, make_config
from permenv.networks import BACKBONES
from permenv.transfer.trunks import load_trunk
from tests.experiments import releases

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    train, val = releases.imagenet(place / "imagenet")
    return {"images": train, "eval_images": val, "videos": releases.ucf(place), "voc": releases.voc(place, each=2)}


@pytest.fixture
def options(tmp_path, folders):
    """Return a function that makes small options; the jobs are in this process."""

    def make(**changes):
        files = {"runs": tmp_path / "runs", "out": tmp_path / "features"}
        short = {"preset": "nano", "updates": 1, "seeds": 2, "processes": 0, "share": 0.01}
        few = make_config("nano", iterations_per_update=2, num_validation=4, num_permutations=24, batch_size=8)
        return features.Config(**{**short, "env": few, **folders, **files, **changes})

    return make


def test_numbers_of_the_options_are_those_of_every_network():
    config = parse(features.Config, arguments=["--env.num-permutations", "50", "--updates", "3"])
    for network in features.NETWORKS:
        numbers = config.of(network).env
        permutations = 12 if network == "order-prediction" else 50
        assert (numbers.num_permutations, numbers.total_updates) == (permutations, 3)
    rates = {network: config.of(network).env.learning_rate for network in ("jigsaw", "temporal", "supervised")}
    assert rates == {"jigsaw": 0.03, "temporal": 0.1, "supervised": config.supervised_rate}


@pytest.mark.ci
def test_every_network_is_trained_and_compared_with_an_untrained_one(options, tmp_path, capsys):
    report = features.main(options(protocols=("retrieval-images", "linear")))
    assert [row["source"] for row in report["rows"]] == [*features.NETWORKS] * 2
    assert len(report["networks"]) == 2 * 5
    assert all(len(row["figures"]) == 2 for row in report["rows"])
    assert {(gain["protocol"], gain["figure"]) for gain in report["gains"]} == {
        ("retrieval-images", "top 1"),
        ("linear", "pool5"),
    }
    assert json.loads((tmp_path / "features.json").read_text())["rows"] == report["rows"]
    printed = capsys.readouterr().out
    assert "| retrieval-images | top 1 | jigsaw |" in printed
    assert "Table 2:" in printed
    assert "Table 3:" not in printed


def test_what_is_done_is_not_done_again(options, tmp_path):
    config = options(networks=("untrained", "jigsaw"), protocols=("retrieval-images",), seeds=1)
    first = features.main(config)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*seed*")}
    assert features.main(config)["rows"] == first["rows"]
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_network_whose_evaluation_diverged_has_no_gain():
    rows = [
        {"protocol": "linear", "source": source, "figures": figures}
        for source, figures in (
            ("untrained", [{"pool5": 0.25}, {"pool5": 0.5}]),
            ("jigsaw", [{"pool5": 0.5}, {"pool5": 0.75}]),
            ("joint", [{"pool5": 0.5}, {}]),
        )
    ]
    assert {row["source"]: row["gain"] for row in features.gains(rows)} == {"jigsaw": 0.25, "joint": None}


def test_gains_are_corrected_for_their_number():
    figures = {
        "untrained": (0.1, 0.2, 0.3),
        "jigsaw": (0.5, 0.6, 0.71),
        "joint": (0.1, 0.3, 0.3),
        "temporal": (0, 0, 0.5),
    }
    rows = [
        {"protocol": "linear", "source": source, "figures": [{"pool5": figure} for figure in of_source]}
        for source, of_source in figures.items()
    ]
    found = features.gains(rows)
    expected = [ttest_rel(figures[row["source"]], figures["untrained"]).pvalue for row in found]
    assert [row["p"] for row in found] == pytest.approx(expected)
    assert found[0]["p_holm"] == pytest.approx(3 * expected[0])


def test_a_table_of_the_paper_has_its_networks_beside_ours():
    rows = [
        {"protocol": "actions", "source": source, "figures": [{"mean over classes": figure}]}
        for source, figure in (("untrained", 0.5), ("temporal", 0.625), ("joint", 0.75))
    ]
    head, _, *lines = paper_table("Table 3", rows).splitlines()
    assert head == "| network | paper: actions, UCF-101 | paper: actions, HMDB-51 | ours: actions |"
    assert lines == [
        "| untrained | 47.8 | 16.3 | 50.0 |",
        "| temporal |  |  | 62.5 |",
        "| joint | 58.6 | 25.0 | 75.0 |",
    ]


def test_unknown_names_are_refused(options):
    with pytest.raises(ConfigurationError, match="--networks 'alexnet': choose from untrained, jigsaw"):
        features.main(options(networks=("alexnet",)))
    with pytest.raises(ConfigurationError, match="--protocols 'table 9': choose from retrieval-images"):
        features.main(options(protocols=("table 9",)))


def test_data_are_found_in_the_folder_of_real_data_unless_they_are_named(tmp_path):
    found = features.Config(data_folder=tmp_path, voc=tmp_path / "devkit").folders
    assert (found.images, found.eval_images) == (tmp_path / "imagenette/train", tmp_path / "imagenette/val")
    assert (found.videos, found.voc) == (tmp_path / "actions/videos", tmp_path / "devkit")
    with pytest.raises(DataError, match=f"'linear': there is no folder {found.images}; name it with --images"):
        features.main(features.Config(data_folder=tmp_path, protocols=("linear",), runs=tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


# Conditions


@pytest.mark.ci
def test_each_condition_is_one_change(options, tmp_path, capsys):
    config = options(networks=("untrained", "jigsaw"), protocols=(), seeds=1)
    features.main(config)
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    report = conditions.main(conditions.Config(**{**fields, "sets": ("images",), "out": tmp_path / "conditions.json"}))
    assert [row["network"] for row in report["rows"]] == ["untrained", "jigsaw"]
    for row in report["rows"]:
        assert row["top 1"].keys() == set(conditions.CONDITIONS)
        assert all(0 <= value <= 1 for values in row["top 1"].values() for value in values)
    untrained = report["rows"][0]["top 1"]
    assert untrained["as evaluated"] == untrained["measured statistics"], "they are measured in any case"
    assert "| images | jigsaw |" in capsys.readouterr().out


@pytest.mark.parametrize("condition", conditions.CONDITIONS)
def test_a_condition_changes_what_its_name_says(condition, monkeypatch):
    loaded, measured, blank = [], [], torch.zeros(1, 3, 64, 64)
    rng = np.random.default_rng(0)

    def images(data, side):
        loaded.append(side)
        pixels = torch.from_numpy(rng.integers(0, 256, (4, side, side, 3), dtype=np.uint8))
        return [StillImages(pixels, np.array([0, 1, 0, 1]), ("a", "b"), "images", "")] * 2

    def search(module, queries, database, **_):
        pixels = np.asarray(database.pixels)
        assert (np.ptp(pixels, axis=-1) == 0).all() == (condition == "grey")
        denser = 2 if condition == "half the stride" else 1
        assert module(blank).shape[2] == denser * original.module(blank).shape[2]
        return {1: 0.5}

    source = Source("jigsaw", "somewhere", "", "two-convolutions")
    original = load_trunk("random", backbone="two-convolutions")
    monkeypatch.setattr(Source, "load", lambda self, seed: original)
    monkeypatch.setitem(conditions.SETS, "images", images)
    monkeypatch.setattr(conditions, "retrieval", search)
    monkeypatch.setattr(conditions, "with_measured_statistics", lambda trunk, _: measured.append(1) or trunk)
    assert conditions.search(source, Data(), "images", condition, 0, "cpu") == 0.5
    assert loaded == [original.input_size * {"half size": 1, "twice the size": 4}.get(condition, 2) // 2]
    assert bool(measured) == (condition == "measured statistics")


def test_grey_images_have_no_colour_and_keep_their_luma():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 5, 3), dtype=np.uint8)
    found = conditions.grey(StillImages(torch.from_numpy(pixels), None, (), "photos", "0"))
    expected = np.rint(0.299 * pixels[..., 0] + 0.587 * pixels[..., 1] + 0.114 * pixels[..., 2])
    for channel in range(3):
        np.testing.assert_allclose(found.pixels[..., channel].numpy(), expected, atol=1)


def test_half_the_stride_gives_a_map_of_twice_the_side():
    module = BACKBONES["two-convolutions"]().eval()
    denser = conditions.at_half_the_stride(module)
    images = torch.zeros(1, 3, 64, 64)
    assert denser(images).shape[2] == 2 * module(images).shape[2]
    assert torch.equal(denser[0].weight, module[0].weight)


def test_networks_that_are_not_trained_are_named(options, tmp_path):
    config = conditions.Config(runs=tmp_path / "nothing", networks=("jigsaw",), seeds=1)
    with pytest.raises(ConfigurationError, match=r"jigsaw-seed500\.pt: run experiments/studies/features\.py first"):
        conditions.main(config)
