"""The figures of the pages are those of the files that they are from: a number that is out of date fails."""

import json
import re

import numpy as np
import pytest

from experiments import pages
from experiments.common.reports.statistics import Estimate
from permenv import DataError
from tests.helpers import ROOT

LONG, SHORT, PHOTOS = "learned", "learned-2400", "learned-imagenette"
OTHER_RATES = ("random-2400-rate-0.03", "random-2400-rate-0.04")
RANDOM, LEARNED, INVERSE = "random", "pool-policy", "inverse of pool-policy"
CURRICULUM = {LONG: "easiest-first (0.1, 0.5)", SHORT: "easiest-first (0.1, 0.75)", PHOTOS: "easiest-first (0.1, 0.5)"}


def result(name):
    return json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def row_of(file, agent):
    (row,) = (row for row in result(file)["agents"] if row["agent"] == agent)
    return row


def accuracy(file, agent, share):
    """The mean accuracy after half of the run's validations, or after all of them."""
    errors = np.array(row_of(file, agent)["errors"])
    return f"{1 - np.interp(share, np.linspace(0, 1, errors.shape[1]), errors.mean(axis=0)):.1%}"


def ratio(file, agent, column):
    return f"{Estimate.of_columns(row_of(file, agent), column):.0%}"


def against_the_curriculum(file, column, form=".0%"):
    return f"{Estimate.of_columns(result(file)['against_the_curriculum'][LEARNED], column):{form}}"


def gain(protocol, source="jigsaw"):
    """In points, above an untrained network of the same seed."""
    (row,) = (row for row in result("features")["gains"] if (row["protocol"], row["source"]) == (protocol, source))
    return f"{Estimate(*(100 * end for end in Estimate.of_columns(row, 'gain'))):+.1f}"


def above_untrained(network):
    """In points, at the end of the training of Table 5."""
    return f"{Estimate(*(100 * end for end in result('table-5-figure-5')['above_untrained'][network])):+.1f}"


def of_random(setting, moment):
    """The ratio of accuracies in a setting of the map of headroom."""
    (row,) = (row for row in result("headroom")["cells"] if row["cell"] == setting)
    return f"{Estimate.of_columns(row, f'at_{moment}'):.0%}"


def over_all_checkpoints(file, kind):
    """The mean and deviation of Table F.1 after an epoch."""
    row = result(file)["table"]["epoch"][kind]
    return f"({100 * row['mean']:.0f} ± {100 * row['sd']:.0f})%"


def relative_accuracies():
    """Of REINFORCE in the main job, by seed, and their mean and deviation."""
    found = [100 * result(f"compare-seed{seed}")["relative_accuracy"] for seed in range(3)]
    return [f"{each:.1f}%" for each in (*found, np.mean(found), np.std(found, ddof=1))]


def block_of_the_table(file, chance):
    """The rows of docs/results.md; columns are random permutations, the learned policy, the curriculum, the inverse."""
    agents = (RANDOM, LEARNED, CURRICULUM[file], INVERSE)
    rows = []
    for share, column, title in ((0.5, "at_half", f"accuracy at half{chance}"), (1.0, "at_end", "accuracy at the end")):
        rows.append([title, *(accuracy(file, agent, share) for agent in agents)])
        rows.append(["of random's", "", *(ratio(file, agent, column) for agent in agents[1:])])
    for column, title in (("needs", "iterations to random's final error"), ("time", "time to it, with validations")):
        rows.append([title, "100%", *(ratio(file, agent, column) for agent in agents[1:])])
    return " ".join("| " + " | ".join(cells) + " |" for cells in rows).replace("|  |", "| |")


