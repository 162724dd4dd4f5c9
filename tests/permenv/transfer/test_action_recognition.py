"""Action recognition: scores of clips, learning, one seed one result."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from permenv.data import DataError, StillImages, VideoClips
from permenv.transfer.action_recognition import (
    ActionOptions,
    ActionSplit,
    action_recognition,
    clip_scores,
)
from permenv.transfer.finetuning import Schedule
from permenv.transfer.trunks import load_trunk

CLASSES = ("blue", "green", "red")
OPTIONS = ActionOptions(batch=12, hidden=32, dropout=0.2, ten_crops=False, schedule=Schedule(60, 0.02, 45))
SIDE = 62  # of the frames: 54, the input of the trunk, times 256 / 224


def clips_of(frames, labels, classes=CLASSES):
    """A set of clips from a list of (F, S, S, 3), with a class for each."""
    lengths = [len(each) for each in frames]
    images = StillImages(np.concatenate(frames), np.repeat(labels, lengths), classes, "made up", "digest")
    return VideoClips(images, np.cumsum([0, *lengths]), tuple(f"clip {n}" for n in range(len(frames))))


def coloured(number, seed):
    """Noise in which one channel is brighter in a square that wanders; the channel is the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(number) % 3
    frames = []
    for label in labels:
        clip = rng.integers(0, 120, (rng.integers(3, 7), SIDE, SIDE, 3), dtype=np.uint8)
        for frame in clip:
            top, left = rng.integers(5, 25, size=2)
            frame[top : top + 30, left : left + 30, 2 - label] += 130
        frames.append(clip)
    return clips_of(frames, labels)


def split_of(clips, number=1, test=12):
    """The first clips are tested."""
    return ActionSplit(number, np.arange(test, len(clips)), np.arange(test))


@pytest.fixture(scope="module")
def trunk():
    return load_trunk("random", backbone="two-convolutions", seed=0)


class MeanColour(nn.Module):
    """Scores are a function of the mean of each channel's brighter half, which the normalisation leaves there."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[2.0, -1.0, 0.5], [0.3, 1.0, -2.0]]))

    def forward(self, images):
        return {"score": images.clamp_min(0).pow(2).mean((2, 3)) @ self.weight.T}


# Scores


def normalised(crop):
    """Each channel with mean 0 and deviation 1, (3, h, w)."""
    pixels = crop.astype(np.float64).transpose(2, 0, 1)
    return (pixels - pixels.mean((1, 2), keepdims=True)) / pixels.std((1, 2), keepdims=True)


@pytest.mark.parametrize("ten", [False, True])
def test_scores_are_the_mean_over_all_crops_of_all_frames(ten, monkeypatch):
    monkeypatch.setattr("permenv.transfer.action_recognition.CHUNK", 7)  # chunks of different sizes
    options = dataclasses.replace(OPTIONS, ten_crops=ten)
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (length, 64, 64, 3), dtype=np.uint8) for length in (1, 5, 3)]
    clips, network = clips_of(frames, [0, 1, 0]), MeanColour()
    found = clip_scores(network, clips, np.array([2, 1]), 56, options, progress=False)
    weight = network.weight.detach().numpy()
    for place, clip in enumerate((2, 1)):
        total, count = np.zeros(2), 0
        for frame in frames[clip]:
            crops = [frame[4:60, 4:60]]
            if ten:
                crops += [frame[y : y + 56, x : x + 56] for y in (0, 8) for x in (0, 8)]
                crops += [each[:, ::-1] for each in crops]
            for crop in crops:
                total += weight @ (np.maximum(normalised(crop), 0) ** 2).mean((1, 2))
                count += 1
        np.testing.assert_allclose(found[place], total / count, atol=1e-5)


class Brightness(nn.Module):
    """Sure that a frame with a light spot is of class 1, hardly sure that one without is of class 0."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        spot = images.amax((1, 2, 3)) > 5
        return {"score": torch.stack([torch.where(spot, 0.0, 1.0), torch.where(spot, 5.0, 0.0)], 1)}


def test_where_frames_disagree_their_mean_score_decides_and_not_their_number():
    plain, spotted = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    spotted[14:17, 14:17] = 255
    clips = clips_of([np.stack([plain] * 4 + [spotted]), np.stack([plain] * 6 + [spotted])], [0, 0])
    scores = clip_scores(Brightness(), clips, np.arange(2), 28, OPTIONS, progress=False)
    np.testing.assert_allclose(scores, [[4 / 5, 5 / 5], [6 / 7, 5 / 7]], rtol=1e-6)
    assert scores.argmax(axis=1).tolist() == [1, 0]  # although most frames of both say 0


