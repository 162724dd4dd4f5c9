"""Presets, overrides, and values that raise an error before anything runs."""

import dataclasses
import functools
import json
import sys
import threading

import numpy as np
import pytest

from permenv import PRESETS, ConfigurationError, make_config, registered_tasks
from tests.helpers import TASKS


def changes_of(preset, task):
    """Return what the parts of a task change in a preset."""
    parts = registered_tasks()[task]
    return {name: value for part in parts for name, value in part.preset_changes.get(preset, {}).items()}


def test_the_paper_preset_has_the_papers_numbers():
    config = PRESETS["paper"]
    assert (config.num_permutations, config.num_groups, config.num_validation) == (1000, 10, 100)
    assert (config.batch_size, config.learning_rate, config.learning_rate_drop) == (128, 1e-3, 200_000)
    assert (config.backbone, config.piece_size, config.fc6, config.fc7) == ("caffenet", 75, 1024, 4096)
    assert (config.num_frames, config.temporal_fc6, config.lstm) == (8, 512, 256)
    assert not config.merge_reversed
    assert not config.shared_crop
    assert not config.relative_frames
    assert (config.momentum, config.weight_decay, config.ema_decay) == (0.9, 5e-4, 0)
    assert config.total_updates == 90
    assert abs(config.total_iterations - 350_000) < config.iterations_per_cycle


def test_the_three_tasks_of_the_paper():
    assert tuple(registered_tasks())[:3] == TASKS


def test_sizes_that_follow_from_others():
    config = PRESETS["paper"]
    assert (config.num_tiles, config.image_size) == (9, 255)
    # 75 of a frame are 224 of the 256 pixels that appendix B crops them from
    assert config.frame_size == 86
    assert abs(config.piece_size / config.frame_size - 224 / 256) < 0.005
    assert make_config("tiny", batch_size=64, samples_per_action=4).actions_per_iteration == 16


@pytest.mark.parametrize(("free", "phases", "cycle", "total"), [(0, 1, 50, 150), (20, 2, 70, 210)])
def test_the_schedule_of_a_run(free, phases, cycle, total):
    config = make_config("tiny", free_iterations=free, iterations_per_update=50, total_updates=3)
    assert config.phases_per_update == phases
    assert config.iterations_per_cycle == cycle
    assert config.total_iterations == total
    fields = {field.name for field in dataclasses.fields(config)}
    assert config.as_dict().keys() == fields  # what follows from the fields does not enter checkpoints


@pytest.mark.parametrize("preset", ["nano", "tiny"])
def test_an_episode_of_the_small_presets_has_30_updates_of_3200_actions(preset):
    config = PRESETS[preset]
    assert config.total_updates == 30
    assert config.iterations_per_cycle * config.actions_per_iteration == 3200


@pytest.mark.parametrize("preset", PRESETS)
def test_overrides_change_only_what_they_name(preset):
    config = make_config(preset, num_permutations=50)
    assert config == dataclasses.replace(PRESETS[preset], num_permutations=50)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_task_has_the_numbers_of_the_preset_except_those_it_changes(preset, task):
    own = changes_of(preset, task)
    assert make_config(preset, task) == dataclasses.replace(PRESETS[preset], **own)
    for name, value in own.items():
        assert getattr(PRESETS[preset], name) != value
        assert getattr(make_config(preset, task, **{name: 2 * value}), name) == 2 * value  # a keyword overrides both


