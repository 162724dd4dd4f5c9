"""The command line: presets, nested options, and what reaches the environment."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments import leaderboard, reinforce
from experiments.common.options import EnvOptions, parse
from experiments.common.training.options import JobOptions
from experiments.studies import defaults
from permenv import ConfigurationError, make_config
from tests.helpers import ROOT

SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("", "studies", "benchmarks", "paper")
    for path in (ROOT / "experiments" / folder).glob("*.py")
    if "run_script(" in path.read_text()
)


def test_the_defaults_are_those_of_the_chosen_preset_and_task():
    assert parse(EnvOptions, arguments=[]).env == make_config("tiny")
    options = parse(EnvOptions, arguments=["--task", "temporal", "--env.fc6", "64", "--preset=paper"])
    assert options.env == make_config("paper", "temporal", fc6=64)
    assert parse(EnvOptions, arguments=["--task", "temporal"]).env.learning_rate == 0.1


def test_a_script_may_change_the_preset():
    assert parse(leaderboard.Config, arguments=[]).env == make_config("nano")
    assert parse(leaderboard.Config, arguments=["--preset", "tiny"]).env == make_config("tiny")
    assert parse(defaults.Config, arguments=[]).env.total_updates == 12
    assert parse(defaults.Config, arguments=["--env.total-updates", "9"]).env.total_updates == 9


def test_only_what_differs_from_the_preset_is_passed_on():
    assert parse(EnvOptions, arguments=["--env.fc6", "128"]).overrides == {}  # the preset's
    options = parse(EnvOptions, arguments=["--env.num-groups", "7", "--env.no-shared-crop", "--updates", "2"])
    assert options.overrides == {"num_groups": 7, "shared_crop": False, "total_updates": 2}
    env = parse(EnvOptions, arguments=["--env.num-scenes", "150", "--device", "cpu"]).make(num_groups=5)
    assert env.unwrapped.config == make_config("tiny", num_scenes=150, num_groups=5)


def test_data_are_named_without_the_place_where_they_lie(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert EnvOptions().data == "embedded scenes, seed 0"
    assert EnvOptions(images=Path("/mine/imagenette/train")).data == "imagenette/train"
    assert EnvOptions(task="temporal", videos=Path("clips")).data == f"{tmp_path.name}/clips"
    assert EnvOptions(task="spatiotemporal", videos=Path("clips")).data.startswith("embedded scenes, seed 0; ")


def test_values_keep_their_types():
    options = parse(EnvOptions, arguments=["--env.learning-rate-drop", "7", "--env.backbone", "caffenet"])
    assert (options.env.learning_rate_drop, options.env.backbone) == (7, "caffenet")
    assert parse(EnvOptions, arguments=["--env.learning-rate-drop", "None", "--preset", "paper"]).env == make_config(
        "paper", learning_rate_drop=None
    )


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--preset", "nano", "--task", "temporal", "--device", "cpu", "--videos", "clips", "--updates", "4"],
        ["--preset", "paper", "--env.learning-rate-drop", "None", "--env.shared-crop", "--env.backbone", "caffenet"],
        ["--images", "some images", "--env.no-shared-crop", "--env.learning-rate", "0.1", "--env.split", "2"],
    ],
)
def test_options_as_arguments_are_the_same_options(words):
    options = parse(EnvOptions, arguments=words).environment
    assert parse(EnvOptions, arguments=options.arguments).environment == options


def test_updates_is_short_for_total_updates():
    short = parse(JobOptions, arguments=["--updates", "4"])
    assert short.environment == parse(JobOptions, arguments=["--env.total-updates", "4"]).environment


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env.jitter", "2"], "jitter=2.0: must lie in"),
        (["--env.num-grups", "4"], "--env.num-groups"),
        (["--env.num-groups", "many"], "many"),
    ],
)
def test_a_bad_value_is_refused_by_name(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse(EnvOptions, arguments=arguments)
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigurationError, match="unknown preset 'huge'"):
        parse(EnvOptions, arguments=["--preset", "huge"])
    with pytest.raises(ConfigurationError, match="unknown task 'colour'"):
        EnvOptions(task="colour")


def test_help_lists_every_field_with_the_presets_values(capsys):
    with pytest.raises(SystemExit) as done:
        parse(reinforce.Config, arguments=["--help", "--preset", "paper"])
    assert done.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for name in vars(make_config("tiny")):
        assert f"--env.{name.replace('_', '-')}" in said
    assert "(default: 200000)" in said  # the paper's learning_rate_drop


@pytest.mark.ci
@pytest.mark.parametrize(
    "script", ["reinforce", *(pytest.param(name, marks=pytest.mark.ci) for name in ("sb3", "leaderboard"))]
)
def test_help_imports_nothing_slow(script):
    code = (
        "import sys\nfrom experiments.{0} import Config\nfrom experiments.common.options import parse\n"
        "try:\n    parse(Config, arguments=['--help'])\nexcept SystemExit:\n    pass\n"
        "slow = {{'matplotlib', 'sklearn', 'scipy', 'stable_baselines3', 'tensorboard'}}\n"
        "print('slow:', *sorted(slow & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code.format(script)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "slow:"


WITHOUT_A_PRESET = (
    *("main_runs", "benchmarks/store", "benchmarks/history", "experiments/pages"),
    *("evaluate", "extract", "export", "figure_3", "figure_i3", "figures_i1", "paper/all"),
)
"""The runs of the first have presets of their own; the next three have no network; the others take trained ones."""


@pytest.mark.ci
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_help_and_a_preset(script):
    result = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    if not any(name in script for name in WITHOUT_A_PRESET):
        assert "--preset" in result.stdout
