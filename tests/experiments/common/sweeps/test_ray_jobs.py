"""A sweep on Ray gives what a sweep in this process gives, on any number of machines, also when one is lost."""

import os
import signal
import sys

import pytest

from experiments.common.agent_runs import play
from experiments.common.options import EnvOptions
from experiments.common.sweeps.processes import SerialExecutor, make_executor
from experiments.common.sweeps.sweep import JobError, sweep
from permenv import ConfigurationError, make_config
from tests.helpers import NUMBERS

pytestmark = pytest.mark.ci


def train(agent, seed):
    """Do a job: a small run of an agent."""
    numbers = {**NUMBERS, "total_updates": 2}
    found = play(agent, EnvOptions(device="cpu", env=make_config("tiny", **numbers)).make(), seed=seed)
    return {"errors": found["errors"], "iterations": found["iterations"]}


def where():
    """Do a job: name the machine."""
    import time

    import ray

    time.sleep(1)
    return ray.get_runtime_context().get_node_id()


def fail():
    """Do a job that cannot be done."""
    raise ZeroDivisionError("no zero")


def die_once(folder):
    """Do a job whose process is killed the first time."""
    mark = folder / "mark"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of two machines of one core, both in this machine."""
    pytest.importorskip("ray", reason="the extra dev has it")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args=node)
    found.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    yield found
    found.shutdown()


@pytest.mark.timeout(600)
def test_a_sweep_on_a_cluster_equals_the_serial_one_trial_by_trial(cluster, tmp_path):
    jobs = {f"{agent}-{seed}": {"agent": agent, "seed": seed} for agent in ("random", "exp3") for seed in (0, 1)}
    with make_executor(2, cluster.address) as executor:
        found = sweep(train, jobs, executor=executor, folder=tmp_path)
        nodes = sweep(where, {str(number): {} for number in range(4)}, executor=executor)
    assert found == sweep(train, jobs, executor=SerialExecutor())
    assert len(set(nodes.values())) == 2
    assert {path.stem for path in tmp_path.glob("*.json")} == set(jobs)
    with make_executor(2, cluster.address) as executor:  # what is there is not run again
        assert sweep(fail, jobs, executor=executor, folder=tmp_path) == found


@pytest.mark.timeout(600)
def test_a_job_that_fails_is_named_and_one_that_is_killed_is_run_again(cluster, tmp_path):
    with make_executor(2, cluster.address) as executor:
        assert sweep(die_once, {"killed": {"folder": tmp_path}}, executor=executor) == {"killed": "done"}
        with pytest.raises(JobError, match=r"bad one: no zero") as caught:
            sweep(fail, {"bad one": {}}, executor=executor)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_cluster_that_is_not_there_is_named():
    pytest.importorskip("ray", reason="the extra dev has it")
    with pytest.raises(ConfigurationError, match=r"--ray 127.0.0.1:1: .*; name the address of a cluster"):
        make_executor(2, "127.0.0.1:1")


def test_an_address_of_ray_client_is_refused_with_the_remedy():
    pytest.importorskip("ray", reason="the extra dev has it")
    with pytest.raises(ConfigurationError, match=r"--ray ray://127.0.0.1:10001: .* start the script on a machine of"):
        make_executor(2, "ray://127.0.0.1:10001")


def test_without_ray_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigurationError, match=r"--ray needs the package ray: pip install"):
        make_executor(2, "local")
