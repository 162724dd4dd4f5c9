"""VOC's figures: cases worked by hand, and the development kit's rules written again, slowly."""

import dataclasses

import numpy as np
import pytest

from permenv.data.voc import VOID
from permenv.transfer.voc_metrics import (
    AveragePrecision,
    Detections,
    Truth,
    average_precision,
    class_iou,
    classification_precision,
    confusion,
    detection_precision,
    intersection_over_union,
    mean_average_precision,
    mean_iou,
)

# A ranked list


def test_a_list_worked_by_hand():
    """Two positives at ranks 1 and 3: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1."""
    found = average_precision(np.array([True, False, True]), 2)
    assert found.eleven_point == pytest.approx((6 * 1 + 5 * 2 / 3) / 11, abs=1e-12)
    assert found.all_point == pytest.approx(0.5 * 1 + 0.5 * 2 / 3, abs=1e-12)


def test_what_is_never_found_counts_with_precision_zero():
    """One of four found, at rank 1: recalls up to 0.25 are reached, 3 of the 11 points."""
    found = average_precision(np.array([True, False]), 4)
    assert found.eleven_point == pytest.approx(3 / 11, abs=1e-12)
    assert found.all_point == pytest.approx(1 / 4, abs=1e-12)


def test_a_recall_of_three_tenths_is_reached_by_three_of_ten():
    assert average_precision(np.array([True] * 3), 10).eleven_point == pytest.approx(4 / 11, abs=1e-12)
    assert average_precision(np.array([True] * 10), 10) == AveragePrecision(1.0, 1.0, 1.0)


def test_without_positives_there_is_no_average_precision():
    assert np.isnan(dataclasses.astuple(average_precision(np.array([False]), 0))).all()
    assert average_precision(np.array([], dtype=bool), 3) == AveragePrecision(0.0, 0.0, 0.0)


def slow_eleven_point(recall, precision):
    """VOCevaldet of 2007: for t=0:0.1:1, p=max(prec(rec>=t)), 0 if there is none, ap=ap+p/11."""
    total = 0.0
    for tenth in range(11):
        best = 0.0
        for r, p in zip(recall, precision, strict=True):
            if r >= tenth / 10 - 1e-9:
                best = max(best, p)
        total += best / 11
    return total


def slow_all_point(recall, precision):
    """VOCap of 2010: sentinels at both ends, precision made monotonic, area where recall changes."""
    recall, precision = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for place in range(len(precision) - 2, -1, -1):
        precision[place] = max(precision[place], precision[place + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)) if recall[i] != recall[i - 1])


def slow_curve(true_positives, positives):
    hits, recall, precision = 0, [], []
    for rank, hit in enumerate(true_positives, start=1):
        hits += hit
        recall.append(hits / positives)
        precision.append(hits / rank)
    return recall, precision


