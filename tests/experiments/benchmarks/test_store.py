"""The benchmark of the store of images."""

import json

import pytest

from experiments.benchmarks import store
from permenv.data.store import RAW_BYTES


@pytest.fixture
def options(tmp_path, monkeypatch):
    """Return options of a benchmark of a few files."""
    monkeypatch.setenv("PERMENV_CACHE", "set by the benchmark")
    folder = tmp_path / "disk"
    numbers = {"files": 70, "num_images": 3, "starts": 1, "batches": 2}
    return store.Config(folder=folder, out=tmp_path / "figures.json", **numbers)


@pytest.mark.ci
def test_a_benchmark_of_a_few_files(options):
    """The nano preset holds out some of them, so fewer would not do."""
    report = store.main(options)
    assert json.loads(options.out.read_text()) == report
    assert report["files"] == 70
    assert all(value > 0 for part in ("build", "start", "read") for value in report[part].values())
    assert store.store.RAW_BYTES == RAW_BYTES
    again = sorted(path.stat().st_mtime_ns for path in (options.folder / "files").rglob("*.jpg"))
    assert store._make_files(options) == len(again) == 70
    assert again == sorted(path.stat().st_mtime_ns for path in (options.folder / "files").rglob("*.jpg"))
    contents = {path.read_bytes() for path in (options.folder / "files").rglob("*.jpg")}
    assert len(contents) == 70


def test_no_more_files_are_made_than_fit(options, monkeypatch, capsys):
    room = store.os.statvfs
    monkeypatch.setattr(store.os, "statvfs", lambda path: _Room(room(path)))
    assert store._make_files(options) == 5
    assert "only 5 files fit on the disk" in capsys.readouterr().out


class _Room:
    """A disk with little room."""

    def __init__(self, true):
        self.f_frsize, self.f_favail, self.f_bavail = true.f_frsize, 10**6, 10 * 8192 // true.f_frsize
