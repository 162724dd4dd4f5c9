"""A run on a GPU: it trains, agrees with a CPU up to rounding, waits for nothing, and repeats where it is told to."""

import contextlib
import copy
import os
import pickle
import warnings

import numpy as np
import pytest
import torch

from permenv import Pretraining
from permenv.networks import BACKBONES, convolve_rows
from permenv.torch_state import default_torch_state
from permenv.validation import validate
from tests.helpers import TASKS, assert_same, assert_same_weights, random_actions, rollout, small_run

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
every_task = pytest.mark.parametrize("task", TASKS)
every_precision = pytest.mark.parametrize("precision", ["float32", "bf16"])


@pytest.fixture
def deterministic():
    """Switch torch's deterministic algorithms on for a test."""
    if os.environ.get("CUBLAS_WORKSPACE_CONFIG") != ":4096:8":
        pytest.skip("set CUBLAS_WORKSPACE_CONFIG=:4096:8 before the first use of the GPU")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def no_waiting():
    """Raise an error where the program waits for the GPU."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype feature")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_cpu(run: Pretraining, task: str) -> Pretraining:
    """Restore a run on a CPU."""
    twin = small_run(task, precision="float32")
    twin.load_state_dict(run.state_dict())
    return twin


@every_task
@every_precision
def test_a_run_trains_forks_and_is_saved(make_env, tmp_path, task, precision):
    env, restored = (make_env(task=task, device=DEVICE, precision=precision) for _ in range(2))
    env.reset(seed=0)
    steps = rollout(env, random_actions(env, 24))
    assert all(np.isfinite(info["loss"]) for *_, info in steps[3:])
    assert {parameter.device.type for parameter in env.unwrapped.run.trainer.network.parameters()} == {DEVICE}
    env.unwrapped.save(tmp_path / "run")
    restored.reset(options={"checkpoint": tmp_path / "run"})
    unpickled = pickle.loads(pickle.dumps(env))
    for name, part in env.unwrapped.run.tasks.items():  # pixels are on the GPU once
        data = [getattr(each, "frames", each) for each in (part.data, unpickled.unwrapped.run.tasks[name].data)]
        assert data[0].pixels.data_ptr() == data[1].pixels.data_ptr()
    for twin in (env.unwrapped.fork(), restored, unpickled):
        assert_same_weights(twin, env)
        assert len(rollout(twin, random_actions(env, 12, 1))) == 12


@every_task
def test_a_saved_run_is_restored_and_validated_on_a_cpu_to_the_same_figures(task):
    run = small_run(task, device=DEVICE, precision="float32")
    for _ in range(3):
        run.iterate()
    run.validate()
    twin = on_cpu(run, task)
    for name, ours in run.validation.items():
        pieces = twin.tasks[name].pieces(twin.held_out[name])
        theirs = validate(twin.trainer.eval_network, name, pieces, twin.tasks[name].permutations)
        np.testing.assert_allclose(ours.ratios, theirs.ratios, atol=1e-4)


@pytest.fixture(params=BACKBONES)
def trunk(request):
    """Make a trunk on a CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return BACKBONES[request.param]()


def pieces_of_noise() -> torch.Tensor:
    return torch.rand(8, 3, 75, 75, generator=torch.Generator().manual_seed(0))


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Relative to the second."""
    return ((first.cpu() - second.cpu()).norm() / second.norm().cpu()).item()


@every_precision
def test_a_trunk_is_that_of_a_cpu(trunk, precision):
    on_gpu, pieces = copy.deepcopy(trunk).to(DEVICE), pieces_of_noise()
    for each in (trunk, on_gpu):
        each.eval()
    with default_torch_state(), torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16"):
        assert distance(on_gpu(pieces.to(DEVICE)), trunk(pieces)) < {"float32": 1e-4, "bf16": 0.02}[precision]


@every_precision
def test_the_first_convolution_over_whole_rows_is_that_convolution(trunk, precision):
    first, dtype = trunk[0].to(DEVICE), {"float32": torch.float32, "bf16": torch.bfloat16}[precision]
    pieces = pieces_of_noise().to(DEVICE)
    with default_torch_state():
        rounded = [each.to(dtype) for each in (pieces, first.weight, first.bias)]
        outputs = [convolve_rows(*rounded, first.stride[0], first.padding[0]).float(), first(pieces)]
        gradients = [torch.autograd.grad(each.square().sum(), first.weight)[0] for each in outputs]
    for pair in (outputs, gradients):
        assert distance(*pair) < {"float32": 1e-5, "bf16": 0.02}[precision]


@every_task
def test_mini_batches_are_those_of_a_cpu(task):
    for name, part in small_run(task, device=DEVICE).tasks.items():
        twin = small_run(task).tasks[name]
        samples, orders = np.arange(4), part.permutations[:4]
        pieces = [each.pieces(each.draw(samples, 4, rng()), orders, rng()).cpu() for each in (part, twin)]
        torch.testing.assert_close(*pieces, atol=1e-4, rtol=1e-4)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# not seen here: events, which the losses are read with, and copies of pageable memory
@every_task
@every_precision
def test_no_operation_of_an_iteration_waits(task, precision):
    run = small_run(task, device=DEVICE, precision=precision)
    for _ in range(2):  # the first iterations make what is kept
        run.iterate()
    with no_waiting():
        run.iterate()


@pytest.mark.parametrize("task", ["temporal", "spatiotemporal"])
def test_copies_of_an_lstm_have_their_weights_in_one_block(task):
    run = small_run(task, device=DEVICE, ema_decay=0.9)
    run.iterate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # cuDNN's, of weights that are apart
        for each in (run, run.fork()):
            pieces = each.tasks["temporal"].pieces(each.held_out["temporal"])
            assert each.network("temporal", pieces).isfinite().all()


@every_task
@every_precision
@pytest.mark.usefixtures("deterministic")
def test_deterministic_runs_and_forks_repeat_bit_for_bit(make_env, task, precision):
    env, twin = (make_env(task=task, device=DEVICE, precision=precision) for _ in range(2))
    actions = random_actions(env, 26)
    for each in (env, twin):
        each.reset(seed=0)
    assert_same(rollout(env, actions), rollout(twin, actions))
    fork = env.unwrapped.fork()
    assert_same(rollout(env, actions), rollout(fork, actions))
    assert_same_weights(env, fork)
