"""The study of the temporal task's defaults."""

import json

from experiments.studies import temporal
from permenv import embedded_clips, make_config
from tests.experiments.studies.helpers import options


def test_it_measures_crops_and_networks(tmp_path, capsys):
    config = options(temporal.Config, tmp_path, seeds=1)
    report = temporal.main(config)
    assert json.loads(config.out.read_text()) == report
    assert list(report["network"]) == list(temporal._VARIANTS)
    assert list(report["crops"]) == ["embedded clips, seed 0"]
    assert "relative_frames=False" in capsys.readouterr().out


def test_without_crops_the_smoothest_order_of_a_clip_that_pans_is_the_true_one():
    shares = temporal.smoothest(embedded_clips(15, 12, 37, 5), make_config("tiny", "temporal"))
    assert shares["not cropped"] > 0.9
    assert shares["a place each"] < shares["one place"]


def test_a_network_that_diverges_has_the_worst_error(tmp_path):
    environment = options(temporal.Config, tmp_path).environment
    assert temporal._final_error({"learning_rate": 1e30}, 0, environment) == 1.0
