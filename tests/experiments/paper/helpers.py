"""What the tests of the figures share: small options, and a policy learned across runs."""

from experiments import across_runs
from tests.experiments.helpers import small


def options(kind, tmp_path, **changes):
    """Return small options of a figure, whose jobs run one after the other in this process; `env` are numbers."""
    task = kind.__dataclass_fields__["task"].default
    env = small(task, **{"free_iterations": 0, **changes.pop("env", {})})
    files = {"runs": tmp_path / "runs", "out": tmp_path / "figure.json"}
    return kind(**{"seeds": 2, "processes": 0, "env": env, **files, **changes})


def learned_policy(folder, **env):
    """Learn a policy from two short runs, and return its folder."""
    across_runs.main(
        across_runs.Config(
            env=small(free_iterations=0, **env), episodes=2, episodes_per_update=2, processes=0, out=folder
        )
    )
    return folder
