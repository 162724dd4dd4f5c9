"""Groups and ŝ: what K-means found, hardest first, and its summary (Eq. 10)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from permenv.grouping import draw_members, group_members, group_permutations, observe, pool_probabilities, summarise
from tests.helpers import global_states


def levels(*sizes_and_medians, samples=20, seed=0):
    """Rows of s around given medians: (count, median) each, in random order."""
    rng = np.random.default_rng(seed)
    rows = np.concatenate([np.full((count, samples), median) for count, median in sizes_and_medians])
    rows = rows + rng.normal(0, 0.003, rows.shape)
    return rng.permutation(rows).astype(np.float32)


def test_separate_levels_are_found_and_ordered_hardest_first():
    ratios = levels((5, 1.6), (20, 0.7), (10, 1.1))
    groups = group_permutations(ratios, 3, seed=0)
    np.testing.assert_array_equal(np.bincount(groups), [20, 10, 5])
    for group, median in enumerate([0.7, 1.1, 1.6]):
        assert np.abs(ratios[groups == group].mean() - median) < 0.01
    summary = summarise(ratios, groups, 3)
    np.testing.assert_allclose(summary, [[20 / 35, 0.7], [10 / 35, 1.1], [5 / 35, 1.6]], atol=0.01)


def test_an_observation_has_a_row_of_groups_for_each_of_several_tasks():
    ratios = {"one": levels((5, 1.6), (20, 0.7)), "two": levels((10, 1.2), (15, 0.9))}
    groups = {task: group_permutations(each, 2, seed=0) for task, each in ratios.items()}
    summaries = [summarise(each, groups[task], 2) for task, each in ratios.items()]
    np.testing.assert_array_equal(observe(ratios, groups, 2), summaries)
    np.testing.assert_array_equal(observe({"two": ratios["two"]}, groups, 2), summaries[1])


@given(st.integers(2, 40), st.integers(1, 8), st.integers(1, 10), st.integers(0, 9), st.sampled_from([1, 2, 30]))
@settings(deadline=None, max_examples=60)
def test_summary_equals_its_definition(num_permutations, num_samples, num_groups, seed, different):
    num_groups = min(num_groups, num_permutations)
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.5, 2, different)
    ratios = rng.choice(values, (num_permutations, num_samples)).astype(np.float32)
    groups = group_permutations(ratios, num_groups, seed)
    summary = summarise(ratios, groups, num_groups)
    assert summary.shape == (num_groups, 2)
    assert summary.dtype == np.float32
    assert summary[:, 0].sum() == pytest.approx(1, abs=1e-6)
    assert (np.diff(summary[:, 1]) >= 0).all()
    assert summary[:, 1].min() >= 0.5
    assert summary[:, 1].max() <= 2
    for group in range(num_groups):
        rows = [ratios[i] for i in range(num_permutations) if groups[i] == group]
        assert summary[group, 0] == pytest.approx(len(rows) / num_permutations)
        if rows:
            assert summary[group, 1] == pytest.approx(np.median(np.concatenate(rows)))
        else:  # empty groups come last and repeat the easiest group that is not
            assert groups.max() < group
            assert summary[group, 1] == summary[groups.max(), 1]


@pytest.mark.parametrize("different", [1, 2, 3])
def test_fewer_different_rows_than_groups_leave_the_last_groups_empty(different):
    ratios = np.repeat(np.linspace(0.6, 1.8, different, dtype=np.float32)[:, None], 5, axis=1)
    ratios = np.tile(ratios, (8, 1))
    groups = group_permutations(ratios, 6, seed=0)
    np.testing.assert_array_equal(np.bincount(groups, minlength=6), [8] * different + [0] * (6 - different))
    summary = summarise(ratios, groups, 6)
    np.testing.assert_array_equal(summary[different:, 0], 0)
    np.testing.assert_allclose(summary[different:, 1], summary[different - 1, 1])
    members = group_members(groups, 6)
    for group in range(different, 6):
        np.testing.assert_array_equal(members[group], members[different - 1])


def test_members_are_the_groups():
    groups = np.array([1, 0, 1, 2, 0])
    members = group_members(groups, 3)
    assert [list(m) for m in members] == [[1, 4], [0, 2], [3]]


def test_draws_are_uniform_within_the_group_of_each_sample():
    members = [np.array([4]), np.array([0, 2, 5]), np.array([1, 3])]
    chosen = np.tile([2, 1, 0, 1], 3000)
    drawn = draw_members(members, chosen, np.random.default_rng(0))
    for group in range(3):
        values, counts = np.unique(drawn[chosen == group], return_counts=True)
        np.testing.assert_array_equal(values, members[group])
        expected = counts.sum() / len(members[group])
        assert ((counts - expected) ** 2 / expected).sum() < 13.8  # χ² of two degrees, p = 0.001


def slow_pool(sizes, pool, hardest_first):
    """How many of the first permutations, which may be a fraction of one, are in each group; normalised."""
    left, inside = pool, [0.0] * len(sizes)
    for group in range(len(sizes)) if hardest_first else reversed(range(len(sizes))):
        inside[group] = min(left, sizes[group])
        left -= inside[group]
    return np.array(inside) / sum(inside)


@given(
    st.lists(st.lists(st.integers(0, 20), min_size=5, max_size=5).filter(any), min_size=1, max_size=3),
    st.floats(1e-6, 1),
    st.booleans(),
)
@settings(deadline=None, max_examples=200)
def test_a_pool_equals_a_slow_reference(rows, share, hardest_first):
    sizes = np.array(rows)
    fractions = sizes / sizes.sum(axis=1, keepdims=True)
    shares = share / (1 + np.arange(len(rows)))
    for each in (share, shares):
        found = pool_probabilities(fractions, each, hardest_first=hardest_first)
        for row, own, chances in zip(rows, np.broadcast_to(each, len(rows)), found, strict=True):
            np.testing.assert_allclose(chances, slow_pool(row, own * sum(row), hardest_first), atol=1e-9)
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-14)
        assert (found[sizes == 0] == 0).all()
        assert (found >= 0).all()
    np.testing.assert_array_equal(pool_probabilities(fractions[0], share), pool_probabilities(fractions, share)[0])


def test_the_hardest_pool_mirrors_the_easiest():
    fractions = np.array([0.1, 0.4, 0.2, 0.3])
    hardest = pool_probabilities(fractions, 0.35, hardest_first=True)
    np.testing.assert_array_equal(hardest, pool_probabilities(fractions[::-1], 0.35)[::-1])
    np.testing.assert_allclose(hardest, [0.1 / 0.35, 0.25 / 0.35, 0, 0])


@pytest.mark.parametrize("hardest_first", [False, True])
def test_a_pool_of_everything_is_everything(hardest_first):
    fractions = np.random.default_rng(0).dirichlet(np.ones(20), size=50)
    np.testing.assert_allclose(pool_probabilities(fractions, 1.0, hardest_first=hardest_first), fractions, rtol=1e-10)


def test_the_seed_decides():
    ratios = np.random.default_rng(0).uniform(0.5, 2, (200, 30)).astype(np.float32)
    np.testing.assert_array_equal(group_permutations(ratios, 10, 5), group_permutations(ratios, 10, 5))


def test_no_global_random_state_is_used():
    ratios = np.random.default_rng(0).uniform(0.5, 2, (60, 30)).astype(np.float32)
    before = global_states()
    first = group_permutations(ratios, 10, 1)
    assert global_states() == before
    np.random.seed(99)  # noqa: NPY002
    np.testing.assert_array_equal(first, group_permutations(ratios, 10, 1))