def test_the_paper_has_one_preset_for_all_tasks():
    assert {make_config("paper", task) for task in TASKS} == {PRESETS["paper"]}
    assert changes_of("tiny", "temporal") == changes_of("tiny", "spatiotemporal") == {"learning_rate": 0.1}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"preset": "huge"}, r"unknown preset 'huge'; choose one of nano, tiny, paper"),
        ({"task": "colour"}, r"unknown task 'colour'; choose one of spatial, temporal, spatiotemporal"),
        ({"num_permutation": 5}, r"unknown keyword 'num_permutation'; did you mean 'num_permutations'"),
        ({"xyz": 5}, r"unknown keyword 'xyz'; the keywords are num_permutations"),
        ({"num_groups": 101}, r"num_groups=101 is more than num_permutations=100"),
        ({"batch_size": 64, "samples_per_action": 5}, r"batch_size=64 is not divisible by samples_per_action=5"),
        ({"num_permutations": 1}, r"num_permutations=1: must be at least 2"),
        ({"piece_size": 40}, r"piece_size=40 is larger than cell_size=36"),
        (
            {"backbone": "vgg"},
            r"unknown backbone 'vgg'; choose one of caffenet, quarter-caffenet, two-convolutions, 'timm",
        ),
        ({"precision": "fp8"}, r"precision='fp8': choose one of auto, float32, bf16"),
        ({"ema_decay": 1.0}, r"ema_decay=1.0: must lie in \[0, 1\)"),
        ({"grey_probability": 1.5}, r"grey_probability=1.5: must lie in \[0, 1\]"),
        ({"learning_rate": float("nan")}, r"learning_rate=nan: must be finite"),
        ({"learning_rate": float("inf")}, r"learning_rate=inf: must be finite"),
        ({"images": "photos"}, r"images is no field of Config: pass data to gym.make or Pretraining.create"),
        ({"free_iterations": -1}, r"free_iterations=-1: must be at least 0"),
        ({"total_updates": 0}, r"total_updates=0: must lie in \[1, 20000\]"),
        ({"total_updates": 20_001}, r"total_updates=20001: must lie in \[1, 20000\]"),
        ({"num_groups": "4"}, r"num_groups='4': must be a number of type int"),
        ({"batch_size": 64.0}, r"batch_size=64.0: must be a number of type int"),
        ({"momentum": True}, r"momentum=True: must be a number of type float"),
        ({"clip_frames": 7}, r"clip_frames=7 is fewer than num_frames=8: .*keep at least that many"),
        ({"num_frames": 33}, r"clip_frames=32 is fewer than num_frames=33"),
        ({"num_frames": 1}, r"num_frames=1: must lie in \[2, 255\]"),
        ({"grid": 16}, r"grid=16: must lie in \[2, 15\]"),
        ({"num_clips": 1}, r"num_clips=1: must be at least 2"),
        ({"lstm": 0}, r"lstm=0: must be at least 1"),
        ({"temporal_fc6": 0}, r"temporal_fc6=0: must be at least 1"),
        ({"merge_reversed": 1}, r"merge_reversed=1: must be True or False"),
        ({"shared_crop": "yes"}, r"shared_crop='yes': must be True or False"),
        ({"split": "1"}, r"split='1': must be a number of type int \| None"),
        ({"backbone": None}, r"backbone=None: must be a name such as 'caffenet' .* or a function that returns a trunk"),
        ({"backbone": b"caffenet"}, r"backbone=b'caffenet': must be a name"),
        ({"backbone": 5}, r"backbone=5: must be a name"),
        ({"task": None}, r"unknown task None; choose one of spatial"),
        ({"task": ["spatial"]}, r"unknown task \['spatial'\]"),
        ({"preset": None}, r"unknown preset None"),
        ({"precision": []}, r"precision=\[\]: choose one of"),
        ({"batch_size": None}, r"batch_size=None: must be a number of type int"),
        ({"batch_size": 10**400}, r"batch_size is a number of 401 digits: must be at most 9223372036854775807"),
        ({"num_scenes": 2**63}, r"num_scenes is a number of 19 digits: must be at most 9223372036854775807"),
        ({"learning_rate": 10**400}, r"learning_rate is a number of 401 digits"),
        ({"learning_rate_drop": 2**63}, r"learning_rate_drop is a number of 19 digits"),
        ({"jitter": "0.4"}, r"jitter='0.4': must be a number of type float"),
        ({"num_groups": np.array([4])}, r"num_groups=array\(\[4\]\): must be a number of type int"),
    ],
)
def test_an_error_names_the_bad_value(overrides, message):
    with pytest.raises(ConfigurationError, match=message):
        make_config(**{"preset": "tiny", **overrides})


def test_an_error_says_that_a_backbone_needs_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    make_config("tiny")
    with pytest.raises(ConfigurationError, match=r"'timm/resnet18' needs timm: pip install \"permenv\[timm\]\""):
        make_config("tiny", backbone="timm/resnet18")


def test_a_timm_that_does_not_import_is_reported_with_its_reason(monkeypatch, tmp_path):
    (tmp_path / "timm.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError, match=r"timm does not import \(operator torchvision::nms .*from one index"):
        make_config("tiny", backbone="timm/resnet18")


def test_as_dict_is_json_and_has_the_name_of_a_users_backbone():
    values = make_config("tiny", backbone=json.loads).as_dict()
    assert json.loads(json.dumps(values))["backbone"] == "json.loads"


def test_as_dict_tells_the_bound_arguments_of_a_backbone_apart():
    backbones = [functools.partial(json.loads, strict=strict) for strict in (False, True)]
    names = [make_config("tiny", backbone=backbone).as_dict()["backbone"] for backbone in backbones]
    assert names == ["json.loads(strict=False)", "json.loads(strict=True)"]


def test_the_name_of_a_backbone_is_the_same_in_every_process():
    backbone = functools.partial(json.loads, object_hook=changes_of, cls=object())
    name = make_config("tiny", backbone=backbone).as_dict()["backbone"]
    assert name == "json.loads(object_hook=<function changes_of>, cls=<object object>)"


def test_as_dict_takes_a_backbone_that_cannot_be_copied():
    class Backbone:
        def __init__(self):
            self.lock = threading.Lock()

        def __call__(self): ...

    name = make_config("tiny", backbone=Backbone()).as_dict()["backbone"]
    assert name.endswith("Backbone")


def test_seeds_may_be_of_any_length():
    config = make_config("tiny", permutation_seed=10**400, scenes_seed=2**64)
    assert (config.permutation_seed, config.scenes_seed) == (10**400, 2**64)


def test_numbers_of_numpy_become_numbers_of_python():
    config = make_config("tiny", batch_size=np.int64(32), learning_rate=np.float32(0.5), permutation_seed=np.int64(3))
    assert (config.batch_size, config.learning_rate, config.permutation_seed) == (32, 0.5, 3)
    json.dumps(config.as_dict())