def quotations():
    """Pages, fragments of their sentences, and the figures in them."""
    learned, curriculum = (ratio(SHORT, agent, "needs") for agent in (LEARNED, CURRICULUM[SHORT]))
    yield "README.md", "after {} of their iterations", [learned]
    yield "README.md", "so that is {} of their time", [ratio(SHORT, LEARNED, "time").split()[0]]
    yield "README.md", "fixed curricula needs {}", [curriculum]
    needed = [ratio(LONG, agent, "needs") for agent in (LEARNED, CURRICULUM[LONG])]
    yield "README.md", "own 3,000 iterations the policy needs {} and the curriculum {}.", needed
    of_the_run = [accuracy(SHORT, agent, share) for share in (0.5, 1.0) for agent in (LEARNED, RANDOM)]
    yield "README.md", "{} accuracy against {} at half and {} against {} at the end", of_the_run
    ratios = [ratio(PHOTOS, a, at).split()[0] for a in (LEARNED, CURRICULUM[PHOTOS]) for at in ("at_half", "at_end")]
    yield "README.md", "{} of random's accuracy at half and {} at the end, the curriculum {} and {}", ratios
    errors = [f"{result(f'compare-seed{seed}')['error_last']:.3f}" for seed in range(3)]
    yield "README.md", "{} after 1500 iterations", errors[:1]
    yield "README.md", "seeds 1 and 2 end at {} and {}", errors[1:]
    (lookahead,) = (row for row in result("leaderboard")["agents"] if row["agent"] == "lookahead")
    times = f"{1 / (1 - lookahead['cost']):.1f}"
    yield "docs/results.md", "A run takes {} times as long as its training alone", [times]
    yield "docs/tutorials/forks.md", "in runs that take {} times as long", [times]
    yield "README.md", "by {} points of nearest-neighbour Top-1", [above_untrained("S").replace("+", "")]
    yield "docs/results.md", "Top-1 of photos is {} points above", [above_untrained("S")]
    yield "docs/results.md", "at the end of that on frames {}.", [above_untrained("T")]
    for share, moment in ((0.5, "half"), (1.0, "end")):
        rates = [accuracy(file, RANDOM, share) for file in (SHORT, *OTHER_RATES)]
        row = f"| {moment} of 2,400 iterations, seeds 900 to 919 | | | {{}} | {{}} | {{}} |"
        yield "experiments/results/README.md", row, rates
    yield (
        "docs/results.md",
        "**2,400 iterations**, seeds 900 to 919 | | | over 0.75 | | {}",
        [block_of_the_table(SHORT, " (chance 0.2%)")],
    )
    yield (
        "docs/results.md",
        "**3,000 iterations**, seeds 100 to 119 | | | over 0.5 | | {}",
        [block_of_the_table(LONG, "")],
    )
    photos = "1,900 iterations, seeds 100 to 104 | | | over 0.5 | | {}"
    yield "docs/results.md", photos, [block_of_the_table(PHOTOS, " (chance 0.1%)")]
    yield "docs/results.md", "was {}, {} and {}: {} ± {} (mean", relative_accuracies()
    yield (
        "docs/results.md",
        "the gain is largest: {} of random's accuracy at the end",
        [of_random("1000 permutations", "end")],
    )
    yield "docs/results.md", "the preset's number, {} at the end is within noise", [of_random("nano", "end")]
    yield "docs/results.md", "costs accuracy: {} after 30 updates", [of_random("after 30 updates", "end")]
    yield (
        "docs/results.md",
        "has {} of random permutations' accuracy at half",
        [ratio("leaderboard", "lookahead", "at_half")],
    )
    of_reinforce = [ratio("leaderboard", agent, "at_half") for agent in ("reinforce", "reinforce, cross-entropy")]
    yield "experiments/results/README.md", "neither is ahead at half: {} and {}.", of_reinforce
    of_the_paper = [over_all_checkpoints("table-f1", kind) for kind in ("policy", "inverse")]
    yield "experiments/paper/README.md", "| {} with the policy, {} with its inverse: no gain |", of_the_paper
    learned = [over_all_checkpoints("table-f1-learned", kind) for kind in ("policy", "inverse")]
    yield "experiments/paper/README.md", "so {} and {}, the paper's figures of these 25 ratios", learned
    correlations = [
        f"{Estimate(*result('figure-6')['networks'][network]['correlation']):+.2f}" for network in ("S+T+P", "S+T")
    ]
    chosen = "errors at the end is {}, and with random permutations, whose shares differ by chance, {}."
    yield "experiments/paper/README.md", chosen, correlations
    more = [f"{Estimate(*(100 * end for end in each)):+.1f}" for each in result("figure-d1")["more"]["20"]]
    yield "experiments/paper/README.md", "20 groups have {}, {} and {} points more", more
    cost = [f"{result('figure-h1')['counted_cost'][way]:.2%}" for way in ("naive", "exact")]
    yield "experiments/paper/README.md", "is {} at the paper's sizes with naive validation, and {} where", cost
    both = [against_the_curriculum(SHORT, column) for column in ("at_half", "at_end")]
    yield "docs/results.md", "saves {} of 2,400", [against_the_curriculum(SHORT, "saved", ".1%")]
    yield "docs/results.md", "at half and at the end: {} and {} of its accuracy", both
    both = [against_the_curriculum(LONG, column) for column in ("at_half", "at_end")]
    yield "docs/results.md", "it is behind: {}, {} and {}", [against_the_curriculum(LONG, "saved", ".1%"), *both]
    yield "docs/results.md", "{} with a non-linear classifier", [gain("nonlinear")]
    yield "docs/results.md", "{} with a linear one and {}", [gain("linear"), gain("retrieval-images")]
    yield (
        "docs/results.md",
        "{} in nearest neighbours, {}",
        [gain(each, "temporal") for each in ("retrieval-images", "linear")],
    )
    labels = [gain(each, "supervised") for each in ("retrieval-images", "linear")]
    yield "docs/results.md", "{} in nearest neighbours and {}", labels
    labels = [gain(each, "supervised") for each in ("segmentation", "classification", "actions")]
    yield "docs/results.md", "{} in segmentation, {} in classification, and {} in action recognition", labels
    of_voc = [gain(each) for each in ("classification", "detection", "segmentation")]
    yield "experiments/paper/README.md", "the paper's sign in all three, {}, {} and {} points", of_voc
    yield (
        "docs/results.md",
        "11.1 points worse on objects, {}",
        [gain("retrieval-objects", "joint").split(" ", 1)[1].replace("+", "")],
    )


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_tables_of_a_page_are_what_the_commands_print_of_the_files(page):
    text = page.read_text(encoding="utf-8")
    assert pages.with_tables(text) == text, "python experiments/pages.py writes them anew"


