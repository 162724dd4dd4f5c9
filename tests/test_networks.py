"""The network: CaffeNet's sizes, seeded weights, any backbone, one trunk for all tasks."""

import pytest
import torch
from torch import nn

from permenv.heads import SpatialHead, TemporalHead
from permenv.networks import BACKBONES, build_network, caffenet, evaluating

SIZES = {"caffenet": 75, "quarter-caffenet": 32}


PIECES = {"spatial": 9, "temporal": 8}
HEADS = {
    "spatial": lambda features: SpatialHead(features, 9, 20, fc6=8, fc7=16),
    "temporal": lambda features: TemporalHead(features, 20, fc6=8, lstm=16),
}


def build(backbone="quarter-caffenet", piece_size=32, seed=0, tasks=("spatial", "temporal")):
    return build_network(backbone, {task: HEADS[task] for task in tasks}, piece_size=piece_size, seed=seed)


def noise(batch, task, size=32, seed=0):
    return torch.randn(batch, PIECES[task], 3, size, size, generator=torch.Generator().manual_seed(seed))


def two_by_two() -> nn.Module:
    """A backbone of somebody else."""
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


def test_a_backbone_of_ones_own_is_seeded_too():
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
    with pytest.raises(ValueError, match=r"cannot take pieces of 8 × 8"):
        build("caffenet", piece_size=8)


def test_evaluating_gives_the_mode_back():
    network = build()
    with evaluating(network):
        assert not network.trunk.training
    assert network.trunk.training
    network.eval()
    with evaluating(network):
        pass
    assert not network.training
