"""The protocols from the command line: all of them on trees like the releases, sources, tables, resuming, errors."""

import csv
import dataclasses
import json

import pytest

from experiments import evaluate, reinforce
from experiments.common.evaluation import protocols
from experiments.common.evaluation.evaluations import as_table
from experiments.common.evaluation.paper_numbers import PAPER
from experiments.common.evaluation.protocols import PROTOCOLS, Data
from experiments.common.evaluation.sources import find_sources
from experiments.common.sweeps.sweep import JobError
from permenv import CheckpointError, ConfigurationError, DataError
from tests.experiments import releases
from tests.experiments.helpers import job

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def options(tmp_path):
    """Return a function that makes options of a short evaluation."""

    def make(*sources, **changes):
        files = {"runs": tmp_path / "runs", "out": tmp_path / "evaluation"}
        short = {"share": 0.004, "device": "cpu", "backbone": "two-convolutions"}
        data = Data(**{field.name: changes.pop(field.name, None) for field in dataclasses.fields(Data)})
        return evaluate.Config(sources=sources, data=data, **{**short, **files, **changes})

    return make


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    train, val = releases.imagenet(tmp_path_factory.mktemp("imagenet"))
    return {"images": train, "eval_images": val}


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    train, val = releases.imagenet(tmp_path_factory.mktemp("noise"), contrast=0)
    return {"images": train, "eval_images": val}


@pytest.mark.ci
def test_every_protocol_runs_on_trees_like_the_original_releases(options, images, tmp_path, capsys):
    data = {**images, "voc": releases.voc(tmp_path), "videos": releases.ucf(tmp_path)}
    report = evaluate.main(options("random", **data))
    assert [row["protocol"] for row in report["rows"]] == list(PROTOCOLS)
    for row in report["rows"]:
        (figures,) = row["figures"]
        for networks in PAPER.get(row["protocol"], {}).values():
            assert all(paper.keys() <= figures.keys() for paper in networks.values()), "a column of its own"
    assert "| *S+T+P in the paper (VOC 2007)* | 54.3 |" in capsys.readouterr().out
    found = {row["protocol"]: row["figures"][0] for row in report["rows"]}
    assert list(found["actions"])[:2] == ["accuracy", "mean over classes"]
    assert list(found["classification"]) == ["mAP, 11 points", "mAP, all points", "mAP, scikit-learn"]
    # two classes that are told apart easily: a guess is right in a half of the cases
    for name in ("retrieval-images", "retrieval-objects", "retrieval-videos", "linear"):
        assert min(found[name].values()) > 0.9, name
    assert found["nonlinear"]["pool5"] > 0.75
    # after one or two iterations: at least as good as one answer to everything
    assert found["actions"]["accuracy"] >= 0.5
    assert found["classification"]["mAP, 11 points"] > 0.6
    assert found["segmentation"]["mean IoU"] > 0.113


@pytest.mark.parametrize("name", ["linear", "nonlinear", "actions", "classification", "detection", "segmentation"])
def test_the_paper_s_network_with_labels_is_ahead_of_all_others(name):
    """Tables 2 to 4 have a row of a network that was trained on the labels of ImageNet; Table 1 has none."""
    for networks in PAPER[name].values():  # Table 3 is of two sets of data
        figures = {network: metrics[PROTOCOLS[name].metric] for network, metrics in networks.items()}
        assert figures.pop("ImageNet labels") > max(figures.values())


@pytest.mark.ci
def test_other_masks_and_released_proposals_are_used(options, tmp_path, monkeypatch):
    release, masks = releases.voc(tmp_path, each=6), releases.voc(tmp_path / "masks", year=2012, each=2)
    folders = {"voc": release, "proposals": releases.proposals(tmp_path / "proposals", release)}
    used = {}
    for name in ("detection", "segmentation"):
        protocol = getattr(protocols, name)

        def record(trunk, train, test, *arguments, name=name, protocol=protocol, **keywords):
            used[name] = train, test
            return protocol(trunk, train, test, *arguments, **keywords)

        monkeypatch.setattr(protocols, name, record)
    read = []

    def voc_images(root, part, *kind):
        read.append((part, *kind))
        return images_of(root, part, *kind)

    images_of = protocols.voc_images
    monkeypatch.setattr(protocols, "voc_images", voc_images)
    report = evaluate.main(
        options("random", **folders, voc_segmentation=masks, protocols=("detection", "segmentation"), share=0.002)
    )
    figures = {row["protocol"]: row["figures"][0] for row in report["rows"]}
    assert all(len(found) == 5 for part in used["detection"] for found in part.proposals)
    assert used["detection"][0].proposals[0][0].tolist() == [10, 10, 129, 119], "x before y, counted from 0"
    assert read[:3] == [("trainval",), ("test",), ("trainval",)], "the last one for the batch statistics"
    assert read[3:] == [("train", "Segmentation"), ("val", "Segmentation")]
    assert [len(part.images) for part in used["segmentation"]] == [2, 2], "train and val of the other release"
    # one proposal is the box of the object, whose class is one of two
    assert figures["detection"]["mAP, all points"] > 0.2
    assert figures["segmentation"].keys() == {"mean IoU"}


