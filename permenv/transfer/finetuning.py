"""Stochastic gradient descent as in the Caffe solvers that the protocols of section 4.2 cite."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from permenv.progress import progress_bar

B = TypeVar("B")


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
    network: nn.Module,
    schedule: Schedule,
    draw: Callable[[], B],
    loss_of: Callable[[B], Tensor],
    *,
    label: str,
    progress: bool = True,
) -> np.ndarray:
    """Train all parameters of a network.

    Args:
        network: It is trained in place, in training mode, and left in evaluation mode.
        schedule: Number of iterations and learning rates.
        draw: Draws the next mini-batch and decodes it, once an iteration, in a thread of its own while the network is
            trained on the one before.
        loss_of: Returns the loss of a mini-batch.
        label: Label of the progress bar.
        progress: Show a progress bar, see `permenv.progress`.

    Returns:
        (iterations,) the losses.

    Raises:
        FloatingPointError: If the loss of an iteration is not finite, whose step is then not taken, or the loss of the
            last mini-batch after the last step.
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
    with (
        contextlib.closing(_ahead(draw, schedule.iterations)) as batches,
        progress_bar(total=schedule.iterations, label=label, unit="it", show=progress) as bar,
    ):
        for iteration, batch in enumerate(batches):
            rate = schedule.learning_rate * schedule.drop ** (iteration // schedule.drop_every)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate"]
            optimizer.zero_grad()
            with torch.enable_grad():  # whatever mode the caller is in
                loss = loss_of(batch)
                loss.backward()
            if schedule.largest_gradient is not None:
                nn.utils.clip_grad_norm_([each for _, each in parameters], schedule.largest_gradient)
            losses[iteration] = loss.item()  # waits for a GPU: only now, when all but the step is on its way
            _require_finite(losses[iteration], f"in iteration {iteration}", label, schedule)
            optimizer.step()
            bar.update()
            bar.set_postfix(loss=f"{losses[iteration]:.3f}", refresh=False)
    network.eval()
    with torch.no_grad():  # no iteration follows that would notice a divergence in the last step
        _require_finite(loss_of(batch).item(), f"after iteration {iteration}", label, schedule)
    return losses


def _require_finite(loss: float, when: str, label: str, schedule: Schedule) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"{label}: the loss is {loss} {when}; lower the learning rate {schedule.learning_rate}"
        )


def _ahead(draw: Callable[[], B], number: int) -> Generator[B, None, None]:
    """Yield so many mini-batches; the next one is drawn while the caller uses the one before, and never a second."""
    with ThreadPoolExecutor(1, "mini-batches") as thread:
        waiting = thread.submit(draw)
        for left in reversed(range(number)):
            batch = waiting.result()
            if left:
                waiting = thread.submit(draw)
            yield batch


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
