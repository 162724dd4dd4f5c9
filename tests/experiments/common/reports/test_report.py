"""What identifies the run that a report is of."""

import subprocess
import sys

import pytest

from experiments.common.machine import ROOT, checkout, note_machine
from experiments.common.options import SweepOptions
from experiments.common.reports.report import command_line, origin
from tests.experiments.helpers import small


@pytest.fixture
def repository(tmp_path):
    """Return a checkout with a tracked file, and a function that calls git there."""
    folder = tmp_path / "checkout"
    folder.mkdir()

    def git(*words):
        identity = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
        return subprocess.run(
            ["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init")
    (folder / "file").write_text("one")
    git("add", "file")
    git("commit", "--message", "first")
    git("tag", "a-tag")
    return folder, git


def test_a_checkout_is_its_commit_and_whether_tracked_files_have_changed(repository):
    folder, git = repository
    (folder / "untracked").touch()
    commit = git("rev-parse", "HEAD")
    assert checkout(folder) == {"commit": commit, "changed": False}
    (folder / "file").write_text("two")
    assert checkout(folder) == {"commit": commit, "changed": False}, "it is that of the first time"
    checkout.cache_clear()
    assert checkout(folder) == {"commit": commit, "changed": True}


def test_what_is_no_checkout_has_none(repository, tmp_path, monkeypatch):
    folder, _ = repository
    within = folder / "packages"
    within.mkdir()
    assert checkout(within) is None, "it is a checkout of something else"
    assert checkout(tmp_path / "nowhere") is None
    monkeypatch.setenv("PATH", "")
    assert checkout(folder) is None, "there is no git"


def test_a_report_says_what_its_script_was_given(monkeypatch):
    words = [str(ROOT / "experiments" / "search.py"), "--vary", "env.ema-decay", "0", "--images", "/somebody/set/train"]
    monkeypatch.setattr(sys, "argv", words)
    found = origin(SweepOptions(preset="tiny", env=small(total_updates=7)))
    assert found["command"] == "python experiments/search.py --vary env.ema-decay 0 --images .../set/train"
    assert found["overrides"]["total_updates"] == 7
    assert "ema_decay" not in found["overrides"]
    assert set(origin()) == {"command", "checkout"}


def test_a_command_line_names_no_place_of_this_machine():
    words = ["/elsewhere/my script.py", "--out=/runs", "data/photos", "a b", "timm/resnet18"]
    assert command_line(words) == "python 'my script.py' --out=.../runs data/photos 'a b' timm/resnet18"


def test_a_job_that_goes_on_at_another_commit_notes_it_without_a_warning(monkeypatch, tmp_path, caplog):
    machines = []
    for update, commit in ((0, "a"), (2, "a"), (4, "b")):
        monkeypatch.setattr("experiments.common.machine.checkout", lambda commit=commit: {"commit": commit})
        note_machine(machines, {"device": "cpu"}, update, tmp_path)
    assert [(each["update"], each["checkout"]) for each in machines] == [(0, {"commit": "a"}), (4, {"commit": "b"})]
    assert not caplog.records
