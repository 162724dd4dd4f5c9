"""The search for the best curriculum that is fixed in advance."""

import itertools
import json

import numpy as np
import pytest
import scipy.stats

from experiments.studies import curricula
from tests.experiments.helpers import small


def test_it_ranks_the_curricula_by_their_discounted_return(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(curricula, "CURRICULA", ((0.3, 0.5), (0.5, 1.0)))
    files = {"runs": tmp_path / "runs", "out": tmp_path / "curricula.json"}
    report = curricula.main(curricula.Config(seeds=2, processes=0, discount=0.5, env=small(total_updates=3), **files))
    assert report == json.loads((tmp_path / "curricula.json").read_text())
    rows = report["curricula"]
    assert {row["curriculum"] for row in rows} == {"random", "from 0.3 over 0.5", "from 0.5 over 1"}
    assert [row["return"] for row in rows] == sorted((row["return"] for row in rows), reverse=True)
    for row in rows:
        returns = [
            sum(0.5**step * (before - after) for step, (before, after) in enumerate(itertools.pairwise(errors)))
            for errors in row["errors"]
        ]
        assert row["return"] == pytest.approx(sum(returns) / len(returns))
    errors = np.array(next(row for row in rows if row["curriculum"] == "random")["errors"])
    for row in rows:
        if row["curriculum"] != "random":
            ours = np.array(row["errors"])[:, -1]
            assert row["more_at_end"] == pytest.approx((errors[:, -1] - ours).mean())
            interval = scipy.stats.ttest_rel(errors[:, -1], ours).confidence_interval()
            assert (row["more_at_end_low"], row["more_at_end_high"]) == pytest.approx((interval.low, interval.high))
    kept = json.loads(next((tmp_path / "runs").glob("random-seed*.json")).read_text())
    iterations = kept["result"]["iterations"]
    late = 1 - np.interp(0.9 * iterations[-1], iterations, errors.mean(axis=0))
    assert report["random"]["growth"] == pytest.approx((1 - errors[:, -1].mean()) / late - 1)
    printed = capsys.readouterr().out
    assert "| from 0.5 over 1 |" in printed
    assert "over the last tenth it grows by" in printed
