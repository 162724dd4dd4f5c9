"""Tasks by name: which there are, and what a preset, a task and the caller's keywords make together."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from permenv.config import PRESETS, Config, ConfigurationError
from permenv.networks import find_backbone
from permenv.tasks import SpatialTask, Task, TemporalTask

_REGISTRY: dict[str, tuple[type[Task], ...]] = {}


def register_task(name: str, *parts: type[Task]) -> None:
    """Make a task known to `gym.make`, agents, wrappers and checkpoints by its name.

    Call it at module level of a module that every process imports: a spawned worker, or a process that unpickles an
    environment, must know the task too.

    Example:
        >>> register_task("series", SeriesTask)
        >>> register_task("two series", SeriesTask, OtherSeriesTask)  # a joint task, trained on one trunk

    Args:
        name: What `gym.make(..., task=name)` calls it. A class that was defined again may be registered again.
        *parts: The ordering tasks that are trained together, one or more, in the order of the observation's rows. Their
            pieces have the same shape; where several change a number of a preset, the last one decides.

    Raises:
        ConfigurationError: If the name is taken, a part is no complete task, or two parts have the same name.
    """
    for part in parts:
        _check_part(part)
    names = [part.name for part in parts]
    if not parts or len(set(names)) < len(names):
        raise ConfigurationError(f"task {name!r} of {names}: pass one or more task classes with different names")
    known = _REGISTRY.get(name)
    if known is not None and [_path(part) for part in known] != [_path(part) for part in parts]:
        raise ConfigurationError(f"there is a task {name!r} already, of {known}: choose another name")
    _REGISTRY[name] = parts


def _check_part(part: type[Task]) -> None:
    """Refuse what cannot be made into a task later."""
    if not (isinstance(part, type) and issubclass(part, Task)):
        raise ConfigurationError(f"{part!r} is no task: pass a subclass of permenv.Task")
    if inspect.isabstract(part):
        missing = ", ".join(sorted(part.__abstractmethods__))
        raise ConfigurationError(f"{part.__name__} lacks {missing}: define what permenv.Task leaves open")
    for attribute in ("name", "data_keyword"):
        value = getattr(part, attribute, None)
        if not (isinstance(value, str) and value.isidentifier()):
            raise ConfigurationError(f"{part.__name__}.{attribute}={value!r}: must be an identifier such as 'series'")
    numbers = [field.name for field in dataclasses.fields(Config)]
    if part.data_keyword in (*numbers, "preset", "task", "device", "seed", "render_mode"):
        raise ConfigurationError(
            f"{part.__name__}.data_keyword={part.data_keyword!r}: is a keyword of gym.make already"
        )
    for preset, changes in part.preset_changes.items():
        unknown = [name for name in changes if name not in numbers]
        if preset not in PRESETS or unknown:
            raise ConfigurationError(
                f"{part.__name__}.preset_changes[{preset!r}]={dict(changes)}: the key must be one of "
                f"{', '.join(PRESETS)}, the values must be fields of permenv.Config"
            )


def _path(part: type[Task]) -> tuple[str, str]:
    return part.__module__, part.__qualname__


def registered_tasks() -> Mapping[str, tuple[type[Task], ...]]:
    """The registered tasks: by name, the ordering tasks that are trained together."""
    return MappingProxyType(_REGISTRY)


register_task("spatial", SpatialTask)
register_task("temporal", TemporalTask)
register_task("spatiotemporal", SpatialTask, TemporalTask)


def data_keywords() -> set[str]:
    """The keywords of `gym.make` that pass data to any registered task."""
    return {part.data_keyword for parts in _REGISTRY.values() for part in parts}


def parts_of(task: str) -> tuple[type[Task], ...]:
    """Find the ordering tasks that a registered name stands for.

    Raises:
        ConfigurationError: If there is no task of this name.
    """
    if not isinstance(task, str) or task not in _REGISTRY:
        raise ConfigurationError(
            f"unknown task {task!r}; choose one of {', '.join(_REGISTRY)}, or call permenv.register_task in every "
            f"process that uses it"
        )
    return _REGISTRY[task]


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
            close = [match for match in difflib.get_close_matches(name, known) if match != name]
            hint = f"did you mean {close[0]!r}?" if close else f"the keywords are {', '.join(known)}"
            raise ConfigurationError(f"unknown keyword {name!r}; {hint}")
    changes = {name: value for part in parts for name, value in part.preset_changes.get(preset, {}).items()}
    config = dataclasses.replace(PRESETS[preset], **{**changes, **overrides})
    try:
        find_backbone(config.backbone)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    return config


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
