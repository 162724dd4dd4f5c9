"""The network: CaffeNet's sizes, seeded weights, any backbone, one trunk for all tasks."""

import copy
import json
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from permenv import ConfigurationError
from permenv.heads import SpatialHead, TemporalHead
from permenv.networks import BACKBONES, build_network, caffenet, convolve_rows, eval_mode
from tests.helpers import SMALL, global_states

SIZES = {"caffenet": 75, "quarter-caffenet": 32}


PIECES = {"spatial": 9, "temporal": 8}
HEADS = {
    "spatial": lambda features: SpatialHead(features, 9, 20, fc6=8, fc7=16),
    "temporal": lambda features: TemporalHead(features, 20, fc6=8, lstm=16),
}


def build(backbone="quarter-caffenet", piece_size=32, seed=0, tasks=("spatial", "temporal")):
    shape = (3, piece_size, piece_size)
    return build_network(backbone, {task: HEADS[task] for task in tasks}, piece_shape=shape, seed=seed)


def noise(batch, task, size=32, seed=0):
    return torch.randn(batch, PIECES[task], 3, size, size, generator=torch.Generator().manual_seed(seed))


def two_by_two() -> nn.Module:
    """A user's backbone."""
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(2))


def test_caffenet_has_caffenets_parameters():
    convolutions = [module for module in caffenet() if isinstance(module, nn.Conv2d)]
    assert [tuple(c.weight.shape) for c in convolutions] == [
        (96, 3, 11, 11),
        (256, 48, 5, 5),
        (384, 256, 3, 3),
        (384, 192, 3, 3),
        (256, 192, 3, 3),
    ]
    assert sum(p.numel() for c in convolutions for p in c.parameters()) == 2_334_080
    assert sum(p.numel() for p in caffenet().parameters()) == 2_334_080 + 2_752


def test_caffenet_takes_a_75_pixel_piece_to_256_3_3():
    assert caffenet().eval()(torch.zeros(1, 3, 75, 75)).shape == (1, 256, 3, 3)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_trunk_computes_what_its_layers_do_one_after_the_other(backbone, training, half):
    torch.manual_seed(0)
    trunk = BACKBONES[backbone]().train(training)
    plain = nn.Sequential(*copy.deepcopy(trunk))
    pieces = torch.randn(4, 3, SIZES.get(backbone, 16), SIZES.get(backbone, 16))
    found = []
    for module in (trunk, plain):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            features = module(pieces)
        features.float().square().sum().backward()
        found.append([features, *(each.grad for each in module.parameters()), *module.buffers()])
    assert all(torch.equal(own, expected) for own, expected in zip(*found, strict=True))


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"), [(11, 2, 0, 75), (7, 2, 3, 32), (5, 2, 2, 16), (5, 1, 0, 9), (5, 3, 1, 12)]
)
def test_a_convolution_over_whole_rows_is_that_convolution(kernel, stride, padding, size, has_bias):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, size, size), (6, 3, kernel, kernel), *([(6,)] if has_bias else [])]
    given = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]
    images, weight, bias = given if has_bias else (*given, None)
    plain = nn.functional.conv2d(images, weight, bias, stride, padding)
    rows = convolve_rows(images, weight, bias, stride, padding)
    torch.testing.assert_close(rows, plain)
    assert rows.is_contiguous(memory_format=torch.channels_last)
    gradients = [torch.autograd.grad(outputs.square().sum(), given) for outputs in (rows, plain)]
    torch.testing.assert_close(*gradients)


def test_in_evaluation_the_output_of_a_relu_is_not_pooled():
    seen = {}
    trunk = BACKBONES["quarter-caffenet"]().eval()
    trunk[2].register_forward_hook(lambda layer, given, output: seen.update(size=output.shape[2]))
    trunk(torch.zeros(1, 3, 32, 32))
    assert seen["size"] == 16


@pytest.mark.parametrize("task", PIECES)
@pytest.mark.parametrize("backbone", [*BACKBONES, two_by_two], ids=str)
def test_logits_of_permuted_pieces(backbone, task):
    size = SIZES.get(backbone, 32)
    network = build(backbone, size, tasks=[task])
    logits = network(task, noise(2, task, size))
    assert logits.shape == (2, 20)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert all(p.grad.any() for name, p in network.named_parameters() if name.startswith("heads"))


@pytest.mark.parametrize("task", PIECES)
def test_the_head_sees_the_order(task):
    network = build().eval()
    pieces = noise(1, task)
    swapped = pieces[:, [1, 0, *range(2, PIECES[task])]]
    with torch.no_grad():
        assert not torch.allclose(network(task, pieces), network(task, swapped), atol=1e-6)


# Several tasks, one trunk


