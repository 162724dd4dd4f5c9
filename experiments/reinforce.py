"""The main job: train a network to order shuffled pieces while a policy learns which permutations to shuffle them with.

    python experiments/reinforce.py
    python experiments/reinforce.py --images path/to/images --seed 1 --out runs/mine
    python experiments/reinforce.py --task temporal --videos path/to/videos
    python experiments/reinforce.py --task spatiotemporal --agent.learning-rate 0.003 --agent.discount 0.5
    torchrun --nproc-per-node 8 experiments/reinforce.py --preset paper    # on eight GPUs

Algorithm 1 and section 3.2 of Büchler, Brattoli, Ommer, "Improving Spatiotemporal Self-Supervision by Deep
Reinforcement Learning", ECCV 2018. All files of a run are in its folder, see
`experiments/common/training/run_folder.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import gymnasium as gym
import tyro

import agents
import permenv
from agents import AGENTS, Agent, InversePolicy, Reinforce
from agents.rollout import rollout
from experiments.common.options import AGENT_OPTION
from experiments.common.script import run_script
from experiments.common.sweeps.settings import keywords_of
from experiments.common.training import main_job
from experiments.common.training.loggers import Logger
from experiments.common.training.options import JobOptions
from experiments.common.training.run_folder import CHECKPOINT, RunFolder, open_folder, read_rows
from permenv import checkpoint, distributed


@dataclass(frozen=True, kw_only=True)
class Config(JobOptions):
    """The main job's options."""

    may_change: ClassVar = (*JobOptions.may_change, "compare_random")

    agent: Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(AGENTS)},MODULE:CLASS}}")] = "reinforce"
    """The agent (see `agents`): REINFORCE; uniformly random permutations or the inverse of a policy (appendix F); a
    curriculum fixed in advance; a bandit; the one-step lookahead, which tries candidates on copies of the run; or one
    of your own, a subclass of `agents.Agent`."""
    policy_from: Path | None = None
    """Checkpoint of a run whose REINFORCE policy to start from, with the random draws of `seed`; with `--agent
    inverse`, the trained policy to invert, where otherwise a policy is inverted that learns meanwhile."""
    agent_options: Annotated[
        tyro.conf.UseAppendAction[tuple[tuple[str, str], ...]], tyro.conf.arg(name=AGENT_OPTION, metavar="VALUE")
    ] = ()
    """An option of the agent, a keyword of its class, such as --agent.learning-rate 0.003."""
    compare_random: bool = False
    """Train with random permutations too, from the same seed, into `out`/random, and compare."""

    def __post_init__(self) -> None:
        """Fill in `env`, and check the options.

        Raises:
            ConfigurationError: If an option is unknown, out of range or without effect, there is no such policy, what
                it learns is not saved, or it has no such option.
        """
        super().__post_init__()
        try:
            agents.agent_class(self.agent).require_state()
        except ValueError as error:
            raise permenv.ConfigurationError(f"--agent {self.agent}: {error}") from error
        self.agent_keywords()

    def agent_keywords(self) -> dict[str, Any]:
        """Return `agent_options` as keywords of the agent's class.

        Raises:
            ConfigurationError: If it has no such option, or the value has another type.
        """
        return keywords_of(self.agent, self.agent_options)

    @property
    def settings(self) -> dict[str, Any]:
        """All options but --env.*; those of the agent by their names, None if there are none."""
        return {**super().settings, "agent_options": self.agent_keywords() or None}

    @property
    def algorithm_name(self) -> str:
        """The policy."""
        return self.agent.replace(":", "-")


def main(config: Config, loggers: Sequence[Logger] = ()) -> dict[str, Any]:
    """Run the job.

    Args:
        config: Its options.
        loggers: More loggers than `config.log` names, see `experiments/common/training/loggers.py`.

    Returns:
        What summary.json holds.

    Raises:
        ConfigurationError, DataError, CheckpointError, RunFolderError: With the remedy, before anything is trained.
    """
    if not config.compare_random:
        return train(config, loggers)
    if config.agent == "random":
        raise permenv.ConfigurationError("--compare-random compares a policy with random: choose another --agent")
    rival = dataclasses.replace(
        config, agent="random", policy_from=None, agent_options=(), out=config.folder / "random"
    )
    if config.resume and not RunFolder.holds_run(rival.folder):
        rival = dataclasses.replace(rival, resume=False)  # the first of the two was cut short
    open_folder(rival.folder, rival.resume).close()  # refuse a folder of other files before the first run, not after it
    summary = train(config, loggers)
    baseline = train(rival, loggers)
    if distributed.current().is_first:
        _compare(config, summary, rival, baseline)
    return summary


