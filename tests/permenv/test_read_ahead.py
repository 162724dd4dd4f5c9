"""Reading ahead changes no draw, no pixel and no step, whatever becomes of the run."""

import numpy as np
import pytest
from PIL import Image

from permenv import Pretraining
from permenv.data import store, stored
from permenv.tasks import SpatialTask
from tests.helpers import assert_same_weights, small_run

ITERATIONS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write photos that take a decoder a moment."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(40):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((64, 56), Image.Resampling.BICUBIC).save(root / f"{number}.png")
    return root


@pytest.fixture
def begin(folder, monkeypatch):
    """Return a function that begins a run on images that are kept as JPEG, at a depth of reading ahead."""
    monkeypatch.setattr(store, "RAW_BYTES", 0)

    def make(depth, seed=0):
        monkeypatch.setattr(stored, "READ_AHEAD", depth)
        return small_run(images=folder, seed=seed)

    return make


def losses_of(run: Pretraining, count: int) -> list[dict[str, float]]:
    return [run.iterate() for _ in range(count)]


@pytest.fixture
def found(monkeypatch):
    """Count, for each batch that is read, whether it had been announced."""
    counts = []
    read = stored.StoredImages.read

    def count(images, numbers, pinned=False):
        with images._lock():
            counts.append((pinned, numbers.tobytes()) in images._ahead)
        return read(images, numbers, pinned)

    monkeypatch.setattr(stored.StoredImages, "read", count)
    return counts


def test_any_depth_gives_the_same_trajectory(begin, found):
    plain = begin(0)
    found.clear()
    expected = losses_of(plain, ITERATIONS)
    assert found == [False] * ITERATIONS

    ahead = begin(4)
    found.clear()
    assert losses_of(ahead, ITERATIONS) == expected
    assert found == [False] + [True] * (ITERATIONS - 1)
    assert_same_weights(ahead, plain)


def test_each_mini_batch_is_announced_once_and_before_it_is_needed(begin, monkeypatch):
    announced, announce = [], SpatialTask.announce

    def record(task, samples):
        announced.append(samples)
        announce(task, samples)

    monkeypatch.setattr(SpatialTask, "announce", record)
    run = begin(3)
    drawn = []
    monkeypatch.setattr(
        run.tasks["spatial"], "shard_of_pieces", _recording(run.tasks["spatial"].shard_of_pieces, drawn)
    )
    for iteration in range(1, 5):
        run.iterate()
        assert len(announced) == iteration + 2
    np.testing.assert_array_equal(announced[:3], drawn[1:4])


def _recording(pieces, drawn):
    def record(rows, samples, *others):
        drawn.append(samples)
        return pieces(rows, samples, *others)

    return record


def test_forks_saved_runs_and_other_seeds_continue_as_without_it(begin, tmp_path):
    plain = begin(0)
    losses_of(plain, 2)
    other = plain.fork()
    other.seed = 5
    expected, differently = losses_of(plain, 4), losses_of(other, 4)

    run = begin(4)
    losses_of(run, 2)
    run.save(tmp_path / "run.safetensors")
    twin, changed = run.fork(), run.fork()
    changed.seed = 5
    in_turn = [(run.iterate(), twin.iterate(), changed.iterate()) for _ in range(4)]
    assert [list(each) for each in zip(*in_turn, strict=True)] == [expected, expected, differently]

    run.load(tmp_path / "run.safetensors")  # back by four iterations
    assert losses_of(run, 4) == expected
    resumed = begin(4, seed=1)
    losses_of(resumed, 1)
    resumed.load(tmp_path / "run.safetensors")
    assert losses_of(resumed, 4) == expected
    assert_same_weights(resumed, plain)
