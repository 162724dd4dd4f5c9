"""Ψ: different permutations, far apart, the same for the same seed."""

import hashlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from permenv.permutations import hamming_statistics, maximally_different, reverse_of


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


@pytest.mark.parametrize(
    ("arguments", "digest"),
    [
        ((9, 100, 0), "ad0d61d16ab929cdd08143c7be78e22b80f8a77f50d50357d5622dfb8eaef5d7"),
        ((9, 1000, 0), "e600c7cefcd006ba959596f4d0f1884b4c83a4e9d32962810229bb6cb40954b5"),
        ((8, 100, 0), "f62acbfab5096c34e5d13391b4655ef1745dc59af9f1fc2e0228e77b561f0a13"),
        ((5, 30, 1), "1b4dc51da49fadbd3d61e09dce45af8fbed6a4b3061d2771d87d167d0916bb78"),
    ],
)
def test_the_sets_of_published_runs_stay_what_they_are(arguments, digest):
    """SHA-256 of the sets as version 0.1.0 chose them: a checkpoint or a result stands for its Ψ."""
    assert hashlib.sha256(maximally_different(*arguments).astype("<i8").tobytes()).hexdigest() == digest


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


# A permutation and its reverse as one


@given(st.permutations(range(7)))
def test_the_reverse_plays_the_mirrored_sample_and_back(order):
    order, sample = np.array(order), np.arange(10, 17)
    np.testing.assert_array_equal(sample[reverse_of(order)], sample[::-1][order])
    np.testing.assert_array_equal(reverse_of(reverse_of(order)), order)
    assert distance(order, reverse_of(order)) == 6  # the middle one of seven stays


def test_reverses_of_many_permutations_are_those_of_each():
    permutations = maximally_different(4, 10)
    np.testing.assert_array_equal(reverse_of(permutations), [[3 - piece for piece in row] for row in permutations])


@given(st.integers(2, 6), st.data(), st.integers(0, 5))
@settings(deadline=None)
def test_a_merged_set_holds_no_reverse_of_a_member(num_pieces, data, seed):
    count = data.draw(st.integers(1, math.factorial(num_pieces) // 2))
    permutations = maximally_different(num_pieces, count, seed, merge_reversed=True)
    assert all(sorted(row) == list(range(num_pieces)) for row in permutations)
    assert len({tuple(row) for row in (*permutations, *reverse_of(permutations))}) == 2 * count


@pytest.mark.parametrize(("num_pieces", "count"), [(4, 12), (5, 40)])
@pytest.mark.parametrize("seed", [0, 1])
def test_each_one_of_a_merged_set_is_as_far_from_the_chosen_and_their_reverses_as_any_could_be(num_pieces, count, seed):
    chosen = maximally_different(num_pieces, count, seed, merge_reversed=True)
    everything = list(itertools.permutations(range(num_pieces)))
    for i in range(1, count):

        def key(candidate, before=chosen[:i]):
            backwards = [num_pieces - 1 - piece for piece in candidate]
            distances = [min(distance(candidate, other), distance(backwards, other)) for other in before]
            return min(distances), sum(distances)

        assert key(chosen[i]) == max(key(candidate) for candidate in everything)


def test_a_merged_set_of_more_pieces_than_can_be_enumerated():
    permutations = maximally_different(12, 30, merge_reversed=True)
    assert hamming_statistics(np.concatenate([permutations, reverse_of(permutations)])).minimum >= 9


def test_a_merged_set_holds_at_most_half_of_all():
    assert len(maximally_different(4, 12, merge_reversed=True)) == 12
    with pytest.raises(ValueError, match=r"13: 4 pieces have only 12 permutations that are not reverses of others"):
        maximally_different(4, 13, merge_reversed=True)


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
