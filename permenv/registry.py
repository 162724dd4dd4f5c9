"""Tasks by name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from types import MappingProxyType

from permenv.config import PRESETS, Config, ConfigurationError
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
