"""Order prediction networks as a task: which orders there are, and that a run trains and continues."""

import itertools

import gymnasium as gym
import numpy as np

import permenv
from experiments.studies.order_prediction import NAME
from permenv.heads import PairwiseHead
from permenv.transfer.trunks import load_trunk

SMALL = {"num_clips": 12, "num_validation": 4, "batch_size": 8, "iterations_per_update": 2, "total_updates": 2}


def make(**changes):
    return gym.make("PermShuffle-v0", preset="nano", task=NAME, samples_per_action=8, **SMALL, **changes)


def test_an_order_and_its_reverse_are_one_of_twelve():
    psi = {tuple(order) for order in make().unwrapped.tasks["order_prediction"].permutations.tolist()}
    assert len(psi) == 12
    assert psi | {tuple(3 - frame for frame in order) for order in psi} == set(itertools.permutations(range(4)))


def test_it_trains_and_continues_with_a_pairwise_head(tmp_path):
    env = make()
    env.reset(seed=0)
    assert isinstance(env.unwrapped.run.trainer.network.heads["order_prediction"], PairwiseHead)
    env.step(0)
    env.unwrapped.save(tmp_path / "run.safetensors")
    rewards = [env.step(0)[1] for _ in range(3)]
    other = make()
    other.reset(options={"checkpoint": tmp_path / "run.safetensors"})
    assert [other.step(0)[1] for _ in range(3)] == rewards
    env.unwrapped.save(tmp_path / "end.safetensors")
    assert load_trunk(tmp_path / "end.safetensors").name == "two-convolutions"


def test_the_papers_preset_has_the_originals_widths():
    config = permenv.make_config("paper", NAME)
    assert (config.num_frames, config.num_permutations, config.fc6, config.temporal_fc6) == (4, 12, 1024, 512)
    assert np.isclose(config.learning_rate, 1e-3)
