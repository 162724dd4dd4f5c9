"""Boxes: regression targets and back, mirroring, suppression."""

import numpy as np
import pytest

from permenv.transfer.boxes import box_targets, clipped, mirrored, moved, suppress
from permenv.transfer.voc_metrics import intersection_over_union


def random_boxes(number, seed=0):
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 60, (number, 2))
    return np.concatenate([low, low + rng.integers(5, 40, (number, 2))], axis=1)


def test_targets_worked_by_hand():
    """From 10 × 10 pixels about (4.5, 4.5) to 20 × 10 about (9.5, 14.5)."""
    targets = box_targets(np.array([[0, 0, 9, 9]]), np.array([[0, 10, 19, 19]]))
    assert targets[0] == pytest.approx([0.5, 1.0, np.log(2), 0.0])


def test_a_box_moves_to_its_object():
    boxes, objects = random_boxes(20), random_boxes(20, 1)
    np.testing.assert_allclose(moved(boxes, box_targets(boxes, objects)), objects, atol=1e-9)


def test_wild_predictions_stay_finite():
    assert np.isfinite(moved(random_boxes(1), np.full((1, 4), 1e4))).all()


def test_boxes_are_cut_at_the_borders():
    assert clipped(np.array([[-5.0, 3, 200, 90]]), 80, 100).tolist() == [[0, 3, 99, 79]]


def test_a_mirrored_box_contains_the_mirrored_pixels():
    image = np.zeros((20, 30), dtype=bool)
    image[4:8, 3:11] = True
    left, top, right, bottom = mirrored(np.array([[3, 4, 10, 7]]), 30)[0]
    again = np.zeros_like(image)
    again[top : bottom + 1, left : right + 1] = True
    assert (again == image[:, ::-1]).all()
    boxes = random_boxes(5)
    assert (mirrored(mirrored(boxes, 120), 120) == boxes).all()
    turned = box_targets(mirrored(boxes, 120), mirrored(boxes[::-1], 120))
    np.testing.assert_allclose(turned, box_targets(boxes, boxes[::-1]) * [-1, 1, 1, 1])


@pytest.mark.parametrize("seed", range(5))
def test_suppression_agrees_with_the_rule_written_slowly(seed):
    boxes, scores = random_boxes(80, seed), np.random.default_rng(seed).random(80)
    kept = []
    for place in sorted(range(80), key=lambda each: -scores[each]):
        overlaps = [intersection_over_union(boxes[[place]], boxes[[other]])[0, 0] for other in kept]
        if all(overlap <= 0.3 for overlap in overlaps):
            kept.append(place)
    assert suppress(boxes, scores, 0.3).tolist() == kept
    assert len(kept) < 80


def test_nothing_is_suppressed_of_nothing():
    assert suppress(np.empty((0, 4)), np.empty(0), 0.3).shape == (0,)
