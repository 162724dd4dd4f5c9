"""Files of a run are whole or absent, and read back as they were written."""

import pytest

from experiments.common.files import as_json, write_json
from experiments.common.run_folder import RunFolder, RunFolderError, as_csv, read_rows
from tests.experiments.helpers import small

ROWS = [{"update": 1.0, "error": 0.1 + 0.2}, {"update": 2.0, "error": 1e-17}]


def test_rows_are_read_back_exactly(tmp_path):
    (tmp_path / "metrics.csv").write_text(as_csv(ROWS))
    assert read_rows(tmp_path) == ROWS


def test_a_resumed_folder_goes_back_to_the_rows_of_the_checkpoint(tmp_path):
    folder = RunFolder(tmp_path / "run", resume=False)
    folder.start([])
    folder.save({}, {}, {})
    for row in ROWS:
        folder.append(dict(row))
    folder.close()
    folder = RunFolder(tmp_path / "run", resume=True)
    folder.start(ROWS[:1])
    assert read_rows(folder.path) == ROWS[:1]
    folder.append({"update": 2.0, "error": 0.5})
    folder.close()
    assert read_rows(folder.path) == [ROWS[0], {"update": 2.0, "error": 0.5}]


def test_an_unfinished_file_leaves_the_old_one(tmp_path):
    write_json(tmp_path / "a.json", {"number": 1})

    class Broken:
        def __str__(self):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_json(tmp_path / "a.json", {"number": Broken()})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == '{\n  "number": 1\n}\n'


def test_dataclasses_and_paths_become_json(tmp_path):
    assert as_json({"env": small(), "path": tmp_path})["env"]["num_permutations"] == 24
    assert as_json({"path": tmp_path}) == {"path": str(tmp_path)}


def test_a_run_is_neither_overwritten_nor_invented(tmp_path):
    with pytest.raises(RunFolderError, match=r"there is no checkpoint\.safetensors"):
        RunFolder(tmp_path / "run", resume=True)
    (tmp_path / "note.txt").touch()
    with pytest.raises(RunFolderError, match="is not empty and holds no run"):
        RunFolder(tmp_path, resume=False)
