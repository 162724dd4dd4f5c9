"""Options of agents on a command line, and the settings of a search: all combinations of values of options."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import numbers
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, Literal, Union

from experiments.common.agent_runs import check_options, options_of
from experiments.common.options import EnvOptions
from permenv import Config, ConfigurationError

_NUMBERS: Mapping[Any, type] = {int: numbers.Integral, float: numbers.Real}


@dataclass(frozen=True)
class Setting:
    """A point of the grid.

    Attributes:
        name: "agent.learning-rate=0.01 env.grid=4".
        agent: Options of the agent.
        env: Fields of `permenv.Config`.
    """

    name: str
    agent: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)


def grid(vary: Sequence[Sequence[str]], agent: str, environment: EnvOptions) -> list[Setting]:
    """Make all combinations, the last option varying fastest, and check each.

    Args:
        vary: Of each option, "agent.NAME" or "env.NAME", and its values, all as the command line has them.
        agent: One of `agent_runs.AGENTS`.
        environment: What is varied. It is made once.

    Raises:
        ConfigurationError: If an option does not exist, has no values or two that are equal, or if a value has the
            wrong type or is out of range; nothing has been run.
    """
    types = {
        "agent": _options_of_words(agent),
        "env": {each.name: Any for each in dataclasses.fields(Config)},  # it checks the types itself
    }
    if not vary:
        raise ConfigurationError(f"--vary: name at least one option: {_names('agent', types)}, {_names('env', types)}")
    axes: dict[str, list[Any]] = {}
    for name, *words in vary:
        where, _, option = name.replace("-", "_").partition(".")
        if where not in types:
            raise ConfigurationError(f"--vary {name}: begin it with agent. or env.")
        if option not in types[where]:
            existing = _names(where, types) or "no options"
            raise ConfigurationError(
                f"--vary {name}: {agent if where == 'agent' else 'the environment'} has {existing}"
            )
        key, values = f"{where}.{option}", [_value(word) for word in words]
        if not values or key in axes or any(value in values[:index] for index, value in enumerate(values)):
            raise ConfigurationError(f"--vary {' '.join((name, *words))}: name each option and each of its values once")
        axes[key] = [_checked(word, types[where][option], f"--vary {name}") for word in words]
    settings = [_setting(dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]
    for setting in settings:
        dataclasses.replace(environment.env, **setting.env)
    env = environment.make()
    for setting in settings:
        try:
            check_options(agent, env, **setting.agent)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"{setting.name}: {error}") from error
    env.close()
    return settings


def keywords_of(agent: str, options: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return options of an agent on a command line as keywords of its class.

    Args:
        agent: One of `agent_runs.AGENTS`, or of your own.
        options: Names and values, as the command line has them.

    Raises:
        ConfigurationError: If an option does not exist or is given twice, or its value has another type.
    """
    types = _options_of_words(agent)
    found: dict[str, Any] = {}
    for option, word in options:
        name, given = option.replace("-", "_"), f"--agent.{option}"
        if name not in types:
            raise ConfigurationError(f"{given}: {agent} has {_names('agent', {'agent': types}) or 'no options'}")
        if name in found:
            raise ConfigurationError(f"{given} {word}: give it once")
        found[name] = _checked(word, types[name], given)
    return found


def _options_of_words(agent: str) -> dict[str, Any]:
    """Return the options of an agent whose values can be words of a command line, with their annotations."""
    return {name: hint for name, hint in options_of(agent).items() if _is_of_words(hint)}


def _checked(word: str, hint: Any, option: str) -> Any:
    """Return the value that a word stands for.

    Raises:
        ConfigurationError: If it has another type.
    """
    value = _value(word)
    if not _fits(value, hint):
        shown = hint.__name__ if isinstance(hint, type) else hint
        raise ConfigurationError(f"{option} {word}: must be of type {shown}")
    return value


def _names(where: str, types: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(f"{where}.{name}".replace("_", "-") for name in types[where])


def _setting(values: Mapping[str, Any]) -> Setting:
    parts: dict[str, dict[str, Any]] = {"agent": {}, "env": {}}
    for key, value in values.items():
        where, option = key.split(".")
        parts[where][option] = value
    return Setting(" ".join(f"{key.replace('_', '-')}={value}" for key, value in values.items()), **parts)


def _value(word: str) -> Any:
    """Return the number, None, True or False that a word is, or else the word."""
    try:
        value = ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word
    return value if isinstance(value, int | float | NoneType) else word


def _is_of_words(hint: Any) -> bool:
    """Return whether a type has values that a word of a command line can be."""
    return typing.get_origin(hint) is Literal or any(_fits(value, hint) for value in (0, 0.5, True, None, ""))


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value, see `_value`, has a type."""
    if hint is Any or hint is inspect.Parameter.empty:
        return True
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) in (Union, UnionType):
        return any(_fits(value, each) for each in typing.get_args(hint))
    if not isinstance(hint, type):
        return False
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, _NUMBERS.get(hint, hint))
