"""The benchmark of ways to train many networks."""

import json
import multiprocessing

import pytest

from experiments.benchmarks import vector
from experiments.common.options import EnvOptions
from permenv.pretraining import Pretraining
from tests.experiments.helpers import small

NUMBERS = {"free_iterations": 0, "iterations_per_update": 10**6}
ENVIRONMENT = EnvOptions(device="cpu", env=small(**NUMBERS))
RIVALS = [(title, name) for title, rivals in vector.RIVALS.items() for name in rivals if name != "async"]


@pytest.mark.parametrize(("title", "name"), RIVALS)
def test_every_rival_trains_every_network_and_validates_none(monkeypatch, title, name):
    trained, validated = [], []
    for method, calls in (("iterate", trained), ("validate", validated)):
        original = getattr(Pretraining, method)

        def counted(run, *given, calls=calls, original=original):
            calls.append(run)
            return original(run, *given)

        monkeypatch.setattr(Pretraining, method, counted)
    count = 1 if (title, name) == ("gymnasium", "processes") else 3
    work = vector.RIVALS[title][name].make(vector.Setting(ENVIRONMENT, count))
    assert len(validated) == count  # a run begins with a validation
    work(2)
    assert len(trained) == 2 * count
    assert len({id(run) for run in trained}) == count
    assert len(validated) == count


@pytest.mark.ci
def test_it_writes_ratios_and_leaves_no_process_behind(monkeypatch, tmp_path):
    monkeypatch.setitem(vector.RIVALS, "gymnasium", {})
    out = tmp_path / "figures.json"
    vector.main(vector.Config(networks=(1,), blocks=2, block_images=1, out=out, env=small(**NUMBERS)))
    assert not multiprocessing.active_children()
    report = json.loads(out.read_text())
    found = report["training"]["1"]
    assert list(found) == ["processes", "in turn"]
    assert all(len(figures["seconds"]) == 2 for figures in found.values())
    assert all(figures["images_per_second"] > 0 for figures in found.values())
    assert found["processes"]["ratio_to_processes"] == 1
    assert report["machine"]["device"] == "cpu"