def test_every_table_that_can_be_written_anew_is_in_a_page():
    text = "".join(page.read_text(encoding="utf-8") for page in pages.PAGES)
    assert [name for name in pages.IN_WORDS if f"<!-- {name}.json" not in text] == []


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_comment_of_a_page_marks_a_table(page):
    comments = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("<!--")]
    assert comments
    assert [line for line in comments if not re.fullmatch(r"<!-- [\w.-]+\.json( [1-9])? -->", line)] == []


def test_a_marked_table_is_replaced_and_nothing_else():
    old = "before\n\n<!-- noise.json -->\n| old |\n|---|\n\n| by hand |\n|---|\n"
    (table,) = pages.tables_of("noise")
    new = pages.with_tables(old)
    assert new == f"before\n\n<!-- noise.json -->\n{table}\n| by hand |\n|---|\n"
    assert pages.with_tables(new) == new


@pytest.mark.parametrize("marker", ["unknown.json", "noise.json 2", "noise.json 0"])
def test_a_marker_without_a_table_is_refused(marker):
    with pytest.raises(DataError, match="json"):
        pages.with_tables(f"<!-- {marker} -->\n")


@pytest.mark.parametrize(("page", "fragment", "figures"), [pytest.param(*each, id=each[1]) for each in quotations()])
def test_a_page_quotes_what_the_file_holds(page, fragment, figures):
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert fragment.format(*figures) in text
