"""Figure H.1."""

import json

import pytest

from experiments.paper import figure_h1
from permenv import Config as Numbers
from permenv import ConfigurationError
from tests.experiments.helpers import small

CURVES = {
    "numbers": {"num_permutations": 100, "num_validation": 50, "batch_size": 20},
    "curves": {
        "S": {"iterations": [10, 20], "batches": [10, 20], "validations": [0, 0], "top1": [[0.2, 0.3], [0.3, 0.4]]},
        "S+T+P": {"iterations": [10, 20], "batches": [20, 40], "validations": [4, 6], "top1": [[0.3, 0.5], [0.3, 0.4]]},
    },
}


@pytest.fixture
def options(tmp_path):
    def make(curves=CURVES, **changes):
        path = tmp_path / "curves.json"
        if curves is not None:
            path.write_text(json.dumps(curves))
        env = small(num_scenes=40)
        return figure_h1.Config(
            **{"env": env, "measured_iterations": 2, "curves": path, "out": tmp_path / "figure.json", **changes}
        )

    return make


def test_the_paper_counts_40_percent():
    """Appendix H: 90 · 2 · 780 / 350000 ≈ 40%; a validation that is exact costs less than a pass."""
    assert figure_h1.passes_of_validation(Numbers().as_dict(), "naive") == pytest.approx(780, abs=2)
    assert figure_h1.counted_cost(Numbers(), "naive") == pytest.approx(90 * 2 * 780 / 350_000, abs=0.002)
    assert figure_h1.passes_of_validation(Numbers().as_dict(), "exact") < 1


def test_passes_of_validations_are_added(options, saved_figure, capsys):
    config = options()
    report = figure_h1.main(config)
    assert json.loads(config.out.read_text())["curves"] == report["curves"]
    curve = report["curves"]["S+T+P"]
    assert curve["naive"] == [20 + 4 * 250, 40 + 6 * 250]
    assert curve["exact"] == [20 + 4 * 2.5, 40 + 6 * 2.5]
    assert report["curves"]["S"]["naive"] == report["curves"]["S"]["exact"] == [10, 20]
    left, right = saved_figure(config.out.with_suffix(".png")).axes
    drawn = {tuple(line.get_xdata()): line.get_ydata().tolist() for line in left.lines}
    for curve, top1 in zip(report["curves"].values(), ([25, 35], [30, 45]), strict=True):
        assert drawn[tuple(curve["naive"])] == drawn[tuple(curve["exact"])] == pytest.approx(top1)
    seconds = [report["seconds"][str(each)][part] for part in figure_h1.PARTS for each in figure_h1.UPDATES]
    assert [bar.get_height() for bar in right.patches] == pytest.approx(seconds)
    assert "| S+T+P | 45.0 [-18.5, 108.5] | 1540 | 55 |" in capsys.readouterr().out


def test_times_are_measured_and_added_up(options):
    report = figure_h1.main(options(curves=None))
    times = report["seconds_each"]
    assert all(seconds > 0 for seconds in times.values())
    assert report["curves"] is None
    assert report["seconds"]["90"]["state"] == pytest.approx(91 * times["state"])
    assert report["seconds"]["90"]["training"] == report["seconds"]["10"]["training"]
    fast = {"training": 2.0, "choices": 0.5, "state": 3.0, "learning": 0.1, "forward": 1.0}
    expected = {"training": 200.0, "state": 33.0, "policy": 51.0}
    assert figure_h1.seconds_of_run(fast, 100, 10) == pytest.approx(expected)


@pytest.mark.parametrize(
    "content",
    [{}, {"curves": {}, "numbers": None}, {**CURVES, "curves": {"S": {**CURVES["curves"]["S"], "top1": [[1]]}}}],
)
def test_other_files_are_refused(options, content):
    with pytest.raises(ConfigurationError, match=r"--curves .*table_5_figure_5\.py"):
        figure_h1.main(options(curves=content))
