"""Trunks: every source gives the weights it holds, and errors name what does not fit."""

import pickle

import numpy as np
import pytest
import safetensors.torch
import torch

import permenv
from permenv import batch_norm
from permenv.checkpoint import CheckpointError
from permenv.config import ConfigurationError
from permenv.data import StillImages, VideoClips
from permenv.distributed import ALONE
from permenv.networks import BACKBONES
from permenv.transfer import trunks
from permenv.transfer.trunks import load_trunk, some_of, with_measured_statistics
from tests.helpers import every_task, small_backbone, small_run


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


def test_the_papers_trunk_is_evaluated_at_227_and_stride_4():
    trunk = load_trunk("random")
    assert (trunk.name, trunk.input_size, trunk.module[0].stride) == ("caffenet", 227, (4, 4))
    images = torch.randn(1, 3, 227, 227, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = trunk.maps(images, list(trunk.layers))
    assert {name: tuple(each.shape[1:]) for name, each in maps.items()} == {
        "conv1": (96, 55, 55),
        "conv2": (256, 27, 27),
        "conv3": (384, 13, 13),
        "conv4": (384, 13, 13),
        "conv5": (256, 13, 13),
        "pool5": (256, 6, 6),
    }
    assert "first convolution at stride 4" in trunk.describe()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_maps_are_those_of_the_layers_one_after_the_other(backbone):
    trunk = load_trunk("random", backbone=backbone, seed=3)
    images = torch.randn(2, 3, 100, 100, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected, number, x = trunk.maps(images, list(trunk.layers)), {}, 0, images
        for layer in trunk.module:
            x = layer(x)
            number += isinstance(layer, torch.nn.Conv2d)
            if isinstance(layer, torch.nn.ReLU):
                expected[f"conv{number}"] = x.clone()
    assert found.keys() == {*expected, "pool5"}
    for name, each in {**expected, "pool5": x}.items():
        torch.testing.assert_close(found[name], each)


@pytest.mark.parametrize("preset", ["nano", "tiny"])
def test_small_trunks_are_evaluated_as_they_are(preset):
    config = permenv.make_config(preset)
    trunk = load_trunk("random", backbone=config.backbone)
    assert trunk.input_size == config.image_size
    assert trunk.module[0].stride == BACKBONES[config.backbone]()[0].stride


def test_a_seed_decides_random_weights():
    first, again, other = (load_trunk("random", backbone="two-convolutions", seed=seed) for seed in (1, 1, 2))
    assert same(first.module.state_dict(), again.module.state_dict())
    assert not same(first.module.state_dict(), other.module.state_dict())
    assert first.loaded == ()


@every_task
def test_a_run_of_any_task_gives_its_validated_trunk(task, tmp_path):
    run = small_run(task, backbone="two-convolutions")
    run.iterate()
    run.save(tmp_path / "run")
    trunk = load_trunk(tmp_path / "run")
    assert same(trunk.module.state_dict(), run.trainer.eval_network.trunk.state_dict())
    assert trunk.name == "two-convolutions"
    assert all(name.startswith("heads.") for name in trunk.left_out)
    assert "left out: heads." in trunk.describe()


def test_an_environment_gives_its_trunk(make_env, tmp_path):
    env = make_env(backbone="two-convolutions")
    env.reset(seed=0)
    env.unwrapped.save(tmp_path / "env")
    expected = env.unwrapped.run.trainer.eval_network.trunk.state_dict()
    assert same(load_trunk(tmp_path / "env").module.state_dict(), expected)


def test_a_trunk_made_by_a_function_needs_the_function(tmp_path):
    run = small_run(backbone=small_backbone)
    run.save(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"made by the function .*small_backbone: pass that function"):
        load_trunk(tmp_path / "run")
    trunk = load_trunk(tmp_path / "run", backbone=small_backbone)
    assert same(trunk.module.state_dict(), run.trainer.eval_network.trunk.state_dict())


def save(path, state, kind):
    if kind == "safetensors":
        safetensors.torch.save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if kind == "wrapped" else state, path)


@pytest.mark.parametrize("prefix", ["", "features.", "module.trunk."])
@pytest.mark.parametrize("kind", ["torch", "wrapped", "safetensors"])
def test_state_dicts_are_recognised_with_any_prefix(kind, prefix, tmp_path):
    state = load_trunk("random", backbone="quarter-caffenet", seed=4).module.state_dict()
    extra = {"classifier.weight": torch.zeros(2, 2)}
    save(tmp_path / "file", {**{prefix + name: value for name, value in state.items()}, **extra}, kind)
    trunk = load_trunk(tmp_path / "file")
    assert trunk.name == "quarter-caffenet"
    assert same(trunk.module.state_dict(), state)
    assert trunk.left_out == ("classifier.weight",)
    assert set(trunk.loaded) == set(state)


def test_what_is_missing_or_of_another_shape_is_named(tmp_path):
    state = load_trunk("random", backbone="two-convolutions").module.state_dict()
    save(tmp_path / "wide", {**state, "0.weight": torch.zeros(16, 3, 7, 7)}, "torch")
    with pytest.raises(CheckpointError, match=r"wide: .*0\.weight \(16, 3, 7, 7\) instead of \(16, 3, 5, 5\); name a"):
        load_trunk(tmp_path / "wide", backbone="two-convolutions")
    with pytest.raises(CheckpointError, match=r"fit no backbone .*two-convolutions: 1 shapes differ"):
        load_trunk(tmp_path / "wide")
    save(tmp_path / "less", {name: value for name, value in state.items() if name != "4.bias"}, "safetensors")
    with pytest.raises(CheckpointError, match=r"tensors are missing: 4\.bias; name a checkpoint"):
        load_trunk(tmp_path / "less", backbone="two-convolutions")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    state = load_trunk("random", backbone="two-convolutions").module.state_dict()
    save(tmp_path / "nan", {**state, "0.bias": torch.full((16,), float("nan"))}, "torch")
    with pytest.raises(CheckpointError, match=r"0\.bias of the trunk are not finite"):
        load_trunk(tmp_path / "nan")


class Harmful:
    """What a pickle would call."""

    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("size", [0x1080, 0x4B50])  # begin as a pickle does, and as a zip
def test_the_size_of_a_safetensors_header_may_look_like_another_format(size, tmp_path):
    state = load_trunk("random", backbone="two-convolutions").module.state_dict()
    tensors = {name: value.contiguous() for name, value in state.items()}
    least = int.from_bytes(safetensors.torch.save(tensors, {"note": ""})[:8], "little")
    content = safetensors.torch.save(tensors, {"note": "x" * (size - least)})
    assert content.startswith((b"\x80", b"PK"))
    (tmp_path / "file").write_bytes(content)
    assert same(load_trunk(tmp_path / "file").module.state_dict(), state)


def test_nothing_in_a_file_is_executed(tmp_path, capsys):
    (tmp_path / "pickle").write_bytes(pickle.dumps(Harmful()))
    torch.save(Harmful(), tmp_path / "zip")
    for name in ("pickle", "zip"):
        with pytest.raises(CheckpointError, match="weights_only=True"):
            load_trunk(tmp_path / name)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"neither", b"PK\x03\x04", b"\x02" + b"\0" * 7 + b"{}", b"\xff" * 99])
