"""Self-supervised learning by shuffling as a Gymnasium environment: `gym.make("PermShuffle-v0")`."""

import importlib
from types import ModuleType

import gymnasium

from permenv.checkpoint import CheckpointError
from permenv.config import PRESETS, Config, ConfigurationError
from permenv.data import (
    DataError,
    StillImages,
    VideoClips,
    embedded_clips,
    embedded_scenes,
    image_folder,
    video_folder,
)
from permenv.env import PermShuffleEnv
from permenv.pretraining import Pretraining
from permenv.registry import register_task, registered_tasks
from permenv.setup import make_config
from permenv.tasks import Task
from permenv.validation import Validation

__all__ = [
    "PRESETS",
    "CheckpointError",
    "Config",
    "ConfigurationError",
    "DataError",
    "PermShuffleEnv",
    "Pretraining",
    "StillImages",
    "Task",
    "Validation",
    "VideoClips",
    "embedded_clips",
    "embedded_scenes",
    "image_folder",
    "make_config",
    "register_task",
    "registered_tasks",
    "video_folder",
]

# Gymnasium's passive checker fails in every step() after a first reset() that raised an error; the tests run its full
# checker instead
gymnasium.register(id="PermShuffle-v0", entry_point="permenv.env:PermShuffleEnv", disable_env_checker=True)


def __getattr__(name: str) -> ModuleType:
    """Import submodules that not everybody needs when they are first used."""
    if name in ("render", "transfer", "wrappers"):
        return importlib.import_module(f"permenv.{name}")
    raise AttributeError(f"module 'permenv' has no attribute {name!r}")
