"""The caller's torch state has no effect on a run, and is the same afterwards."""

import contextlib
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from permenv.torch_state import default_torch_state
from tests.helpers import assert_same, assert_same_weights, random_actions, rollout, small_backbone

FAST = {"num_scenes": 24, "num_validation": 5, "batch_size": 4, "samples_per_action": 1, "learning_rate": 0.1}
"""A run whose steps take milliseconds."""


@contextlib.contextmanager
def setting(get, set_, value):
    """Change a setting of torch inside a `with` block."""
    before = get()
    set_(value)
    try:
        yield
    finally:
        set_(before)


def precision_of(backend, value):
    return setting(lambda: backend.fp32_precision, lambda new: setattr(backend, "fp32_precision", new), value)


@contextlib.contextmanager
def old_and_new_precision():
    """Use both of torch's ways to set the precision of float32 products."""
    torch.set_float32_matmul_precision("highest")
    with precision_of(torch.backends, "tf32"):
        yield


@contextlib.contextmanager
def other_algorithms_of_cudnn():
    """Choose algorithms as Stable-Baselines3 does for a model on a GPU."""
    with torch.backends.cudnn.flags(enabled=False, benchmark=False, deterministic=True):
        yield


CALLERS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "default dtype float64": lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "default dtype bfloat16": lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.bfloat16),
    "default device meta": lambda: torch.device("meta"),
    "matmul precision medium": lambda: setting(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "matmul precision high": lambda: setting(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "high"
    ),
    "mkldnn precision bf16": lambda: precision_of(torch.backends.mkldnn.matmul, "bf16"),
    "every precision tf32": lambda: precision_of(torch.backends, "tf32"),
    "old and new precision settings": old_and_new_precision,
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "other algorithms of cuDNN": other_algorithms_of_cudnn,
}
"""By name, a context manager that changes the state of torch, as a caller might."""

every_caller = pytest.mark.parametrize("caller", CALLERS)


PRECISIONS = [torch.backends, torch.backends.mkldnn, torch.backends.cudnn]  # from general to particular
PRECISIONS += [torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv, torch.backends.mkldnn.rnn]
PRECISIONS += [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]


@pytest.fixture(autouse=True)
def precisions_as_before():
    """Set the precisions back to what they were: torch's old function leaves "ieee" where there was "none"."""
    before = [each.fp32_precision for each in PRECISIONS]
    yield
    for each, value in reversed(list(zip(PRECISIONS, before, strict=True))):
        each.fp32_precision = value


def cudnn_algorithms() -> tuple[bool, bool, bool]:
    return tuple(getattr(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic"))


def state_of_torch() -> dict[str, Any]:
    """Read all of torch's modes that change numbers."""
    try:
        matmul = torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller has set `fp32_precision`
        matmul = "set by fp32_precision"
    return {
        "grad": torch.is_grad_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")],
        "autocast dtype": torch.get_autocast_dtype("cpu"),
        "autocast cache": torch.is_autocast_cache_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device().type,
        "new tensor": (torch.zeros(1).dtype, torch.zeros(1).device.type),
        "matmul": matmul,
        "cudnn": cudnn_algorithms(),
        "precisions": [each.fp32_precision for each in PRECISIONS],
    }


# The block itself


@every_caller
def test_the_caller_is_in_a_state_of_its_own(caller):
    """Otherwise the tests below would show nothing."""
    before = state_of_torch()
    with CALLERS[caller]():
        assert state_of_torch() != before


@every_caller
def test_the_block_has_torchs_default_state_and_restores_the_callers(caller):
    with CALLERS[caller]():
        before = state_of_torch()
        with default_torch_state():
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            assert not torch.is_anomaly_enabled()
            assert not torch.is_autocast_enabled("cpu")
            assert torch.zeros(1).dtype == torch.float32
            assert torch.zeros(1).device.type == "cpu"
            assert {each.fp32_precision for each in PRECISIONS[3:]} <= {"ieee", "none"}
            assert cudnn_algorithms() == (True, True, False)
        assert state_of_torch() == before


@every_caller
def test_the_callers_state_is_restored_after_an_error(caller):
    with CALLERS[caller]():
        before = state_of_torch()
        with pytest.raises(ZeroDivisionError), default_torch_state():
            raise ZeroDivisionError
        assert state_of_torch() == before


def test_a_precision_that_was_inherited_is_inherited_again():
    with precision_of(torch.backends, "tf32"), default_torch_state():
        pass
    assert torch.backends.mkldnn.conv.fp32_precision == "none"
    with precision_of(torch.backends, "bf16"):
        assert torch.backends.mkldnn.conv.fp32_precision == "bf16"


@every_caller
def test_products_in_the_block_are_those_of_full_float32(caller):
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(300, 300, generator=generator) for _ in range(2))
    expected = first @ second
    with CALLERS[caller](), default_torch_state():
        assert torch.equal(first @ second, expected)


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_torchs_older_settings_can_be_read_in_the_block(precision):
    with setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, precision):
        with default_torch_state():
            assert not torch.backends.cudnn.allow_tf32
            assert not torch.backends.cuda.matmul.allow_tf32
            with torch.backends.cudnn.flags(enabled=True, benchmark=True):  # as a user's module might
                pass
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.cudnn.allow_tf32


