"""Streams of random numbers: independent of each other, of everything drawn before, and of the version."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from permenv.streams import Purpose, restored, stream

KEYS = [
    (seed, purpose, iteration, task)
    for seed, purpose, iteration, task in itertools.product((0, 1, 2**32, 2**63), Purpose, (0, 1, 350_000), (0, 1))
]


def test_every_key_has_numbers_of_its_own():
    numbers = [stream(*key).integers(2**63, size=4) for key in KEYS]
    assert len(np.unique(numbers)) == 4 * len(KEYS)


@given(st.sampled_from(KEYS), st.sampled_from(KEYS))
def test_a_stream_depends_on_its_key_alone(key, other):
    expected = stream(*key).random(3)
    stream(*other).random(100)
    np.testing.assert_array_equal(stream(*key).random(3), expected)


def test_seeds_of_any_size_have_streams():
    first, second = (stream(2**128 + number, Purpose.SAMPLES).random(8) for number in (0, 1))
    assert not np.array_equal(first, second)
    with pytest.raises(ValueError, match="non-negative"):
        stream(-1, Purpose.SAMPLES)


def test_the_numbers_are_those_of_the_first_version():
    """A change here changes every trajectory, and with them all figures that were measured."""
    drawn = {purpose.name: stream(7, purpose, 3, 1).integers(1000, size=3).tolist() for purpose in Purpose}
    assert drawn == {
        "WEIGHTS": [920, 911, 967],
        "VALIDATION_SET": [587, 765, 591],
        "LABELS": [442, 59, 903],
        "SAMPLES": [613, 881, 575],
        "AUGMENTATION": [539, 462, 344],
        "GROUPS": [141, 879, 18],
    }


@pytest.mark.parametrize("kind", ["PCG64", "MT19937", "Philox"])
def test_a_generator_continues_from_its_state(kind):
    generator = np.random.Generator(getattr(np.random, kind)(5))
    generator.random(3)
    twin = restored(generator.bit_generator.state)
    np.testing.assert_array_equal(twin.random(5), generator.random(5))
