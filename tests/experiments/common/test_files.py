"""Files that a script writes together, and how they are named; what JSON has no word for."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from experiments.common.files import as_json, flat, with_ending, write_json


@pytest.mark.parametrize(
    ("out", "expected"),
    [("table", "table.csv"), ("table.json", "table.csv"), ("table.csv", "table.csv"), ("rate-0.1", "rate-0.1.csv")],
)
def test_an_ending_replaces_another_one_and_nothing_else(out, expected):
    assert with_ending(Path("results") / out, ".csv") == Path("results") / expected


@dataclass
class Figures:
    """Nested in what is written."""

    mean: float
    place: Path


def test_numbers_that_are_not_finite_are_null(tmp_path):
    content = {
        "figures": Figures(float("nan"), Path("here")),
        "ends": (-float("inf"), 0.5, np.float64("inf")),
        "seeds": [{"mean": float("nan")}],
    }
    write_json(tmp_path / "file.json", content)

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    found = json.loads((tmp_path / "file.json").read_text(), parse_constant=refuse)
    assert found == {
        "figures": {"mean": None, "place": "here"},
        "ends": [None, 0.5, None],
        "seeds": [{"mean": None}],
    }
    assert found == as_json(content)


def test_nested_settings_become_flat():
    assert flat({"seed": 0, "env": {"a": 1, "b": {"c": [2]}}}) == {"seed": 0, "env.a": 1, "env.b.c": [2]}