def test_other_files_are_named(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match="file"):
        load_trunk(tmp_path / "file")


def test_a_missing_file_and_an_unknown_backbone_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere cannot be read \(there is no such file\)"):
        load_trunk(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match="unknown backbone 'resnet'"):
        load_trunk("random", backbone="resnet")
    with pytest.raises(ConfigurationError, match="leave out one of them"):
        load_trunk("timm/resnet18", backbone="caffenet")


def test_an_unknown_layer_is_named():
    trunk = load_trunk("random", backbone="two-convolutions")
    with pytest.raises(ConfigurationError, match="no layer 'conv9'; choose among conv1, conv2, pool5"):
        trunk.maps(torch.zeros(1, 3, 48, 48), ["conv9"])


# Batch statistics


def test_measured_statistics_are_those_of_the_first_convolution():
    trunk = load_trunk("random", backbone="two-convolutions", seed=1)
    images = np.random.default_rng(0).integers(0, 256, (40, 20, 20, 3), dtype=np.uint8)
    measured = with_measured_statistics(trunk, images)
    pixels = images.transpose(0, 3, 1, 2).astype(np.float64)
    normalised = (pixels - pixels.mean((2, 3), keepdims=True)) / pixels.std((2, 3), keepdims=True)
    with torch.no_grad():
        maps = trunk.module[0](torch.from_numpy(normalised).float()).double()
    norm = measured.module[1]
    torch.testing.assert_close(norm.running_mean.double(), maps.mean((0, 2, 3)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(norm.running_var.double(), maps.var((0, 2, 3)), atol=1e-5, rtol=1e-5)


def test_statistics_of_several_ranks_layers_are_measured_too():
    trunk = load_trunk("random", backbone="quarter-caffenet", seed=0)
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    expected = with_measured_statistics(trunk, images).module.state_dict()
    for layer in trunk.module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.__class__, layer.ranks = batch_norm._BatchNormOverRanks, ALONE
    for name, value in with_measured_statistics(trunk, images).module.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_measured_statistics_leave_everything_else_as_it_was():
    trunk = load_trunk("random", backbone="quarter-caffenet")
    before = {name: value.clone() for name, value in trunk.module.state_dict().items()}
    images = np.random.default_rng(0).integers(0, 256, (70, 108, 108, 3), dtype=np.uint8)  # two chunks
    measured = with_measured_statistics(trunk, images)
    assert same(trunk.module.state_dict(), before)
    after = measured.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if name.endswith(("weight", "bias")))
    assert not any(torch.equal(after[name], value) for name, value in before.items() if "running" in name)
    assert not measured.module.training
    assert [layer.momentum for layer in measured.module.modules() if isinstance(layer, torch.nn.BatchNorm2d)] == [
        0.1
    ] * 5
    assert measured.source == "random weights, seed 0, batch statistics of 70 images"


def test_statistics_are_measured_on_evenly_spread_images_of_those_that_are_named(monkeypatch):
    monkeypatch.setattr(trunks, "_MEASURED", 4)
    numbers = np.arange(10, dtype=np.uint8)
    images = StillImages(np.broadcast_to(numbers[:, None, None, None], (10, 2, 2, 3)).copy(), None, (), "numbers", "")
    clips = VideoClips(images, np.array([0, 2, 3, 7, 10]), ("a", "b", "c", "d"))
    for data, among, expected in (
        (images, None, [0, 3, 6, 9]),
        (images, np.array([1, 2, 8]), [1, 2, 8]),
        (clips, None, [0, 3, 6, 9]),
        (clips, np.array([0, 2]), [0, 1, 4, 6]),
    ):
        found = some_of(data, among)
        assert found.shape == (len(expected), 2, 2, 3)
        assert found[:, 0, 0, 0].tolist() == expected
