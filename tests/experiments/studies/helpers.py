"""What the tests of the studies share: options so small that a study takes a second."""

from tests.experiments.helpers import small


def options(kind, tmp_path, **changes):
    """Return small options of a study, whose jobs run one after the other in this process.

    Args:
        kind: The study's `Config`.
        tmp_path: Where its report is written.
        **changes: Other values; `env` are fields of `permenv.Config`.
    """
    task = kind.__dataclass_fields__["task"].default
    env = small(task, **{"free_iterations": 0, "total_updates": 2, **changes.pop("env", {})})
    return kind(**{"seeds": 2, "processes": 0, "out": tmp_path / "report.json", "env": env, **changes})
