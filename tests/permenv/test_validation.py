"""Exact validation against the naive one, which permutes the pixels and runs the network once per permutation."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from permenv import heads, validation
from permenv.heads import OrderingHead, SpatialHead, TemporalHead
from permenv.networks import build_network
from permenv.permutations import maximally_different
from permenv.validation import all_permutation_logits, validate

TASKS = ("spatial", "temporal", "relative", "own")


class OwnHead(OrderingHead):
    """A user's head: no more than `forward` and the last layer."""

    def __init__(self, features: int, num_pieces: int, num_permutations: int):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.linspace(1, 2, num_pieces))
        self.classifier = torch.nn.Linear(features, num_permutations)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.classifier((features * self.weights[:, None]).tanh().mean(1))


def heads_for(num_pieces: int, count: int, **sizes: int):
    """By task, what makes its head."""
    fc6, fc7, temporal_fc6, lstm = (
        sizes.get(name, default) for name, default in {"fc6": 24, "fc7": 48, "temporal_fc6": 24, "lstm": 32}.items()
    )
    return {
        "spatial": lambda features: SpatialHead(features, num_pieces, count, fc6, fc7),
        "temporal": lambda features: TemporalHead(features, count, temporal_fc6, lstm),
        "relative": lambda features: TemporalHead(features, count, temporal_fc6, lstm, relative=True),
        "own": lambda features: OwnHead(features, num_pieces, count),
    }


