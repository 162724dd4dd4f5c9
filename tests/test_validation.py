"""Exact validation against the naive one: permute the pixels, run the whole network, once a permutation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from permenv import validation
from permenv.networks import build_network
from permenv.permutations import maximally_different
from permenv.validation import validate


def trained_a_little(num_pieces: int = 9, num_permutations: int = 30, backbone="quarter-caffenet", size: int = 32):
    """A network whose predictions are far from uniform and whose batch statistics are not the initial ones."""
    network = build_network(
        backbone, num_pieces=num_pieces, num_permutations=num_permutations, piece_size=size, fc6=24, fc7=48, seed=3
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(3):
            network("spatial", torch.randn(8, num_pieces, 3, size, size, generator=generator))
        network.heads["spatial"].classifier.weight.mul_(200)
    return network


def naive(network, pieces, permutations):
    """s, correct and E by Eq. 2, 3, 4 and 6, written out."""
    network.eval()
    ratios = np.empty((len(permutations), len(pieces)))
    correct = np.empty(ratios.shape, dtype=bool)
    probabilities = np.empty((*ratios.shape, len(permutations)))
    for label, permutation in enumerate(permutations):
        with torch.no_grad():
            y_of_samples = network("spatial", pieces[:, torch.tensor(permutation)]).softmax(1).double().numpy()
        for i, y in enumerate(y_of_samples):
            best_other = np.delete(y, label).max()
            probabilities[label, i] = y
            ratios[label, i] = (y[label] + 1) / (best_other + 1)
            correct[label, i] = y.argmax() == label
    network.train()
    return probabilities, ratios, correct, 1 - correct.mean()


@pytest.fixture(scope="module")
def case():
    network = trained_a_little()
    pieces = torch.randn(7, 9, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    permutations = maximally_different(9, 30)
    return network, pieces, permutations, naive(network, pieces, permutations)


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 200 * 11, 2**26])
@pytest.mark.parametrize("samples", [1, 3, 32])
def test_equals_naive_whatever_the_chunks(case, chunk_bytes, samples, monkeypatch):
    network, pieces, permutations, (_, ratios, correct, error) = case
    monkeypatch.setitem(validation._CHUNK_BYTES, "cpu", chunk_bytes)
    monkeypatch.setattr(validation, "_CHUNK_SAMPLES", samples)
    result = validate(network, "spatial", pieces, permutations)
    np.testing.assert_allclose(result.ratios, ratios, atol=1e-5)
    np.testing.assert_array_equal(result.correct, correct)
    assert result.error == pytest.approx(error)
    assert 0.5 < error < 1  # or the case would show nothing


def test_all_probabilities_equal_naive_to_1e_5(case):
    network, pieces, permutations, (probabilities, *_) = case
    with torch.no_grad():
        network.eval()
        blocks = list(validation._logits(network, "spatial", pieces, permutations))
        network.train()
    exact = torch.cat([logits.softmax(1) for logits, _ in blocks]).view(len(pieces), len(permutations), -1)
    assert probabilities.max() > 0.5
    np.testing.assert_allclose(exact.transpose(0, 1).numpy(), probabilities, atol=1e-5)


@given(st.integers(2, 3), st.integers(2, 24), st.integers(1, 4), st.integers(0, 3))
@settings(deadline=None, max_examples=15)
def test_equals_naive_for_other_sizes(grid, num_permutations, samples, seed):
    network = trained_a_little(grid**2, num_permutations)
    pieces = torch.randn(samples, grid**2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    permutations = maximally_different(grid**2, num_permutations)
    _, ratios, correct, error = naive(network, pieces, permutations)
    result = validate(network, "spatial", pieces, permutations)
    np.testing.assert_allclose(result.ratios, ratios, atol=1e-5)
    np.testing.assert_array_equal(result.correct, correct)
    assert result.error == pytest.approx(error)


def test_equals_naive_for_caffenet_at_the_papers_piece_size():
    network = trained_a_little(backbone="caffenet", size=75, num_permutations=6)
    pieces = torch.randn(2, 9, 3, 75, 75, generator=torch.Generator().manual_seed(0))
    permutations = maximally_different(9, 6)
    _, ratios, correct, _ = naive(network, pieces, permutations)
    result = validate(network, "spatial", pieces, permutations)
    np.testing.assert_allclose(result.ratios, ratios, atol=1e-5)
    np.testing.assert_array_equal(result.correct, correct)


def test_a_ratio_above_one_is_a_recognised_permutation(case):
    network, pieces, permutations, _ = case
    result = validate(network, "spatial", pieces, permutations)
    np.testing.assert_array_equal(result.ratios > 1, result.correct)
    assert result.ratios.min() >= 0.5
    assert result.ratios.max() <= 2
    np.testing.assert_allclose(result.permutation_errors.mean(), result.error)


def test_the_network_is_left_in_training_mode_with_its_statistics(case):
    network, pieces, permutations, _ = case
    before = {name: value.clone() for name, value in network.state_dict().items()}
    validate(network, "spatial", pieces, permutations)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_broken_weights_are_seen():
    network = trained_a_little()
    with torch.no_grad():
        network.trunk[0].weight.fill_(torch.nan)
    result = validate(network, "spatial", torch.randn(2, 9, 3, 32, 32), maximally_different(9, 30))
    assert not result.finite
    assert result.error == 1