def test_deterministic_algorithms_are_the_callers_choice():
    with setting(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True):
        with default_torch_state():
            assert torch.are_deterministic_algorithms_enabled()
            assert cudnn_algorithms() == (True, False, True)
        assert cudnn_algorithms() == (True, False, False)


def test_moving_an_lstm_to_a_gpu_leaves_the_precisions_within_reach(monkeypatch):
    # what `nn.LSTM.to("cuda")` did before torch 2.11: the name of the setting became that of a module without one
    monkeypatch.setattr(torch.backends.cudnn, "rnn", types.ModuleType("torch.backends.cudnn.rnn"), raising=False)
    with default_torch_state():
        assert torch.zeros(1).dtype == torch.float32


def test_it_decorates_functions_and_nests():
    @default_torch_state()
    def inner() -> tuple[bool, torch.dtype]:
        with default_torch_state():
            return torch.is_grad_enabled(), torch.zeros(1).dtype

    with torch.no_grad(), CALLERS["default dtype float64"]():
        assert inner() == (True, torch.float32)
        assert not torch.is_grad_enabled()
        assert torch.zeros(1).dtype == torch.float64


# Runs


def play(make_env, precision, where=None, caller=None, task="spatial", steps=26):
    """Play an episode; a caller's state surrounds "reset", the "steps" or "everything". Returns what is known then."""

    def surround(part):
        return CALLERS[caller]() if where in (part, "everything") else contextlib.nullcontext()

    with surround("making"):
        env = make_env(task=task, precision=precision, **FAST)
    with surround("reset"):
        before = state_of_torch()
        first = env.reset(seed=0)
        assert state_of_torch() == before
    with surround("steps"):
        before = state_of_torch()
        trajectory = rollout(env, random_actions(env, steps))
        assert state_of_torch() == before
    return env, [first, *trajectory]


@pytest.fixture(scope="module")
def references():
    """Trajectories in torch's default state, by task and precision."""
    return {}


def check_trajectory(make_env, references, caller, where, precision, task):
    if (task, precision) not in references:
        references[task, precision] = play(make_env, precision, task=task)
    expected_env, expected = references[task, precision]
    env, trajectory = play(make_env, precision, where, caller, task)
    assert_same(trajectory, expected)
    assert_same_weights(env, expected_env)
    assert all(weight.dtype == torch.float32 for weight in env.unwrapped.run.trainer.network.parameters())


@every_caller
@pytest.mark.parametrize(
    ("precision", "where"),
    [
        ("float32", "everything"),
        ("bf16", "steps"),
        *(pytest.param(*case, marks=pytest.mark.ci) for case in [("float32", "steps"), ("bf16", "everything")]),
    ],
)
def test_the_trajectory_is_the_same_in_any_state_of_the_caller(make_env, references, caller, where, precision):
    check_trajectory(make_env, references, caller, where, precision, "spatial")


