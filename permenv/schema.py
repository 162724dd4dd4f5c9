"""What a tree read from a file must look like: declared once, and checked whole before anything changes.

    >>> state = Fields({"iteration": COUNT, "weights": Array(torch.float32, (3, 2))})
    >>> state.check({"iteration": -1, "weights": torch.zeros(3, 2)}, "trainer")
    CheckpointError: trainer/iteration is -1, it must be at least 0 and below 2^63: ...

A schema is a value: part schemas are composed into those of larger trees, each declared by the module that owns the
part.
"""

from __future__ import annotations

import math
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from permenv.checkpoint import CheckpointError
from permenv.config import Range

FINITE = Range(-math.inf)
"""Any number that is neither NaN nor infinite."""


INT64, FLOAT32, FLOAT64 = np.dtype(np.int64), np.dtype(np.float32), np.dtype(np.float64)


def below(count: int) -> Range:
    """The integers from 0 to count - 1."""
    return Range(0, count - 1)


class Schema(ABC):
    """What a value must look like."""

    @abstractmethod
    def check(self, value: Any, place: str) -> None:
        """Refuse a value that does not fit.

        Args:
            value: Any tree: nested dicts and lists of tensors, arrays and plain values.
            place: Where it stands, for the message, such as "run/seed".

        Raises:
            CheckpointError: If it does not fit; the message names the place, the value and what is expected.
        """


@dataclass(frozen=True)
class Anything(Schema):
    """No requirement."""

    def check(self, value: Any, place: str) -> None:
        """Accept the value."""


@dataclass(frozen=True)
class OneOf(Schema):
    """One of several plain values, of the same type: True is not 1."""

    values: tuple[Any, ...]

    def check(self, value: Any, place: str) -> None:
        """Refuse other values, see `Schema.check`."""
        if not any(equal(value, one) for one in self.values):
            raise _misfit(place, value, f"must be {' or '.join(map(shown, self.values))}")


@dataclass(frozen=True)
class Number(Schema):
    """A number.

    Attributes:
        kind: int or float.
        range: Where it lies; None for any number, NaN and infinity included.
    """

    kind: type[int] | type[float]
    range: Range | None = FINITE

    def check(self, value: Any, place: str) -> None:
        """Refuse other types and numbers out of range, see `Schema.check`."""
        if not isinstance(value, self.kind) or isinstance(value, bool):
            raise _misfit(place, value, f"must be a number of type {self.kind.__name__}")
        if self.range is not None and not _inside(value, value, self.range):
            raise _misfit(place, value, _in_words(self.range))


@dataclass(frozen=True)
class Array(Schema):
    """An array or a tensor.

    Attributes:
        dtype: Of numpy for an array, of torch for a tensor.
        shape: Length of each axis; None for any length.
        range: Where all entries lie; None for any entries, NaN and infinity included.
    """

    dtype: np.dtype[Any] | torch.dtype
    shape: tuple[int | None, ...]
    range: Range | None = None

    @classmethod
    def like(cls, example: np.ndarray | torch.Tensor, range: Range | None = None) -> Array:
        """Require the type and the shape of an example."""
        return cls(example.dtype, tuple(example.shape), range)

    def check(self, value: Any, place: str) -> None:
        """Refuse other types, shapes and entries, see `Schema.check`."""
        kind, name = (torch.Tensor, "a tensor") if isinstance(self.dtype, torch.dtype) else (np.ndarray, "an array")
        if not isinstance(value, kind) or value.dtype != self.dtype or not self._has_shape(value):
            axes = ", ".join("any" if length is None else str(length) for length in self.shape)
            raise _misfit(place, value, f"must be {name} of {self.dtype} with shape ({axes})")
        if self.range is None or not math.prod(value.shape):
            return
        low, high = value.min().item(), value.max().item()  # NaN where there is one
        if not _inside(low, high, self.range):
            raise CheckpointError(f"{place} has entries from {low} to {high}, they {_in_words(self.range)}: {_REMEDY}")

    def _has_shape(self, value: Any) -> bool:
        return len(value.shape) == len(self.shape) and all(
            wanted in (None, found) for wanted, found in zip(self.shape, value.shape, strict=True)
        )


