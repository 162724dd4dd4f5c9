"""What a run is made of: from a preset, a task and the caller's keywords to checked numbers, data and tasks."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import torch

from permenv.config import PRESETS, Config, ConfigurationError
from permenv.device import resolve_device, spare_threads
from permenv.memory import check_memory
from permenv.networks import find_backbone
from permenv.registry import data_keywords, parts_of
from permenv.tasks import Task


def make_config(preset: str, task: str = "spatial", **overrides: Any) -> Config:
    """Take a preset's numbers for a task and change some of them.

    Args:
        preset: A name in `PRESETS`.
        task: A name in `registered_tasks()`.
        **overrides: Fields of `Config` with their new values.

    Returns:
        The checked configuration.

    Raises:
        ConfigurationError: If the preset, the task or a keyword is unknown, or a value is out of range.
    """
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ConfigurationError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    parts = parts_of(task)
    names = [field.name for field in dataclasses.fields(Config)]
    for name in overrides:
        if name not in names:
            known = [*names, *(part.data_keyword for part in parts)]
            if name in known:
                raise ConfigurationError(f"{name} is no field of Config: pass data to gym.make or Pretraining.create")
            close = difflib.get_close_matches(name, known)
            hint = f"did you mean {close[0]!r}?" if close else f"the keywords are {', '.join(known)}"
            raise ConfigurationError(f"unknown keyword {name!r}; {hint}")
    changes = {name: value for part in parts for name, value in part.preset_changes.get(preset, {}).items()}
    config = dataclasses.replace(PRESETS[preset], **{**changes, **overrides})
    try:
        find_backbone(config.backbone)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    return config


def prepare(
    preset: str, task: str, device: str | torch.device, options: Mapping[str, Any]
) -> tuple[Config, torch.device, dict[str, Any]]:
    """Check what a run is made of, before any data are read.

    Args:
        preset: A name in `permenv.PRESETS`.
        task: A name in `permenv.registered_tasks()`.
        device: "auto", "cpu" or "cuda".
        options: Data (`images`, `videos`) and any field of `permenv.Config`, by keyword.

    Returns:
        All numbers, the device, and the data by keyword, for `make_tasks`.

    Raises:
        ConfigurationError: If an option is unknown or out of range, or the run does not fit into memory.
    """
    keywords = data_keywords()
    data = {name: value for name, value in options.items() if name in keywords}
    config = make_config(preset, task, **{name: value for name, value in options.items() if name not in keywords})
    chosen = resolve_device(device)
    spare_threads()
    check_memory(task, config, chosen, data)
    return config, chosen, data


def make_tasks(task: str, config: Config, device: torch.device, data: Mapping[str, Any]) -> dict[str, Task]:
    """Make the ordering tasks of a registered name, with their data.

    Args:
        task: A name in `registered_tasks()`.
        config: All numbers of the run.
        device: Where pieces are returned.
        data: By data keyword, what was passed; None or absent for the default.

    Returns:
        The tasks by name.

    Raises:
        ConfigurationError: If there are not as many permutations as asked for, or data are given that the task does
            not use.
        DataError: If data cannot be used.
    """
    parts = parts_of(task)
    used = [part.data_keyword for part in parts]
    for keyword, given in data.items():
        if given is not None and keyword not in used:
            raise ConfigurationError(
                f"{keyword}={_shown(given)}: task {task!r} does not use it; pass {' and '.join(used)}"
            )
    try:  # all permutations before any data: they are checked at once, and reading a folder may take minutes
        permutations = [part.choose_permutations(config) for part in parts]
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    tasks = {
        part.name: part(config, psi, part.load(data.get(part.data_keyword), config), device)
        for part, psi in zip(parts, permutations, strict=True)
    }
    shapes = {name: each.piece_shape for name, each in tasks.items()}
    if len(set(shapes.values())) > 1:
        raise ConfigurationError(f"task {task!r} has pieces of shapes {shapes}: tasks on one trunk need the same shape")
    return tasks


def _shown(given: Any) -> str:
    return repr(str(given)) if isinstance(given, str) or hasattr(given, "__fspath__") else f"<{type(given).__name__}>"