@pytest.mark.parametrize("seed", range(10))
def test_classification_agrees_with_the_rule_written_slowly(seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.normal(size=60), rng.choice([-1, 1, 0], size=60, p=[0.6, 0.3, 0.1])
    ranked = sorted((i for i in range(60) if labels[i]), key=lambda i: -scores[i])
    recall, precision = slow_curve([labels[i] == 1 for i in ranked], sum(labels == 1))
    found = classification_precision(scores, labels)
    assert found.eleven_point == pytest.approx(slow_eleven_point(recall, precision), abs=1e-6)
    assert found.all_point == pytest.approx(slow_all_point(recall, precision), abs=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_without_interpolation_it_is_scikit_learns_of_the_images_that_are_not_difficult(seed):
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(seed)
    scores, labels = rng.normal(size=50), rng.choice([-1, 1, 0], 50)
    found, used = classification_precision(scores, labels), labels != 0
    assert found.uninterpolated == pytest.approx(average_precision_score(labels[used] == 1, scores[used]))
    assert found.uninterpolated < found.all_point


def test_what_is_never_found_counts_without_interpolation_too():
    assert average_precision(np.array([False, True]), 4).uninterpolated == pytest.approx(0.5 / 4)


def test_scores_of_a_diverged_network_are_refused():
    with pytest.raises(ValueError, match="diverged"):
        classification_precision(np.array([0.1, np.nan]), np.array([1, -1]))


# Detection


def box(left, top, side=10):
    return [left, top, left + side - 1, top + side - 1]


def truth_of(*images):
    """By image, (box, difficult) of each object."""
    return [
        Truth(
            np.array([each for each, _ in objects], dtype=float).reshape(-1, 4), np.array([d for _, d in objects], bool)
        )
        for objects in images
    ]


def detections_of(*found):
    """(image, box, score) of each detection."""
    images, boxes, scores = zip(*found, strict=True)
    return Detections(np.array(images), np.array(boxes, dtype=float), np.array(scores))


def test_boxes_contain_their_last_pixels():
    overlap = intersection_over_union(np.array([[0, 0, 9, 9]]), np.array([[5, 0, 14, 9], [10, 0, 19, 9], [0, 0, 9, 9]]))
    assert overlap[0] == pytest.approx([50 / 150, 0, 1])


def test_an_object_is_found_once():
    truth = truth_of([(box(0, 0), False), (box(50, 0), False)])
    twice = detections_of((0, box(0, 0), 0.9), (0, box(1, 0), 0.8), (0, box(50, 0), 0.7))
    found = detection_precision(twice, truth)  # correct, duplicate, correct
    assert found.all_point == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_difficult_objects_neither_count_nor_cost():
    truth = truth_of([(box(0, 0), True), (box(50, 0), False)])
    found = detection_precision(detections_of((0, box(0, 0), 0.9), (0, box(0, 0), 0.8), (0, box(50, 0), 0.7)), truth)
    assert found == AveragePrecision(1.0, 1.0, 1.0)


def test_a_detection_is_given_to_the_object_it_overlaps_most_though_that_is_taken():
    """The kit does not look for a second best object."""
    truth = truth_of([(box(0, 0), False), (box(2, 0), False)])
    found = detection_precision(detections_of((0, box(0, 0), 0.9), (0, box(0, 0), 0.8)), truth)
    assert found.all_point == pytest.approx(0.5)


def test_an_overlap_of_exactly_one_half_is_enough():
    truth = truth_of([([0, 0, 9, 9], False)])
    assert detection_precision(detections_of((0, [0, 0, 9, 4], 1.0)), truth).all_point == 1.0
    assert detection_precision(detections_of((0, [0, 0, 9, 3], 1.0)), truth).all_point == 0.0


def test_a_detection_in_an_image_without_the_class_is_false():
    truth = truth_of([], [(box(0, 0), False)])
    found = detection_precision(detections_of((0, box(0, 0), 0.9), (1, box(0, 0), 0.8)), truth)
    assert found.all_point == pytest.approx(0.5)


def slow_detection(found, truth, minimum=0.5):
    """VOCevaldet, line by line."""
    positives = sum(not difficult for objects in truth for _, difficult in objects)
    taken, flags = set(), []
    for image, (left, top, right, bottom), _ in sorted(found, key=lambda each: -each[2]):
        best, nearest = -float("inf"), None
        for number, ((x, y, right_of, bottom_of), _) in enumerate(truth[image]):
            width = min(right, right_of) - max(left, x) + 1
            height = min(bottom, bottom_of) - max(top, y) + 1
            if width > 0 and height > 0:
                area = (right - left + 1) * (bottom - top + 1) + (right_of - x + 1) * (bottom_of - y + 1)
                overlap = width * height / (area - width * height)
                if overlap > best:
                    best, nearest = overlap, number
        if best >= minimum:
            if not truth[image][nearest][1]:
                flags.append((image, nearest) not in taken)
                taken.add((image, nearest))
        else:
            flags.append(False)
    recall, precision = slow_curve(flags, positives)
    return slow_eleven_point(recall, precision), slow_all_point(recall, precision)


@pytest.mark.parametrize("seed", range(10))
def test_detection_agrees_with_the_rule_written_slowly(seed):
    rng = np.random.default_rng(seed)

    def random_box():
        left, top = rng.integers(0, 30, 2)
        width, height = rng.integers(8, 25, 2)
        return [int(left), int(top), int(left + width), int(top + height)]

    truth = [[(random_box(), rng.random() < 0.2) for _ in range(rng.integers(0, 5))] for _ in range(8)]
    truth[0] = [(random_box(), False)]
    found = [(int(rng.integers(8)), random_box(), float(rng.random())) for _ in range(60)]
    found += [
        (image, [x + int(rng.integers(-3, 4)) for x in each], float(rng.random()))
        for image, objects in enumerate(truth)
        for each, _ in objects
        for _ in range(2)
    ]
    fast = detection_precision(detections_of(*found), truth_of(*truth))
    eleven_point, all_point = slow_detection(found, truth)
    assert fast.eleven_point == pytest.approx(eleven_point, abs=1e-6)
    assert fast.all_point == pytest.approx(all_point, abs=1e-6)
    assert 0 < fast.all_point < 1


def test_the_mean_is_over_classes_that_occur():
    classes = {"cat": AveragePrecision(0.5, 0.4, 0.3), "dog": AveragePrecision(1.0, 0.8, 0.5)}
    absent = average_precision(np.array([False]), 0)
    mean = mean_average_precision({**classes, "cow": absent})
    assert (mean.eleven_point, mean.all_point, mean.uninterpolated) == pytest.approx((0.75, 0.6, 0.4))
    assert np.isnan(mean_average_precision({"cow": absent}).all_point)


# Segmentation


def test_intersections_over_unions_worked_by_hand():
    truth = np.array([[0, 0, 1], [1, 1, VOID]])
    predicted = np.array([[0, 1, 1], [1, 0, 1]])
    counts = confusion(predicted, truth, 3)
    assert counts.tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert class_iou(counts)[:2] == pytest.approx([1 / 3, 2 / 4])
    assert np.isnan(class_iou(counts)[2])
    assert mean_iou(counts) == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_a_class_that_is_only_predicted_lowers_others_but_has_no_share_in_the_mean():
    counts = confusion(np.array([0, 2]), np.array([0, 0]), 3)
    assert mean_iou(counts) == pytest.approx(1 / 2)


def test_mean_iou_agrees_with_sets_of_pixels():
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(0, 4, (9, 7)), rng.choice([0, 1, 2, 3, VOID], (9, 7))) for _ in range(3)]
    counts = sum(confusion(predicted, truth, 4) for predicted, truth in pairs)
    expected = []
    for label in range(4):
        pixels = {(n, *at) for n, (_, truth) in enumerate(pairs) for at in np.argwhere(truth == label).tolist()}
        found = {
            (n, *at)
            for n, (predicted, truth) in enumerate(pairs)
            for at in np.argwhere((predicted == label) & (truth != VOID)).tolist()
        }
        expected.append(len({*map(tuple, pixels)} & found) / len(pixels | found))
    assert mean_iou(counts) == pytest.approx(np.mean(expected), abs=1e-6)


def test_labels_outside_are_named():
    with pytest.raises(ValueError, match="from 0 to 7"):
        confusion(np.array([0, 1]), np.array([0, 7]), 3)
