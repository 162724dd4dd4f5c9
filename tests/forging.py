"""Forged states: a grammar that changes one node of a good tree, and whole files of whatever content."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from permenv import checkpoint

OTHERS: list[Any] = [
    *(None, True, 0, -1, 10**30, 0.5, -1.0, float("nan"), float("inf"), "", "x\n\x1b[31m", [], {}, [1, 2], {"x": 1}),
    *(np.zeros(3), np.zeros((2, 2), dtype=np.int64), torch.zeros(3), torch.zeros(2, dtype=torch.bfloat16)),
    json.loads("[" * 200 + "]" * 200),
]
"""What a node may be replaced by."""


def forge(tree: dict[str, Any], rng: np.random.Generator) -> tuple[dict[str, Any], str]:
    """Copy a tree and change one node of it, which a random walk from the root finds.

    Returns:
        The copy, which is not equal to the tree, and what was changed.
    """
    while True:
        forged, change = _forge(copy.deepcopy(tree), rng)
        if digest(forged) != digest(tree):
            return forged, change


def _forge(tree: dict[str, Any], rng: np.random.Generator) -> tuple[dict[str, Any], str]:
    node, key, path = tree, rng.choice(list(tree)).item(), ""
    while True:
        path += f"/{key}"
        child = node[key]
        children = list(child) if isinstance(child, dict) else list(range(len(child) if isinstance(child, list) else 0))
        if not children or rng.random() < 0.15:
            break
        node, key = child, children[rng.integers(len(children))]
    changes = list(_changes(node, key, rng))
    name, change = changes[rng.integers(len(changes))]
    change()
    return tree, f"{name} {path}"


def _changes(parent: Any, key: Any, rng: np.random.Generator) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What can be done to the node parent[key], by name."""
    node = parent[key]

    def put(value: Any) -> Callable[[], None]:
        return lambda: parent.__setitem__(key, value)

    yield "delete", lambda: parent.pop(key)
    yield "replace", put(copy.deepcopy(OTHERS[rng.integers(len(OTHERS))]))
    yield "wrap", put([node])
    if isinstance(parent, dict):
        yield "rename", lambda: parent.__setitem__(f"{key}_", parent.pop(key))
        yield "exchange", put(copy.deepcopy(parent[rng.choice(list(parent)).item()]))
    if isinstance(node, dict):
        yield "add a key", lambda: node.__setitem__("surplus", OTHERS[rng.integers(len(OTHERS))])
    elif isinstance(node, list):
        yield "add an item", lambda: node.append(copy.deepcopy(node[-1]) if node else 0)
        yield "turn round", node.reverse
    elif isinstance(node, bool | str):
        yield "negate", put(not node)
    elif isinstance(node, int | float):
        for name, value in {
            "turn into a float": float(min(node, 2**60)),
            "turn into text": str(node),
            "make NaN": float("nan"),
            "make infinite": float("inf"),
            "make negative": -node - 1,
            "add one": node + 1,
            "raise": node + 1000,
        }.items():
            yield name, put(value)
    elif isinstance(node, np.ndarray | torch.Tensor):
        yield from ((name, put(value)) for name, value in _arrays(node, rng).items())


def _arrays(node: Any, rng: np.random.Generator) -> dict[str, Any]:
    """Other arrays in place of one, by what was done."""
    is_tensor = isinstance(node, torch.Tensor)
    array = node.numpy() if is_tensor else node
    spot = tuple(int(rng.integers(length)) for length in array.shape)

    def with_entry(value: Any) -> np.ndarray:
        changed = array.copy()
        changed[spot] = value
        return changed

    flat = array.reshape(-1)
    found = {
        "change the type": array.astype(np.float32 if array.dtype != np.float32 else np.float64),
        "change the kind": array if is_tensor else torch.from_numpy(array.copy()),
        "add an axis": array[None],
        "flatten": flat if array.ndim != 1 else array[:, None],
        "empty": flat[:0],
        "shorten": array[:-1] if array.ndim else flat,
        "turn into lists": array.tolist(),
        "shuffle": rng.permutation(flat).reshape(array.shape),
    }
    if array.size and array.dtype != np.bool_:
        found |= {"make an entry negative": with_entry(-1), "raise an entry": with_entry(10**6)}
        if array.dtype.kind == "f":
            found |= {"make an entry NaN": with_entry(np.nan), "make an entry infinite": with_entry(np.inf)}
    elif array.size:
        found["negate an entry"] = with_entry(not array[spot])
    as_tensor = is_tensor and (lambda value: torch.from_numpy(value.copy()))
    return {
        name: as_tensor(value) if as_tensor and name != "change the kind" and isinstance(value, np.ndarray) else value
        for name, value in found.items()
    }


def write_body(path: Path, body: str, tensors: dict[str, torch.Tensor] | None = None) -> None:
    """Write a checkpoint with a valid checksum of a header and entries of whatever content."""
    tensors = tensors or {}
    metadata = {"format": checkpoint.FORMAT, "tree": body, "checksum": checkpoint._checksum(body, tensors)}
    path.write_bytes(safetensors.torch.save(tensors, metadata))


def digest(tree: Any) -> str:
    """Digest of a tree: of its structure, its values and their types, whatever the order of keys."""
    tensors: dict[str, torch.Tensor] = {}
    body = json.dumps(checkpoint._take_out_tensors(tree, "", tensors), sort_keys=True)
    return hashlib.blake2b((body + checkpoint._checksum("", tensors)).encode()).hexdigest()
