"""All tables and figures in one command."""

import json

import pytest

from experiments.paper import all as everything
from permenv import ConfigurationError


@pytest.fixture
def commands(monkeypatch):
    """Commands that take a moment."""
    found = {"first": "-c 'print(1)'", "wrong": "-c 'raise SystemExit(2)'", "last": "-c 'print(3)'"}
    monkeypatch.setattr(everything, "COMMANDS", found)
    return found


def test_they_run_in_order_whichever_are_asked_for(commands, tmp_path):
    done = everything.main(everything.Config(only=("last", "first"), out=tmp_path))
    assert list(done) == ["first", "last"]
    assert json.loads((tmp_path / "summary.json").read_text()) == done
    assert (tmp_path / "last.log").read_text() == "3\n"


def test_one_that_fails_does_not_keep_the_others_from_running(commands, tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        everything.main(everything.Config(only=tuple(commands), out=tmp_path))
    ended = {name: command["ended"] for name, command in json.loads((tmp_path / "summary.json").read_text()).items()}
    assert ended == {"first": "well", "wrong": "with code 2", "last": "well"}
    assert str(tmp_path / "wrong.log") in capsys.readouterr().err


def test_an_unknown_command_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"--only 'figure_7': choose from features, table_5_figure_5"):
        everything.main(everything.Config(only=("figure_7",), out=tmp_path))
