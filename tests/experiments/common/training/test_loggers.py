"""Loggers: each row reaches them once, whether or not the run is killed, and a logger that fails loses nothing."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from experiments import reinforce, sb3
from experiments.common.options import parse
from experiments.common.training import run_folder
from experiments.common.training.loggers import LOGGERS, Callback, Logger
from experiments.common.training.run_folder import CHECKPOINT, RunFolder, read_rows
from permenv import ConfigurationError, checkpoint
from tests.experiments.helpers import job, metrics, small
from tests.ranks import run_ranks

PICTURES = ["dashboard", "error", "choices-spatial", "shuffles-spatial"]


class Recording(Logger):
    """Remembers its calls, and raises in one of them."""

    def __init__(self, fails_in=None):
        self.calls, self._fails_in = [], fails_in

    def _call(self, method, *arguments):
        self.calls.append((method, *arguments))
        if method == self._fails_in:
            raise OSError("the network is down")

    def start(self, run):
        self._call("start", run)

    def log(self, row):
        self._call("log", row)

    def picture(self, name, figure, update):
        self._call("picture", name, figure.get_size_inches().min() > 1, update)

    def close(self, summary):
        self._call("close", summary)

    def of(self, method):
        """The arguments of all calls of a method."""
        return [call[1:] for call in self.calls if call[0] == method]

    @property
    def updates(self):
        return [row["update"] for (row,) in self.of("log")]


class FakeWandb(ModuleType):
    """Keeps runs as the server of Weights & Biases does."""

    def __init__(self):
        super().__init__("wandb")
        self.runs, self.inits, self.finished = {}, [], []

    def Image(self, pixels):
        return pixels.shape

    def init(self, **options):
        self.inits.append(options)
        name = options["id"] or f"id{len(self.runs)}"
        history = self.runs.setdefault(name, {})
        run = SimpleNamespace(id=name, step=max(history, default=-1) + 1, summary={})

        def log(values, step=None, commit=None):
            assert (step is None) == (commit is False)
            run.step = run.step if step is None else step
            history.setdefault(run.step, {}).update(values)

        run.log, run.finish = log, lambda exit_code: self.finished.append((exit_code, run.summary))
        return run


class FakeMlflow(ModuleType):
    """Keeps one run as a server of MLflow does."""

    def __init__(self):
        super().__init__("mlflow")
        self.starts, self.params, self.metrics, self.artifacts, self.ends = [], {}, [], [], []

    def start_run(self, run_id, run_name):
        self.starts.append((run_id, run_name))
        latest = self.metrics[-1][1] if self.metrics else {}
        return SimpleNamespace(info=SimpleNamespace(run_id="abc"), data=SimpleNamespace(metrics=latest))

    def log_params(self, params):
        assert not self.params, "MLflow refuses to change a parameter"
        self.params = params

    def log_metrics(self, values, step):
        self.metrics.append((step, values))

    def log_figure(self, figure, place):
        self.artifacts.append(place)

    def log_dict(self, content, place):
        self.artifacts.append(place)

    def end_run(self, status):
        self.ends.append(status)


def install(patch):
    """Put both fakes in the places of the packages."""
    fakes = FakeWandb(), FakeMlflow()
    for fake in fakes:
        patch.setitem(sys.modules, fake.__name__, fake)
    return fakes


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with every logger: its folder, its summary, a recording logger, the rows of a callback, the fakes."""
    folder, recording, rows = tmp_path_factory.mktemp("loggers") / "run", Recording(), []
    with pytest.MonkeyPatch.context() as patch:
        fakes = install(patch)
        config = job(folder, log=("tensorboard", "wandb", "mlflow", "wandb"))
        summary = reinforce.main(config, loggers=(recording, Callback(rows.append)))
    return SimpleNamespace(
        folder=folder, summary=summary, recording=recording, rows=rows, wandb=fakes[0], mlflow=fakes[1]
    )


# A whole run


def test_a_logger_gets_the_untrained_network_each_update_the_pictures_and_the_summary(finished):
    calls = finished.recording.calls
    assert [call[0] for call in calls] == ["start", *["log"] * 4, *["picture"] * 4, "close"]
    (run,) = finished.recording.of("start")[0]
    assert (run.name, run.folder, list(run.rows)) == ("loggers0/run", finished.folder, [])
    assert json.loads(json.dumps(run.settings)) == run.settings
    assert (run.settings["agent"], run.settings["env.num_permutations"]) == ("reinforce", 24)
    first, *rows = (row for (row,) in finished.recording.of("log"))
    error = finished.summary["tasks"]["spatial"]["error_first"]
    assert first == {"update": 0, "iteration": 0, "error": error, "spatial/error": error}
    assert rows == read_rows(finished.folder)
    assert finished.recording.of("picture") == [(name, True, 3) for name in PICTURES]
    assert finished.recording.of("close") == [(json.loads((finished.folder / "summary.json").read_text()),)]


