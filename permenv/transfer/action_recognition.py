"""Action recognition on UCF-101 and HMDB-51 from single frames (section 4.2, Table 3).

"The supervised training is performed using single frames as input, whereas the network is trained and tested on every
split separately. [...] For training and testing we utilize the PyTorch implementation provided by Wang et al. [51] for
augmenting the data and for the finetuning and evaluation step, but network architecture and hyperparameters are
retained from our model."

The network. The trunk keeps its batch normalisation, whose weights and statistics are trained with the rest: it is
"retained", and the paper leaves it out for PASCAL VOC only. New are CaffeNet's fc6 and fc7, and a linear layer.

Training, as the code of Wang et al. (Temporal segment networks, ECCV 2016) does with one segment: an epoch has a random
frame of each clip. Of the frame, a crop is resized to the input: each side is a random one of four shares of the
frame's, the two at most neighbours in that list, and it lies at a random one of 13 places. It is mirrored half of the
time. The batch of 128, the learning rate, momentum and weight decay are those of the self-supervised training.

Testing, likewise: a clip has 25 evenly spaced frames, and of each the four corners and the centre are tested, and all
of them mirrored. The class with the highest mean score, before the softmax, is the clip's. `accuracy` is over clips;
`class_accuracy`, the figure of Table 3, is the mean over classes, which that code prints.

What differs, or is not in the paper:

- Frames are the centre squares that `permenv.data` reads, not whole ones of 340 × 256 pixels.
- Training draws from the same 25 frames of a clip that testing would see, so that the cache of UCF-101 has 67 GB.
- Crops are normalised each on its own, as the pieces of the self-supervised task are.
- Batch normalisation is trained in all layers, not in the first one only. As other weights its weights decay, and as
  other biases its biases learn at twice the rate.
- The paper gives no number of iterations. That of Simonyan and Zisserman (Two-stream convolutional networks, 2014) is
  taken, which fine-tuned for 20,000 and lowered the rate after 14,000.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from permenv.data import DataError, VideoClips
from permenv.progress import progress_bar
from permenv.transfer.batches import CHUNK, chunks
from permenv.transfer.crops import SCALES, evaluated_crops, training_crop
from permenv.transfer.finetuning import Schedule, epochs, fine_tune
from permenv.transfer.plain import FineTunedNetwork, map_shape, network_input
from permenv.transfer.trunks import Trunk

_SCORE = "score"
_DEVIATION = 0.001  # of the last layer's initial weights, that of Wang et al.
_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class ActionSplit:
    """One split of a set of clips, see `permenv.transfer.action_splits`.

    Attributes:
        number: Its number, from 1 on.
        train: (n,) int64, which clips are trained on.
        test: (m,) int64, which clips are recognised.
    """

    number: int
    train: np.ndarray
    test: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.train) or not len(self.test):
            raise DataError(
                f"split {self.number} has {len(self.train)} training clips and {len(self.test)} test clips; "
                "it needs one or more of both"
            )


@dataclass(frozen=True)
class ActionOptions:
    """Options of the protocol; the defaults are those of the paper and of Wang et al.

    Attributes:
        scales: Sides of a training crop as shares of a frame's, from the largest, see `training_crop`.
        test_scale: Side of a test crop as a share of a frame's.
        ten_crops: Whether to test the corners and the centre, and all mirrored, or the centre alone.
        batch: Frames of a mini-batch.
        hidden: Units of fc6 and fc7.
        dropout: Share of them that is dropped in training.
        schedule: SGD.
    """

    scales: tuple[float, ...] = SCALES
    test_scale: float = 0.875
    ten_crops: bool = True
    batch: int = 128
    hidden: int = 4096
    dropout: float = 0.5
    schedule: Schedule = field(default_factory=lambda: Schedule(20_000, 1e-3, 14_000))

    @classmethod
    def small(cls) -> ActionOptions:
        """For the trunk of the tiny preset and two CPU cores."""
        schedule = Schedule(300, 0.01, 200, largest_gradient=5.0)
        return cls(ten_crops=False, batch=32, hidden=256, schedule=schedule)


@dataclass(frozen=True, eq=False)
class SplitResult:
    """Figures of one split.

    Attributes:
        number: Of the split.
        accuracy: Share of the test clips whose class is recognised, in [0, 1].
        class_accuracy: Mean of `by_class` over the classes that are tested.
        by_class: Share of the test clips of each class that are recognised; NaN if it has none.
        scores: (m, classes) float32 mean logits of the test clips.
        losses: (iterations,) of the training.
    """

    number: int
    accuracy: float
    class_accuracy: float
    by_class: dict[str, float]
    scores: np.ndarray
    losses: np.ndarray


@dataclass(frozen=True, eq=False)
class ActionResult:
    """Figures of the protocol.

    Attributes:
        accuracy: Mean over the splits, in [0, 1].
        class_accuracy: Likewise; the figure of Table 3.
        by_class: Mean over the splits that test the class; NaN if none does.
        splits: Of each split.
    """

    accuracy: float
    class_accuracy: float
    by_class: dict[str, float]
    splits: tuple[SplitResult, ...]

    @classmethod
    def of(cls, splits: Sequence[SplitResult]) -> ActionResult:
        """Average over splits of the same classes, one or more."""
        return cls(
            _mean([each.accuracy for each in splits]),
            _mean([each.class_accuracy for each in splits]),
            {name: _mean([each.by_class[name] for each in splits]) for name in splits[0].by_class},
            tuple(splits),
        )


def action_recognition(
    trunk: Trunk,
    clips: VideoClips,
    splits: Sequence[ActionSplit],
    options: ActionOptions | None = None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> ActionResult:
    """Fine-tune a trunk on the frames of labelled clips and recognise the actions of others, split by split.

    Args:
        trunk: It is left as it is. Crops have its `input_size`.
        clips: All clips, labelled; frames are squares of any size. Training draws from the frames of a clip, the scores
            of a test clip are averaged over all of them.
        splits: One or more.
        options: By default those of the paper.
        seed: Decides new weights, mini-batches, frames, crops and dropped units; a split has the same result whichever
            others there are.
        device: Where to compute.
        progress: Show progress bars, see `permenv.progress`.

    Raises:
        DataError: If a clip of a split has no class.
        ValueError: If there is no split, or the trunk cannot take images of its `input_size`.
        FloatingPointError: If the training diverges.
    """
    options = options or ActionOptions()
    if not splits:
        raise ValueError("there are no splits; pass one or more")
    labels = {split.number: _labels(clips, np.concatenate([split.train, split.test])) for split in splits}
    results = []
    for split in splits:
        network = _network(trunk, len(clips.frames.classes), options, seed).to(
            torch.device(device), memory_format=torch.channels_last
        )  # type: ignore[call-overload]  # torch's stubs forget it
        train, test = np.split(labels[split.number], [len(split.train)])
        losses = _train(network, trunk.input_size, clips, split, train, options, seed, progress)
        scores = clip_scores(network, clips, split.test, trunk.input_size, options, progress=progress)
        results.append(_figures(split.number, scores, test, clips.frames.classes, losses))
    return ActionResult.of(results)


@torch.no_grad()
def clip_scores(
    network: nn.Module,
    clips: VideoClips,
    among: np.ndarray,
    side: int,
    options: ActionOptions,
    *,
    progress: bool = True,
) -> np.ndarray:
    """Mean logits (n, classes) float32 of clips over the test crops of all their frames.

    Args:
        network: Returns logits (N, classes) called "score" of images (N, 3, side, side).
        clips: The clips.
        among: (n,) int64, which of them.
        side: Of a crop in pixels.
        options: `test_scale` and `ten_crops` are used.
        progress: Show a progress bar, see `permenv.progress`.
    """
    device = next(network.parameters()).device
    network.eval()
    scores = []
    for clip in progress_bar(among, label="testing", unit="clip", show=progress):
        frames = clips.take(np.array([clip]), np.arange(clips.lengths[clip])[None], _CPU)[0].numpy()
        crops = np.concatenate(
            [evaluated_crops(frame, side, options.test_scale, options.ten_crops) for frame in frames]
        )
        logits = torch.cat([network(network_input(chunk, device))[_SCORE] for chunk in chunks(crops, CHUNK)])
        scores.append(logits.mean(0).cpu().numpy())
    return np.stack(scores)


def _network(trunk: Trunk, classes: int, options: ActionOptions, seed: int) -> FineTunedNetwork:
    module = copy.deepcopy(trunk.module).requires_grad_()
    channels, rows, columns = map_shape(module, trunk.input_size)
    return FineTunedNetwork(
        module,
        (rows, columns),
        {_SCORE: (classes, _DEVIATION)},
        channels=channels,
        hidden=options.hidden,
        dropout=options.dropout,
        seed=seed,
    )


def _train(
    network: FineTunedNetwork,
    side: int,
    clips: VideoClips,
    split: ActionSplit,
    labels: np.ndarray,
    options: ActionOptions,
    seed: int,
    progress: bool,
) -> np.ndarray:
    device = next(network.parameters()).device
    rng = np.random.default_rng([seed, split.number])
    batches = epochs(rng, len(split.train), options.batch)
    lengths = clips.lengths

    def draw() -> tuple[np.ndarray, np.ndarray]:
        rows = next(batches)
        chosen = split.train[rows]
        frames = clips.take(chosen, rng.integers(lengths[chosen])[:, None], _CPU)[:, 0].numpy()
        return np.stack([training_crop(frame, side, options.scales, rng) for frame in frames]), labels[rows]

    def loss_of(batch: tuple[np.ndarray, np.ndarray]) -> Tensor:
        crops, classes = batch
        logits = network(network_input(crops, device))[_SCORE]
        return nn.functional.cross_entropy(logits, torch.from_numpy(classes).to(device))

    label = f"split {split.number}"
    return fine_tune(network, options.schedule, draw, loss_of, label=label, progress=progress)


def _figures(
    number: int, scores: np.ndarray, labels: np.ndarray, classes: Sequence[str], losses: np.ndarray
) -> SplitResult:
    if not np.isfinite(scores).all():
        raise FloatingPointError(f"split {number}: scores are not finite; lower the learning rate")
    right = scores.argmax(axis=1) == labels
    by_class = {name: _mean(right[labels == label]) for label, name in enumerate(classes)}
    return SplitResult(number, _mean(right), _mean(list(by_class.values())), by_class, scores, losses)


def _labels(clips: VideoClips, among: np.ndarray) -> np.ndarray:
    """The class of each clip (n,) int64.

    Raises:
        DataError: If one has none.
    """
    found = clips.frames.labels
    labels = np.full(len(among), -1) if found is None else found[clips.starts[among]]
    without = [clips.names[clip] for clip in among[labels < 0]]
    if without:
        raise DataError(
            f"{len(without)} clips of {clips.name} have no class, such as {without[0]}; the first folder is the class: "
            "folder/<class>/.../clip.avi"
        )
    return labels


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """Mean of those that are not NaN; NaN if there are none."""
    used = np.asarray(values, dtype=np.float64)
    used = used[~np.isnan(used)]
    return float(used.mean()) if len(used) else float("nan")
