"""Stochastic gradient descent as in the Caffe solvers that the protocols of section 4.2 cite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from permenv.progress import progress_bar


@dataclass(frozen=True)
class Schedule:
    """How a network is fine-tuned.

    Attributes:
        iterations: SGD iterations, at least 1.
        learning_rate: Of the first iteration; biases learn at twice the rate.
        drop_every: Iterations after which the learning rate drops.
        drop: Factor of a drop.
        momentum: Of SGD.
        weight_decay: Of weights; biases have none.
        largest_gradient: Norm of all gradients above which they are scaled down; None for no limit.
    """

    iterations: int
    learning_rate: float
    drop_every: int
    drop: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    largest_gradient: float | None = None


def fine_tune(
    network: nn.Module, schedule: Schedule, loss_of_a_batch: Callable[[], Tensor], *, label: str, progress: bool = True
) -> np.ndarray:
    """Train all parameters of a network.

    Args:
        network: It is trained in place, in training mode, and left in evaluation mode.
        schedule: Number of iterations and learning rates.
        loss_of_a_batch: Draws the next mini-batch and returns its loss.
        label: Label of the progress bar.
        progress: Show a progress bar, see `permenv.progress`.

    Returns:
        (iterations,) the losses.

    Raises:
        FloatingPointError: If the loss is not finite.
    """
    parameters = [(name, each) for name, each in network.named_parameters() if each.requires_grad]
    weights = [each for name, each in parameters if not name.endswith("bias")]
    biases = [each for name, each in parameters if name.endswith("bias")]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": schedule.weight_decay, "rate": 1}, {"params": biases, "rate": 2}],
        lr=schedule.learning_rate,
        momentum=schedule.momentum,
    )
    network.train()
    losses = np.empty(schedule.iterations)
    with progress_bar(total=schedule.iterations, label=label, unit="it", show=progress) as bar:
        for iteration in range(schedule.iterations):
            rate = schedule.learning_rate * schedule.drop ** (iteration // schedule.drop_every)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate"]
            with torch.enable_grad():  # whatever mode the caller is in
                loss = loss_of_a_batch()
            losses[iteration] = loss.item()
            if not np.isfinite(losses[iteration]):
                raise FloatingPointError(
                    f"{label}: the loss is {losses[iteration]} in iteration {iteration}; "
                    f"lower the learning rate {schedule.learning_rate}"
                )
            optimizer.zero_grad()
            loss.backward()
            if schedule.largest_gradient is not None:
                nn.utils.clip_grad_norm_([each for _, each in parameters], schedule.largest_gradient)
            optimizer.step()
            bar.update()
            bar.set_postfix(loss=f"{losses[iteration]:.3f}", refresh=False)
    network.eval()
    return losses


def epochs(rng: np.random.Generator, number: int, batch: int) -> Iterator[np.ndarray]:
    """Draw mini-batches without end: every element once an epoch, in random order.

    Args:
        rng: Source of the draws.
        number: Elements of the set, at least 1.
        batch: Elements of a mini-batch; it may reach into the next epoch.

    Yields:
        (batch,) indices.
    """
    waiting = np.empty(0, dtype=np.int64)
    while True:
        while len(waiting) < batch:
            waiting = np.concatenate([waiting, rng.permutation(number)])
        yield waiting[:batch]
        waiting = waiting[batch:]
