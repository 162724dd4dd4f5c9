"""The main job's runs of the README."""

import dataclasses
import json
from pathlib import Path

import pytest

from experiments import reinforce
from experiments.common.files import write_json
from experiments.common.training.run_folder import RunFolder, RunFolderError
from experiments.studies import main_runs
from permenv import CheckpointError, ConfigurationError, DataError
from tests.experiments.helpers import arguments


def options(tmp_path, *only, **changes):
    """Return options with folders of the test's."""
    return main_runs.Config(**{"only": only, "runs": tmp_path / "runs", "out": tmp_path / "results", **changes})


def add_arguments(monkeypatch, words):
    """Add arguments to those of every run of the table."""
    longer = {
        name: dataclasses.replace(run, arguments=f"{run.arguments} {words}") for name, run in main_runs.RUNS.items()
    }
    monkeypatch.setattr(main_runs, "RUNS", longer)


@pytest.fixture
def small_runs(monkeypatch):
    """Make the runs of the table so small that each takes a second."""
    add_arguments(monkeypatch, " ".join(["--device cpu", *arguments(total_updates=2)]))


@pytest.fixture
def drawn(monkeypatch):
    """Write empty pictures, which are quick."""
    monkeypatch.setattr(RunFolder, "picture", lambda self, name, _: (self.path / f"{name}.png").touch())


@pytest.mark.ci
def test_it_leaves_summaries_and_pictures_and_trains_nothing_twice(tmp_path, small_runs, drawn):
    config = options(tmp_path, "scenes", "compare-seed0")
    main_runs.main(config)
    found = {path.name for path in (tmp_path / "results").iterdir()}
    assert found == {"scenes.json", "dashboard.png", "shuffles.png", "compare-seed0.json", "error.png", "choices.png"}
    summary = json.loads((tmp_path / "results" / "compare-seed0.json").read_text())
    assert "relative_accuracy" in summary
    assert str(tmp_path) not in json.dumps(summary)
    before = (tmp_path / "runs" / "scenes" / "metrics.csv").read_text()
    main_runs.main(config)
    assert (tmp_path / "runs" / "scenes" / "metrics.csv").read_text() == before  # the seconds too


def stop(*_, **__):
    raise KeyboardInterrupt


def test_a_run_that_was_stopped_while_its_rival_trained_is_compared_before_it_is_published(
    tmp_path, small_runs, drawn, monkeypatch
):
    config, train = options(tmp_path, "compare-seed1"), reinforce.train
    with monkeypatch.context() as patch:
        patch.setattr(reinforce, "train", lambda each, loggers: (stop if each.agent == "random" else train)(each))
        with pytest.raises(KeyboardInterrupt):
            main_runs.main(config)
    assert (tmp_path / "runs" / "compare-seed1" / "summary.json").exists()
    main_runs.main(config)
    assert "relative_accuracy" in json.loads((tmp_path / "results" / "compare-seed1.json").read_text())


def test_a_run_that_was_stopped_before_its_pictures_is_drawn_before_it_is_published(
    tmp_path, small_runs, drawn, monkeypatch
):
    config = options(tmp_path, "scenes")
    with monkeypatch.context() as patch:
        patch.setattr("permenv.render.dashboard", stop)
        with pytest.raises(KeyboardInterrupt):
            main_runs.main(config)
    assert not (tmp_path / "runs" / "scenes" / "summary.json").exists()
    main_runs.main(config)
    assert (tmp_path / "results" / "dashboard.png").exists()


def test_a_run_of_other_options_or_a_longer_one_is_not_published_as_this_one(tmp_path, small_runs, drawn, monkeypatch):
    config = options(tmp_path, "scenes")
    main_runs.main(config)
    published = (tmp_path / "results" / "scenes.json").read_text()
    for words, error in (("--seed 1", CheckpointError), ("--updates 1", RunFolderError)):
        with monkeypatch.context() as patch:
            add_arguments(patch, words)
            with pytest.raises(error, match=r"run in .*scenes (was started with seed=0, not 1|has 2 updates, not 1)"):
                main_runs.main(config)
        assert (tmp_path / "results" / "scenes.json").read_text() == published


def test_paths_of_this_machine_are_left_out(tmp_path):
    run, data = main_runs.RUNS["imagenette"], Path("/somewhere/data")
    summary = {"folder": str(tmp_path), "tasks": {"spatial": {"queries": "/somewhere/data/imagenette/val"}}}
    write_json(tmp_path / "summary.json", summary)
    main_runs.copy(run, tmp_path, options(tmp_path, "imagenette", data_folder=data))
    assert json.loads((tmp_path / "results" / "imagenette.json").read_text()) == {
        "command": "python experiments/reinforce.py --images data/imagenette/train",
        "tasks": {"spatial": {"queries": "imagenette/val"}},
    }


def test_unknown_runs_and_missing_data_are_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ConfigurationError, match="--only 'scene': choose from scenes"):
        main_runs.main(options(tmp_path, "scenes", "scene"))
    with pytest.raises(DataError, match="there is no folder /nowhere"):
        main_runs.main(options(tmp_path, "scenes", "joint", data_folder=Path("/nowhere")))
    assert not (tmp_path / "runs").exists()
