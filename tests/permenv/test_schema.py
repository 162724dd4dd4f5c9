"""Schemas: what fits passes, and what does not is refused by its place, its value and what is expected."""

import re

import numpy as np
import pytest
import torch

from permenv import CheckpointError
from permenv.config import Range
from permenv.schema import (
    COUNT,
    FINITE,
    FLAG,
    INT64,
    Anything,
    Array,
    DictOf,
    Either,
    Explained,
    Fields,
    GeneratorState,
    ListOf,
    Number,
    OneOf,
    Row,
    Where,
    below,
    equal,
    lists,
    shown,
)

NAN, INF = float("nan"), float("inf")
DEEP: list = []
for _ in range(5000):
    DEEP = [DEEP]

EVEN = Where(COUNT, {"be even": lambda number: number % 2 == 0})

FITS = [
    (Anything(), DEEP),
    (OneOf(("a", None)), None),
    (FLAG, False),
    (COUNT, 2**63 - 1),
    (Number(float), -1e300),
    (Number(float, None), NAN),
    (Number(float, Range(0, below=1)), 0.0),
    (Array(INT64, (2, None), below(4)), np.array([[0, 3], [1, 2]])),
    (Array(INT64, (0,), below(4)), np.zeros(0, dtype=np.int64)),
    (Array(torch.float32, ()), torch.tensor(NAN)),
    (Array.like(torch.zeros(2), FINITE), torch.tensor([-1e30, 0])),
    (ListOf(COUNT), []),
    (lists(COUNT, (2, 1)), [[1], [2]]),
    (lists(COUNT, ()), 1),
    (Row((COUNT, FLAG)), [1, True]),
    (Fields({"a": COUNT}, {"b": COUNT}), {"a": 1}),
    (Fields({"a": COUNT}, {"b": COUNT}), {"b": 2, "a": 1}),
    (DictOf(COUNT), {"x": 1, "y": 2}),
    (Either(OneOf((None,)), COUNT), 3),
    (EVEN, 4),
    (Explained(COUNT, "why"), 0),
]

MISFITS = [
    (OneOf(("a", None)), 0, "run is 0, it must be 'a' or None: use an earlier checkpoint"),
    (FLAG, 1, "run is 1, it must be True or False"),
    (COUNT, True, "run is True, it must be a number of type int"),
    (COUNT, 1.0, "run is 1.0, it must be a number of type int"),
    (COUNT, -1, "run is -1, it must be at least 0 and below 2^63: "),
    (COUNT, 10**400, "it must be at least 0 and below 2^63"),
    (Number(int, Range(0, below=2**128)), 2**130, "it must be at least 0 and below 2^128"),
    (Number(int), "1", "run is '1', it must be a number of type int"),
    (Number(float), NAN, "run is nan, it must be finite"),
    (Number(float), -INF, "run is -inf, it must be finite"),
    (Number(float, Range(0)), INF, "run is inf, it must be at least 0"),
    (Number(float), 1, "run is 1, it must be a number of type float"),
    (
        Array(INT64, (2, None)),
        np.zeros((3, 1), dtype=np.int64),
        "with shape (3, 1), it must be an array of int64 with shape (2, any)",
    ),
    (Array(INT64, (2,)), np.zeros(2), "run is an array of float64 with shape (2,), it must be an array of int64"),
    (Array(INT64, (2,)), torch.zeros(2, dtype=torch.int64), "run is a tensor of torch.int64"),
    (Array(torch.float32, (2,)), np.zeros(2, dtype=np.float32), "it must be a tensor of torch.float32 with shape (2)"),
    (Number(int, below(2**63)), -1, "run is -1, it must be at least 0 and below 2^63"),
    (Array(INT64, (2,), below(4)), np.array([0, 4]), "run has entries from 0 to 4, they must lie in [0, 3]"),
    (
        Array(torch.float32, (2,), FINITE),
        torch.tensor([0, NAN]),
        "run has entries from nan to nan, they must be finite",
    ),
    (Array(INT64, (2,)), [1, 2], "run is [1, 2], it must be an array"),
    (ListOf(COUNT), (1,), "run is (1,), it must be a list"),
    (ListOf(COUNT), [0, -1], "run/1 is -1"),
    (ListOf(COUNT, 2), [0], "run has 1 items, it must have 2"),
    (lists(COUNT, (2, 1)), [[1], [2, 3]], "run/1 has 2 items, it must have 1"),
    (Row((COUNT, FLAG)), [1], "run has 1 items, it must have 2"),
    (Row((COUNT, FLAG)), [1, 1], "run/1 is 1, it must be True or False"),
    (Fields({"a": COUNT}), [], "run is [], it must be a dict"),
    (Fields({"a": COUNT}), {}, "run lacks 'a'"),
    (Fields({"a": COUNT}), {"a": 1, "b\n": 2}, "run has a surplus key 'b\\n'"),
    (Fields({"a": COUNT}, {"b": COUNT}), {"a": 1, "b": None}, "run/b is None"),
    (Fields({"a": Fields({"b": COUNT})}), {"a": {"b": DEEP}}, "run/a/b is [[[[...]]]], it must be a number"),
    (DictOf(COUNT), {"x": -1}, "run/'x' is -1"),
    (Either(OneOf((None,)), COUNT), -3, "run is -3, it must be at least 0 and below 2^63"),
    (EVEN, 3, "run must be even: use an earlier checkpoint"),
    (EVEN, "x", "run is 'x', it must be a number"),
    (Explained(COUNT, "the cause"), -1, "the cause: run is -1"),
]


