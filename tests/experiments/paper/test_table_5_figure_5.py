"""Table 5 and figure 5, on trees like the original releases."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.paper import table_5_figure_5 as table_5
from experiments.paper.table_5_figure_5 import Network
from permenv import ConfigurationError, DataError
from tests.experiments import releases
from tests.experiments.helpers import small

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    train, val = releases.imagenet(place / "imagenet", each=20)
    return {"images": train, "eval_images": val, "videos": releases.ucf(place), "voc": releases.voc(place, each=2)}


@pytest.fixture
def options(tmp_path, folders, monkeypatch):
    """Return a function that makes small options; the environments of all tasks are small."""

    def on(config, task):
        few = {"num_validation": 2, "free_iterations": 0, "total_updates": config.env.total_updates}
        data = {"images": config.images if task != "temporal" else None}
        data["videos"] = config.videos if task != "spatial" else None
        return table_5.EnvOptions(
            preset="nano", task=task, device="cpu", env=small(task, backbone="two-convolutions", **few), **data
        )

    monkeypatch.setattr(table_5.Config, "on", on)

    def make(**changes):
        files = {"runs": tmp_path / "runs", "out": tmp_path / "table.json"}
        short = {"preset": "nano", "updates": 2, "seeds": 2, "processes": 0, "share": 0.01}
        return table_5.Config(**{**short, **folders, **files, **changes})

    return make


@pytest.mark.ci
def test_all_networks_are_compared(options, saved_figure, capsys):
    config = options()
    report = table_5.main(config)
    assert json.loads(config.out.read_text())["curves"] == report["curves"]
    assert list(report["curves"]) == [*table_5.NETWORKS]
    for name, curve in report["curves"].items():
        assert curve["iterations"] == [2, 4]
        assert curve["batches"] == ([4, 8] if name.startswith("S+T") else [2, 4])
        assert np.shape(curve["top1"]) == (2, 2)
    assert {name for name, curve in report["curves"].items() if curve["validations"][-1]} == {"S+P", "T+P", "S+T+P"}
    assert report["curves"]["S+T+P"]["validations"] == [4, 6], "at the reset and after each update, of both tasks"
    assert set(report["measures"]) == {table_5.DURING, table_5.AT_END, "classification", "actions"}
    assert all(len(pairs) == 21 for pairs in report["differences"].values())
    assert {len(values) for values in report["lines"].values()} == {2}
    gain = np.mean(report["curves"]["S"]["top1"], axis=0)[-1] - np.mean(report["lines"]["untrained"])
    assert report["above_untrained"]["S"].value == pytest.approx(gain)
    (axis,) = saved_figure(config.out.with_suffix(".png")).axes
    for line, (name, curve) in zip(axis.lines, report["curves"].items(), strict=False):
        assert line.get_label() == name
        assert line.get_xdata().tolist() == curve["iterations"]
        assert line.get_ydata() == pytest.approx(100 * np.mean(curve["top1"], axis=0))
    assert [line.get_ydata()[0] for line in axis.lines[-len(report["lines"]) :]] == pytest.approx(
        [100 * np.mean(values) for values in report["lines"].values()]
    )
    assert "| S+T+P | " in capsys.readouterr().out


def test_the_curve_of_a_serial_network_counts_both_tasks(options, tmp_path):
    config = options()
    environments = [config.on("spatial"), config.on("temporal")]
    found = table_5.train(
        Network(("spatial", "temporal"), "reinforce"),
        environments,
        [1, 2],
        config.folders,
        "images",
        0,
        tmp_path / "trunk.pt",
    )
    assert found["iterations"] == found["batches"] == [2, 4]
    assert found["validations"] == [2, 4]
    assert all(0 <= value <= 1 for value in found["top1"])


def test_the_second_task_begins_with_the_trunk_of_the_first(options, tmp_path, monkeypatch):
    seen = []
    original = table_5.EnvOptions.make

    def make(self, **changes):
        env = original(self, **changes)
        reset = env.reset
        env.reset = lambda **given: seen.append((self.task, bool(given["options"]))) or reset(**given)
        return env

    monkeypatch.setattr(table_5.EnvOptions, "make", make)
    config = options()
    environments = [config.on("spatial"), config.on("temporal")]
    table_5.train(Network(("spatial", "temporal")), environments, [2], config.folders, "images", 0, tmp_path / "t.pt")
    assert seen == [("spatial", False), ("temporal", True)]


def test_pairs_differ_where_the_interval_of_paired_differences_excludes_zero():
    values = {"a": [0.5, 0.6, 0.7], "b": [0.4, 0.5, 0.6], "c": [0.5, 0.5, 0.8]}
    pairs = {(pair["first"], pair["second"]): pair for pair in table_5.differences(values)}
    assert pairs["a", "b"]["difference"].value == pytest.approx(0.1)
    assert {names for names, pair in pairs.items() if pair["beyond_noise"]} == {("a", "b")}
    assert table_5.said("Top-1", list(pairs.values())) == (
        "Top-1: a is above b by 10.0 [10.0, 10.0]; the other 2 of 3 pairs do not differ beyond noise."
    )
    reverse = table_5.differences({"b": values["b"], "a": values["a"]})
    assert table_5.said("Top-1", reverse) == "Top-1: a is above b by 10.0 [10.0, 10.0]."
    assert table_5.said("Top-1", [pairs["a", "c"]]) == "Top-1: none of the 1 pairs differs beyond noise."


def test_updates_are_divided_equally():
    assert table_5.divide(30, 2) == [15, 15]
    assert table_5.divide(5, 2) == [3, 2]
    assert table_5.divide(5, 1) == [5]


def test_what_cannot_be_run_is_refused(options):
    with pytest.raises(ConfigurationError, match="--networks 'alexnet': choose from S, S"):
        table_5.main(options(networks=("alexnet",)))
    with pytest.raises(ConfigurationError, match="--seeds 1: must be at least 2"):
        table_5.main(options(seeds=1))
    with pytest.raises(ConfigurationError, match="--updates 1: 2 tasks need at least one each"):
        table_5.main(options(updates=1))
    with pytest.raises(DataError, match="'retrieval-objects': there is no folder /nowhere; name it with --voc"):
        table_5.main(options(voc=Path("/nowhere"), search="objects", protocols=()))
