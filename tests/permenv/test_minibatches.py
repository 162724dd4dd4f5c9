"""Mini-batches: what a rank makes of one, and which samples are announced."""

import numpy as np
import pytest
import torch

from permenv.distributed import ALONE, Ranks
from permenv.minibatches import MiniBatches
from permenv.streams import Purpose, stream
from permenv.tasks import SpatialTask
from tests.helpers import PARTS, small_run

SIZE = 8
LABELS = np.arange(SIZE) % 5


@pytest.fixture(scope="module")
def run():
    return small_run("spatiotemporal")


def minibatches_of(run, part, ranks=ALONE):
    return MiniBatches(run.tasks[part], PARTS["spatiotemporal"].index(part), run.held_out[part], ranks)


@pytest.mark.parametrize("part", PARTS["spatiotemporal"])
def test_one_rank_makes_the_whole_mini_batch_from_streams_of_its_own(run, part):
    task, number = run.tasks[part], PARTS["spatiotemporal"].index(part)
    samples = task.draw(task.trainable(run.held_out[part]), SIZE, stream(3, Purpose.SAMPLES, 7, number))
    expected = task.pieces(samples, task.permutations[LABELS], stream(3, Purpose.AUGMENTATION, 7, number))
    batch = minibatches_of(run, part).make(3, 7, LABELS)
    assert torch.equal(batch.pieces, expected)
    np.testing.assert_array_equal(batch.labels, LABELS)


@pytest.mark.parametrize("part", PARTS["spatiotemporal"])
def test_the_ranks_make_the_mini_batch_together(run, part):
    whole = minibatches_of(run, part).make(0, 0, LABELS)
    shards = [minibatches_of(run, part, Ranks(rank, 2)).make(0, 0, LABELS) for rank in range(2)]
    torch.testing.assert_close(torch.cat([each.pieces for each in shards]), whole.pieces, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(np.concatenate([each.labels for each in shards]), LABELS)


class Patient(SpatialTask):
    """Remembers what was announced, two mini-batches ahead."""

    read_ahead = 2

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.announced = []

    def announce(self, samples):
        self.announced.append(samples.tolist())


@pytest.mark.parametrize("ranks", [ALONE, Ranks(1, 2)])
def test_samples_are_announced_once_and_by_a_fork_anew(run, ranks):
    task = Patient(run.config, run.permutations["spatial"], run.tasks["spatial"].data, run.device)
    minibatches = MiniBatches(task, 0, run.held_out["spatial"], ranks)

    def samples_of(seed, *iterations):
        draws = [stream(seed, Purpose.SAMPLES, iteration) for iteration in iterations]
        drawn = [task.draw(task.trainable(run.held_out["spatial"]), SIZE, draw) for draw in draws]
        return [each[ranks.shard(SIZE)].tolist() for each in drawn]

    for iteration in (0, 1, 2):
        minibatches.announce(3, iteration, SIZE)
    assert task.announced == samples_of(3, 1, 2, 3, 4)
    task.announced.clear()
    minibatches.fork().announce(5, 2, SIZE)
    assert task.announced == samples_of(5, 3, 4)
    task.announced.clear()
    minibatches.announce(3, 3, SIZE)
    assert task.announced == samples_of(3, 5)
