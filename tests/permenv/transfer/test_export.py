"""An exported trunk: read without permenv, read again with it, the card, nothing overwritten."""

import dataclasses
import json
import subprocess
import sys

import pytest
import safetensors
import torch
from torch import nn

from permenv import checkpoint
from permenv.checkpoint import CheckpointError
from permenv.config import ConfigurationError
from permenv.networks import BACKBONES
from permenv.transfer.export import export_trunk, loader, model_card, read_card
from permenv.transfer.plain import network_input
from permenv.transfer.trunks import load_trunk
from tests.helpers import every_task, small_backbone, small_run

WITHOUT_PERMENV = """
import sys
sys.modules["permenv"] = None  # importing it fails
try:
    import permenv
    raise SystemExit("permenv was imported")
except ImportError:
    pass
import torch
torch.set_num_threads(1)
images = torch.load("images.pt", weights_only=True)
{code}
with torch.no_grad():
    outputs = trunk(images["normalised"].contiguous(memory_format=torch.channels_last))
{more}
torch.save({{"trunk": outputs, "features": features.detach()}}, "outputs.pt")
"""


def trained(backbone, seed=0):
    """A trunk whose batch normalisation is not what it was at first."""
    trunk = load_trunk("random", backbone=backbone, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for layer in trunk.module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.weight.data, layer.running_var):
                values.uniform_(0.5, 2, generator=generator)
            for values in (layer.bias.data, layer.running_mean):
                values.normal_(std=0.2, generator=generator)
    return trunk


def code_of(card):
    """The code blocks of a card."""
    return [block.split("```")[0] for block in card.split("```python\n")[1:]]


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


