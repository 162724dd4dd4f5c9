"""The map of settings in which choosing permutations matters."""

import itertools
import json

import numpy as np
import pytest

from experiments.common.reports.effect import Curves
from experiments.common.reports.statistics import mean_of
from experiments.studies import headroom
from permenv import ConfigurationError, DataError, make_config
from tests.experiments.helpers import small


@pytest.fixture
def options(tmp_path):
    def make(**changes):
        files = {"runs": tmp_path / "runs", "out": tmp_path / "headroom.json"}
        numbers = {"seeds": 2, "tuning_seeds": 1, "processes": 0, "env": small(total_updates=2)}
        return headroom.Config(**{**numbers, **files, **changes})

    return make


@pytest.mark.ci
def test_it_compares_the_best_curriculum_with_tuned_random_permutations(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(headroom, "RATES", (0.5, 1.0))
    monkeypatch.setattr(headroom, "CURRICULA", ((0.1, 0.5), (0.3, 1.0)))
    report = headroom.main(options(only=("nano", "near twins")))
    assert report == json.loads((tmp_path / "headroom.json").read_text())
    for row in report["cells"]:
        tuning = row["tuning"]["rates"]
        assert set(tuning) == {"0.5", "1.0"}
        assert row["learning_rate_multiple"] in (0.5, 1.0)
        assert np.shape(row["errors"]["random"]) == (2, 5)
        assert row["chance"] == 1 / 24
        random, curriculum = (1 - np.array(row["errors"][kind])[:, -1] for kind in ("random", "curriculum"))
        assert row["more_at_end"] == pytest.approx((curriculum - random).mean())
    assert "| permutation set: near twins |" in capsys.readouterr().out
    assert (tmp_path / "headroom.png").is_file()


def test_rates_and_curricula_are_chosen_on_tuning_seeds_alone(options, monkeypatch):
    """On the reported seeds others would be better: rate 2 for random permutations, the second curriculum."""
    tuned = {0.5: 0.2, 1.0: 0.3, 2.0: 0.1}
    curricula = headroom.CURRICULA

    def run(rate, curriculum, before, updates, seed, environment):
        is_tuning = seed < 200
        accuracy = tuned[rate] if is_tuning else rate / 10
        if curriculum is not None:
            accuracy += 0.1 if (curriculum == curricula[2]) == is_tuning else 0.05
        return {"iterations": [0, 5, 10], "errors": [1.0, 1 - accuracy / 2, 1 - accuracy], "diverged": False}

    monkeypatch.setattr(headroom, "_run", run)
    (row,) = headroom.main(options(only=("nano",), runs=None))["cells"]
    assert row["learning_rate_multiple"] == 1.0
    assert tuple(row["curriculum"]) == curricula[2]
    assert (row["random_at_end"], row["curriculum_at_end"]) == pytest.approx((0.1, 0.15))  # of the reported seeds


def curves(*accuracies):
    """Return runs of these accuracies before, at half and at the end."""
    return Curves(np.array([0, 5, 10]), 1 - np.array(accuracies))


def test_a_ratio_to_random_permutations_is_left_out_where_they_are_close_to_chance():
    random = curves([0, 0.002, 0.1], [0, 0.003, 0.2])
    row = headroom.compare(curves([0, 0.04, 0.4], [0, 0.06, 0.2]), random, chance=0.001)
    assert row["at_half"] is None
    assert row["at_end"].value == pytest.approx(2)
    assert (row["random_at_half"], row["curriculum_at_half"]) == pytest.approx((0.0025, 0.05))
    assert row["more_at_half"] == pytest.approx(mean_of([0.038, 0.057]))
    assert headroom.compare(random, random, chance=0.0008)["at_half"].value == pytest.approx(1)


def test_the_picture_shows_differences_of_all_cells_and_says_each_thing_once():
    random, ours = curves([0, 0.002, 0.1], [0, 0.004, 0.2]), curves([0, 0.04, 0.4], [0, 0.06, 0.2])
    row = headroom.compare(ours, random, chance=0.002)
    cells = [{"cell": name, "factor": headroom.CELLS[name].factor, **row} for name in ("100 permutations", "frames")]
    (axis,) = headroom._picture(cells).axes
    assert [text.get_text() for text in axis.get_yticklabels()] == ["100 permutations", "task: frames"]
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([4.7, 15, 4.7, 15])
    assert [text.get_text().strip() for text in axis.texts] == 2 * ["0.3% → 5.0%", "15.0% → 30.0%"]


def test_a_later_phase_is_compared_from_there_on(options, monkeypatch):
    monkeypatch.setattr(headroom, "CELLS", {"late": headroom.Cell("phase", before=1)})
    plan = headroom._Plan("late", options())
    assert plan.environment.env.total_updates == 3
    arguments = {"before": 1, "updates": 2, "seed": 5, "environment": plan.environment}
    random, curriculum = (headroom._run(rate=1.0, curriculum=each, **arguments) for each in (None, (0.1, 0.5)))
    assert random["iterations"] == curriculum["iterations"] == [3, 4, 6, 7, 9]
    assert random["errors"][0] == curriculum["errors"][0]  # the same network


@pytest.mark.parametrize("name", headroom.CELLS)
def test_every_cell_has_a_configuration(options, name):
    assert headroom._Plan(name, headroom.Config()).environment.env.total_updates >= make_config("nano").total_updates


@pytest.mark.parametrize("kind", [headroom._RandomSet, headroom._LargestMean, headroom._Twins])
@pytest.mark.parametrize("count", [20, 21])
def test_permutation_sets_hold_different_permutations(kind, count):
    chosen = kind.choose_permutations(make_config("nano", num_permutations=count))
    assert chosen.shape == (count, 9)
    assert len({tuple(row) for row in chosen.tolist()}) == count
    assert (np.sort(chosen, axis=1) == np.arange(9)).all()
    if kind is headroom._Twins:
        assert ((chosen[0:20:2] != chosen[1:20:2]).sum(axis=1) == 2).all()


def test_missing_data_is_refused_before_anything_is_run(options, tmp_path):
    with pytest.raises(DataError, match="--data-folder"):
        headroom.main(options(only=("nano", "Imagenette"), data_folder=tmp_path))
    assert not (tmp_path / "runs").exists()


def test_a_cell_that_does_not_exist_is_refused(options, tmp_path):
    with pytest.raises(ConfigurationError, match="--only 'nana': choose from nano, "):
        headroom.main(options(only=("nana",)))
    assert not (tmp_path / "runs").exists()


def test_each_permutation_has_the_largest_mean_distance_to_those_before_it():
    chosen = headroom._LargestMean.choose_permutations(make_config("nano", num_permutations=12))
    every = np.array(list(itertools.permutations(range(9))))
    for count in range(1, 12):
        distances = (every[:, None] != chosen[None, :count]).sum(axis=2)
        left = (distances > 0).all(axis=1)
        own = (chosen[count] != chosen[:count]).sum()
        assert own == distances.sum(axis=1)[left].max()