def test_a_table_says_what_our_rows_are_of_and_what_the_papers(tmp_path):
    release = releases.voc(tmp_path / "here", each=1)
    rows = [{"source": "mine", "setting": "small", "figures": [{"mean IoU": 0.25}], "seconds": [1.0]}]
    table = as_table("segmentation", rows, Data(voc=release), 0.5).splitlines()
    assert table[0] == (
        "**segmentation**: segmentation by FCN-32s (Table 4 iii) on here/VOCdevkit/VOC2007, trainval and test; "
        "setting small, 50.0% of its iterations; percent"
    )
    assert table[-1] == "| *S+T+P in the paper (VOC 2012)* | 42.8 | |"
    others = release.rename(release.with_name("VOC2012"))
    title = as_table("segmentation", rows, Data(voc_segmentation=others.parent), 1.0).splitlines()[0]
    assert title.endswith("on here/VOCdevkit/VOC2012, train and val; setting small; percent")
    rows = [{**rows[0], "source": name, "setting": name, "figures": [{"mAP, 11 points": 0.5}]} for name in "ab"]
    table = as_table("detection", rows, Data(voc=others), 1.0).splitlines()
    assert table[0].endswith("VOC2012, trainval and test, windows made from edges; settings: a a, b b; percent")
    assert table[-1] == "| *S+T+P in the paper (VOC 2007, selective search)* | 52.8 | |"
    title = as_table("detection", rows, Data(voc=others, proposals=tmp_path / "matlab"), 1.0).splitlines()[0]
    assert f"trainval and test, proposals of {tmp_path.name}/matlab;" in title


@pytest.mark.parametrize("name", ["voc", "voc_segmentation"])
def test_segmentation_needs_either_folder(name, tmp_path):
    assert PROTOCOLS["segmentation"].allowed_by(Data(**{name: tmp_path}))
    assert PROTOCOLS["classification"].allowed_by(Data(**{name: tmp_path})) == (name == "voc")