def _compare(config: Config, summary: dict[str, Any], rival: Config, baseline: dict[str, Any]) -> None:
    """Draw both runs into error.png, add the relative accuracies to the summary, and print the comparison."""
    from experiments.common.reports import figures  # slow to import

    for ours, theirs in ((summary, baseline), *zip(summary["tasks"].values(), baseline["tasks"].values(), strict=True)):
        ours["relative_accuracy"] = _relative_accuracy(ours, theirs)
    untrained = {task: task_summary["error_first"] for task, task_summary in summary["tasks"].items()}  # of both runs
    curves = {
        name if len(untrained) == 1 else f"{task}, {name}": curve
        for name, run in ((config.agent, config), ("random", rival))
        for task, curve in figures.curves(read_rows(run.folder), untrained).items()
    }
    with contextlib.closing(RunFolder(config.folder, resume=True)) as folder:
        folder.picture("error", figures.error_figure(config.title, curves))
        folder.json("summary", summary)
    for task, ours in summary["tasks"].items():
        relative = ours["relative_accuracy"]
        in_words = "undefined, random's is 0" if relative is None else f"{relative:.1%} of random's"
        print(
            f"Against random permutations, same seed, {task}: error {ours['error_last']:.3f} to "
            f"{baseline['tasks'][task]['error_last']:.3f}, accuracy {in_words} (one seed: compare several before you "
            f"conclude)."
        )


def _relative_accuracy(ours: dict[str, Any], theirs: dict[str, Any]) -> float | None:
    """Final accuracy relative to that of another run; None where that is 0."""
    accuracy = 1 - theirs["error_last"]
    return (1 - ours["error_last"]) / accuracy if accuracy else None


def train(config: Config, loggers: Sequence[Logger] = ()) -> dict[str, Any]:
    """Train one run to its end, or continue it, and sum it up in its folder."""
    with main_job.torch_settings(config), main_job.make_recorder(config, loggers) as run:
        agent = make_agent(config, run, given=run.saved_agent is None)
        queries = main_job.begin(run, config)
        if run.saved_agent is not None:
            with checkpoint.naming(run.folder.checkpoint):
                agent.load_state_dict(run.saved_agent)
        run.start(agent.state_dict, {task: query.name for task, query in queries.items()})
        if not run.over:
            rollout(run, agent, on_step=lambda _: run.checkpoint())
        summary = main_job.finish(run, config, queries)
    return summary


def make_agent(config: Config, env: gym.Env[Any, Any], *, given: bool = True) -> Agent:
    """Build the policy that the options name.

    Args:
        config: The options.
        env: The environment.
        given: Whether to begin with the state in `policy_from`. A run that is resumed has the state of its own agent.

    Raises:
        ConfigurationError, CheckpointError: If the options do not fit one another, or the state does not fit the agent.
    """
    try:
        agent = agents.make(config.agent, env, seed=config.seed, **config.agent_keywords())
    except (ValueError, TypeError) as error:
        words = "".join(f" --agent.{name} {value}" for name, value in config.agent_options)
        raise permenv.ConfigurationError(f"--agent {config.agent}{words}: {error}") from error
    if config.policy_from is None:
        return agent
    policy = agent.policy if isinstance(agent, InversePolicy) else agent
    if not isinstance(policy, Reinforce):
        raise permenv.ConfigurationError(
            f"--policy-from {config.policy_from}: {config.agent} has no REINFORCE policy to start from; choose "
            f"--agent reinforce or inverse, or leave it out"
        )
    if given:
        state = _policy_in(config.policy_from)
        with checkpoint.naming(config.policy_from):
            policy.start_from(state)
    if isinstance(agent, InversePolicy):
        agent.policy_learns = False  # what is inverted is the trained policy, as it is
    return agent


def _policy_in(path: Path) -> dict[str, Any]:
    """The state of the REINFORCE policy in a run's checkpoint."""
    state = checkpoint.read(path).get("agent", {})
    if state.get("signature", {}).get("agent") != "Reinforce":
        raise permenv.CheckpointError(f"{path} holds no REINFORCE policy: name {CHECKPOINT} of such a run")
    return state


if __name__ == "__main__":
    run_script(main, Config, __doc__, several_ranks=True)
