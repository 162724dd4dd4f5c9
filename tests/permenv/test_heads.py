"""Ordering heads: each against its plain definition, and all permutations at once against one after another."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from permenv import heads
from permenv.heads import OrderingHead, PairwiseHead, SpatialHead, TemporalHead, _prefixes
from permenv.permutations import maximally_different

FEATURES = 12  # of a piece


class OwnHead(OrderingHead):
    """A user's head: no more than `forward` and the last layer."""

    def __init__(self, features: int, num_pieces: int, num_permutations: int):
        super().__init__()
        self.classifier = nn.Linear(features * num_pieces, num_permutations)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        assert features.ndim == 3
        return self.classifier(features.flatten(1).tanh())


MAKERS = {
    "spatial": lambda num_pieces, count: SpatialHead(FEATURES, num_pieces, count, fc6=10, fc7=14),
    "temporal": lambda num_pieces, count: TemporalHead(FEATURES, count, fc6=10, lstm=14),
    "relative": lambda num_pieces, count: TemporalHead(FEATURES, count, fc6=10, lstm=14, relative=True),
    "pairwise": lambda num_pieces, count: PairwiseHead(FEATURES, num_pieces, count, fc6=10, fc7=14),
    "relative pairs": lambda num_pieces, count: PairwiseHead(
        FEATURES, num_pieces, count, fc6=10, fc7=14, relative=True
    ),
    "own": lambda num_pieces, count: OwnHead(FEATURES, num_pieces, count),
}

LEAST = {"pairwise": 2, "relative pairs": 2}  # pieces

SETS = {
    "far apart": maximally_different(9, 40),
    "all of three pieces": np.array(list(itertools.permutations(range(3)))),
    "all of four pieces": np.array(list(itertools.permutations(range(4)))),
    "a shared beginning": np.array([[5, 2, 0, 6, *rest] for rest in itertools.permutations([1, 3, 4])]),
    "no shared beginning": (np.arange(8)[:, None] + np.arange(8)) % 8,
    "a shared beginning in the middle of Ψ": np.array([[3, 0, 1, 2], [0, 1, 2, 3], [3, 0, 2, 1], [0, 2, 1, 3]]),
    "a single one": np.array([[2, 0, 3, 1]]),
    "a single piece": np.array([[0]]),
}


