"""Ψ: different permutations, far apart, the same for the same seed."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from permenv.permutations import hamming_statistics, maximally_different


def distance(first: np.ndarray, second: np.ndarray) -> int:
    return sum(a != b for a, b in zip(first, second, strict=True))


@given(st.integers(2, 5), st.data(), st.integers(0, 5))
@settings(deadline=None)
def test_rows_are_different_permutations(num_pieces, data, seed):
    count = data.draw(st.integers(1, math.factorial(num_pieces)))
    permutations = maximally_different(num_pieces, count, seed)
    assert permutations.shape == (count, num_pieces)
    assert len({tuple(row) for row in permutations}) == count
    assert all(sorted(row) == list(range(num_pieces)) for row in permutations)


@pytest.mark.parametrize("seed", [0, 1])
def test_each_one_is_as_far_from_the_chosen_as_any_could_be(seed):
    chosen = maximally_different(5, 30, seed)
    everything = list(itertools.permutations(range(5)))
    for i in range(1, len(chosen)):

        def key(candidate, before=chosen[:i]):
            distances = [distance(candidate, other) for other in before]
            return min(distances), sum(distances)

        assert key(chosen[i]) == max(key(candidate) for candidate in everything)


def test_the_seed_decides():
    np.testing.assert_array_equal(maximally_different(6, 20, 3), maximally_different(6, 20, 3))
    assert not np.array_equal(maximally_different(6, 20, 3), maximally_different(6, 20, 4))


def test_the_papers_set_of_nine_tiles_is_far_apart():
    statistics = hamming_statistics(maximally_different(9, 1000))
    assert statistics.minimum >= 5  # 1000 random permutations contain two at distance 2 or 3
    assert statistics.mean > 8.0  # the mean over all pairs of permutations of nine is 8


def test_more_pieces_than_can_be_enumerated():
    permutations = maximally_different(16, 50)
    assert all(sorted(row) == list(range(16)) for row in permutations)
    assert hamming_statistics(permutations).minimum >= 13


def test_statistics_equal_a_plain_loop():
    permutations = maximally_different(5, 40)
    distances = [distance(a, b) for a, b in itertools.combinations(permutations, 2)]
    statistics = hamming_statistics(permutations)
    assert statistics.minimum == min(distances)
    assert statistics.mean == pytest.approx(np.mean(distances))


@pytest.mark.parametrize(
    ("num_pieces", "count", "message"),
    [
        (3, 7, r"num_permutations=7: 3 pieces have only 6 permutations"),
        (9, 0, r"num_permutations=0"),
        (1, 1, r"num_pieces=1"),
        (10, 500_000, r"ask for at most that many"),
    ],
)
def test_impossible_sets_are_refused(num_pieces, count, message):
    with pytest.raises(ValueError, match=message):
        maximally_different(num_pieces, count)


def test_one_permutation_has_no_distance():
    with pytest.raises(ValueError, match="at least two"):
        hamming_statistics(maximally_different(3, 1))