def trained_a_little(tasks, num_pieces=9, count=30, backbone="quarter-caffenet", size=32, **sizes: int):
    """A network whose predictions are far from uniform and whose batch statistics are not the initial ones."""
    makers = heads_for(num_pieces, count, **sizes)
    network = build_network(backbone, {task: makers[task] for task in tasks}, piece_shape=(3, size, size), seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(3):
            network.features(torch.randn(8, num_pieces, 3, size, size, generator=generator))
        network.eval()
        for task in tasks:  # logits of deviation 4
            logits = network(task, torch.randn(8, num_pieces, 3, size, size, generator=generator))
            network.heads[task].classifier.weight.mul_(4 / logits.std())
        network.train()
    return network


def naive(network, task, pieces, permutations):
    """Softmax, s, correct and E by Eq. 2, 3, 4 and 6, written out."""
    network.eval()
    ratios = np.empty((len(permutations), len(pieces)))
    correct = np.empty(ratios.shape, dtype=bool)
    probabilities = np.empty((*ratios.shape, len(permutations)))
    for label, permutation in enumerate(permutations):
        with torch.no_grad():
            y_of_samples = network(task, pieces[:, torch.tensor(permutation)]).softmax(1).double().numpy()
        for i, y in enumerate(y_of_samples):
            best_other = np.delete(y, label).max()
            probabilities[label, i] = y
            ratios[label, i] = (y[label] + 1) / (best_other + 1)
            correct[label, i] = y.argmax() == label
    network.train()
    return probabilities, ratios, correct, 1 - correct.mean()


def all_probabilities(network, task, pieces, permutations):
    """Softmax [|Ψ|, V, |Ψ|] of the exact validation, and the labels that it gives to its rows."""
    logits, labels = zip(*all_permutation_logits(network, task, pieces, permutations), strict=True)
    table = torch.cat(logits).softmax(1).view(len(pieces), len(permutations), -1)
    return table.transpose(0, 1).numpy(), torch.cat(labels).view(len(pieces), -1)


def check(network, task, pieces, permutations):
    probabilities, ratios, correct, error = naive(network, task, pieces, permutations)
    result = validate(network, task, pieces, permutations)
    found, labels = all_probabilities(network, task, pieces, permutations)
    np.testing.assert_allclose(found, probabilities, rtol=0, atol=1e-5)
    np.testing.assert_allclose(result.ratios, ratios, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(result.correct, correct)
    assert result.error == pytest.approx(error)
    negative_log_likelihoods = [-np.log(probabilities[label, :, label]) for label in range(len(permutations))]
    assert result.cross_entropy == pytest.approx(np.mean(negative_log_likelihoods), rel=1e-5)
    assert (labels == torch.arange(len(permutations))).all()


def noise(samples, num_pieces=9, size=32, seed=1):
    return torch.randn(samples, num_pieces, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def joint():
    """One network of three tasks, X_val, Ψ, and by task what the naive way finds."""
    network, pieces, permutations = trained_a_little(TASKS), noise(7), maximally_different(9, 30)
    return network, pieces, permutations, {task: naive(network, task, pieces, permutations) for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("chunk_bytes", [1, 4 * 200 * 11, 2**26])
@pytest.mark.parametrize("samples", [1, 3, 32])
def test_equals_naive_whatever_the_chunks(joint, task, chunk_bytes, samples, monkeypatch):
    network, pieces, permutations, expected = joint
    _, ratios, correct, error = expected[task]
    monkeypatch.setitem(heads._CHUNK_BYTES, "cpu", chunk_bytes)
    monkeypatch.setattr(validation, "_CHUNK_SAMPLES", samples)
    result = validate(network, task, pieces, permutations)
    np.testing.assert_allclose(result.ratios, ratios, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(result.correct, correct)
    assert result.error == pytest.approx(error)
    assert 0.5 < error < 1


@pytest.mark.parametrize("task", TASKS)
def test_all_probabilities_equal_naive_to_1e_5(joint, task):
    network, pieces, permutations, expected = joint
    probabilities, *_ = expected[task]
    assert probabilities.max() > 0.5
    found, _ = all_probabilities(network, task, pieces, permutations)
    np.testing.assert_allclose(found, probabilities, rtol=0, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
@given(st.integers(2, 9), st.data(), st.integers(1, 4), st.integers(0, 3))
@settings(deadline=None, max_examples=8)
def test_equals_naive_for_other_sizes(task, num_pieces, data, samples, seed):
    most = {2: 2, 3: 6}.get(num_pieces, 24)
    count = data.draw(st.integers(2, most))
    network = trained_a_little([task], num_pieces, count)
    check(network, task, noise(samples, num_pieces, seed=seed), maximally_different(num_pieces, count))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("num_pieces", [3, 4])
def test_equals_naive_for_all_permutations_there_are(task, num_pieces):
    permutations = np.array(list(itertools.permutations(range(num_pieces))))
    network = trained_a_little([task], num_pieces, len(permutations))
    check(network, task, noise(3, num_pieces), permutations)


@pytest.mark.ci
@pytest.mark.parametrize(("task", "num_pieces"), [("spatial", 9), ("temporal", 8)])
def test_equals_naive_for_caffenet_at_the_papers_sizes(task, num_pieces):
    network = trained_a_little([task], num_pieces, 6, "caffenet", 75, fc6=1024, fc7=4096, temporal_fc6=512, lstm=256)
    check(network, task, noise(2, num_pieces, 75), maximally_different(num_pieces, 6))


@pytest.mark.parametrize("task", TASKS)
def test_a_ratio_above_one_is_a_recognised_permutation(joint, task):
    network, pieces, permutations, _ = joint
    result = validate(network, task, pieces, permutations)
    np.testing.assert_array_equal(result.ratios > 1, result.correct)
    assert result.ratios.min() >= 0.5
    assert result.ratios.max() <= 2
    np.testing.assert_allclose(result.permutation_errors.mean(), result.error)


def test_the_cross_entropy_of_a_certain_and_wrong_prediction_is_finite():
    """Its probability is 0 in float32, minus its logarithm is not infinite."""
    network = trained_a_little(["spatial"], count=6)
    network.heads["spatial"].classifier.bias.data[0] += 1000
    result = validate(network, "spatial", noise(2, 9), maximally_different(9, 6))
    assert result.cross_entropy == pytest.approx(1000 * 5 / 6, rel=0.05)
    assert result.finite


def test_a_network_that_always_predicts_the_same_recognises_nothing():
    network = trained_a_little(["temporal"], 4, 24)
    with torch.no_grad():
        network.heads["temporal"].classifier.weight.zero_()
    result = validate(network, "temporal", noise(2, 4), maximally_different(4, 24))
    np.testing.assert_array_equal(result.ratios, 1)
    assert result.error == 1


@pytest.mark.parametrize("task", TASKS)
def test_the_network_stays_in_training_mode_with_its_statistics(joint, task):
    network, pieces, permutations, _ = joint
    before = {name: value.clone() for name, value in network.state_dict().items()}
    validate(network, task, pieces, permutations)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("broken", ["trunk", "head"])
def test_weights_that_are_not_finite_are_detected(task, broken):
    network = trained_a_little([task])
    weights = network.trunk[0].weight if broken == "trunk" else network.heads[task].classifier.weight
    with torch.no_grad():
        weights.fill_(torch.nan)
    result = validate(network, task, noise(2), maximally_different(9, 30))
    assert not result.finite
    assert result.error == 1


def test_a_broken_head_does_not_affect_another_task(joint):
    network, pieces, permutations, expected = joint
    bias = network.heads["temporal"].classifier.bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias.fill_(torch.nan)
        assert not validate(network, "temporal", pieces, permutations).finite
        assert validate(network, "spatial", pieces, permutations).error == pytest.approx(expected["spatial"][3])
        bias.copy_(before)
