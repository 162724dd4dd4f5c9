"""What is read of a saved run without making it: trunk and precision, or an error that names the file and the place."""

import numpy as np
import pytest
import torch

from permenv import CheckpointError, checkpoint
from permenv.saved_run import precision_of, read_run, trunk_weights
from permenv.transfer.trunks import load_trunk
from tests.helpers import small_run

NO_RUNS = [
    ({}, "run lacks 'identity'"),
    ({"identity": {}, "trainer": 1}, "run/trainer is 1, it must be a dict"),
    ({"identity": {}, "trainer": {"network": {}, "averaged": []}}, r"run/trainer/averaged is \[\], it must be a dict"),
]


@pytest.mark.parametrize("ema_decay", [0.0, 0.97])
def test_the_trunk_of_a_file_is_the_validated_one(tmp_path, ema_decay):
    run = small_run(ema_decay=ema_decay)
    run.iterate()
    run.save(tmp_path / "run")
    found, expected = trunk_weights(read_run(tmp_path / "run")["run"]), run.trainer.eval_network.trunk.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize(("state", "message"), NO_RUNS)
def test_what_is_no_state_of_a_run_is_refused_by_its_place(state, message):
    with pytest.raises(CheckpointError, match=message):
        trunk_weights(state)


@pytest.mark.parametrize(("state", "message"), NO_RUNS)
def test_a_file_without_a_trunk_is_named(tmp_path, state, message):
    checkpoint.write(tmp_path / "forged", {"run": state})
    with pytest.raises(CheckpointError, match=f"forged: {message}"):
        load_trunk(tmp_path / "forged")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_precision_of_a_state_is_the_one_it_was_trained_in(precision):
    assert precision_of(small_run(precision=precision).state_dict()) == precision


@pytest.mark.parametrize("precision", ["auto", "float16", None, 1, ["bf16"], np.array(["bf16", "float32"])])
def test_another_precision_is_none(precision):
    assert precision_of({"identity": {"precision": precision}}) is None


@pytest.mark.parametrize("state", [None, 1, [], {}, {"identity": 1}, {"identity": {}}])
def test_what_is_no_state_of_a_run_has_no_precision(state):
    assert precision_of(state) is None
