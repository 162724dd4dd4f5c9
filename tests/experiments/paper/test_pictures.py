"""The pictures of figure 3 and appendix I from the command line, on trees like the releases."""

import numpy as np
import pytest
import torch

from experiments.paper import figure_3, figure_i3, figures_i1_i2, shared
from permenv import ConfigurationError
from permenv.transfer.trunks import load_trunk
from tests.experiments import releases

pytestmark = pytest.mark.usefixtures("cache")
BACKBONE = "two-convolutions"


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return releases.voc(tmp_path_factory.mktemp("voc"), each=6)


def state_dict(path, seed):
    torch.save(load_trunk("random", backbone=BACKBONE, seed=seed).module.state_dict(), path)
    return str(path)


def images_of(figure):
    """Return the pixels of all images that a figure shows."""
    return [image.get_array() for axis in figure.axes for image in axis.images]


def test_figure_3_draws_the_neighbours_of_each_network(voc, saved_figure, tmp_path):
    sources = (state_dict(tmp_path / "one.pt", 1), "random")
    found = figure_3.main(figure_3.Config(sources=sources, voc=voc, queries=3, out=tmp_path / "figure.png"))
    assert {name: rows.shape for name, rows in found.items()} == {"one": (3, 5), "random": (3, 5)}
    images = images_of(saved_figure(tmp_path / "figure.png"))
    assert len(images) >= 2 * 3 * 5 + 3, "the neighbours of both, and the queries"
    assert all(image.std() > 0 for image in images)


def test_one_of_each_class_comes_before_a_second_one_of_any():
    labels = np.array([0, 0, 0, 0, 2, 2, 1])
    order = shared.one_of_each_first(labels, seed=4)
    assert sorted(order) == list(range(7))
    assert set(labels[order[:3]]) == {0, 1, 2}
    assert set(labels[order[3:5]]) == {0, 2}


def test_figures_i1_and_i2_draw_units_in_several_sets(saved_figure, tmp_path):
    train, val = releases.imagenet(tmp_path / "imagenet", each=4)
    source = state_dict(tmp_path / "one.pt", 1)
    config = figures_i1_i2.Config(source=source, images=(train, val), units=(5, 2), top=3, out=tmp_path / "figure.png")
    found = figures_i1_i2.main(config)
    assert found.units.tolist() == [5, 5, 2, 2]
    assert found.images.shape == (4, 3)
    assert set(found.images[[0, 2]].ravel()) <= set(range(8))
    assert set(found.images[[1, 3]].ravel()) <= set(range(8, 16)), "the second set's images come after the first's"
    assert (np.diff(found.values) <= 0).all()
    images = images_of(saved_figure(tmp_path / "figure.png"))
    assert len(images) == 4 * 3
    assert all(image.std() > 0 for image in images)


def test_units_that_stand_out_are_found(tmp_path):
    train, _ = releases.imagenet(tmp_path / "imagenet", each=4)
    source = state_dict(tmp_path / "one.pt", 1)
    found = figures_i1_i2.main(
        figures_i1_i2.Config(source=source, images=(train,), count=2, top=2, out=tmp_path / "figure.png")
    )
    assert found.images.shape == (2, 2)
    assert len(set(found.units)) == 2


def test_figure_i3_fine_tunes_and_draws_saliency(voc, saved_figure, tmp_path):
    config = figure_i3.Config(
        sources=("random",), voc=voc, count=2, share=0.004, backbone=BACKBONE, device="cpu", out=tmp_path / "figure.png"
    )
    maps = figure_i3.main(config)
    assert [each.shape for each in maps["random"]] == [(96, 96), (96, 96)]
    assert all((each >= 0).all() and each.max() > 0 for each in maps["random"])
    photo, saliency, *_ = images = images_of(saved_figure(tmp_path / "figure.png"))
    assert len(images) == 2 * 2, "of each image itself and the map of the network"
    assert photo.ndim == 3
    np.testing.assert_array_equal(saliency, maps["random"][0])


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="VOCdevkit/VOC2007 with --voc"):
        figure_3.main(figure_3.Config(sources=("random",)))
    with pytest.raises(ConfigurationError, match="VOCdevkit/VOC2007 with --voc"):
        figure_i3.main(figure_i3.Config(sources=("random",)))
    with pytest.raises(ConfigurationError, match="one or more folders with --images"):
        figures_i1_i2.main(figures_i1_i2.Config(source="random"))
    train, _ = releases.imagenet(tmp_path, each=1)
    with pytest.raises(ConfigurationError, match=r"units \[99\] of convolution 2: it has units 0 to 31"):
        figures_i1_i2.main(figures_i1_i2.Config(source="random", images=(train,), units=(99,), backbone=BACKBONE))