# Learning


def test_actions_are_learned_and_a_seed_decides_the_result(trunk):
    state, clips = torch.get_rng_state(), coloured(48, 0)
    weights = {name: value.clone() for name, value in trunk.module.state_dict().items()}
    splits = [split_of(clips), ActionSplit(2, np.arange(36), np.arange(36, 48))]
    result = action_recognition(trunk, clips, splits, OPTIONS, seed=3, progress=False)
    assert result.accuracy > 0.9
    assert result.accuracy == pytest.approx((result.splits[0].accuracy + result.splits[1].accuracy) / 2)
    assert result.class_accuracy == pytest.approx(np.mean([split.class_accuracy for split in result.splits]))
    assert [each.number for each in result.splits] == [1, 2]
    assert result.splits[0].losses.shape == (60,)
    assert result.splits[0].scores.shape == (12, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in trunk.module.state_dict().items())
    with torch.no_grad():  # neither the caller's mode nor the other splits matter
        (again,) = action_recognition(trunk, clips, splits[1:], OPTIONS, seed=3, progress=False).splits
    assert (again.losses == result.splits[1].losses).all()
    assert (again.scores == result.splits[1].scores).all()


def briefly(**changes):
    return dataclasses.replace(OPTIONS, schedule=Schedule(1, 0.01, 1), **changes)


def test_another_seed_gives_another_result(trunk):
    clips = coloured(18, 0)
    first, other = (
        action_recognition(trunk, clips, [split_of(clips)], briefly(), seed=seed, progress=False).splits[0].losses
        for seed in (0, 1)
    )
    assert first != other


def test_accuracy_is_that_of_clips_and_each_class_has_its_own(trunk):
    clips = coloured(24, 0)
    clips = dataclasses.replace(clips, frames=dataclasses.replace(clips.frames, classes=(*CLASSES, "never there")))
    (split,) = action_recognition(
        trunk, clips, [ActionSplit(1, np.arange(7, 24), np.arange(7))], briefly(), progress=False
    ).splits
    right = [
        int(scores.argmax()) == clips.frames.labels[clips.starts[clip]] for clip, scores in enumerate(split.scores)
    ]
    assert split.accuracy == sum(right) / 7
    assert split.by_class["blue"] == sum(right[0::3]) / 3
    assert split.by_class["red"] == sum(right[2::3]) / 2
    assert math.isnan(split.by_class["never there"])
    assert split.class_accuracy == pytest.approx(
        (sum(right[0::3]) / 3 + sum(right[1::3]) / 2 + sum(right[2::3]) / 2) / 3
    )


def test_all_layers_are_trained_and_batch_statistics_follow(trunk, monkeypatch):
    networks = []

    def keep(network, *rest, **options):
        networks.append(network)
        return clip_scores(network, *rest, **options)

    monkeypatch.setattr("permenv.transfer.action_recognition.clip_scores", keep)
    clips = coloured(18, 0)
    action_recognition(trunk, clips, [split_of(clips)], briefly(), progress=False)
    trained, before = networks[0].trunk.state_dict(), trunk.module.state_dict()
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in networks[0].trunk)
    assert not any(torch.equal(trained[name], before[name]) for name in before)


def test_clips_without_a_class_are_refused(trunk):
    clips = coloured(14, 0)
    labels = clips.frames.labels.copy()
    labels[clips.starts[3] : clips.starts[4]] = -1
    partly = dataclasses.replace(clips, frames=dataclasses.replace(clips.frames, labels=labels))
    with pytest.raises(DataError, match="1 clips of made up have no class, such as clip 3"):
        action_recognition(trunk, partly, [split_of(clips)], OPTIONS)
    unlabelled = dataclasses.replace(clips, frames=dataclasses.replace(clips.frames, labels=None))
    with pytest.raises(DataError, match="14 clips of made up have no class"):
        action_recognition(trunk, unlabelled, [split_of(clips)], OPTIONS)
    with pytest.raises(DataError, match="split 2 has 0 training clips and 3 test clips"):
        ActionSplit(2, np.empty(0, dtype=np.int64), np.arange(3))
    with pytest.raises(ValueError, match="no splits; pass one or more"):
        action_recognition(trunk, clips, [], OPTIONS)


def test_a_divergence_is_named(trunk):
    clips = coloured(18, 0)
    options = dataclasses.replace(OPTIONS, schedule=Schedule(40, 1e30, 100))
    with pytest.raises(FloatingPointError, match=r"split 1: .* lower the learning rate"):
        action_recognition(trunk, clips, [split_of(clips)], options, progress=False)
