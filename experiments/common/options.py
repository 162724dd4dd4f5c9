"""Command-line options: typed, nested and complete in --help.

A script extends `EnvOptions`, `SweepOptions` or the `JobOptions` of `experiments.common.training.options`; see
`experiments.common.script`.

--preset and --task are read first, because they decide the defaults of --env.*, the fields of `permenv.Config`.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import gymnasium as gym
import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

import permenv
from permenv import PRESETS, Pretraining, make_config, registered_tasks

if TYPE_CHECKING:
    Preset = str
    TaskName = str
else:
    Preset = tyro.extras.literal_type_from_choices(PRESETS)
    TaskName = tyro.extras.literal_type_from_choices(registered_tasks())

AGENT_OPTION = "agent.NAME"
"""What --help calls the options of an agent, whose names depend on the agent: a script takes their names and values."""

DATA_FOLDER = Path("../shared/data")
"""Where scripts that need real data look for them: imagenette, actions, cctv, davis_voc."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class EnvOptions:
    """The environment of a script."""

    changes: ClassVar[Mapping[str, Any]] = {}
    """What the script changes in every preset."""

    preset: Preset = "tiny"
    """Where the defaults of --env.* come from: "nano" takes half a minute of a CPU core, "tiny" minutes of two,
    "paper" is for a GPU."""
    task: TaskName = "spatial"
    """What is shuffled: "spatial", the 3 × 3 tiles of an image; "temporal", 8 frames of a video; "spatiotemporal",
    the joint task: both, on one shared trunk."""
    images: Path | None = None
    """Folder of images (ImageFolder layout); by default the embedded scenes."""
    videos: Path | None = None
    """Folder of videos, or of folders of frames; by default the embedded clips."""
    device: str = "auto"
    """auto, cpu or cuda."""
    updates: int | None = None
    """T, updates of the policy: short for --env.total-updates."""
    env: permenv.Config = dataclasses.field(default=None)  # type: ignore[assignment]  # __post_init__ makes it
    """Fields of permenv.Config; the defaults shown are those of the chosen preset and task."""

    def __post_init__(self) -> None:
        """Fill in `env`, and the user's home for a leading ~ in paths.

        Raises:
            ConfigurationError: If the preset or the task is unknown.
        """
        for field in dataclasses.fields(self):
            if isinstance(path := getattr(self, field.name), Path):  # that of an unknown user is left as it is
                object.__setattr__(self, field.name, Path(os.path.expanduser(path)))  # noqa: PTH111
        env = make_config(self.preset, self.task, **self.changes) if self.env is None else self.env
        if self.updates is not None:
            env = dataclasses.replace(env, total_updates=self.updates)
        object.__setattr__(self, "env", env)

    @property
    def overrides(self) -> dict[str, Any]:
        """The fields of `env` that differ from the preset."""
        preset = make_config(self.preset, self.task)
        values = {field.name: getattr(self.env, field.name) for field in dataclasses.fields(preset)}
        return {name: value for name, value in values.items() if value != getattr(preset, name)}

    @property
    def arguments(self) -> list[str]:
        """The command line of another script that has the same environment."""
        words = ["--preset", self.preset, "--task", self.task, "--device", self.device]
        for name, folder in (("images", self.images), ("videos", self.videos)):
            words += [] if folder is None else [f"--{name}", str(folder)]
        for name, value in self.overrides.items():
            option = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--env.{option}" if value else f"--env.no-{option}")
            else:
                words += [f"--env.{option}", str(value)]
        return words

    @property
    def saved(self) -> str | None:
        """What the script has saved so far, in words; None if nothing."""
        return None

    @property
    def data(self) -> str:
        """The data in words, see `data_name`."""
        scenes = data_name(self.images, "scenes", self.env.scenes_seed)
        clips = data_name(self.videos, "clips", self.env.scenes_seed)
        return {"spatial": scenes, "temporal": clips}.get(self.task, f"{scenes}; {clips}")

    @property
    def environment(self) -> EnvOptions:
        """These options without those of the script: what decides an environment."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(EnvOptions)}
        return EnvOptions(**{**values, "updates": None})  # `env` has it

    def make(self, **changes: Any) -> gym.Env:
        """Make the environment.

        Args:
            **changes: Keywords of `gym.make` with other values.

        Raises:
            ConfigurationError, DataError: With the remedy.
        """
        return gym.make("PermShuffle-v0", **{**self._keywords, **changes})

    def pretraining(self, seed: int, **changes: Any) -> Pretraining:
        """Make a run without an environment, see `permenv.Pretraining.create`.

        Args:
            seed: Decides the run.
            **changes: Fields of `permenv.Config` with other values.

        Raises:
            ConfigurationError, DataError: With the remedy.
        """
        return Pretraining.create(**{**self._keywords, **changes}, seed=seed)

    @property
    def _keywords(self) -> dict[str, Any]:
        given = {"images": self.images, "videos": self.videos}
        keywords = {"preset": self.preset, "task": self.task, "device": self.device, **self.overrides}
        return keywords | {name: folder for name, folder in given.items() if folder is not None}


@dataclass(frozen=True, kw_only=True)
class SweepOptions(EnvOptions):
    """The options of every sweep of several seeds."""

    device: str = "cpu"
    """auto, cpu or cuda."""
    seeds: int = 3
    """Repetitions, of the seeds FIRST_SEED, FIRST_SEED + 1, ..."""
    first_seed: int = 0
    """The first of the seeds."""
    processes: int = os.cpu_count() or 1
    """Jobs at once, a process of one thread each; 0 runs them one after the other in this process."""
    ray: str | None = None
    """Run the jobs on Ray (the extra `ray`): local, or the address of a cluster."""
    runs: Path | None = None
    """Folder with the result of each job; a job whose result is there is not run again. By default none is kept."""

    def __post_init__(self) -> None:
        """Fill in `env`, and check the numbers.

        Raises:
            ConfigurationError: If an option is unknown or out of range.
        """
        super().__post_init__()
        require_at_least(self, seeds=1, first_seed=0, processes=0)

    @property
    def saved(self) -> str | None:
        """What the sweep has saved so far."""
        found = self.runs is not None and any(self.runs.glob("*.json"))
        return f"{self.runs} holds the finished runs" if found else None


def data_name(folder: Path | None, embedded: str, seed: int) -> str:
    """Name data in words: of a folder, its last two names; without one, what is embedded and its seed."""
    return f"embedded {embedded}, seed {seed}" if folder is None else "/".join(folder.absolute().parts[-2:])


def require_at_least(options: Any, **least: int) -> None:
    """Check numbers among the options of a script.

    Args:
        options: The options.
        **least: By name, the least value.

    Raises:
        ConfigurationError: If a value is lower.
    """
    for name, bound in least.items():
        value = getattr(options, name)
        if value < bound:
            raise permenv.ConfigurationError(f"--{name.replace('_', '-')} {value}: must be at least {bound}")


def require_known(what: str, given: Collection[str], known: Collection[str]) -> None:
    """Check names among the options of a script.

    Args:
        what: The option, or what is named.
        given: The names.
        known: Those that there are.

    Raises:
        ConfigurationError: If a name is none of them.
    """
    for name in given:
        if name not in known:
            raise permenv.ConfigurationError(f"{what} {name!r}: choose from {', '.join(known)}")


def parse(kind: type[T], description: str | None = None, arguments: Sequence[str] | None = None) -> T:
    """Parse a command line.

    Args:
        kind: The dataclass of the options; every field has a default.
        description: What --help says first.
        arguments: The command line, by default this process's.

    Returns:
        The options.

    Raises:
        ConfigurationError: If the preset or the task is unknown.
        SystemExit: After --help, or if an option is unknown or malformed.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # a dataclass
        if field.name in ("preset", "task"):
            first.add_argument(f"--{field.name}", nargs="?")
    chosen, _ = first.parse_known_args(arguments)
    default = kind(**{name: value for name, value in vars(chosen).items() if value is not None})
    words = [each for word in (sys.argv[1:] if arguments is None else arguments) for each in _split(word)]
    return tyro.cli(kind, default=default, description=description, args=words, registry=_REGISTRY)


def _split(word: str) -> list[str]:
    """Make --agent.hidden=32 the words --agent.NAME hidden 32, for tyro, which cannot know the options of an agent."""
    if not word.startswith("--agent."):
        return [word]
    name, *value = word.removeprefix("--agent.").split("=", 1)
    return [f"--{AGENT_OPTION}", name, *value]


_REGISTRY = ConstructorRegistry()


@_REGISTRY.primitive_rule
def _backbone(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[str] | None:
    """On the command line a backbone is a name; the functions that it may be as well are for Python."""
    if info.type != str | permenv.networks.Backbone:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="STR",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )
