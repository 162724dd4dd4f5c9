"""The history of the benchmark."""

import csv
import datetime
import json

import pytest
from PIL import Image

from experiments.benchmarks import history
from permenv import ConfigurationError
from tests.helpers import ROOT


def report(path, version="0.2.0", ratio=2.0, **parts):
    """Write a report as `speed.py` does."""
    machine = {"versions": {"permenv": version}, "device": "cpu", "processor": "AMD EPYC avx2 avx512f", "threads": 2}
    step = {"auto": "bf16", "images_per_second": {"folded bf16": 751.97059}, "ratio_auto_to_loop": ratio}
    path.write_text(json.dumps({"machine": machine, "preset": "tiny", "step": step, **parts}))
    return path


def run(tmp_path, *reports):
    history.main(history.Config(reports=reports, out=tmp_path / "history"))
    with (tmp_path / "history.csv").open() as file:
        return list(csv.DictReader(file))


def test_each_report_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(history, "_commit", lambda: "abc1234")
    env = {"default_samples_per_action": 1, "samples_per_action=1": {"overhead": 0.0272}}
    (row,) = run(tmp_path, report(tmp_path / "one.json", env=env))
    assert row == {
        "date": datetime.date.today().isoformat(),
        "commit": "abc1234",
        "version": "0.2.0",
        "device": "cpu",
        "processor": "AMD EPYC avx2 avx512f",
        "threads": "2",
        "preset": "tiny",
        "spatial_validation_ratio": "",
        "temporal_validation_ratio": "",
        "spatial_validation_seconds": "",
        "step_ratio": "2.0",
        "images_per_second": "752.0",
        "joint_ratio": "",
        "env_overhead": "0.0272",
    }
    with Image.open(tmp_path / "history.png") as picture:
        assert picture.size[0] == 1320
    assert "1 lines in" in capsys.readouterr().out


def test_the_same_figures_are_not_added_twice(tmp_path, monkeypatch):
    one, two = report(tmp_path / "one.json"), report(tmp_path / "two.json", ratio=3.0)
    before = run(tmp_path, one)
    monkeypatch.setattr(history, "_commit", lambda: "another")
    assert run(tmp_path, one) == before
    after = run(tmp_path, one, two)
    assert [row["step_ratio"] for row in after] == ["2.0", "3.0"]
    assert after[0] == before[0]
    assert run(tmp_path) == after


def test_a_line_is_interrupted_where_the_machine_changes(tmp_path):
    rows = run(tmp_path, report(tmp_path / "one.json"), report(tmp_path / "two.json", version="0.3.0", ratio=3.0))
    rows.append({**rows[-1], "version": "0.4.0", "processor": "Intel(R) Xeon(R) Processor avx2", "step_ratio": "4.0"})
    step = history._picture(rows).axes[0]
    assert [line.get_ydata().tolist() for line in step.lines] == [[2, 3], [4]]
    assert [text.get_text() for text in step.texts] == ["tiny preset"]
    assert step.get_xticklabels()[2].get_text().splitlines()[2] == "Intel Xeon, 2 threads"


@pytest.mark.parametrize("content", ["{}", "[]", "no JSON", None])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"other.json is no report of experiments/benchmarks/speed\.py"):
        run(tmp_path, path)
    with pytest.raises(ConfigurationError, match="has no lines: name a report"):
        history.main(history.Config(out=tmp_path / "history"))
    assert not (tmp_path / "history.csv").exists()


@pytest.mark.parametrize("preset", ["tiny", "paper"])
def test_the_committed_reports_are_in_the_committed_table(preset):
    results = ROOT / "experiments" / "results"
    row = history.row_of(results / f"benchmark-{preset}-cpu.json")
    assert row in [history._what(each) for each in history.read(results / "benchmark-history.csv")]
