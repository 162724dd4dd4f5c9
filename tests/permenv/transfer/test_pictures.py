"""Top activations with their receptive fields, class saliency, and the figures of both."""

import numpy as np
import pytest
import torch
from torch import nn

from permenv import render
from permenv.data import StillImages
from permenv.networks import BACKBONES
from permenv.transfer.pictures import (
    activation_figure,
    class_saliency,
    neighbour_figure,
    saliency_figure,
    top_activations,
)
from permenv.transfer.plain import FineTunedNetwork, map_size, network_input, plain_trunk, receptive_field


def noise(number, seed=0, size=(40, 56)):
    return list(np.random.default_rng(seed).integers(0, 256, (number, *size, 3), dtype=np.uint8))


@pytest.fixture
def trunk():
    torch.manual_seed(0)
    return plain_trunk(BACKBONES["two-convolutions"]())


def test_activations_agree_with_a_search_unit_by_unit(trunk):
    images = noise(6)
    found = top_activations(trunk, images, convolution=2, units=[5, 0, 31], top=3, progress=False)
    field = receptive_field(trunk[:5])
    for row, unit in enumerate([5, 0, 31]):
        ranked = []
        for number, image in enumerate(images):
            with torch.no_grad():
                maps = trunk[:5](network_input(image[None], torch.device("cpu")))[0, unit].numpy()
            place = np.unravel_index(maps.argmax(), maps.shape)
            ranked.append((maps.max(), number, place))
        ranked.sort(key=lambda each: (-each[0], each[1]))
        for column, (value, number, (y, x)) in enumerate(ranked[:3]):
            assert found.values[row, column] == pytest.approx(value)
            assert found.images[row, column] == number
            left, top = field.first + x * field.stride - 7, field.first + y * field.stride - 7  # 15 pixels wide
            expected = np.clip([left, top, left + 14, top + 14], 0, [55, 39, 55, 39])
            assert found.boxes[row, column].tolist() == expected.tolist()
    assert field.size == 15


def test_a_receptive_field_contains_what_a_unit_responds_to():
    """A unit that responds to red, and the one image with a red dot."""
    trunk = nn.Sequential(nn.Conv2d(3, 1, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    with torch.no_grad():
        trunk[0].weight.zero_()
        trunk[0].weight[0, 0] = 1.0
        trunk[0].bias.zero_()
    images = [np.full((20, 30, 3), 50, dtype=np.uint8) for _ in range(3)]
    images[1][6:9, 21:24, 0] = 250
    found = top_activations(trunk, images, convolution=1, top=1, progress=False)
    assert found.images.tolist() == [[1]]
    assert found.boxes.tolist() == [[[21, 6, 23, 8]]]


def test_boxes_are_in_pixels_of_the_image_before_it_is_resized(trunk):
    images = noise(2, size=(80, 112))
    found = top_activations(trunk, images, convolution=1, units=[0], top=2, short_side=40, progress=False)
    sides = found.boxes[:, :, 2:] - found.boxes[:, :, :2] + 1
    assert (sides <= 10).all()  # 5 pixels at half of the size
    assert sides.max() >= 8
    assert (found.boxes <= [111, 79, 111, 79]).all()


def test_what_is_not_there_is_named(trunk):
    with pytest.raises(ValueError, match="convolution 5: the trunk has 2"):
        top_activations(trunk, noise(1))
    with pytest.raises(ValueError, match="units 0 to 31"):
        top_activations(trunk, noise(1), convolution=2, units=[32])
    with pytest.raises(ValueError, match="no images"):
        top_activations(trunk, [], convolution=2)


def test_saliency_is_the_derivative_of_the_score(trunk):
    network = FineTunedNetwork(trunk, map_size(trunk, 32), {"score": (3, 0.5)}, hidden=16, dropout=0.5)
    image = noise(1, size=(32, 32))[0]
    saliency = class_saliency(network, image, 1, 32)
    assert saliency.shape == (32, 32)
    assert network.training  # left as it was found
    network.double().eval()
    pixels = network_input(image[None], torch.device("cpu")).double()
    with torch.no_grad():
        for y, x in ((3, 4), (16, 20), (30, 9)):
            slopes = []
            for channel in range(3):
                low, high = pixels.clone(), pixels.clone()
                low[0, channel, y, x] -= 1e-5
                high[0, channel, y, x] += 1e-5
                slopes.append(((network(high)["score"] - network(low)["score"])[0, 1] / 2e-5).item())
            assert saliency[y, x] == pytest.approx(max(map(abs, slopes)), rel=1e-3, abs=1e-5)


def test_figures_show_every_unit_and_every_network(trunk):
    images = noise(4)
    found = top_activations(trunk, images, convolution=2, units=[1, 2], top=3, progress=False)
    figure = activation_figure(images, found)
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["unit 1", "unit 2"]
    left, top, right, bottom = found.boxes[1, 2]
    shown = figure.axes[5].images[0].get_array()
    assert (shown == images[found.images[1, 2]][top : bottom + 1, left : right + 1]).all()
    maps = {"random": [np.eye(8)] * 2, "trained": [np.ones((8, 8))] * 2}
    figure = saliency_figure(images[:2], ("cat", "dog"), maps)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["image", "random", "trained"]
    assert figure.axes[3].get_ylabel() == "dog"
    assert render.to_array(figure).std() > 0


def labelled(labels, classes, seed):
    pixels = torch.from_numpy(np.stack(noise(len(labels), seed, (12, 12))))
    return StillImages(pixels, np.array(labels), classes, "images", "")


def test_neighbours_of_the_right_class_have_another_frame_and_a_mark():
    queries = labelled([0, 1, 0], ("cat", "dog"), 0)
    database = labelled([0, 0, 1, 1], ("dog", "cat"), 1)  # numbered in another way
    found = {"trained": np.array([[3, 1], [0, 2]]), "random": np.array([[0, 1], [2, 3]])}
    figure = neighbour_figure(queries, np.array([2, 1]), database, found)
    grid = np.array(figure.axes).reshape(4, 3)
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["trained", "random"] * 2
    assert [axes.get_title() for axes in grid[0]] == ["cat", "Top1", "Top2"]
    assert grid[2, 0].get_title() == "dog"
    assert (grid[0, 0].images[0].get_array() == queries.pixels[2].numpy()).all()
    expected = {(0, 1): (3, True), (0, 2): (1, False), (1, 1): (0, False), (2, 1): (0, True), (3, 2): (3, False)}
    for place, (row, right) in expected.items():
        axes = grid[place]
        assert (axes.images[0].get_array() == database.pixels[row].numpy()).all()
        assert [text.get_text() for text in axes.texts] == ["✓"] * right
        assert {spine.get_linestyle() in ("-", "solid") for spine in axes.spines.values()} == {right}
    assert render.to_array(figure).std() > 0


def test_neighbours_of_other_queries_are_refused():
    data = labelled([0, 1], ("cat", "dog"), 0)
    with pytest.raises(ValueError, match=r"neighbours of 1 queries of shapes .*: pass \(1, k\)"):
        neighbour_figure(data, np.array([0]), data, {"one": np.zeros((2, 5), int)})
    with pytest.raises(ValueError, match="pass labelled images"):
        neighbour_figure(
            StillImages(data.pixels, None, (), "", ""), np.array([0]), data, {"one": np.zeros((1, 1), int)}
        )
