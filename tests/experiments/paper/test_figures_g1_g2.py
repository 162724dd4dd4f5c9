"""Figures G.1 and G.2."""

import json

import numpy as np
import pytest

from experiments.paper import figures_g1_g2
from tests.experiments.paper.helpers import learned_policy, options

EPISODE = {"total_updates": 4, "num_scenes": 40}


def test_the_chosen_permutations_are_counted_by_distance(tmp_path, saved_figure, capsys):
    config = options(figures_g1_g2.Config, tmp_path, env=EPISODE)
    report = figures_g1_g2.main(config)
    assert json.loads(config.out.read_text())["iterations_before"] == [0, 2, 4, 6]
    assert np.shape(report["chosen"]) == (2, 4, 10)
    assert np.sum(report["chosen"], axis=2) == pytest.approx(1)
    assert sum(report["random"]) == pytest.approx(1)
    chosen, random = np.array(report["chosen"]).mean(axis=0), np.array(report["random"])
    expected = [sum(distance * (row[distance] - random[distance]) for distance in range(10)) for row in chosen]
    assert [each.value for each in report["excess_distance"]] == pytest.approx(expected)
    assert np.shape(report["high"]) == np.shape(report["low"]) == (2, 4, 3)
    axis, *cells = saved_figure(config.out.with_suffix(".png")).axes
    heights = np.array([bar.get_height() for bar in axis.patches]).reshape(5, 10)
    assert heights == pytest.approx(np.array([random, *chosen]))
    pictures = [cell.images[0].get_array() for cell in cells]
    assert len(pictures) == 4 * 6
    assert all(picture.std() > 0 for picture in pictures)
    assert "| 6 | " in capsys.readouterr().out


def test_distances_count_the_pieces_out_of_place():
    permutations = np.array([[0, 1, 2, 3], [1, 0, 2, 3], [3, 0, 1, 2]])
    distances = figures_g1_g2.distances_of(permutations)
    assert distances.tolist() == [0, 2, 4]
    assert figures_g1_g2.spread_over(distances, np.array([0.5, 0.2, 0.3]), 4) == pytest.approx([0.5, 0, 0.2, 0, 0.3])


def test_examples_have_the_highest_and_the_lowest_shares():
    shares = np.array([0.1, 0.3, 0.1, 0.3, 0.0, 0.2])
    drawn = [figures_g1_g2.extremes(shares, 1, np.random.default_rng(seed)) for seed in range(20)]
    assert {high for ((high,), _) in drawn} == {1, 3}, "of equals each is drawn"
    assert {low for (_, (low,)) in drawn} == {4}
    assert set(figures_g1_g2.extremes(shares, 3, np.random.default_rng(0))[0]) == {1, 3, 5}


@pytest.mark.ci
def test_a_policy_learned_across_runs(tmp_path):
    policy = learned_policy(tmp_path / "across", **EPISODE)
    report = figures_g1_g2.main(options(figures_g1_g2.Config, tmp_path, env=EPISODE, seeds=1, policy=policy))
    assert report["policy"] == "across"