def make(kind: str, num_pieces: int, count: int, seed: int = 0) -> OrderingHead:
    """A head whose predictions are far from uniform."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        head = MAKERS[kind](num_pieces, count)
        head.classifier.weight.mul_(20)
    return head


def features_of(samples: int, num_pieces: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, num_pieces, FEATURES, generator=torch.Generator().manual_seed(seed))


def naive(head: OrderingHead, features: torch.Tensor, permutations: np.ndarray) -> torch.Tensor:
    """Logits [V, |Ψ|, |Ψ|]: permute the features and apply the head, for every permutation of every sample."""
    return torch.stack(
        [
            torch.stack([head(sample[permutation.tolist()][None])[0] for permutation in permutations])
            for sample in features
        ]
    )


@torch.no_grad()
def check(head: OrderingHead, features: torch.Tensor, permutations: np.ndarray) -> list[int]:
    """Compare, and return the lengths of the chunks."""
    expected = naive(head, features, permutations).flatten(0, 1)
    chunks = list(head.all_permutation_logits(features, permutations))
    found = torch.cat(chunks)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.softmax(1), expected.softmax(1), rtol=0, atol=1e-5)
    return [len(chunk) for chunk in chunks]


# What a head is


def test_the_spatial_head_stacks_its_tiles_in_order():
    head, features = make("spatial", 4, 6), features_of(3, 4)
    fc6, _ = head.fc6
    for sample, logits in zip(features, head(features), strict=True):
        stacked = torch.cat([(fc6.weight @ tile + fc6.bias).clamp(min=0) for tile in sample])
        hidden = (head.fc7.weight @ stacked + head.fc7.bias).clamp(min=0)
        torch.testing.assert_close(logits, head.classifier.weight @ hidden + head.classifier.bias)


def test_the_temporal_head_classifies_the_output_of_its_lstm_after_the_last_frame():
    head, features = make("temporal", 5, 6), features_of(3, 5)
    assert isinstance(head.lstm, nn.LSTM)
    assert (head.lstm.num_layers, head.lstm.bidirectional) == (1, False)
    fc6, _ = head.fc6
    for sample, logits in zip(features, head(features), strict=True):
        state = None
        for frame in sample:
            output, state = head.lstm((fc6.weight @ frame + fc6.bias).clamp(min=0)[None], state)
        torch.testing.assert_close(logits, head.classifier.weight @ output[0] + head.classifier.bias)


def test_the_pairwise_head_sees_each_pair_of_positions():
    head, features = make("pairwise", 4, 6), features_of(3, 4)
    fc6, _ = head.fc6
    for sample, logits in zip(features, head(features), strict=True):
        pieces = [(fc6.weight @ piece + fc6.bias).clamp(min=0) for piece in sample]
        pairs = [
            (head.fc7.weight @ torch.cat(pair) + head.fc7.bias).clamp(min=0)
            for pair in itertools.combinations(pieces, 2)
        ]
        torch.testing.assert_close(logits, head.classifier.weight @ torch.cat(pairs) + head.classifier.bias)


def test_a_relative_head_sees_how_a_frame_differs_from_the_others_of_its_sample():
    head, plain = make("relative", 5, 6), make("temporal", 5, 6)
    plain.load_state_dict(head.state_dict())
    features = 100 * features_of(3, 5)  # so that the least variance, which keeps still clips still, does not show
    spread = (features - features.mean(1, keepdim=True)) / features.std(1, keepdim=True, correction=0)
    torch.testing.assert_close(head(features), plain(spread), rtol=1e-3, atol=1e-4)
    # it does not see what all frames have in common, nor its scale
    torch.testing.assert_close(head(3 * features + features_of(3, 1, seed=1)), head(features), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(plain(3 * spread), plain(spread), atol=1e-2)


@pytest.mark.parametrize("still", [0.0, 1e-6])
def test_a_relative_head_does_not_amplify_the_rounding_of_a_still_clip(still):
    """With equal or nearly equal frames, the rounding of their mean in another order of summation must not matter."""
    permutations, clip = SETS["far apart"], 5 + features_of(3, 1).expand(3, 9, FEATURES)
    check(make("relative", 9, 40), clip + still * features_of(3, 9, seed=1), permutations)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_head_sees_the_order(kind):
    head, features = make(kind, 4, 6), features_of(1, 4)
    first = head(features)
    for order in itertools.permutations(range(4)):
        if order != (0, 1, 2, 3):
            assert (head(features[:, order]) - first).abs().max() > 1e-3


# All permutations at once


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", SETS)
def test_all_permutations_equal_one_after_another(kind, name):
    permutations = SETS[name]
    count, num_pieces = permutations.shape
    if num_pieces < LEAST.get(kind, 1):
        pytest.skip("a single piece has no pairs")
    check(make(kind, num_pieces, count), features_of(3, num_pieces), permutations)


@pytest.mark.parametrize("kind", MAKERS)
@given(st.data(), st.integers(1, 6), st.integers(1, 4), st.integers(0, 9))
@settings(deadline=None, max_examples=25)
def test_all_permutations_equal_one_after_another_whatever_the_sizes(kind, data, num_pieces, samples, seed):
    num_pieces = max(num_pieces, LEAST.get(kind, 1))
    orders = st.permutations(range(num_pieces)).map(tuple)
    permutations = np.array(data.draw(st.lists(orders, min_size=1, max_size=30, unique=True)))
    head = make(kind, num_pieces, len(permutations), seed)
    check(head, features_of(samples, num_pieces, seed), permutations)


@pytest.mark.parametrize("kind", ["spatial", "temporal", "relative", "pairwise"])
@pytest.mark.parametrize("chunk_bytes", [1, 2_000, 30_000, 2**26])
def test_chunks_of_any_length_give_the_same(kind, chunk_bytes, monkeypatch):
    monkeypatch.setitem(heads._CHUNK_BYTES, "cpu", chunk_bytes)
    permutations = SETS["all of four pieces"]
    lengths = check(make(kind, 4, 24), features_of(5, 4), permutations)
    assert sum(lengths) == 5 * 24
    assert (len(lengths) == 1) == (chunk_bytes == 2**26)


@pytest.mark.ci
@pytest.mark.parametrize("kind", ["spatial", "temporal"])
def test_the_papers_sizes(kind):
    """CaffeNet's 256 × 3 × 3 features a piece, every layer as wide as in appendix B; |Ψ| and X_val are smaller."""
    num_pieces = {"spatial": 9, "temporal": 8}[kind]
    permutations = maximally_different(num_pieces, 50)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = SpatialHead(2304, 9, 50, 1024, 4096) if kind == "spatial" else TemporalHead(2304, 50, 512, 256)
        features = torch.randn(2, num_pieces, 2304).relu()
    check(head, features, permutations)


def test_in_double_precision_all_permutations_equal_one_after_another_to_1e_12():
    """So the difference in float32 is rounding."""
    permutations = SETS["far apart"]
    head, features = make("temporal", 9, 40).double(), features_of(2, 9).double()
    with torch.no_grad():
        found = torch.cat(list(head.all_permutation_logits(features, permutations)))
        torch.testing.assert_close(found, naive(head, features, permutations).flatten(0, 1), rtol=0, atol=1e-12)


# The tree of beginnings


def prefixes_of(permutations: np.ndarray) -> list[int]:
    return [len({tuple(row[:length]) for row in permutations}) for length in range(1, permutations.shape[1] + 1)]


def check_tree(permutations: np.ndarray) -> None:
    levels, leaves = _prefixes(permutations, torch.device("cpu"))
    assert [len(level.pieces) for level in levels] == prefixes_of(permutations)
    for permutation, node in zip(permutations, leaves.tolist(), strict=True):
        backwards = []
        for level in reversed(levels):
            backwards.append(int(level.pieces[node]))
            node = node if level.parents is None else int(level.parents[node])
        assert backwards[::-1] == permutation.tolist()


@pytest.mark.parametrize("name", SETS)
def test_the_tree_holds_every_different_beginning_once(name):
    check_tree(SETS[name])


@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.permutations(range(n)), min_size=1, max_size=40)))
@settings(deadline=None)
def test_the_tree_holds_every_different_beginning_once_of_any_set(rows):
    check_tree(np.array(rows))


def test_the_tree_has_fewer_nodes_than_all_prefixes():
    levels, _ = _prefixes(SETS["all of four pieces"], torch.device("cpu"))
    assert [len(level.pieces) for level in levels] == [4, 12, 24, 24]
    assert levels[-1].parents is None  # the last piece is what is left: nothing branches