def test_together_equals_task_by_task_where_batch_statistics_stand_still():
    network = build()
    pieces = {"spatial": noise(3, "spatial"), "temporal": noise(2, "temporal", seed=1)}
    network.together(pieces)  # statistics that are not the initial ones
    network.eval()
    with torch.no_grad():
        together = network.together(pieces)
        assert list(together) == ["spatial", "temporal"]
        for task, batch in pieces.items():
            torch.testing.assert_close(together[task], network(task, batch), rtol=1e-4, atol=1e-6)


def test_together_normalises_with_the_statistics_of_the_mixture():
    network, reference = build(), build()
    pieces = {"spatial": noise(3, "spatial"), "temporal": 3 * noise(2, "temporal", seed=1) + 1}
    together = network.together(pieces)
    pool5 = reference.trunk(torch.cat([pieces["spatial"].flatten(0, 1), pieces["temporal"].flatten(0, 1)])).flatten(1)
    features = {"spatial": pool5[:27].unflatten(0, (3, 9)), "temporal": pool5[27:].unflatten(0, (2, 8))}
    for task in pieces:
        torch.testing.assert_close(together[task], reference.heads[task](features[task]), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(network.trunk[1].running_mean, reference.trunk[1].running_mean)
    alone = build()
    assert not torch.allclose(together["spatial"], alone("spatial", pieces["spatial"]), atol=1e-4)


def test_together_with_one_task_is_that_task():
    network, twin = build(tasks=["temporal"]), build(tasks=["temporal"])
    pieces = noise(2, "temporal")
    assert torch.equal(network.together({"temporal": pieces})["temporal"], twin("temporal", pieces))


# Initial weights


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    first, same, other = build(seed=1), build(seed=1), build(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    for p, q in zip(first.parameters(), other.parameters(), strict=True):
        constant = len(p.unique()) == 1  # biases, and the batch normalisation's weights
        assert constant or not torch.equal(p, q)


def test_a_users_backbone_is_seeded_too():
    weights = [build(two_by_two, seed=seed).trunk[0].weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("task", PIECES)
def test_the_first_predictions_are_nearly_uniform(task):
    network = build().eval()
    with torch.no_grad():
        probabilities = network(task, noise(8, task)).softmax(1)
    assert probabilities.max() < 3 / 20


def test_an_lstm_starts_as_torch_makes_it_and_fc6_with_hes_deviation():
    head = build().heads["temporal"]
    bound = 1 / head.lstm.hidden_size**0.5
    for p in head.lstm.parameters():
        assert 0.8 * bound < p.abs().max() <= bound
    fc6, _ = head.fc6
    assert fc6.weight.std().item() == pytest.approx((2 / fc6.in_features) ** 0.5, rel=0.1)
    assert not fc6.bias.any()


def test_pieces_too_small_for_the_trunk_are_refused():
    with pytest.raises(ValueError, match=r"cannot take pieces of 3 × 8 × 8"):
        build("caffenet", piece_size=8)


def returns(value):
    """A user's backbone that returns something else than one feature map."""

    class Trunk(nn.Module):
        def forward(self, pieces):
            return value(pieces)

    return Trunk


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (lambda pieces: (pieces,), "'tuple'"),
        (lambda pieces: {"out": pieces}, "'dict'"),
        (lambda pieces: pieces.sum(), r"a tensor of shape \(\)"),
        (lambda pieces: pieces[0], r"a tensor of shape \(3, 32, 32\)"),
    ],
)
def test_a_backbone_that_returns_no_feature_maps_is_refused(value, shown):
    with pytest.raises(ValueError, match=f"the backbone returned {shown} for one piece: return its feature maps"):
        build(returns(value))


def test_a_backbone_keeps_the_modes_of_its_modules():
    def half_frozen():
        trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        trunk[1].eval()
        return trunk

    network = build(half_frozen)
    assert network.trunk.training
    assert not network.trunk[1].training


def test_eval_mode_tells_modules_that_do_more_than_set_their_mode():
    class Merging(nn.Identity):
        merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    network = nn.Sequential(Merging())
    with eval_mode(network):
        assert network[0].merged
    assert not network[0].merged


def test_eval_mode_restores_the_mode():
    network = build()
    with eval_mode(network):
        assert not network.trunk.training
    assert network.trunk.training
    network.eval()
    with eval_mode(network):
        pass
    assert not network.training


# timm


@pytest.fixture(scope="session")
def timm():
    """Import the real timm, whatever build torch has.

    timm imports torchvision, whose import fails where its compiled operators are of another build than torch: beside a
    CPU torch from a registry that has it with CUDA alone. Its Python part, all that timm's models use, asks no more
    than that two of them are declared.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for operator in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", schema)
    with warnings.catch_warnings():  # of what a newer torch wants otherwise: timm's to heed
        warnings.simplefilter("ignore")
        import timm
    return timm


def test_a_timm_model_is_a_trunk_with_its_own_seeded_weights(timm):
    before = global_states()
    network, same, other = (build("timm/test_resnet", seed=seed) for seed in (1, 1, 2))
    assert global_states() == before
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        theirs = timm.create_model("test_resnet", features_only=True).parameters()
    weights = [list(each.trunk.parameters()) for each in (network, same, other)]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], theirs, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not torch.equal(weights[0][0], weights[2][0])
    for task in PIECES:
        network(task, noise(2, task)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_mambaout", "test_vit"])
def test_a_timm_trunk_gives_a_map_with_the_channels_first(timm, name):
    trunk = build(f"timm/{name}").trunk.eval()
    channels = trunk.model.feature_info.channels()[-1]
    side = 96 // trunk.model.feature_info.reduction()[-1]
    with torch.no_grad():
        assert trunk(torch.zeros(2, 3, 96, 96)).shape == (2, channels, side, side)


@pytest.mark.parametrize("name", ["cpubone_nano", "fasternet_t1"])  # one drops features, the other whole paths
def test_a_timm_trunk_draws_nothing_in_its_forward_pass(timm, name):
    pieces = torch.zeros(2, 3, 32, 32)
    with torch.random.fork_rng(devices=[]):
        before = global_states()
        timm.create_model(name, features_only=True).train()(pieces)
        assert global_states() != before
    trunk = build(f"timm/{name}").trunk.train()
    before = global_states()
    trunk(pieces)
    assert global_states() == before


@pytest.mark.ci
def test_a_run_with_a_timm_backbone_trains_forks_saves_and_pickles(timm, make_env, tmp_path):
    numbers = {
        "backbone": "timm/test_resnet",
        "piece_size": 32,
        "cell_size": 36,
        "learning_rate": 0.05,
        "total_updates": 4,
    }
    env = make_env(**numbers)
    env.reset(seed=0)
    base_env = env.unwrapped
    assert json.loads(json.dumps(base_env.config.as_dict()))["backbone"] == "timm/test_resnet"
    trunk = base_env.run.trainer.network.trunk
    initial = [p.detach().clone() for p in trunk.parameters()]
    actions = np.random.default_rng(0).integers(4, size=48).tolist()  # 4 updates of 3 iterations of 4 actions
    for action in actions[:24]:
        env.step(action)
    assert all(not torch.equal(a, b) for a, b in zip(initial, trunk.parameters(), strict=True))
    env.unwrapped.save(tmp_path / "run.safetensors")
    restored = make_env(**numbers)
    restored.reset(options={"checkpoint": tmp_path / "run.safetensors"})
    runs = [base_env, base_env.fork(), restored.unwrapped, pickle.loads(pickle.dumps(base_env))]
    for action in actions[24:]:
        results = [run.step(action) for run in runs]
    for observation, reward, terminated, truncated, info in results:
        assert np.array_equal(observation, results[0][0])
        assert (reward, terminated, truncated) == (results[0][1], False, True)
        assert info["update"] == 4
        assert info["loss"] == results[0][4]["loss"]


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("timm/resnet81", r"timm has no model 'resnet81'.*; the nearest are .*'timm/resnet18'"),
        ("timm/resnet18.a1_in1k", r"weights are random, so a name has no tag\); the nearest are .*'timm/resnet18'"),
        ("timm/hf-hub:someone/something", r"unknown backbone 'timm/hf-hub:someone/something'"),
        ("timm/", r"timm has no model ''.*; timm.list_models\(\) lists them"),
    ],
)
def test_an_unknown_timm_model_is_refused_when_the_environment_is_made(timm, make_env, backbone, message):
    with pytest.raises(ConfigurationError, match=message):
        make_env(backbone=backbone)


def test_a_timm_model_of_another_size_is_refused_when_the_run_begins(timm, make_env):
    env = make_env(backbone="timm/vit_tiny_patch16_224", piece_size=32, cell_size=36)
    with pytest.raises(
        ConfigurationError, match=r"pieces of 3 × 32 × 32: Input height \(32\) .*; change the pieces \(piece_size\)"
    ):
        env.reset(seed=0)


def test_building_a_network_leaves_all_generators_alone(monkeypatch):
    def fail(seed):
        raise AssertionError("a generator of a GPU was seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", fail)
    monkeypatch.setattr(torch.cuda, "manual_seed", fail)
    before = torch.get_rng_state()
    env = gym.make("PermShuffle-v0", **SMALL)
    env.reset(seed=3)
    env.unwrapped.fork()
    assert torch.equal(torch.get_rng_state(), before)
