"""Trees of tensors and plain values in one file that is either whole or not there.

A checkpoint is a safetensors file: tensors as its entries, everything else as JSON in its header, with a checksum of
both. Nothing in it is ever executed. It is written atomically, see `permenv.atomic`, so that a process killed at any
moment leaves the previous checkpoint behind. The checksum finds damage. What a whole file of another version or program
holds is found by the schema of whoever reads it, see `permenv.schema`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from permenv.atomic import write_bytes

FORMAT = "permenv checkpoint 4"
_TENSOR, _ARRAY = "$tensor", "$array"  # JSON objects with one of these keys stand for an entry of the file

_KINDS = {
    frozenset({"run"}): "what Pretraining.save wrote",
    frozenset({"run", "episode", "random"}): "what env.save wrote",
    frozenset({"run", "episode", "random", "agent", "job"}): "the checkpoint of a training job",
    frozenset({"agent"}): "what an agent's save wrote",
    frozenset({"agent", "job"}): "the checkpoint of a job that trains a policy across runs",
}
"""By the parts of a tree, what a file with these parts is."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names the file, what is wrong and the remedy."""


def write(path: str | Path, tree: dict[str, Any]) -> None:
    """Save a tree, atomically.

    Args:
        path: The file; its folder is made if need be, a file of that name is replaced.
        tree: Nested dicts with string keys and lists; leaves are tensors, arrays, or what JSON holds.

    Raises:
        OSError: If the file cannot be written; a file of that name is then as it was.
        ValueError: If two entries have the same name, because a key contains "/".
    """
    path = Path(path)
    tensors: dict[str, torch.Tensor] = {}
    body = json.dumps(_take_out_tensors(tree, "", tensors))
    metadata = {"format": FORMAT, "tree": body, "checksum": _checksum(body, tensors)}
    # not `save_file`: its file has a random name, so that a kill leaves it for good, and is readable by its owner only
    content = safetensors.torch.save(tensors, metadata)
    write_bytes(path, content)


def read(path: str | Path, *parts: str) -> dict[str, Any]:
    """Load a tree that `write` saved; tensors come back on the CPU, and nothing refers to the file afterwards.

    Args:
        path: The file.
        *parts: What it must hold, such as "run" or "agent"; it is then one of the kinds of files that this package
            writes. None for any tree.

    Raises:
        CheckpointError: If there is no such file, it cannot be read, it is truncated, altered or something else, or it
            lacks one of the parts.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise CheckpointError(f"no checkpoint at {path}: name a file that save() or a run wrote")
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # copies: the tensors that safetensors returns keep the whole file mapped, and its disk space in use
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or not a checkpoint ({error}): use an earlier one") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}): check the file and disk") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {metadata.get('format')!r}, this version reads {FORMAT!r}: it was written by another "
            f"version or program"
        )
    body = metadata.get("tree", "")
    if metadata.get("checksum") != _checksum(body, tensors):
        raise CheckpointError(f"{path} is damaged, its checksum does not match: use an earlier one")
    try:
        tree = _put_back_tensors(json.loads(body), tensors)
    # not JSON or too long a number, too deep, an entry that is not there, or of a type that numpy lacks
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} holds no tree that this version can read ({type(error).__name__}): use an earlier checkpoint"
        ) from error
    if tensors or not isinstance(tree, dict):
        raise CheckpointError(f"{path} holds more or other things than one tree: use an earlier checkpoint")
    _require_parts(path, tree, parts)
    return tree


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let a CheckpointError inside the `with` block begin with the file."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _require_parts(path: Path, tree: dict[str, Any], parts: tuple[str, ...]) -> None:
    kind = _KINDS.get(frozenset(tree))
    missing = [part for part in parts if part not in tree]
    if not parts or (kind is not None and not missing):
        return
    fault = f"holds no {missing[0]}" if missing else "is of no known kind"
    found = kind or f"a file that holds {', '.join(map(repr, sorted(tree)[:8])) or 'nothing'}"
    raise CheckpointError(
        f"{path} {fault}: name a file that save() or a training job wrote and that holds {', '.join(parts)}; this is "
        f"{found}"
    )


def _take_out_tensors(node: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(node, dict):
        return {key: _take_out_tensors(value, f"{path}/{key}", tensors) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_take_out_tensors(value, f"{path}/{index}", tensors) for index, value in enumerate(node)]
    if not isinstance(node, torch.Tensor | np.ndarray):
        return node
    name = path.encode("ascii", "backslashreplace").decode()  # a key may be no text that can be encoded
    if name in tensors:
        raise ValueError(f"the tree has two entries {name!r}: leave '/' out of its keys")
    if isinstance(node, torch.Tensor):
        # a copy: safetensors refuses tensors that share memory, such as the weights of a layer that is used twice
        tensors[name] = node.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {_TENSOR: name}
    tensors[name] = torch.from_numpy(np.array(node, order="C"))
    return {_ARRAY: name}


def _put_back_tensors(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Replace what stands for an entry by the entry, and take it out of `tensors`: each belongs to one place."""
    if isinstance(node, list):
        return [_put_back_tensors(value, tensors) for value in node]
    if not isinstance(node, dict):
        return node
    if node.keys() == {_TENSOR}:
        return tensors.pop(node[_TENSOR])
    if node.keys() == {_ARRAY}:
        return tensors.pop(node[_ARRAY]).numpy()
    return {key: _put_back_tensors(value, tensors) for key, value in node.items()}


def _checksum(body: str, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(body.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():  # nothing has no bytes to view
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
