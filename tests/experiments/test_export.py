"""Exporting a run: the files, what the card says of the data, errors in one line."""

import subprocess
import sys

import pytest

from experiments import export, reinforce
from experiments.common.options import parse
from experiments.common.training.run_folder import CHECKPOINT
from permenv import CheckpointError, ConfigurationError, checkpoint
from permenv.transfer.trunks import load_trunk
from tests.experiments.helpers import job
from tests.helpers import ROOT, small_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("private") / "run"
    reinforce.main(job(folder, seed=5, env={"backbone": "two-convolutions", "total_updates": 1}))
    return folder


def test_a_run_folder_or_its_checkpoint_is_exported(folder, tmp_path, capsys):
    weights, card = export.main(parse(export.Config, arguments=[str(folder), "--out", str(tmp_path / "new")]))
    assert weights.name == "two-convolutions-spatial-seed5.safetensors"
    assert card.name == "two-convolutions-spatial-seed5.md"
    assert f"{weights}, and the model card {card}." in capsys.readouterr().out
    text = card.read_text(encoding="utf-8")
    assert "| data | spatial: embedded scenes, seed 0 |" in text
    assert str(folder.parent) not in text
    other, _ = export.main(export.Config(checkpoint=folder / CHECKPOINT, out=tmp_path, name="mine"))
    assert other == tmp_path / "mine.safetensors"
    expected, found = load_trunk(folder / CHECKPOINT), load_trunk(other)
    assert all((value == found.module.state_dict()[name]).all() for name, value in expected.module.state_dict().items())
    with pytest.raises(ConfigurationError, match="exists already"):
        export.main(export.Config(checkpoint=folder, out=tmp_path, name="mine"))


def test_data_are_named_by_an_option_where_the_checkpoint_does_not(tmp_path):
    run = small_run(backbone="two-convolutions")
    run.save(tmp_path / "run")
    _, card = export.main(export.Config(checkpoint=tmp_path / "run", out=tmp_path, name="one"))
    assert "| data | spatial: not stated |" in card.read_text(encoding="utf-8")
    _, card = export.main(
        export.Config(checkpoint=tmp_path / "run", out=tmp_path, name="two", data_name="some pictures")
    )
    assert "| data | spatial: some pictures |" in card.read_text(encoding="utf-8")


def test_of_a_folder_of_images_the_last_two_names_are_kept(folder, tmp_path):
    tree = checkpoint.read(folder / CHECKPOINT)
    tree["job"]["settings"]["images"] = "/home/somebody/photos/train"
    checkpoint.write(tmp_path / "run", tree)
    _, card = export.main(export.Config(checkpoint=tmp_path / "run", out=tmp_path))
    assert "| data | spatial: photos/train |" in card.read_text(encoding="utf-8")
    assert "somebody" not in card.read_text(encoding="utf-8")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        export.main(export.Config(checkpoint=tmp_path / "nowhere"))


@pytest.mark.ci
def test_the_command_shows_errors_in_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "experiments" / "export.py"), "nowhere", "--out", str(tmp_path / "new")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 1
    assert result.stderr.startswith("error: no checkpoint at nowhere")
    assert result.stderr.count("\n") == 1
