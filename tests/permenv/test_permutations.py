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
def test_each_permutation_maximises_the_distance_to_the_chosen_ones(seed):
    chosen = maximally_different(5, 30, seed)
    everything = list(itertools.permutations(range(5)))
    for i in range(1, len(chosen)):

        def key(candidate, before=chosen[:i]):
            distances = [distance(candidate, other) for other in before]
            return min(distances), sum(distances)

        assert key(chosen[i]) == max(key(candidate) for candidate in everything)


def test_equal_seeds_give_equal_sets():
    np.testing.assert_array_equal(maximally_different(6, 20, 3), maximally_different(6, 20, 3))
    assert not np.array_equal(maximally_different(6, 20, 3), maximally_different(6, 20, 4))


@pytest.mark.parametrize(
    ("arguments", "merge_reversed", "digest"),
    [
        ((9, 100, 0), False, "ad0d61d16ab929cdd08143c7be78e22b80f8a77f50d50357d5622dfb8eaef5d7"),
        ((9, 1000, 0), False, "e600c7cefcd006ba959596f4d0f1884b4c83a4e9d32962810229bb6cb40954b5"),
        ((8, 100, 0), False, "f62acbfab5096c34e5d13391b4655ef1745dc59af9f1fc2e0228e77b561f0a13"),
        ((5, 30, 1), False, "1b4dc51da49fadbd3d61e09dce45af8fbed6a4b3061d2771d87d167d0916bb78"),
        ((9, 100, 0), True, "ae7d34e5ca3f2ddceebb8a7244aade9007ec2ddab8b90a0c2492f50962bc05a9"),
        ((8, 1000, 0), True, "d9b6c4a7fa9aad730b353bb7965fe4588392d923f4b8d5bbbd7f0c465f66fdc8"),
        ((8, 100, 3), False, "1d057328596d943786366bd029301a9e302b7799effc037298f545b26b47efd5"),
        ((7, 5040, 4), False, "fc378fbe81068d14d4805fb888eb1357e019b25289522877e58dcf6d7e6f02e7"),
        ((6, 360, 1), True, "f0ccc5a13561896055fe86305e54a31e0f245b064fc6be5641a2ce8a5174f709"),
        ((10, 100, 0), False, "ff4101b5e8a089577aefbc2d0cd13797f65a980e803d02cf87e66cf22ebde334"),
        ((12, 30, 2), True, "f8dbbe67d0c838d09e5f51ba9424d0848e5c88edf615c786e3e95519d9b0a5d9"),
        ((2, 2, 0), False, "db7f8e2aa97f8d230fc0a6c6d68184ecfee02f4bd2e94dcb331c0d3d54ca5fe8"),
    ],
)
def test_sets_of_published_runs_are_reproduced_exactly(arguments, merge_reversed, digest):
    """SHA-256 of the sets of version 0.1.0, on which results and checkpoints depend."""
    permutations = maximally_different(*arguments, merge_reversed=merge_reversed)
    assert hashlib.sha256(permutations.astype("<i8").tobytes()).hexdigest() == digest


def plainly_chosen(num_pieces: int, count: int, seed: int, merge_reversed: bool) -> list[tuple[int, ...]]:
    """Choose permutations one by one with plain loops over all candidates."""
    candidates = np.array(list(itertools.permutations(range(num_pieces))))
    if merge_reversed:
        candidates = np.array([row for row in candidates if tuple(row) < tuple(reverse_of(row))])
    np.random.default_rng(seed).shuffle(candidates)
    chosen: list[np.ndarray] = []

    def key(candidate):
        others = [candidate, reverse_of(candidate)] if merge_reversed else [candidate]
        distances = [min(distance(other, before) for other in others) for before in chosen]
        return min(distances, default=0), sum(distances)

    for _ in range(count):
        chosen.append(max(candidates, key=key))  # the first of equals
    return [tuple(row) for row in chosen]


@pytest.mark.parametrize("merge_reversed", [False, True])
@pytest.mark.parametrize(("num_pieces", "count", "seed"), [(3, 3, 0), (4, 12, 1), (4, 12, 2), (5, 12, 3)])
def test_sets_equal_those_of_a_plain_loop(num_pieces, count, seed, merge_reversed):
    permutations = maximally_different(num_pieces, count, seed, merge_reversed=merge_reversed)
    assert [tuple(row) for row in permutations] == plainly_chosen(num_pieces, count, seed, merge_reversed)


def test_the_set_of_the_paper_is_far_apart():
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


# Merged sets: a permutation and its reverse count as one


@given(st.permutations(range(7)))
def test_the_reverse_shuffles_the_mirrored_sample(order):
    order, sample = np.array(order), np.arange(10, 17)
    np.testing.assert_array_equal(sample[reverse_of(order)], sample[::-1][order])
    np.testing.assert_array_equal(reverse_of(reverse_of(order)), order)
    assert distance(order, reverse_of(order)) == 6  # the middle piece of seven is its own mirror image


def test_reverses_of_many_permutations_equal_those_of_each():
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
def test_each_merged_permutation_maximises_the_distance_to_the_chosen_ones_and_their_reverses(num_pieces, count, seed):
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