@pytest.mark.parametrize("backbone", [pytest.param("caffenet", marks=pytest.mark.ci), "quarter-caffenet"])
def test_the_code_of_the_card_needs_nothing_of_permenv_and_returns_the_same_bits(backbone, tmp_path):
    trunk = trained(backbone)
    side = trunk.input_size
    _, card = export_trunk(trunk, tmp_path / "the trunk.safetensors")
    code, more = code_of(card.read_text(encoding="utf-8"))
    assert "permenv" not in code + more
    assert len(code.split("trunk = ")[1].splitlines()) <= 10
    pixels = torch.randint(0, 256, (3, side, side, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    normalised = network_input(pixels, torch.device("cpu"))
    torch.save({"normalised": normalised, "raw": pixels.permute(0, 3, 1, 2) / 255}, tmp_path / "images.pt")
    script = WITHOUT_PERMENV.format(code=code, more='images = images["raw"]\n' + more)
    command = [sys.executable, "-W", "error", "-c", script]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = torch.load(tmp_path / "outputs.pt", weights_only=True)
    with torch.no_grad():
        expected = trunk.maps(normalised, ["pool5"])["pool5"]
    assert torch.equal(found["trunk"], expected)
    assert (found["features"] - expected).norm() < 1e-4 * expected.norm()  # normalised by other operations


@pytest.mark.parametrize("backbone", BACKBONES)
def test_an_exported_trunk_is_loaded_again(backbone, tmp_path):
    trunk = trained(backbone)
    path, _ = export_trunk(trunk, tmp_path / "new" / "file.safetensors")
    again = load_trunk(path)
    assert (again.name, again.input_size, again.layers) == (trunk.name, trunk.input_size, trunk.layers)
    assert same(again.module.state_dict(), trunk.module.state_dict())
    images = torch.randn(2, 3, trunk.input_size, trunk.input_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layers = list(trunk.layers)
        assert same(again.maps(images, layers), trunk.maps(images, layers))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_loader_makes_the_layers_of_the_trunk(backbone):
    trunk = load_trunk("random", backbone=backbone)
    code = loader(trunk, "file").split("trunk.load_state_dict")[0]
    names = {}
    exec(code, names)
    assert repr([*names["trunk"]]).replace("ReLU()", "ReLU(inplace=True)") == repr([*trunk.module])


def test_layers_without_batch_normalisation_are_made_as_well():
    layers = [nn.Conv2d(3, 4, (3, 5), bias=False, dilation=2), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, eps=1)]
    module = nn.Sequential(*layers, nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True))
    code = loader(dataclasses.replace(load_trunk("random", backbone="two-convolutions"), module=module), "file")
    names = {}
    exec(code.split("trunk.load_state_dict")[0], names)
    assert repr(names["trunk"]).replace("ReLU()", "ReLU(inplace=True)") == repr(module).replace(
        "ReLU()", "ReLU(inplace=True)"
    )


def test_metadata_say_how_to_use_the_file(tmp_path):
    path, _ = export_trunk(load_trunk("random"), tmp_path / "file.safetensors")
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["permenv"]
    del metadata["permenv"]
    assert metadata == {
        "format": "pt",
        "backbone": "caffenet",
        "input_size": "227",
        "stride": "4",
        "normalisation": "per image and channel: mean 0, deviation 1 (at least 1/255), of values in [0, 1]",
        "source": "random weights, seed 0",
    }


# The card


@every_task
def test_a_card_is_written_from_the_run(task, tmp_path):
    run = small_run(task, seed=7, backbone="two-convolutions")
    run.iterate()
    run.validate()
    run.iterate()
    run.save(tmp_path / "private folder" / "run.safetensors")
    card = read_card(tmp_path / "private folder" / "run.safetensors", dict.fromkeys(run.tasks, "some pictures"))
    assert card.errors == run.records[-1].errors
    assert (card.iterations, card.validated_at, card.seed, card.diverged) == (2, 1, 7, False)
    assert card.settings == json.loads(json.dumps(run.identity))
    trunk = load_trunk(tmp_path / "private folder" / "run.safetensors")
    text = model_card(trunk, "mine.safetensors", card)
    assert "private folder" not in text
    assert text.startswith("# mine\n")
    tasks = list(run.tasks)
    for words in (
        f"| task | {' and '.join(tasks)} |",
        f"| data | {'; '.join(f'{name}: some pictures' for name in tasks)} |",
        "| training | 2 iterations of SGD on batches of 8 |",
        "| seed | 7 |",
        "| weights | their moving average, of decay 0.97 |",
        "in iteration 1: share of 24 permutations of 12 held-out samples that are not recognised |",
        *(f"{name} {run.records[-1].errors[name]:.3f}" for name in tasks),
        '"num_permutations": 24',
    ):
        assert words in text


def test_a_card_names_what_is_not_stated_and_what_went_wrong(tmp_path):
    run = small_run(backbone="two-convolutions")
    run.save(tmp_path / "run.safetensors")
    card = read_card(tmp_path / "run.safetensors")
    trunk = load_trunk(tmp_path / "run.safetensors")
    text = model_card(trunk, "file.safetensors", dataclasses.replace(card, diverged=True))
    assert "| data | spatial: not stated |" in text
    assert "these are its initial weights" in text
    assert "The run diverged" in text
    unvalidated = model_card(trunk, "file.safetensors", dataclasses.replace(card, errors={}))
    assert "| validation error |" not in unvalidated


def test_names_cannot_break_the_table(tmp_path):
    run = small_run(backbone="two-convolutions")
    run.save(tmp_path / "run.safetensors")
    card = read_card(tmp_path / "run.safetensors", {"spatial": "a|b\n# c"})
    assert "| spatial: a\\|b\\n# c |" in model_card(load_trunk(tmp_path / "run.safetensors"), "f.safetensors", card)


def test_what_is_no_run_has_no_card(tmp_path):
    checkpoint.write(tmp_path / "file", {"run": {"identity": {}, "trainer": {}}})
    with pytest.raises(CheckpointError, match="does not say how its trunk was trained"):
        read_card(tmp_path / "file")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_card(tmp_path / "nowhere")


# Files


def test_the_card_of_random_weights_does_not_say_that_they_were_trained():
    card = model_card(load_trunk("random"), "file.safetensors")
    assert "- The weights are random: nothing was learned.\n- conv1 has stride 4 here" in card
    assert "it was trained" not in card


def test_nothing_is_overwritten(tmp_path):
    trunk = load_trunk("random", backbone="two-convolutions")
    export_trunk(trunk, tmp_path / "file.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.md", "file.safetensors"]
    before = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    with pytest.raises(ConfigurationError, match=r"file\.safetensors exists already: move it away, or choose another"):
        export_trunk(trunk, tmp_path / "file.safetensors")
    (tmp_path / "file.safetensors").rename(tmp_path / "moved")
    other = load_trunk("random", backbone="caffenet")
    with pytest.raises(ConfigurationError, match=r"file\.md exists already"):
        export_trunk(other, tmp_path / "file.safetensors")
    assert [(tmp_path / name).read_bytes() for name in ("file.md", "moved")] == before


def test_an_export_that_was_killed_between_its_files_is_repeated(tmp_path):
    trunk = load_trunk("random", backbone="two-convolutions")
    weights, card = export_trunk(trunk, tmp_path / "file.safetensors")
    text = card.read_bytes()
    weights.unlink()
    assert export_trunk(trunk, tmp_path / "file.safetensors") == (weights, card)
    assert load_trunk(weights).loaded
    assert card.read_bytes() == text


def test_another_ending_and_other_layers_are_refused(tmp_path):
    trunk = load_trunk("random", backbone="two-convolutions")
    with pytest.raises(ConfigurationError, match=r"file\.pt does not end in \.safetensors"):
        export_trunk(trunk, tmp_path / "file.pt")
    with pytest.raises(ConfigurationError, match="has a layer AdaptiveAvgPool2d for which no loader is known"):
        export_trunk(load_trunk("random", backbone=small_backbone), tmp_path / "file.safetensors")
    for layer in (nn.Conv2d(3, 4, 3, padding_mode="reflect"), nn.Sequential(nn.Conv2d(3, 4, 3))):
        other = dataclasses.replace(trunk, module=nn.Sequential(layer))
        with pytest.raises(ConfigurationError, match="only a sequence of Conv2d"):
            export_trunk(other, tmp_path / "file.safetensors")
    assert not list(tmp_path.iterdir())
