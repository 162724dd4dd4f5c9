"""Trees of tensors and plain values in one file that is either whole or not there.

A checkpoint is a safetensors file: tensors as its entries, everything else as JSON in its header, with a checksum of
both. Nothing in it is ever executed. It is written beside its target and renamed into place, so that a process
killed at any moment leaves the previous checkpoint behind.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

FORMAT = "permenv checkpoint 4"
_TENSOR, _ARRAY = "$tensor", "$array"  # JSON objects with one of these keys stand for an entry of the file


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names the file, what is wrong and the remedy."""


def write(path: str | Path, tree: dict[str, Any]) -> None:
    """Save a tree, atomically.

    Args:
        path: The file; its folder is made if need be, a file of that name is replaced.
        tree: Nested dicts with string keys and lists; leaves are tensors, arrays, or what JSON holds.

    Raises:
        OSError: If the file cannot be written; a file of that name is then as it was.
    """
    path = Path(path)
    tensors: dict[str, torch.Tensor] = {}
    body = json.dumps(_take_out_tensors(tree, "", tensors))
    metadata = {"format": FORMAT, "tree": body, "checksum": _checksum(body, tensors)}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        safetensors.torch.save_file(tensors, temporary, metadata)
        _flush_to_disk(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_to_disk(path.parent)


def read(path: str | Path) -> dict[str, Any]:
    """Load a tree that `write` saved; tensors come back on the CPU.

    Raises:
        CheckpointError: If there is no such file, or it is truncated, altered or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: name a file that save() or a run wrote")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or not a checkpoint ({error}): use an earlier one") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {metadata.get('format')!r}, this version reads {FORMAT!r}: it was written by another "
            f"version or program"
        )
    body = metadata.get("tree", "")
    if metadata.get("checksum") != _checksum(body, tensors):
        raise CheckpointError(f"{path} is damaged, its checksum does not match: use an earlier one")
    return _put_back_tensors(json.loads(body), tensors)


def _take_out_tensors(node: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(node, dict):
        return {key: _take_out_tensors(value, f"{path}/{key}", tensors) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_take_out_tensors(value, f"{path}/{index}", tensors) for index, value in enumerate(node)]
    if isinstance(node, torch.Tensor):
        tensors[path] = node.detach().cpu().contiguous()
        return {_TENSOR: path}
    if isinstance(node, np.ndarray):
        tensors[path] = torch.from_numpy(np.array(node, order="C"))
        return {_ARRAY: path}
    return node


def _put_back_tensors(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(node, list):
        return [_put_back_tensors(value, tensors) for value in node]
    if not isinstance(node, dict):
        return node
    if _TENSOR in node:
        return tensors[node[_TENSOR]]
    if _ARRAY in node:
        return tensors[node[_ARRAY]].numpy()
    return {key: _put_back_tensors(value, tensors) for key, value in node.items()}


def _checksum(body: str, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(body.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():  # nothing has no bytes to view
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
