"""The study of clips that are played backwards."""

import json

import numpy as np
import pytest

from experiments.studies import direction
from permenv import make_config
from permenv.permutations import reverse_of
from tests.experiments.studies.helpers import options


def test_it_compares_three_sets_of_permutations(tmp_path, capsys):
    config = options(direction.Config, tmp_path)
    report = direction.main(config)
    assert json.loads(config.out.read_text()) == report
    for variant, count, reverses in (("default", 24, None), ("pairs", 24, 1), ("merged", 12, 0)):
        figures = {name: figure["mean"] for name, figure in report[variant].items()}
        assert figures["permutations"] == count
        assert reverses in (None, figures["permutations whose reverse is in Ψ"])
        assert figures["E where the reverse counts as right"] <= figures["E"]
    assert "merged:" in capsys.readouterr().out


def test_a_network_that_diverges_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="seed 0 diverged: lower the learning rate"):
        direction.main(options(direction.Config, tmp_path, env={"learning_rate": 1e12}))


def test_pairs_are_a_permutation_and_its_reverse():
    _, permutations = direction.choose_permutations("pairs", make_config("tiny", "temporal"))
    places = direction.places_of(reverse_of(permutations), permutations)
    np.testing.assert_array_equal(permutations[places], permutations.max() - permutations)
    assert len(np.unique(permutations, axis=0)) == len(permutations) == 100


def test_a_permutation_that_is_not_there_has_no_place():
    permutations = np.array([[0, 1, 2], [2, 1, 0]])
    assert direction.places_of(np.array([[2, 1, 0], [1, 0, 2]]), permutations).tolist() == [1, -1]
