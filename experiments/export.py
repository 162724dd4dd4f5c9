"""Export the trunk of a run for others: weights that torch loads without permenv, and a model card.

    python experiments/export.py runs/spatial-reinforce-seed0
    python experiments/export.py path/to/checkpoint.safetensors --out exported --name mine --data-name "ImageNet, train"

Writes NAME.safetensors and NAME.md, see `permenv.transfer.export`. The weights are those that the run validates. The
card is written from the checkpoint: task, data, iterations, seed, validation error, all numbers of the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments.common.options import data_name
from experiments.common.script import run_script
from experiments.common.training.run_folder import CHECKPOINT
from permenv.saved_run import read_run
from permenv.transfer.export import export_trunk, read_card
from permenv.transfer.trunks import load_trunk

_KINDS = {"spatial": ("images", "scenes"), "temporal": ("videos", "clips")}
"""By ordering task, the option of a job that names its data, and what is embedded without one."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options."""

    checkpoint: tyro.conf.Positional[Path] = tyro.MISSING
    """Checkpoint of a run, or its folder."""
    out: Path = Path("exported")
    """Folder of the two files."""
    name: str | None = None
    """Their name; by default those of backbone and tasks, and the seed."""
    data_name: str | None = None
    """The data in words; by default the last two names of the folder that the run was given."""


def main(config: Config) -> tuple[Path, Path]:
    """Export, and print what was written.

    Returns:
        The weights and the card.

    Raises:
        CheckpointError: If the checkpoint cannot be read or holds no run.
        ConfigurationError: If a file of that name is there, or no loader is known for the trunk.
    """
    path = config.checkpoint.expanduser()
    if path.is_dir():
        path /= CHECKPOINT
    card = read_card(path, _data(path, config.data_name))
    trunk = load_trunk(path)
    name = config.name or "-".join([trunk.name, *card.data, f"seed{card.seed}"])
    weights, text = export_trunk(trunk, config.out / f"{name}.safetensors", card=card)
    print(f"{trunk.name}, {card.iterations} iterations: {weights}, and the model card {text}.")
    return weights, text


def _data(path: Path, given: str | None) -> dict[str, str]:
    """By ordering task, its data in words; those of which nothing is known are left out."""
    tree = read_run(path)
    tasks, job = tree["run"]["identity"]["data"], tree.get("job")
    if given is not None:
        return dict.fromkeys(tasks, given)
    if not isinstance(job, dict) or not isinstance(job.get("settings"), dict):  # saved by an environment or a run
        return {}
    seed, names = tree["run"]["identity"]["scenes_seed"], {}
    for task, (option, embedded) in _KINDS.items():
        if option in job["settings"]:
            folder = job["settings"][option]
            names[task] = data_name(None if folder is None else Path(folder), embedded, seed)
    return names


if __name__ == "__main__":
    run_script(main, Config, __doc__)
