"""Fixtures that the tests of the scripts share."""

import json

import pytest

from experiments.common import files
from experiments.common.training.run_folder import RunFolder


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    """Leave out what takes most of the time of a run this small; fixtures of a wider scope still draw."""
    monkeypatch.setattr(RunFolder, "picture", lambda *_: None)


@pytest.fixture(autouse=True)
def reports_say_what_made_them(monkeypatch):
    """Require of every report that a script writes what identifies the run; files of a run folder list "machines"."""
    write_text = files.write_text

    def write_report(path, text):
        content = json.loads(text)
        if "machine" in content and "machines" not in content:
            missing = {"command", "checkout", *(("overrides",) if "preset" in content else ())} - set(content)
            assert not missing, f"{path} lacks {missing}"
        write_text(path, text)

    monkeypatch.setattr(files, "write_text", write_report)  # which `write_json` calls