def test_a_function_is_called_with_each_row(finished):
    assert finished.rows == [row for (row,) in finished.recording.of("log")]


def test_loggers_do_not_change_a_run(finished, tmp_path):
    reinforce.main(job(tmp_path / "run", log=()))
    assert metrics(tmp_path / "run") == metrics(finished.folder)
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_tensorboard_has_all_rows_the_pictures_and_the_hyperparameters_in_one_run(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    (file,) = (finished.folder / "tensorboard").iterdir()
    events = EventAccumulator(str(file)).Reload()
    assert [event.step for event in events.Scalars("error")] == [0, 1, 2, 3]
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert events.Scalars("error")[0].value == pytest.approx(finished.summary["error_first"])
    assert events.Tags()["images"] == [f"pictures/{name}" for name in PICTURES]
    assert [(event.step, event.width) for event in events.Images("pictures/dashboard")] == [(3, 1000)]
    shown = events.PluginTagToContent("hparams")
    session = HParamsPluginData.FromString(shown["_hparams_/session_start_info"]).session_start_info
    assert session.hparams["agent"].string_value == "reinforce"
    assert session.hparams["env.num_permutations"].number_value == 24
    assert "_hparams_/session_end_info" in shown


def test_wandb_has_all_rows_the_pictures_and_the_summary(finished):
    (options,) = finished.wandb.inits
    assert (options["project"], options["name"], options["dir"]) == ("permenv", "loggers0/run", str(finished.folder))
    assert options["config"]["env.num_permutations"] == 24
    (history,) = finished.wandb.runs.values()
    assert [(step, values["error"]) for step, values in history.items()] == [
        (row["update"], row["error"]) for row in finished.rows
    ]
    assert [name for name in history[3] if name.startswith("pictures/")] == [f"pictures/{name}" for name in PICTURES]
    ((code, summary),) = finished.wandb.finished
    assert (code, summary["error_last"]) == (0, finished.summary["error_last"])


def test_mlflow_has_all_rows_the_pictures_and_the_summary(finished):
    mlflow = finished.mlflow
    assert mlflow.starts == [(None, "loggers0/run")]
    assert mlflow.params["env.num_permutations"] == 24
    assert mlflow.metrics == [(row["update"], row) for row in finished.rows]
    assert mlflow.artifacts == [*(f"pictures/{name}.png" for name in PICTURES), "summary.json"]
    assert mlflow.ends == ["FINISHED"]


@pytest.mark.ci
def test_a_job_of_stable_baselines3_and_both_runs_of_a_comparison_are_logged(tmp_path):
    recording = Recording()
    sb3.main(sb3.Config(out=tmp_path / "ppo", env=small(total_updates=1), device="cpu", log=()), loggers=[recording])
    assert recording.updates == [0, 1]
    recording = Recording()
    reinforce.main(job(tmp_path / "both", compare_random=True, updates=1, log=()), loggers=[recording])
    assert recording.updates == [0, 1, 0, 1]
    assert [run.name.split("/")[1] for (run,) in recording.of("start")] == ["both", "random"]


# A run that is killed and resumed


@pytest.mark.parametrize("killed", ["before its checkpoint", "after its checkpoint"])
def test_each_update_is_logged_once_over_kill_and_resume(tmp_path, monkeypatch, finished, killed):
    wandb, mlflow = install(monkeypatch)
    write = checkpoint.write

    def write_and_stop(path, tree):
        stops = len(tree["job"]["rows"]) == 2
        if not stops or killed == "after its checkpoint":
            write(path, tree)
        if stops:
            raise KeyboardInterrupt

    first, second, log = Recording(), Recording(), ("wandb", "mlflow", "tensorboard")
    with monkeypatch.context() as patch:
        patch.setattr(run_folder.checkpoint, "write", write_and_stop)
        with pytest.raises(KeyboardInterrupt):
            reinforce.main(job(tmp_path / "run", log=log), loggers=[first])
    assert first.updates == [0, 1]
    assert (first.of("close"), wandb.finished, mlflow.ends) == ([(None,)], [(1, {})], ["KILLED"])
    reinforce.main(job(tmp_path / "run", log=log, resume=True), loggers=[second])
    (run,) = second.of("start")[0]
    before = [row["update"] for row in run.rows]
    assert [*before, *second.updates] == [0, 1, 2, 3]
    assert before == ([0, 1] if killed == "before its checkpoint" else [0, 1, 2])
    assert second.of("close")[0][0]["updates"] == 3
    assert [init["id"] for init in wandb.inits] == [None, "id0"]
    assert list(wandb.runs["id0"]) == [step for step, _ in mlflow.metrics] == [0, 1, 2, 3]
    assert [values["error"] for _, values in mlflow.metrics] == [row["error"] for row in finished.rows]
    assert mlflow.starts[1] == ("abc", None)


def test_loggers_may_change_on_resume_also_of_a_run_that_is_older_than_they_are(tmp_path):
    place, recording = tmp_path / "run" / CHECKPOINT, Recording()
    reinforce.main(job(tmp_path / "run", updates=1))
    tree = checkpoint.read(place)
    assert tree["job"]["settings"].pop("log") == ["tensorboard"]
    checkpoint.write(place, tree)
    reinforce.main(job(tmp_path / "run", updates=2, log=(), resume=True), loggers=[recording])
    assert [row["update"] for row in recording.calls[0][1].rows] == [0, 1]
    assert recording.updates == [2]


# What goes wrong


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_not_installed_is_named_before_anything_is_written(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)  # the import fails
    with pytest.raises(ConfigurationError, match=f"--log {name}: .*: pip install {name}, or leave {name} out"):
        reinforce.main(job(tmp_path / "run", log=("tensorboard", name)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_service_that_refuses_a_run_is_named_before_anything_is_trained(tmp_path, monkeypatch, name):
    def refuse(**_):
        raise RuntimeError("not logged in.")

    for fake, method in zip(install(monkeypatch), ("init", "start_run"), strict=True):
        monkeypatch.setattr(fake, method, refuse)
    with pytest.raises(ConfigurationError, match=f"--log {name}: RuntimeError: not logged in; .*, or leave {name} out"):
        reinforce.main(job(tmp_path / "run", log=(name,)))
    assert not RunFolder.holds_run(tmp_path / "run")
    reinforce.main(job(tmp_path / "run", log=(), updates=1))  # it begins again
    assert len(metrics(tmp_path / "run")) == 1


@pytest.mark.parametrize("method", ["log", "picture", "close"])
def test_a_logger_that_fails_is_reported_once_and_the_run_goes_on_without_it(tmp_path, monkeypatch, caplog, method):
    monkeypatch.setattr(RunFolder, "picture", lambda folder, name, figure: folder._loggers.picture(name, figure, 3))
    broken, whole = Recording(fails_in=method), Recording()
    reinforce.main(job(tmp_path / "run", log=()), loggers=[broken, whole])
    assert [record.getMessage() for record in caplog.records] == [
        f"Recording.{method} failed, and the run goes on without this logger: OSError: the network is down"
    ]
    assert broken.calls[-1][0] == method
    assert len(broken.of(method)) == 1
    assert (whole.updates, len(whole.of("close")), len(metrics(tmp_path / "run"))) == ([0, 1, 2, 3], 1, 3)


def test_a_logger_that_cannot_start_stops_the_run_and_those_before_it_are_closed(tmp_path):
    first, broken, last = Recording(), Recording(fails_in="start"), Recording()
    with pytest.raises(OSError, match="the network is down"):
        reinforce.main(job(tmp_path / "run"), loggers=[first, broken, last])
    assert [call[0] for call in first.calls] == ["start", "close"]
    assert (len(broken.calls), last.calls) == (1, [])
    assert not RunFolder.holds_run(tmp_path / "run")


def test_a_logger_that_changes_what_it_is_given_does_not_change_the_run(tmp_path, finished):
    clear = Recording()
    clear.start = lambda run: [row.clear() for row in run.rows]
    clear.log = lambda row: row.clear()
    reinforce.main(job(tmp_path / "run", log=(), updates=2), loggers=[clear])
    reinforce.main(job(tmp_path / "run", log=(), resume=True), loggers=[clear])
    assert metrics(tmp_path / "run") == metrics(finished.folder)


# Options


def test_a_logger_is_an_option(capsys):
    assert parse(reinforce.Config, arguments=[]).log == ("tensorboard",)
    assert parse(reinforce.Config, arguments=["--log", *LOGGERS]).log == tuple(LOGGERS)
    assert parse(reinforce.Config, arguments=["--log"]).log == ()
    with pytest.raises(SystemExit):
        parse(reinforce.Config, arguments=["--log", "comet"])
    assert "comet" in capsys.readouterr().err


# Several ranks


def logged_updates(out):
    """Train in a rank; return the updates that its logger was given."""
    recording = Recording()
    reinforce.main(job(out, env={"total_updates": 1}, log=()), loggers=[recording])
    return recording.updates


@pytest.mark.ci
def test_one_rank_logs(tmp_path):
    assert run_ranks(2, logged_updates, tmp_path / "run") == [[0, 1], []]
