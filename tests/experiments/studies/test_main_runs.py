"""The main job's runs of the README."""

import json
from pathlib import Path

import pytest

from experiments.common.files import write_json
from experiments.studies import main_runs
from permenv import ConfigurationError, DataError
from tests.experiments.helpers import arguments


def options(tmp_path, *runs, **changes):
    """Return small options."""
    words = " ".join(["--device cpu", *arguments(total_updates=2)])
    return main_runs.Config(
        **{"runs": runs, "arguments": words, "folder": tmp_path / "runs", "out": tmp_path / "results", **changes}
    )


@pytest.fixture
def drawn(monkeypatch):
    """Write empty pictures, which are quick."""
    monkeypatch.setattr(
        "experiments.common.run_folder.RunFolder.picture", lambda self, name, _: (self.path / f"{name}.png").touch()
    )


@pytest.mark.ci
def test_it_leaves_summaries_and_pictures_and_trains_nothing_twice(tmp_path, drawn):
    config = options(tmp_path, "scenes", "compare-seed0")
    main_runs.main(config)
    found = {path.name for path in (tmp_path / "results").iterdir()}
    assert found == {"scenes.json", "dashboard.png", "shuffles.png", "compare-seed0.json", "error.png", "choices.png"}
    summary = json.loads((tmp_path / "results" / "compare-seed0.json").read_text())
    assert "relative_accuracy" in summary
    assert str(tmp_path) not in json.dumps(summary)
    checkpoint = tmp_path / "runs" / "scenes" / "checkpoint.safetensors"
    before = checkpoint.stat().st_mtime_ns
    main_runs.main(config)
    assert checkpoint.stat().st_mtime_ns == before


def test_paths_of_this_machine_are_left_out(tmp_path):
    run, data = main_runs.RUNS["imagenette"], Path("/somewhere/data")
    summary = {"folder": str(tmp_path), "tasks": {"spatial": {"queries": "/somewhere/data/imagenette/val"}}}
    write_json(tmp_path / "summary.json", summary)
    (tmp_path / "out").mkdir()
    main_runs.copy(run, tmp_path, tmp_path / "out", data)
    assert json.loads((tmp_path / "out" / "imagenette.json").read_text()) == {
        "tasks": {"spatial": {"queries": "imagenette/val"}}
    }


def test_unknown_runs_and_missing_data_are_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ConfigurationError, match="unknown run 'scene': choose from scenes"):
        main_runs.main(options(tmp_path, "scenes", "scene"))
    with pytest.raises(DataError, match="there is no folder /nowhere"):
        main_runs.main(options(tmp_path, "scenes", "joint", data=Path("/nowhere")))
    assert not (tmp_path / "runs").exists()
