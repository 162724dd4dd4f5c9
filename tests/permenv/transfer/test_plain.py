"""Folding: equal outputs, the groups of CaffeNet, the stride of conv1, receptive fields; the new layers."""

import numpy as np
import pytest
import torch
from torch import nn

from permenv.networks import BACKBONES, eval_mode
from permenv.transfer.plain import (
    FineTunedNetwork,
    ReceptiveField,
    SeededDropout,
    map_size,
    network_input,
    plain_trunk,
    receptive_field,
)

SIDES = {"caffenet": 75, "quarter-caffenet": 32, "two-convolutions": 16}


def lived_in(backbone: str) -> nn.Sequential:
    """A trunk whose batch normalisation has seen data and has been trained."""
    trunk = BACKBONES[backbone]()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in trunk.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 2, generator=generator)
                layer.bias.normal_(generator=generator)
                layer.running_mean.normal_(generator=generator)
                layer.running_var.uniform_(0.1, 4, generator=generator)
            elif isinstance(layer, nn.Conv2d):
                deviation = (2 / layer.weight[0].numel()) ** 0.5
                layer.weight.normal_(std=deviation, generator=generator)
    return trunk


def image(side: int, number: int = 2) -> torch.Tensor:
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("backbone", SIDES)
def test_a_folded_trunk_computes_what_the_trunk_computes(backbone):
    trunk = lived_in(backbone)
    plain = plain_trunk(trunk)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in plain.modules())
    with torch.no_grad(), eval_mode(trunk):
        expected = trunk(image(SIDES[backbone]))
        difference = plain(image(SIDES[backbone])) - expected
    assert difference.abs().max() < 1e-5 * expected.abs().max()  # five convolutions, each rounded to float32
    assert expected.std() > 0.1


def test_each_folded_convolution_is_exact_to_the_rounding_of_its_weights():
    trunk = lived_in("quarter-caffenet")
    plain = plain_trunk(trunk)
    convolutions = [layer for layer in plain if isinstance(layer, nn.Conv2d)]
    layers = list(trunk)
    with torch.no_grad():
        for place, convolution in enumerate(convolutions):
            at = [place for place, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)][place]
            x = torch.randn(1, convolution.in_channels, 9, 9, dtype=torch.float64)
            expected = layers[at + 1].double().eval()(layers[at].double()(x))
            torch.testing.assert_close(convolution.double()(x), expected, rtol=1e-6, atol=1e-6)


def test_the_trunk_is_left_as_it_was():
    trunk = lived_in("two-convolutions")
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    plain = plain_trunk(trunk, stride=1)
    with torch.no_grad():
        plain[0].weight.zero_()
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())
    assert trunk[0].stride == (2, 2)


def test_plain_caffenet_is_the_published_one():
    plain = plain_trunk(BACKBONES["caffenet"](), stride=4)
    convolutions = [layer for layer in plain if isinstance(layer, nn.Conv2d)]
    assert [layer.groups for layer in convolutions] == [1, 2, 1, 2, 2]
    assert convolutions[0].stride == (4, 4)
    assert sum(parameter.numel() for parameter in plain.parameters()) == 2_334_080
    assert map_size(plain, 227) == (6, 6)


def test_a_trunk_without_groups_stays_without():
    plain = plain_trunk(BACKBONES["quarter-caffenet"]())
    assert {layer.groups for layer in plain if isinstance(layer, nn.Conv2d)} == {1}
    assert map_size(plain, 96) == (6, 6)


def test_convolutions_without_bias_and_norms_without_weights_fold():
    trunk = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)), nn.ReLU())
    trunk[0][1].running_mean.fill_(0.3)
    trunk[0][1].running_var.fill_(2.0)
    with torch.no_grad(), eval_mode(trunk):
        torch.testing.assert_close(plain_trunk(trunk)(image(8)), trunk(image(8)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("trunk", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), "directly before"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), "running statistics"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU()), "GELU"),
        (nn.Sequential(nn.ReLU()), "no convolution"),
    ],
)
def test_what_cannot_be_folded_is_named(trunk, message):
    with pytest.raises(ValueError, match=message):
        plain_trunk(trunk)


# Receptive fields


