"""Self-supervised learning by shuffling as a Gymnasium environment: `gym.make("PermShuffle-v0")`."""

import gymnasium

from permenv.checkpoint import CheckpointError
from permenv.config import PRESETS, TASKS, Config, ConfigurationError, make_config
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
from permenv.validation import Validation

__all__ = [
    "PRESETS",
    "TASKS",
    "CheckpointError",
    "Config",
    "ConfigurationError",
    "DataError",
    "PermShuffleEnv",
    "StillImages",
    "Validation",
    "VideoClips",
    "embedded_clips",
    "embedded_scenes",
    "image_folder",
    "make_config",
    "video_folder",
]

gymnasium.register(id="PermShuffle-v0", entry_point="permenv.env:PermShuffleEnv")
