"""Runs on noise, because what the pixels show changes no time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

import permenv
from permenv import Pretraining
from permenv.registry import parts_of
from permenv.setup import make_tasks
from permenv.tasks import Task


def tasks_of_noise(
    numbers: permenv.Config, device: torch.device, task: str = "spatiotemporal", count: int | None = None
) -> dict[str, Task]:
    """Make ordering tasks on noise.

    Args:
        numbers: All numbers of the run.
        device: Where pieces are returned.
        task: "spatial", "temporal" or "spatiotemporal".
        count: Images, and clips of as many frames as a sample has; by default twice as many as are held out.
    """
    rng, count = np.random.default_rng(0), 2 * numbers.num_validation if count is None else count
    shapes = {
        "images": (count, numbers.image_size, numbers.image_size, 3),
        "videos": (count, numbers.num_frames, numbers.frame_size, numbers.frame_size, 3),
    }
    keywords = [part.data_keyword for part in parts_of(task)]
    data = {name: rng.integers(0, 256, shapes[name], dtype=np.uint8) for name in shapes if name in keywords}
    return make_tasks(task, numbers, device, data)


def new_run(numbers: permenv.Config, tasks: Mapping[str, Task]) -> Pretraining:
    """Make a run on tasks, where they are."""
    device = next(iter(tasks.values())).device
    return Pretraining(numbers, tasks, device, seed=0)