@pytest.mark.parametrize(("backbone", "side"), [("quarter-caffenet", 96), ("two-convolutions", 48)])
def test_a_receptive_field_is_what_changes_a_unit(backbone, side):
    """A gradient reaches exactly the pixels of the square, if ReLU and pooling let everything through."""
    linear = [nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding) if isinstance(layer, nn.MaxPool2d) else layer
              for layer in plain_trunk(BACKBONES[backbone]()) if not isinstance(layer, nn.ReLU)]  # fmt: skip
    network = nn.Sequential(*linear)
    with torch.no_grad():
        for layer in network:
            if isinstance(layer, nn.Conv2d):
                layer.weight.fill_(0.1)
    field = receptive_field(BACKBONES[backbone]())
    pixels = torch.zeros(1, 3, side, side, requires_grad=True)
    unit = network(pixels).shape[-1] // 2
    network(pixels)[0, 0, unit, unit].backward()
    seen = pixels.grad[0, 0].abs().sum(0).nonzero().flatten()
    centre = field.first + unit * field.stride
    low, high = max(0, centre - (field.size - 1) / 2), min(side - 1, centre + (field.size - 1) / 2)
    assert (seen.min().item(), seen.max().item()) == (low, high)


def test_receptive_fields_of_caffenet_are_the_known_ones():
    plain = plain_trunk(BACKBONES["caffenet"](), stride=4)
    assert receptive_field(plain[:-1]) == ReceptiveField(size=163, stride=16, first=17)  # conv5
    assert receptive_field(plain) == ReceptiveField(size=195, stride=32, first=33)  # pool5


def test_a_layer_that_is_not_square_has_no_such_field():
    with pytest.raises(ValueError, match="not a square"):
        receptive_field(nn.Sequential(nn.Conv2d(3, 4, (3, 5))))


# The network that is fine-tuned


TRUNK = BACKBONES["two-convolutions"]()


def network(seed=0, dropout=0.5):
    trunk = plain_trunk(TRUNK)
    return FineTunedNetwork(trunk, map_size(trunk, 48), {"score": (5, 0.01)}, hidden=32, dropout=dropout, seed=seed)


def test_a_seed_decides_new_weights_and_dropped_units_and_nothing_else_does():
    state = torch.get_rng_state()
    first, same, other = network(), network(), network(seed=1)
    assert torch.equal(first.fc6.weight, same.fc6.weight)
    assert not torch.equal(first.fc6.weight, other.fc6.weight)
    units = torch.ones(2, 32)
    assert torch.equal(first.dropout(units), same.dropout(units))
    assert not torch.equal(first.dropout(units), other.dropout(units))
    assert torch.equal(torch.get_rng_state(), state)


def test_outputs_are_those_of_the_layers_in_their_order():
    net = network().eval()
    with torch.no_grad():
        fc6 = torch.relu(net.fc6(net.trunk(image(48)).reshape(2, -1)))
        expected = net.outputs["score"](torch.relu(net.fc7(fc6)))
        torch.testing.assert_close(net(image(48))["score"], expected)
    assert expected.shape == (2, 5)


def test_dropout_keeps_the_mean():
    units = SeededDropout(0.5, seed=0)(torch.ones(100, 1000))
    assert set(units.unique().tolist()) == {0.0, 2.0}
    assert units.mean().item() == pytest.approx(1, abs=0.02)


def test_each_image_is_normalised_on_its_own():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 10, 12, 3), dtype=np.uint8)
    both = network_input(pixels, torch.device("cpu"))
    assert both.shape == (2, 3, 10, 12)
    torch.testing.assert_close(both[1:], network_input(pixels[1:], torch.device("cpu")))
    torch.testing.assert_close(both.mean((2, 3)), torch.zeros(2, 3), atol=1e-5, rtol=0)


def test_read_only_and_mirrored_images_are_taken():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 6, 3), dtype=np.uint8)
    expected = network_input(pixels[:, :, ::-1].copy(), torch.device("cpu"))
    pixels.setflags(write=False)
    torch.testing.assert_close(network_input(pixels[:, :, ::-1], torch.device("cpu")), expected)
    torch.testing.assert_close(network_input(torch.tensor(pixels).flip(2), torch.device("cpu")), expected)


def test_images_that_are_too_small_are_refused():
    with pytest.raises(ValueError, match="10 × 10 pixels are too small"):
        map_size(plain_trunk(BACKBONES["caffenet"](), stride=4), 10)
