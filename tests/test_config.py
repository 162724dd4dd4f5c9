"""Presets, overrides, and what is refused before anything runs."""

import dataclasses
import json

import pytest

from permenv import PRESETS, ConfigurationError, make_config


def test_the_paper_preset_has_the_papers_numbers():
    config = PRESETS["paper"]
    assert (config.num_permutations, config.num_groups, config.num_validation) == (1000, 10, 100)
    assert (config.batch_size, config.learning_rate, config.learning_rate_drop) == (128, 1e-3, 200_000)
    assert (config.backbone, config.piece_size, config.fc6, config.fc7) == ("caffenet", 75, 1024, 4096)
    assert (config.momentum, config.weight_decay, config.ema_decay) == (0.9, 5e-4, 0)
    cycle = config.free_iterations + config.iterations_per_update
    assert config.total_updates == 90
    assert abs(config.total_updates * cycle - 350_000) < cycle


@pytest.mark.parametrize("preset", PRESETS)
def test_overrides_change_only_what_they_name(preset):
    config = make_config(preset, num_permutations=50)
    assert config == dataclasses.replace(PRESETS[preset], num_permutations=50)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"preset": "huge"}, r"unknown preset 'huge'; choose one of tiny, paper"),
        ({"num_permutation": 5}, r"unknown keyword 'num_permutation'; did you mean 'num_permutations'"),
        ({"xyz": 5}, r"unknown keyword 'xyz'; the keywords are num_permutations"),
        ({"num_groups": 101}, r"num_groups=101 is more than num_permutations=100"),
        ({"batch_size": 64, "samples_per_action": 5}, r"batch_size=64 is not divisible by samples_per_action=5"),
        ({"num_permutations": 25, "grid": 2}, r"num_permutations=25: 4 pieces have only 24"),
        ({"num_permutations": 1}, r"num_permutations=1: must be at least 2"),
        ({"piece_size": 40}, r"piece_size=40 is larger than cell_size=36"),
        ({"backbone": "vgg"}, r"unknown backbone 'vgg'; choose one of caffenet, quarter-caffenet or pass a function"),
        ({"precision": "fp8"}, r"precision='fp8': choose one of auto, float32, bf16"),
        ({"ema_decay": 1.0}, r"ema_decay=1.0: must lie in \[0, 1\)"),
        ({"grey_probability": 1.5}, r"grey_probability=1.5: must lie in \[0, 1\]"),
        ({"learning_rate": float("nan")}, r"learning_rate=nan"),
        ({"free_iterations": -1}, r"free_iterations=-1: must be at least 0"),
        ({"total_updates": 0}, r"total_updates=0: must be at least 1"),
        ({"num_groups": "4"}, r"num_groups='4': must be a number of type int"),
        ({"batch_size": 64.0}, r"batch_size=64.0: must be a number of type int"),
        ({"momentum": True}, r"momentum=True: must be a number of type float"),
    ],
)
def test_bad_values_are_named(overrides, message):
    with pytest.raises(ConfigurationError, match=message):
        make_config(**{"preset": "tiny", **overrides})


def test_as_dict_is_json_and_names_a_backbone_of_ones_own():
    values = make_config("tiny", backbone=json.loads).as_dict()
    assert json.loads(json.dumps(values))["backbone"] == "json.loads"
