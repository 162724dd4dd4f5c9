"""What a piece of code computes, operation by operation: FLOPs, bytes moved, and the memory of its tensors.

The code runs as it is; every operation that it hands to torch, forward or backward, is counted from the shapes of its
tensors. So nothing here knows of layers, losses or optimisers.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

_GATHERS = {"index", "index_select", "gather"}  # read what they return, and not all that they choose from
_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


@dataclass(frozen=True)
class Operation:
    """One call of an operation of torch.

    Attributes:
        name: Its name without overload, such as "convolution".
        part: The part of the code that it belongs to.
        flops: Floating-point operations of matrix products, convolutions and recurrent layers; 0 for any other.
        bytes: Read and written by it.
        half: Whether its result is bf16.
        live: Bytes of the tensors made since counting began that are alive after it.
    """

    name: str
    part: str
    flops: float
    bytes: float
    half: bool
    live: float


class Counter(TorchDispatchMode):
    """Counts all operations inside its `with` block.

    Args:
        part: Called at every operation: returns the part of the code that runs.

    Attributes:
        operations: In the order in which they ran; views, which move nothing, are left out.
        least_bytes: What must be moved however operations are fused: each tensor that is read is read once, and each
            that is written is written once.
    """

    def __init__(self, part: Callable[[], str] = lambda: ""):
        super().__init__()
        self.operations: list[Operation] = []
        self.least_bytes: int = 0
        self._part = part
        self._live = 0
        self._touched = WeakIdKeyDictionary()  # by storage, whether it has been read and written

    def forget_moves(self) -> None:
        """Begin to count `least_bytes` anew."""
        self.least_bytes = 0
        for how in self._touched.values():
            how[:] = False, False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        """Run an operation, and count it."""
        kwargs = kwargs or {}
        known = {tensor.untyped_storage()._cdata for tensor in _tensors([args, kwargs])}
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        read, written = self._moved(func, args, kwargs, known, result, name)
        packet = func._overloadpacket
        flops: float = 0
        if packet in flop_registry:
            flops = flop_registry[packet](*args, **kwargs, out_val=result)
        elif name in _RECURRENT:
            flops = _RECURRENT[name](args)
        if read or written or flops:
            half = any(tensor.dtype == torch.bfloat16 for tensor in _tensors(result))
            self.operations.append(Operation(name, self._part(), flops, read + written, half, self._live))
        return result

    def _moved(
        self, func: Any, args: tuple, kwargs: dict[str, Any], known: set[int], result: Any, name: str
    ) -> tuple[int, int]:
        """Return the bytes that an operation reads and writes."""
        outputs = list(_tensors(result))
        new = [tensor for tensor in outputs if tensor.untyped_storage()._cdata not in known]
        for tensor in new:
            self._made(tensor)
        if name in _ALLOCATIONS or not (new or func._schema.is_mutable):
            return 0, 0
        changed = list(_changed(func, args, kwargs))
        inputs = list(_tensors([args, kwargs]))
        if name in _GATHERS:
            inputs = outputs
        read = written = 0
        for tensor in inputs:
            read += self._touch(tensor, 0)
        for tensor in [*new, *changed]:
            written += self._touch(tensor, 1)
        return read, written

    def _touch(self, tensor: Tensor, how: int) -> int:
        """Return the bytes of a tensor; count them as needed the first time that it is read (0) or written (1)."""
        size = size_of(tensor)
        before = self._touched.setdefault(tensor.untyped_storage(), [False, False])
        if not before[how]:
            before[how] = True
            self.least_bytes += size
        return size

    def _made(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._touched:
            return
        self._touched[storage] = [False, False]
        size = storage.nbytes()
        self._live += size
        weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self._live -= size


def size_of(tensor: Tensor) -> int:
    """Return the bytes that a tensor occupies: an expanded one no more than what it was expanded from."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def extrapolate(few: Sequence[Operation], more: Sequence[Operation], times: float) -> list[Operation]:
    """Return the operations on a mini-batch of another size: what each does grows linearly.

    Args:
        few: Those on a mini-batch.
        more: The same on a larger one.
        times: How many times as far as the larger one is from the smaller one the mini-batch is.

    Returns:
        The operations, one for each of `few`.

    Raises:
        ValueError: If the two are not the same operations.
    """
    if [each.name for each in few] != [each.name for each in more]:
        raise ValueError("the operations depend on the size of the mini-batch")

    def at(one: float, other: float) -> float:
        return one + times * (other - one)

    return [
        Operation(a.name, a.part, at(a.flops, b.flops), at(a.bytes, b.bytes), a.half, at(a.live, b.live))
        for a, b in zip(few, more, strict=True)
    ]


def _tensors(values: Any) -> Iterator[Tensor]:
    return (value for value in tree_leaves(values) if isinstance(value, Tensor))


def _changed(func: Any, args: tuple, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors that an operation changes in place."""
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors(args[number] if number < len(args) else kwargs.get(argument.name))


def _lstm_of_cpu(args: Sequence[Any]) -> float:
    """FLOPs of a recurrent layer with the arguments (input, weights from the input, weights from the state, ...)."""
    return 2 * math.prod(args[0].shape[:2]) * (args[1].numel() + args[2].numel())


def _lstm_of_cudnn(args: Sequence[Any]) -> float:
    """FLOPs of a recurrent layer with the arguments (input, its weights and biases, ...)."""
    return 2 * math.prod(args[0].shape[:2]) * sum(weight.numel() for weight in args[1] if weight.dim() > 1)


_RECURRENT: dict[str, Callable[[Sequence[Any]], float]] = {
    "mkldnn_rnn_layer": _lstm_of_cpu,
    "mkldnn_rnn_layer_backward": lambda args: 2 * _lstm_of_cpu(args),
    "_cudnn_rnn": _lstm_of_cudnn,
    "_cudnn_rnn_backward": lambda args: 2 * _lstm_of_cudnn(args),
}