@pytest.mark.ci
@every_caller
@pytest.mark.parametrize("where", ["reset", "steps", "everything"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("task", ["temporal", "spatiotemporal"])
def test_so_are_those_of_other_tasks(make_env, references, caller, where, precision, task):
    check_trajectory(make_env, references, caller, where, precision, task)


@pytest.mark.ci
@every_caller
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_reset_in_any_state_of_the_caller_begins_the_same_run(make_env, references, caller, precision):
    check_trajectory(make_env, references, caller, "reset", precision, "spatial")


def test_bf16_is_another_trajectory_than_float32(make_env):
    """Otherwise bf16 would not be tested above."""
    (env, _), (other, _) = (play(make_env, precision) for precision in ("float32", "bf16"))
    with pytest.raises(AssertionError):
        assert_same_weights(env, other)


def test_autocast_around_many_iterations_leaves_no_stale_weights(make_env):
    """An outer autocast keeps its cache until it ends: weights cast in one iteration would be used in the next ones."""
    env, twin = (make_env(precision="bf16", **FAST) for _ in range(2))
    losses = []
    for each, caller in ((env, contextlib.nullcontext()), (twin, torch.autocast("cpu", torch.bfloat16))):
        each.reset(seed=0)
        with caller:
            # the caller's own forward pass fills the cache with the weights as they are now
            run = each.unwrapped.run
            pieces = run.tasks["spatial"].pieces(run.held_out["spatial"])
            run.trainer.network.train(False)("spatial", pieces)
            run.trainer.network.train(True)
            losses.append([step[4]["loss"] for step in rollout(each, random_actions(each, 40))])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) > 8
    assert_same_weights(env, twin)


@every_caller
@pytest.mark.parametrize("precision", [pytest.param("float32", marks=pytest.mark.ci), "bf16"])
def test_forks_and_saved_runs_continue_in_any_state_of_the_caller(make_env, tmp_path, caller, precision):
    env, other = (make_env(precision=precision, **FAST) for _ in range(2))
    env.reset(seed=0)
    rollout(env, random_actions(env, 14))
    with CALLERS[caller]():
        before = state_of_torch()
        fork = env.unwrapped.fork()
        env.unwrapped.save(tmp_path / "run")
        other.reset(options={"checkpoint": tmp_path / "run"})
        assert state_of_torch() == before
    actions = random_actions(env, 14, 1)
    expected = rollout(env, actions)
    assert_same(rollout(fork, actions), expected)
    with CALLERS[caller]():
        assert_same(rollout(other, actions), expected)
    assert_same_weights(env, fork)
    assert_same_weights(env, other)


@every_caller
def test_the_network_predicts_the_same_in_any_state_of_the_caller(make_env, caller):
    env = make_env(**FAST)
    env.reset(seed=0)
    run = env.unwrapped.run
    pieces = run.tasks["spatial"].pieces(run.held_out["spatial"])
    expected = env.unwrapped.network("spatial", pieces)
    with CALLERS[caller]():
        logits = env.unwrapped.network("spatial", pieces)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, expected)
    assert not logits.requires_grad


@every_caller
def test_the_trunk_of_a_saved_run_is_read_in_any_state_of_the_caller(make_env, tmp_path, caller):
    saved, env, twin = (make_env(**FAST) for _ in range(3))
    saved.reset(seed=0)
    rollout(saved, random_actions(saved, 8))
    saved.unwrapped.save(tmp_path / "run")
    expected = twin.reset(seed=1, options={"trunk": tmp_path / "run"})[0]
    with CALLERS[caller]():
        np.testing.assert_array_equal(env.reset(seed=1, options={"trunk": tmp_path / "run"})[0], expected)
    assert_same_weights(env, twin)


@every_caller
def test_a_users_backbone_is_made_in_torchs_default_state(make_env, caller):
    env, twin = (make_env(**FAST, backbone=small_backbone) for _ in range(2))
    twin.reset(seed=0)
    with CALLERS[caller]():
        env.reset(seed=0)
    assert isinstance(env.unwrapped.run.trainer.network.trunk[0], nn.Conv2d)
    assert_same_weights(env, twin)
