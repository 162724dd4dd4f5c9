"""Checkpoints: trees are read as they were written, damaged files raise an error, and an old file survives."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from permenv import CheckpointError, checkpoint
from tests.forging import write_body

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**200), 2**200),  # a generator's state is a number of 128 bits
    st.floats(allow_nan=False),
    st.text(),
    npst.arrays(st.sampled_from([np.float32, np.int64, bool, np.uint8]), npst.array_shapes(min_side=0)),
    npst.arrays(np.float32, npst.array_shapes(min_side=0)).map(torch.from_numpy),
)
trees = st.dictionaries(
    st.text(st.characters(exclude_characters="$/"), min_size=1),
    st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3)
    ),
    max_size=4,
)


def assert_equal(first, second):
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_equal(first[key], second[key])
    elif isinstance(first, list):
        for a, b in zip(first, second, strict=True):
            assert_equal(a, b)
    elif isinstance(first, np.ndarray | torch.Tensor):
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(first, second)
    else:
        assert first == second


@given(tree=trees)
@settings(deadline=None, max_examples=50)
def test_a_tree_is_read_as_it_was_written(tree, tmp_path_factory):
    path = tmp_path_factory.mktemp("tree") / "deep" / "file"
    checkpoint.write(path, tree)
    assert_equal(checkpoint.read(path), tree)


def example():
    return {"weights": torch.arange(1000.0), "state": {"counts": np.arange(5), "name": "x"}}


@pytest.mark.parametrize("where", [0, 3, 8, 60, 700, 2000, -1])
def test_one_flipped_byte_is_detected(where, tmp_path):
    checkpoint.write(tmp_path / "file", example())
    content = bytearray((tmp_path / "file").read_bytes())
    content[where] ^= 1
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match="file"):
        checkpoint.read(tmp_path / "file")


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(share, tmp_path):
    checkpoint.write(tmp_path / "file", example())
    content = (tmp_path / "file").read_bytes()
    (tmp_path / "file").write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="truncated or not a checkpoint"):
        checkpoint.read(tmp_path / "file")


def test_other_files_are_refused_and_no_pickle_is_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    (tmp_path / "pickle").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.read(tmp_path / "pickle")
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        checkpoint.read(tmp_path / "nowhere")
    import safetensors.torch

    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="format None"):
        checkpoint.read(tmp_path / "foreign")


def test_a_tree_that_was_read_does_not_keep_its_file_in_use(tmp_path):
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not list what is mapped")
    checkpoint.write(tmp_path / "file", example())
    tree = checkpoint.read(tmp_path / "file")
    assert str(tmp_path) not in maps.read_text()
    assert tree["weights"].sum() == 499_500


# Whole files of other content

DEEP = '{"run": ' + "[" * 100_000 + "]" * 100_000 + "}"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", r"no tree that this version can read \(JSONDecodeError\)"),
        (DEEP, r"no tree that this version can read \(RecursionError\)"),
        ('{"run": ' + "9" * 5000 + "}", r"no tree that this version can read \(ValueError\)"),
        ('{"run": {"$tensor": "nowhere"}, "x": {"$tensor": "entry"}}', r"can read \(KeyError\)"),
        ('{"run": {"$tensor": ["entry"]}}', r"can read \(TypeError\)"),
        ('{"run": {"$array": "half"}, "x": {"$tensor": "entry"}}', r"can read \(TypeError\)"),
        ('{"run": {"$tensor": "entry"}, "x": {"$tensor": "entry"}}', r"can read \(KeyError\)"),
        ('{"run": 1}', "more or other things than one tree"),
        ('[{"$tensor": "entry"}, {"$tensor": "half"}]', "more or other things than one tree"),
    ],
    ids=["empty", "deep", "long number", "no entry", "no name", "no numpy", "twice", "surplus entry", "list"],
)
def test_a_whole_file_of_other_content_is_refused_by_name(body, message, tmp_path):
    write_body(tmp_path / "file", body, {"entry": torch.zeros(2), "half": torch.zeros(2, dtype=torch.bfloat16)})
    with pytest.raises(CheckpointError, match=f"file holds .*{message}"):
        checkpoint.read(tmp_path / "file")


def test_two_entries_of_one_name_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="leave '/' out of its keys"):
        checkpoint.write(tmp_path / "file", {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}})
    assert not list(tmp_path.iterdir())


RUN = {"run": {}, "episode": {}, "random": {}}


@pytest.mark.parametrize(
    ("tree", "parts", "message"),
    [
        (
            RUN,
            ("run", "episode", "random", "agent", "job"),
            r"holds no agent: .* agent, job; this is what env.save wrote",
        ),
        ({"run": {}}, ("run", "episode"), "holds no episode: .*; this is what Pretraining.save wrote"),
        ({**RUN, "agent": {}, "job": {}}, ("x",), "holds no x: .*; this is the checkpoint of a training job"),
        ({"agent": {}}, ("run",), "holds no run: .* holds run; this is what an agent's save wrote"),
        ({"agent": {}, "job": {}}, ("run",), "this is the checkpoint of a job that trains a policy across runs"),
        (
            {**RUN, "agent": {}},
            ("run",),
            "is of no known kind: .*; this is a file that holds 'agent', 'episode', 'random",
        ),
        ({}, ("run",), "holds no run: .*; this is a file that holds nothing"),
    ],
)
def test_a_file_of_another_kind_is_named(tree, parts, message, tmp_path):
    checkpoint.write(tmp_path / "file", tree)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read(tmp_path / "file", *parts)
    assert checkpoint.read(tmp_path / "file") == tree


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    checkpoint.write(tmp_path / "file", example())

    def fail(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("safetensors.safe_open", fail)
    with pytest.raises(CheckpointError, match=r"file cannot be read \(Permission denied\)"):
        checkpoint.read(tmp_path / "file")


KILL_WRITERS = """
import os, random, signal, sys, time, torch
from pathlib import Path
from permenv import checkpoint

torch.set_num_threads(1)
path, trials, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(0)

def write(number):
    checkpoint.write(path, {"number": number, "weights": torch.full((300_000,), float(number))})

started = time.perf_counter()
write(0)
duration = time.perf_counter() - started  # of a save, on this machine now
last = in_a_save = 0
for trial in range(trials):
    ready, begin = os.pipe()
    writer = os.fork()
    if not writer:
        number = last
        os.write(begin, b"!")
        while True:
            number += 1
            write(number)
    os.read(ready, 1)
    time.sleep(rng.uniform(0, 3 * duration))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    tree = checkpoint.read(path)  # raises if it is not whole
    assert torch.equal(tree["weights"], torch.full((300_000,), float(tree["number"])))
    assert tree["number"] >= last
    last = tree["number"]
    begun = list(path.parent.glob(f".{path.name}.*.tmp"))
    in_a_save += len(begun)
    for file in begun:
        file.unlink()
    os.close(ready)
    os.close(begin)
print(last, in_a_save)
"""


@pytest.mark.ci
def test_a_kill_while_saving_leaves_a_whole_checkpoint(tmp_path):
    """Kill -9 at random moments, many of them within a save; the previous or the new checkpoint is whole."""
    command = [sys.executable, "-W", "ignore", "-c", KILL_WRITERS, str(tmp_path / "file"), "100"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    written, in_a_save = map(int, result.stdout.split())
    assert written > 10
    assert in_a_save > 5