@dataclass(frozen=True)
class ListOf(Schema):
    """A list whose items all look alike.

    Attributes:
        item: Of the items.
        length: Number of items; None for any.
    """

    item: Schema
    length: int | None = None

    def check(self, value: Any, place: str) -> None:
        """Refuse other types, lengths and items, see `Schema.check`."""
        if not isinstance(value, list):
            raise _misfit(place, value, "must be a list")
        if self.length is not None and len(value) != self.length:
            raise CheckpointError(f"{place} has {len(value)} items, it must have {self.length}: {_REMEDY}")
        for index, item in enumerate(value):
            self.item.check(item, f"{place}/{index}")


@dataclass(frozen=True)
class Row(Schema):
    """A list with an item of its own kind at each place."""

    items: tuple[Schema, ...]

    def check(self, value: Any, place: str) -> None:
        """Refuse other types, lengths and items, see `Schema.check`."""
        ListOf(Anything(), len(self.items)).check(value, place)
        for index, (schema, item) in enumerate(zip(self.items, value, strict=True)):
            schema.check(item, f"{place}/{index}")


def lists(item: Schema, shape: Iterable[int]) -> Schema:
    """What `tolist()` of an array of this shape returns."""
    for length in reversed(tuple(shape)):
        item = ListOf(item, length)
    return item


@dataclass(frozen=True)
class Fields(Schema):
    """A dict with these keys and no others.

    Attributes:
        required: By key, what must be there.
        optional: By key, what may be there.
    """

    required: Mapping[str, Schema]
    optional: Mapping[str, Schema] = field(default_factory=dict)

    def check(self, value: Any, place: str) -> None:
        """Refuse other types, missing and surplus keys, and values that do not fit, see `Schema.check`."""
        if not isinstance(value, Mapping):
            raise _misfit(place, value, "must be a dict")
        known = {**self.required, **self.optional}
        for key, schema in known.items():  # first: an error in one of them says more than a missing key
            if key in value:
                schema.check(value[key], f"{place}/{key}")
        for key in self.required:
            if key not in value:
                raise CheckpointError(f"{place} lacks {key!r}: {_REMEDY}")
        for key in value:
            if key not in known:
                raise CheckpointError(f"{place} has a surplus key {shown(key)}: {_REMEDY}")


@dataclass(frozen=True)
class DictOf(Schema):
    """A dict with any keys, whose values all look alike."""

    item: Schema

    def check(self, value: Any, place: str) -> None:
        """Refuse other types, and values that do not fit, see `Schema.check`."""
        if not isinstance(value, Mapping):
            raise _misfit(place, value, "must be a dict")
        for key, item in value.items():
            self.item.check(item, f"{place}/{shown(key)}")


@dataclass(frozen=True)
class Either(Schema):
    """What fits the first of two schemas or the second; if neither, the second says what is wrong."""

    first: Schema
    second: Schema

    def check(self, value: Any, place: str) -> None:
        """Refuse what fits neither, see `Schema.check`."""
        try:
            self.first.check(value, place)
        except CheckpointError:
            self.second.check(value, place)


@dataclass(frozen=True)
class Where(Schema):
    """A schema with conditions on its parts together.

    Attributes:
        schema: Checked first, so that the conditions can rely on it.
        conditions: By what the value must do, in words that follow "must", whether it does.
    """

    schema: Schema
    conditions: Mapping[str, Callable[[Any], bool]]

    def check(self, value: Any, place: str) -> None:
        """Refuse what does not fit, or where a condition does not hold, see `Schema.check`."""
        self.schema.check(value, place)
        for required, holds in self.conditions.items():
            if not holds(value):
                raise CheckpointError(f"{place} must {required}: {_REMEDY}")