def test_a_run_is_compared_with_random_weights(options, noise, tmp_path, capsys):
    reinforce.main(job(tmp_path / "mine", updates=1))
    config = options(str(tmp_path / "mine"), "random", **noise, protocols=("retrieval-images",), seeds=2, backbone=None)
    report = evaluate.main(config)
    assert [row["source"] for row in report["rows"]] == ["mine", "random"]
    mine, random = (row["figures"] for row in report["rows"])
    assert mine[0] == mine[1], "nothing is trained"
    assert random[0] != random[1], "other weights"
    assert json.loads((tmp_path / "evaluation.json").read_text())["rows"] == report["rows"]
    with (tmp_path / "evaluation.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {(line["source"], line["figure"]) for line in lines} >= {("mine", "top 1"), ("random", "top 50")}
    table = (tmp_path / "evaluation.md").read_text()
    assert "| mine |" in table
    shown = capsys.readouterr().out
    assert "mine: quarter-caffenet from" in shown
    assert "random: quarter-caffenet from random weights" in shown, "of the run's backbone"


def test_an_evaluation_that_diverges_is_marked_and_the_others_go_on(options, images, monkeypatch, tmp_path, capsys):
    calls = []

    def diverge(job):
        calls.append(job.seed)
        if job.seed == 1:
            raise FloatingPointError("linear: the loss is nan in iteration 3")
        return {"pool5": 0.5}

    monkeypatch.setitem(PROTOCOLS, "linear", dataclasses.replace(PROTOCOLS["linear"], run=diverge))
    config = options("random", **images, protocols=("linear", "retrieval-images"), seeds=2)
    for _ in range(2):  # what diverged is kept as any other result
        with pytest.raises(SystemExit, match="1"):
            evaluate.main(config)
        said = capsys.readouterr()
        assert said.err.splitlines()[-1] == "diverged: linear of random: linear: the loss is nan in iteration 3"
        assert "| random | 1 of 2 diverged |" in said.out
        assert calls == [0, 1]
    linear, retrieval = json.loads((tmp_path / "evaluation.json").read_text())["rows"]
    assert linear["figures"] == [{"pool5": 0.5}, {}]
    assert "top 1" in retrieval["figures"][0]
    assert (tmp_path / "evaluation.md").read_text() in said.out
    with (tmp_path / "evaluation.csv").open() as file:
        values = {line["figure"]: line["value"] for line in csv.DictReader(file)}
    assert values["pool5"] == ""
    assert 0 < float(values["top 5"]) <= 1
    evaluate_again = options("random", **images, protocols=("linear",), first_seed=1)
    with pytest.raises(SystemExit, match="1"):
        evaluate.main(evaluate_again)
    assert "| random | diverged |" in capsys.readouterr().out


def test_features_that_are_not_finite_have_no_figure(options, images, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(protocols, "retrieval", lambda *_, **__: None)
    for _ in range(2):  # the second time from the file
        report = evaluate.main(options("random", **images, protocols=("retrieval-images",)))
        assert report["rows"][0]["figures"] == [{f"top {k}": None for k in (1, 5, 10, 20, 50)}]
        assert "| random | not finite |" in capsys.readouterr().out
    with (tmp_path / "evaluation.csv").open() as file:
        assert [line["value"] for line in csv.DictReader(file)] == [""] * 5


def test_it_continues_where_it_was_stopped_and_repeats_a_source_that_has_changed(options, images, tmp_path):
    reinforce.main(job(tmp_path / "mine", updates=1))
    config = options(str(tmp_path / "mine"), "random", **images, protocols=("retrieval-images",))
    first = evaluate.main(config)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    missing = tmp_path / "runs" / "random-retrieval-images-seed0.json"
    missing.unlink()
    again = evaluate.main(config)
    assert [row["figures"] for row in again["rows"]] == [row["figures"] for row in first["rows"]]
    assert [path for path, time in files.items() if path.stat().st_mtime_ns != time] == [missing]


def test_a_run_that_trains_on_is_not_evaluated_as_what_it_was(tmp_path):
    reinforce.main(job(tmp_path / "mine", updates=1))
    (source,) = find_sources((str(tmp_path / "mine"),), None)
    source.load(0)
    reinforce.main(job(tmp_path / "mine", updates=2, resume=True))
    with pytest.raises(CheckpointError, match=r"mine/checkpoint\.safetensors has changed meanwhile.*: copy it"):
        source.load(0)


def test_the_statistics_of_untrained_trunks_are_measured_unless_told_otherwise(options, noise, tmp_path):
    found = [
        evaluate.main(
            options("random", **noise, protocols=("retrieval-images",), statistics=each, runs=tmp_path / each)
        )["rows"][0]["figures"]
        for each in ("auto", "measured", "own")
    ]
    assert found[0] == found[1] != found[2]


def test_batch_statistics_are_of_no_clip_that_is_tested(options, tmp_path, monkeypatch):
    measured = []

    def some_of(clips, among):
        measured.append({clips.names[clip].split("_")[2] for clip in among})
        return original(clips, among)

    original = protocols.some_of
    monkeypatch.setattr(protocols, "some_of", some_of)
    evaluate.main(options("random", videos=releases.ucf(tmp_path), protocols=("actions",)))
    assert measured == [{"g02", "g03"}, {"g01", "g03"}, {"g01", "g02"}], "each split tests one group"


@pytest.mark.parametrize(
    ("sources", "changes", "message"),
    [
        ((), {}, "there is nothing to evaluate"),
        (("random",), {}, "no data are given"),
        (("random",), {"protocols": ("table 9",)}, "--protocols 'table 9': choose from retrieval-images"),
        (("random",), {"protocols": ("actions",)}, "protocol 'actions' needs --videos"),
        (("random",), {"protocols": ("segmentation",)}, "protocol 'segmentation' needs --voc or --voc-segmentation"),
        (("random", "random"), {"images": ".", "eval_images": "."}, "several sources are called 'random'"),
    ],
)
def test_impossible_evaluations_are_refused(options, sources, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        evaluate.main(options(*sources, **changes))


@pytest.mark.parametrize(
    ("option", "protocol"),
    [("eval_images", "linear"), ("voc_segmentation", "segmentation"), ("proposals", "detection")],
)
@pytest.mark.parametrize("chosen", [True, False], ids=["by name", "by default"])
def test_a_folder_that_is_missing_is_refused_before_anything_runs(options, images, tmp_path, option, protocol, chosen):
    data = {**images, "voc": tmp_path, option: tmp_path / "nowhere"}
    config = options("random", **data, protocols=(protocol,) if chosen else ())
    with pytest.raises(DataError, match=f"no folder .*nowhere; name it with --{option.replace('_', '-')}"):
        evaluate.main(config)
    assert not (tmp_path / "runs").exists()


def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ConfigurationError, match=r"--share 1\.5: must be above 0 and at most 1"):
        options("random", share=1.5)
    with pytest.raises(ConfigurationError, match="--seeds 0"):
        options("random", seeds=0)


def test_a_source_that_is_missing_is_named(options, images, tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors cannot be read"):
        evaluate.main(options(str(tmp_path / "nothing.safetensors"), **images))


def test_a_protocol_that_does_not_allow_a_trunk_is_named(options, images, monkeypatch):
    def refuse(_):
        raise ValueError("a layer Tanh in the trunk")

    monkeypatch.setitem(PROTOCOLS, "linear", dataclasses.replace(PROTOCOLS["linear"], run=refuse))
    with pytest.raises(JobError, match="protocol 'linear' of random: a layer Tanh in the trunk"):
        evaluate.main(options("random", **images, protocols=("linear",)))
