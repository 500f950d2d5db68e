"""What a text on the command line may stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from compcomm.plan import models
from compcomm.plan.buckets import cut
from compcomm.plan.models_by_name import KNOWN

SIZES = {
    "resnet50": 25_557_032,
    "vgg16": 138_357_544,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "bert-base": 109_482_240,
    "bert-large": 335_141_888,
}


def test_known_models_have_the_published_numbers_of_parameters() -> None:
    assert {name: models.find(name).numel for name in KNOWN} == SIZES


CODE = """
from torch import nn
def model(): return nn.Linear(3, 4)
def shapes(): return [("a", [2, 3]), ("b", (5,))]
def number(): return 7
def sized(classes): return nn.Linear(3, classes)
def fails(): raise KeyError("two\\nlines")
def leaves(): raise SystemExit(3)
"""


def test_python_files_state_dicts_modules_and_pairs(tmp_path: Path) -> None:
    code, state = tmp_path / "net.py", tmp_path / "net.pt"
    code.write_text(CODE)
    torch.save({"w": torch.zeros(2, 3), "steps": torch.tensor(3), "note": "x"}, state)
    linear = (("weight", (4, 3)), ("bias", (4,)))
    assert models.find(str(code)).shapes == linear
    assert isinstance(models.find(f"{code}:model").make(), nn.Linear)  # type: ignore[misc]
    assert models.find(f"{code}:shapes").shapes == (("a", (2, 3)), ("b", (5,)))
    assert models.find(str(state)).shapes == (("w", (2, 3)),)
    assert models.find(nn.Linear(3, 4)).shapes == linear
    assert models.find([("a", [2])]).numel == 2


def test_what_is_no_model_is_refused_with_the_cure(tmp_path: Path) -> None:
    code, empty, broken = tmp_path / "net.py", tmp_path / "empty.pt", tmp_path / "broken.pth"
    code.write_text(CODE)
    torch.save({"note": "x"}, empty)
    broken.write_bytes(b"not a zip")
    typo, asks, checkpoint = tmp_path / "typo.py", tmp_path / "asks.py", tmp_path / "all.pt"
    typo.write_text("def model(:\n")
    asks.write_text("import nothing_of_that_name\n")
    state = nn.Linear(3, 4).state_dict()
    torch.save({"model": state, "ema": state, "loss": torch.tensor(0.5), "optimizer": {"state": {}}}, checkpoint)
    frozen = nn.Linear(2, 2).requires_grad_(False)
    for given, said in (
        ("resnet5", "Did you mean resnet50"),
        ("Bert-Large", "Did you mean bert-large"),
        ("zzz", "Known: resnet50"),
        ("gone.py", "there is no file gone.py"),
        (f"{code}:nothing", r"no function nothing\(\)"),
        (f"{code}:number", "gave int"),
        (f"{code}:sized", r"net\.py:sized raised TypeError: .*'classes'.*called without arguments"),
        (f"{code}:fails", r"net\.py:fails raised KeyError: "),
        (f"{code}:leaves", r"net\.py:leaves raised SystemExit: 3"),
        (str(typo), r"typo\.py raised SyntaxError: .*line 1"),
        (str(asks), r"asks\.py raised ModuleNotFoundError: "),
        (str(checkpoint), r"under 'model', 'ema'\. Save that alone: torch\.save\(checkpoint\['model'\]"),
        (str(empty), "no floating-point tensors"),
        (str(broken), "not a state dict"),
        (frozen, "no parameters with gradients"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            models.find(given)
        assert "\n" not in str(caught.value)


def test_a_state_dict_has_tied_weights_once_and_no_statistics(tmp_path: Path) -> None:
    """What named_parameters gives; views of one storage that are not the same weights count each."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4), nn.Linear(4, 4))
    net[3].weight = net[2].weight
    torch.save(net.state_dict(), tmp_path / "net.pt")
    assert models.find(str(tmp_path / "net.pt")).shapes == models.find(net).shapes
    slab = torch.zeros(8)
    torch.save({"a": slab[:4], "b": slab[4:], "whole": slab, "again": slab[4:]}, tmp_path / "views.pt")
    assert models.find(str(tmp_path / "views.pt")).shapes == (("a", (4,)), ("b", (4,)), ("whole", (8,)))


def test_buckets_are_those_of_ddp() -> None:
    """1 MiB first, then 25 MiB, closed by the parameter that brings them there, from the last parameter on."""
    layouts = cut(models.find("resnet50").shapes)
    assert [round(4 * layout.numel / 2**20, 1) for layout in layouts] == [7.8, 30.0, 25.0, 25.3, 9.3]
    assert layouts[0].segments[0].name == "fc.bias" and layouts[-1].segments[-1].name == "conv1.weight"
