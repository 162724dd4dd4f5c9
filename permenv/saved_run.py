"""What a file holds of a run, for whoever reads it without making the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from permenv import checkpoint
from permenv.config import Precision
from permenv.schema import Anything, DictOf, Either, Fields, OneOf

_TENSORS = DictOf(Anything())
_HOLDS_A_TRUNK = Fields(
    {
        "identity": DictOf(Anything()),
        "trainer": Fields(
            {"network": _TENSORS, "averaged": Either(OneOf((None,)), _TENSORS)},
            dict.fromkeys(("iteration", "momentum"), Anything()),
        ),
    },
    dict.fromkeys(("seed", "records", "losses", "choices", "diverged", "tasks"), Anything()),
)
"""The state of a run of whatever configuration, of which only the trunk is used."""


def read_run(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint that holds a run.

    Returns:
        All that the file holds; "run" is the state of the run, see `Pretraining.state_dict`, which is not checked yet.

    Raises:
        CheckpointError: If the file is damaged or holds no run.
    """
    return checkpoint.read(path, "run")


def trunk_weights(run: Any) -> dict[str, Any]:
    """Take the trunk out of the state of a run: the averaged weights if there are any, else the live ones.

    Args:
        run: What `Pretraining.state_dict` returned or a file holds of it.

    Returns:
        The trunk's `state_dict`; that its values are tensors is not checked.

    Raises:
        CheckpointError: If it is no state of a run.
    """
    _HOLDS_A_TRUNK.check(run, "run")
    averaged = run["trainer"]["averaged"]
    network = run["trainer"]["network"] if averaged is None else averaged
    prefix = "trunk." if averaged is None else "module.trunk."
    return {name.removeprefix(prefix): value for name, value in network.items() if name.startswith(prefix)}


def precision_of(run: Any) -> Precision | None:
    """Take the precision in which a run was trained out of its state.

    Args:
        run: What `Pretraining.state_dict` returned or a file holds of it. It is not checked.

    Returns:
        "float32" or "bf16"; None if it is no state of a run.
    """
    identity = run.get("identity") if isinstance(run, Mapping) else None
    found = identity.get("precision") if isinstance(identity, Mapping) else None
    if not isinstance(found, str) or found not in ("float32", "bf16"):
        return None
    return "bf16" if found == "bf16" else "float32"
