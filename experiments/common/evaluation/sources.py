"""What is evaluated: checkpoints, state dicts and untrained trunks, as command lines name them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.common.content import digest_of_file, require_content
from experiments.common.files import write_with
from experiments.common.training.run_folder import CHECKPOINT
from permenv import CheckpointError, Config, ConfigurationError
from permenv.transfer.trunks import Trunk, load_trunk

_RANDOM, _TIMM = "random", "timm/"


@dataclass(frozen=True)
class Source:
    """Something to evaluate.

    Attributes:
        name: What tables call it.
        given: What `load_trunk` takes.
        digest: Of the file's content, so that a file that has changed is evaluated again; "" without a file.
        backbone: Of the weights; None for what the file says.
    """

    name: str
    given: str
    digest: str
    backbone: str | None

    @property
    def is_untrained(self) -> bool:
        """Whether its weights are initial ones."""
        return self.given == _RANDOM or self.given.startswith(_TIMM)

    def load(self, seed: int) -> Trunk:
        """Load the trunk; the seed decides initial weights.

        Raises:
            CheckpointError: If the file cannot be read any more, or has changed.
        """
        trunk = load_trunk(self.given, backbone=self.backbone, seed=seed)
        if not self.is_untrained:
            require_content(Path(self.given), self.digest)
        return trunk


def find_sources(given: Sequence[str], backbone: str | None) -> list[Source]:
    """Find what is to be evaluated, and give it short, different names.

    Raises:
        ConfigurationError: If there is none, or one is there twice.
        CheckpointError: If a file is missing or holds no trunk.
    """
    if not given:
        raise ConfigurationError('there is nothing to evaluate: name run folders, checkpoints or "random"')
    found: list[Source] = []
    trunks: list[str] = []  # of the files
    for text in given:
        if text == _RANDOM or text.startswith(_TIMM):
            found.append(Source(text.replace("/", "-"), text, "", None))
            continue
        path = Path(text).expanduser()
        name = path.resolve().name if path.is_dir() else path.stem
        path = path / CHECKPOINT if path.is_dir() else path
        own, trunk = _load(path, backbone)
        trunks.append(trunk.name)
        found.append(Source(name, str(path), digest_of_file(path), own))
    names = [source.name for source in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigurationError(f"several sources are called {min(twice)!r}: give the files or folders other names")
    initial = backbone or next(iter(trunks), None)
    return [dataclasses.replace(each, backbone=initial) if each.given == _RANDOM else each for each in found]


def source_of(path: Path | None, numbers: Config) -> Source:
    """Return a network's weights, or untrained ones, as a source; `numbers` names the backbone."""
    assert isinstance(numbers.backbone, str), "a preset's"
    (source,) = find_sources(("random" if path is None else str(path),), numbers.backbone)
    return source


def weights_of(runs: Path, network: str, seed: int) -> Path:
    """Return where the weights of a network's trunk are."""
    return runs / f"{network}-seed{seed}.pt"


def write_trunk(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write the weights of a trunk, atomically."""
    saved = {name: value.cpu().contiguous() for name, value in weights.items()}
    write_with(path, lambda file: torch.save(saved, file))


def _load(path: Path, backbone: str | None) -> tuple[str | None, Trunk]:
    """Load a file's trunk; also return the backbone that it needs to be told, None if none."""
    try:
        return None, load_trunk(path)
    except CheckpointError:
        if backbone is None or not path.is_file():
            raise
        return backbone, load_trunk(path, backbone=backbone)
