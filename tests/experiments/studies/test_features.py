"""The study of features, as small as it goes, on trees like the original releases."""

import json

import pytest

from experiments.studies import features
from permenv import ConfigurationError, make_config
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
    assert "| retrieval-images | top 1 | jigsaw |" in capsys.readouterr().out


def test_what_is_done_is_not_done_again(options, tmp_path):
    config = options(networks=("untrained", "jigsaw"), protocols=("retrieval-images",), seeds=1)
    first = features.main(config)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*seed*")}
    assert features.main(config)["rows"] == first["rows"]
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_unknown_names_are_refused(options):
    with pytest.raises(ConfigurationError, match="--networks 'alexnet': choose from untrained, jigsaw"):
        features.main(options(networks=("alexnet",)))
    with pytest.raises(ConfigurationError, match="--protocols 'table 9': choose from retrieval-images"):
        features.main(options(protocols=("table 9",)))
