"""The network: CaffeNet's sizes, seeded weights, any backbone."""

import pytest
import torch
from torch import nn

from permenv.networks import BACKBONES, build_network, caffenet, evaluating

SIZES = {"caffenet": 75, "quarter-caffenet": 32}


def build(backbone="quarter-caffenet", piece_size=32, seed=0):
    return build_network(backbone, num_pieces=9, num_permutations=20, piece_size=piece_size, fc6=8, fc7=16, seed=seed)


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


@pytest.mark.parametrize("backbone", [*BACKBONES, two_by_two], ids=str)
def test_logits_of_permuted_pieces(backbone):
    size = SIZES.get(backbone, 32)
    network = build(backbone, size)
    logits = network("spatial", torch.randn(2, 9, 3, size, size))
    assert logits.shape == (2, 20)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_the_head_sees_the_order():
    network = build().eval()
    pieces = torch.randn(1, 9, 3, 32, 32)
    swapped = pieces[:, [1, 0, *range(2, 9)]]
    with torch.no_grad():
        assert not torch.allclose(network("spatial", pieces), network("spatial", swapped), atol=1e-6)


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    first, same, other = build(seed=1), build(seed=1), build(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.trunk[0].weight, other.trunk[0].weight)


def test_a_backbone_of_ones_own_is_seeded_too():
    weights = [build(two_by_two, seed=seed).trunk[0].weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_first_predictions_are_nearly_uniform():
    network = build().eval()
    with torch.no_grad():
        probabilities = network("spatial", torch.randn(8, 9, 3, 32, 32)).softmax(1)
    assert probabilities.max() < 3 / 20


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
