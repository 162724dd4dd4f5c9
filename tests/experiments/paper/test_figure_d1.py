"""Figure D.1."""

import json

import numpy as np
import pytest

from experiments.paper import figure_d1
from permenv import ConfigurationError
from permenv.grouping import group_permutations
from tests.experiments.paper.helpers import options

FEW = {"counts": (3, 5), "env": {"num_scenes": 40, "total_updates": 4}}


def test_pairs_of_groups_are_tested_at_three_checkpoints(tmp_path, saved_figure, capsys):
    config = options(figure_d1.Config, tmp_path, **FEW)
    report = figure_d1.main(config)
    assert json.loads(config.out.read_text())["checkpoints"] == [3, 6, 8]
    assert sum(report["histogram"]["counts"]) == 2 * 24 * 12, "all entries of s of both networks"
    for count, row in report["counts"].items():
        assert np.shape(row["p_values"]) == (3, int(count), int(count))
        assert all(0 <= shares[kind].value <= 1 for shares in row["indistinct"] for kind in figure_d1.KINDS)
        assert np.shape(row["by_seed"]["as in the paper"]) == (2, 3)
    few, many = (np.array(row["by_seed"]["as in the paper"]) for row in list(report["counts"].values())[:2])
    ((_, more),) = report["more"].items()
    assert [each.value for each in more] == pytest.approx((many - few).mean(axis=0))
    histogram, *cells = saved_figure(config.out.with_suffix(".png")).axes
    assert histogram.patches[0].get_data().values.tolist() == report["histogram"]["counts"]
    tables = [table for row in report["counts"].values() for table in row["p_values"]]
    for cell, table in zip(cells, tables, strict=True):
        alike, pairs = cell.images[0].get_array().filled(np.nan), ~np.eye(len(table), dtype=bool)
        p = np.array(table, dtype=float)[pairs]
        np.testing.assert_array_equal(alike[pairs], ~(p < figure_d1.ALPHA))
    assert "| 5 | 8 |" in capsys.readouterr().out


def test_the_picture_shows_which_pairs_of_groups_are_told_apart():
    p_values = [[1, 0.009, None], [0.009, 1, 0.01], [None, 0.01, 1]]  # a pair with an empty group has none
    report = {
        "seeds": 1,
        "first_seed": 0,
        "checkpoints": [3],
        "histogram": {"edges": [0.5, 1, 2], "counts": [1, 1]},
        "counts": {"3": {"p_values": [p_values]}},
    }
    picture = figure_d1._figure(report)
    histogram, cell = picture.axes
    alike = np.asarray(cell.get_images()[0].get_array())
    assert np.ma.masked_invalid(alike).tolist() == [[None, 0, 1], [0, None, 1], [1, 1, None]]
    (legend,) = picture.subfigs[1].legends
    assert [text.get_text() for text in legend.get_texts()] == ["p < 0.01: told apart", "p ≥ 0.01: not told apart"]
    assert cell.get_xlabel() == "group"
    assert [tick.get_text() for tick in cell.get_xticklabels()] == ["hardest", "easiest"]
    assert histogram.get_xlabel()
    assert histogram.get_ylabel()


def ks_statistic(first, second):
    """The largest distance of two empirical distribution functions."""
    places = np.concatenate([first, second])
    return max(abs((first <= place).mean() - (second <= place).mean()) for place in places)


def test_p_values_are_those_of_the_definition():
    """For large sets p = 2 Σ (-1)^(k-1) exp(-2 k² n D²), n = n1 n2 / (n1 + n2)."""
    rng = np.random.default_rng(0)
    ratios = rng.normal(size=(30, 20)) + np.repeat([0, 0.15, 0.15], 10)[:, None]
    groups = np.repeat([0, 1, 3], 10)  # group 2 is empty
    found = figure_d1.p_values(ratios, groups, 4)
    first, second = ratios[:10].ravel(), ratios[10:20].ravel()
    effective = len(first) * len(second) / (len(first) + len(second))
    steps = np.arange(1, 100)
    series = (-1.0) ** (steps - 1) * np.exp(-2 * steps**2 * effective * ks_statistic(first, second) ** 2)
    assert found[0, 1] == pytest.approx(2 * series.sum(), rel=0.05)  # scipy uses the exact limit of a finite n
    assert found[1, 3] > figure_d1.ALPHA
    assert np.isnan(found[2]).all()
    np.testing.assert_array_equal(found, found.T)
    assert found.diagonal()[[0, 1, 3]].tolist() == [1, 1, 1]


def test_k_means_tells_groups_of_noise_apart_more_often_than_the_significance_says():
    """Of homogeneous permutations more than five times 1% of the pairs; on samples not used before hardly any."""
    ratios = np.random.default_rng(0).normal(1, 0.1, (300, 40))
    found = figure_d1.tested(ratios, 10, seed=0)
    assert 1 - figure_d1.indistinct(found["as in the paper"]) > 5 * figure_d1.ALPHA
    assert 1 - figure_d1.indistinct(found["homogeneous"]) > 5 * figure_d1.ALPHA
    assert figure_d1.indistinct(found["fresh samples"]) > 0.95


def test_different_permutations_are_told_apart_on_fresh_samples():
    difficulties = np.repeat([0.6, 0.9, 1.2, 1.5], 20)
    ratios = difficulties[:, None] + np.random.default_rng(0).normal(0, 0.1, (80, 40))
    found = figure_d1.tested(ratios, 4, seed=0)
    assert figure_d1.indistinct(found["fresh samples"]) == 0
    assert sorted(np.bincount(group_permutations(ratios, 4, 0))) == [20, 20, 20, 20]


def test_dealing_anew_keeps_the_ratios_of_each_sample():
    ratios = np.arange(12.0).reshape(4, 3)
    dealt = figure_d1.homogeneous(ratios, np.random.default_rng(0))
    assert not np.array_equal(dealt, ratios)
    np.testing.assert_array_equal(np.sort(dealt, axis=0), ratios)


def test_numbers_of_groups_out_of_range_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"--counts \(3, 25\): name numbers from 2 to 24"):
        figure_d1.main(options(figure_d1.Config, tmp_path, counts=(3, 25)))