@dataclass(frozen=True)
class Explained(Schema):
    """A schema whose misfit has a likely cause.

    Attributes:
        schema: What the value must look like.
        cause: Comes first in the message.
    """

    schema: Schema
    cause: str

    def check(self, value: Any, place: str) -> None:
        """Refuse what does not fit, see `Schema.check`."""
        try:
            self.schema.check(value, place)
        except CheckpointError as error:
            raise CheckpointError(f"{self.cause}: {error}") from error


FLAG = OneOf((True, False))
COUNT = Number(int, Range(0, below=2**63))
"""Of iterations, updates and the like."""

_WORD, _FLAG_BIT = Number(int, Range(0, below=2**32)), OneOf((0, 1))
_LONG = Number(int, Range(0, below=2**128))
_ODD = Where(_LONG, {"be odd": lambda number: number % 2 == 1})
_UINT64 = np.dtype(np.uint64)


def _bit_generator(name: str, state: Mapping[str, Schema], **rest: Schema) -> Schema:
    return Fields({"bit_generator": OneOf((name,)), "state": Fields(state), **rest})


_HALF_WORD = {"has_uint32": _FLAG_BIT, "uinteger": _WORD}  # half of the last 64 bits, kept for the next draw
# all of numpy's: who sets `np_random` of an environment chooses one
_BIT_GENERATORS: Mapping[str, Schema] = {
    **{name: _bit_generator(name, {"state": _LONG, "inc": _ODD}, **_HALF_WORD) for name in ("PCG64", "PCG64DXSM")},
    "MT19937": _bit_generator(
        "MT19937", {"key": Array(np.dtype(np.uint32), (624,)), "pos": Number(int, Range(0, 624))}
    ),
    "Philox": _bit_generator(
        "Philox",
        {"counter": Array(_UINT64, (4,)), "key": Array(_UINT64, (2,))},
        buffer=Array(_UINT64, (4,)),
        buffer_pos=Number(int, Range(0, 4)),
        **_HALF_WORD,
    ),
    "SFC64": _bit_generator("SFC64", {"state": Array(_UINT64, (4,))}, **_HALF_WORD),
}


@dataclass(frozen=True)
class GeneratorState(Schema):
    """The `bit_generator.state` of a numpy generator; numpy itself does not check the numbers in it.

    Attributes:
        names: The bit generators it may be of; by default all of numpy's.
    """

    names: tuple[str, ...] = tuple(_BIT_GENERATORS)

    def check(self, value: Any, place: str) -> None:
        """Refuse what is no such state, see `Schema.check`."""
        DictOf(Anything()).check(value, place)
        name = value.get("bit_generator")
        OneOf(self.names).check(name, f"{place}/bit_generator")
        _BIT_GENERATORS[name].check(value, place)


_REMEDY = "use an earlier checkpoint, or the version of permenv that wrote it"


class _Short(reprlib.Repr):
    """In one line, whatever the depth and size."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 3, 200, 80, 60

    def repr_ndarray(self, array: np.ndarray, level: int) -> str:
        return f"an array of {array.dtype} with shape {tuple(array.shape)}"

    def repr_Tensor(self, tensor: torch.Tensor, level: int) -> str:  # named after the type
        return f"a tensor of {tensor.dtype} with shape {tuple(tensor.shape)}"


shown = _Short().repr
"""Describe a value of whatever kind in a few words, in one line."""


def equal(first: Any, second: Any) -> bool:
    """Whether two trees of plain values are equal, their types included: True is not 1."""
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)


def _inside(low: float, high: float, bounds: Range) -> bool:
    return all((isinstance(end, int) or math.isfinite(end)) and end in bounds for end in (low, high))


def _in_words(bounds: Range) -> str:
    return "must be finite" if bounds == FINITE else str(bounds)


def _misfit(place: str, value: Any, requirement: str) -> CheckpointError:
    return CheckpointError(f"{place} is {shown(value)}, it {requirement}: {_REMEDY}")
