"""A trunk that is trained on labels: what self-supervised features are compared with in the tables.

The paper takes a network that was trained on ImageNet's labels by others. Here a trunk is trained on the labels of any
images, from random weights, with the trunk's own batch normalisation and new layers fc6 and fc7, so that it can have
the data and the iterations of a self-supervised run.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from permenv.data import DataError, StillImages
from permenv.transfer.crops import SCALES, training_crop
from permenv.transfer.finetuning import Schedule, epochs, fine_tune
from permenv.transfer.plain import FineTunedNetwork, map_shape, network_input
from permenv.transfer.trunks import Trunk

_CLASS = "class"


@dataclass(frozen=True)
class SupervisedOptions:
    """Options of the training.

    Attributes:
        batch: Images of a mini-batch.
        hidden: Units of fc6 and fc7.
        dropout: Share of them that is dropped.
        schedule: SGD.
    """

    batch: int = 128
    hidden: int = 4096
    dropout: float = 0.5
    schedule: Schedule = field(default_factory=lambda: Schedule(450_000, 1e-2, 100_000))


def supervised(
    trunk: Trunk,
    images: StillImages,
    options: SupervisedOptions,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Trunk:
    """Train a trunk on labelled images.

    Args:
        trunk: Where training starts; it is left as it is. Crops have its `input_size`.
        images: Labelled images, larger than the crops or of their size; unlabelled ones are left out.
        options: Sizes and schedule.
        seed: Decides new weights, mini-batches, crops and dropped units.
        device: Where to compute.
        progress: Show a progress bar, see `permenv.progress`.

    Returns:
        The trained trunk, in evaluation mode.

    Raises:
        DataError: If no image is labelled.
        FloatingPointError: If the training diverges.
    """
    if images.labels is None or not len(among := np.flatnonzero(images.labels >= 0)):
        raise DataError(f"{images.name} has no labels: name a folder with a subfolder for each class")
    labels, device = images.labels, torch.device(device)
    module = copy.deepcopy(trunk.module).requires_grad_()
    channels, *pool5 = map_shape(module, trunk.input_size)
    network = FineTunedNetwork(
        module,
        (pool5[0], pool5[1]),
        {_CLASS: (len(images.classes), 0.01)},
        channels=channels,
        hidden=options.hidden,
        dropout=options.dropout,
        seed=seed,
    ).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs forget it
    rng = np.random.default_rng([seed, 0])
    batches = epochs(rng, len(among), options.batch)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        chosen = among[next(batches)]
        pixels = images.take(chosen, torch.device("cpu")).numpy()
        return np.stack([training_crop(each, trunk.input_size, SCALES, rng) for each in pixels]), labels[chosen]

    def loss_of(batch: tuple[np.ndarray, np.ndarray]) -> Tensor:
        squares, classes = batch
        logits = network(network_input(squares, device))[_CLASS]
        return nn.functional.cross_entropy(logits, torch.from_numpy(classes).to(device))

    fine_tune(network, options.schedule, draw, loss_of, label="supervised", progress=progress)
    return dataclasses.replace(
        trunk,
        module=module.eval(),
        source=f"labels of {images.name}, seed {seed}",
        loaded=tuple(module.state_dict()),
    )