@pytest.mark.parametrize(("schema", "value"), FITS)
def test_what_fits_passes(schema, value):
    schema.check(value, "run")


@pytest.mark.parametrize(("schema", "value", "message"), MISFITS)
def test_what_does_not_fit_is_refused_in_one_line(schema, value, message):
    with pytest.raises(CheckpointError, match=re.escape(message)) as error:
        schema.check(value, "run")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


GENERATORS = [np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64]


@pytest.mark.parametrize("kind", GENERATORS)
def test_the_state_of_every_generator_of_numpy_fits(kind):
    generator = np.random.Generator(kind(0))
    for draws in (0, 1, 7, 1000):
        generator.integers(2**32, size=draws, dtype=np.uint32)
        GeneratorState().check(generator.bit_generator.state, "generator")


@pytest.mark.parametrize(
    ("kind", "path", "value", "message"),
    [
        (np.random.MT19937, ("state", "pos"), 10**6, "generator/state/pos is 1000000, it must lie in [0, 624]"),
        (np.random.Philox, ("buffer_pos",), -1, "generator/buffer_pos is -1, it must lie in [0, 4]"),
        (np.random.SFC64, ("state", "state"), [1, 2, 3, 4], "generator/state/state is [1, 2, 3, 4]"),
        (np.random.PCG64, ("state", "inc"), 2, "generator/state/inc must be odd"),
        (np.random.PCG64, ("state", "state"), 2**128, "generator/state/state is 3402"),
        (np.random.PCG64, ("has_uint32",), True, "generator/has_uint32 is True, it must be 0 or 1"),
        (np.random.PCG64, ("bit_generator",), "default_rng", "generator/bit_generator is 'default_rng', it must be"),
        (np.random.PCG64, ("bit_generator",), ["PCG64"], "generator/bit_generator is ['PCG64']"),
    ],
)
def test_another_state_of_a_generator_is_refused(kind, path, value, message):
    """Numpy checks little of it: a position outside the key is read from memory that is none of its own."""
    state = kind(0).state
    node = state
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(CheckpointError, match=re.escape(message)):
        GeneratorState().check(state, "generator")


def test_a_generator_of_another_kind_is_refused():
    with pytest.raises(CheckpointError, match="bit_generator is 'MT19937', it must be 'PCG64'"):
        GeneratorState(("PCG64",)).check(np.random.MT19937(0).state, "generator")


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (1, 1, True),
        (1, True, False),
        (1, 1.0, False),
        ({"a": [1, 2]}, {"a": [1, 2]}, True),
        ({"a": [1, 2]}, {"a": [1, 2.0]}, False),
        ({"a": None}, {}, False),
        ([1], [1, 2], False),
        (DEEP, [1], False),
    ],
)
def test_equality_includes_types(first, second, same):
    assert equal(first, second) is same


def test_a_value_is_shown_in_one_short_line():
    for value in (DEEP, "x" * 10_000, list(range(10_000)), [np.zeros((3, 3))], {"a\n": torch.zeros(2)}, 10**4000):
        assert len(shown(value)) < 250
        assert "\n" not in shown(value)
