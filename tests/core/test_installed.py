"""Methods of installed packages: real distributions (a module and its metadata) in a folder on the path."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import compcomm as cc
from compcomm.__main__ import main
from compcomm.core import installed
from compcomm.core.description import Described
from compcomm.plan import kernels
from compcomm.plan.recommend import python

METHOD = '''
from dataclasses import dataclass

import compcomm as cc
import torch


@dataclass(frozen=True, repr=False)
class {name}(cc.Compressor):
    """Every k-th element."""

    k: int = 2
    dense_below: int = 1024
    linear = True

    def section(self, numel):
        return 4 * -(-numel // self.k)

    def encode(self, y, segment, rng):
        return y[:: self.k]

    def decode(self, code, segment, rng):
        out = torch.zeros(segment.numel, device=code.device)
        out[:: self.k] = code.view(torch.float32)
        return out
'''


def install(where: Path, package: str, text: str, entries: str) -> None:
    """What an installer leaves behind."""
    (where / f"{package}.py").write_text(text)
    info = where / f"{package}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(entries)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    known = dict(Described.registry)
    installed._said_once.cache_clear()
    yield tmp_path
    Described.registry.clear()
    Described.registry.update(known)
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_parse_knows_an_installed_method_and_loads_it_when_asked(site: Path) -> None:
    install(site, "theirs_a", METHOD.format(name="Theirs"), "[compcomm.compressors]\nTheirs = theirs_a:Theirs\n")
    cc.parse("TopK(ratio=0.1)")
    assert "theirs_a" not in sys.modules
    made = cc.parse("ErrorFeedback(Unproven(Theirs(k=3)))")
    assert repr(made) == "ErrorFeedback(Unproven(Theirs(k=3)))" and "theirs_a" in sys.modules
    assert cc.parse(repr(made)) == made


def test_a_reducer_too(site: Path) -> None:
    text = (
        "from dataclasses import dataclass\nimport compcomm as cc\n"
        "@dataclass(frozen=True, repr=False)\nclass TheirMean(cc.Exact):\n    '''Ours, under their name.'''\n"
    )
    install(site, "theirs_b", text, "[compcomm.reducers]\nTheirMean = theirs_b:TheirMean\n")
    assert isinstance(cc.parse("TheirMean()"), cc.Exact)


def test_an_unknown_name_is_answered_with_an_installed_one_near_it(site: Path) -> None:
    install(
        site, "theirs_c", "raise ImportError", "[compcomm.compressors]\nChebyshevDither = theirs_c:ChebyshevDither\n"
    )
    with pytest.raises(ValueError, match=r"unknown name 'chebyshevditer'. Did you mean ChebyshevDither\?"):
        cc.parse("chebyshevditer()")


def test_a_broken_package_breaks_none_but_itself(site: Path) -> None:
    install(site, "broken", "import no_such_thing", "[compcomm.compressors]\nBust = broken:Bust\n")
    install(site, "empty", "", "[compcomm.compressors]\nLacking = empty:Lacking\n")
    install(
        site, "odd", "class Strange: ...", "[compcomm.compressors]\nStrange = odd:Strange\nStranger = odd:Strange\n"
    )
    install(site, "sound", METHOD.format(name="Wellkept"), "[compcomm.compressors]\nWellkept = sound:Wellkept\n")
    assert repr(cc.parse("Wellkept()")) == "Wellkept()"
    for call, said in (
        ("Bust()", r"Bust is of the installed package broken 1\.2 \(compcomm.compressors: broken:Bust\), which "
         r"fails to load: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("Lacking()", r"empty 1\.2 .* fails to load: AttributeError"),
        ("Strange()", r"Strange of odd 1\.2 is neither a Compressor nor a Reducer"),
        ("Stranger()", r"odd 1\.2 .* no class Stranger: an entry has the name of its class"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            cc.parse(call)


def test_our_names_stay_ours_and_the_first_of_two_packages_wins(site: Path) -> None:
    install(site, "clash", METHOD.format(name="TopK"), "[compcomm.compressors]\nTopK = clash:TopK\n")
    install(site, "first", METHOD.format(name="Twice"), "[compcomm.compressors]\nTwice = first:Twice\n")
    install(site, "second", METHOD.format(name="Twice"), "[compcomm.compressors]\nTwice = second:Twice\n")
    with pytest.warns(UserWarning) as said:
        made = cc.parse("Twice()")
    texts = sorted(str(w.message) for w in said)
    assert texts[0] == "clash 1.2 has a TopK, a name that is taken: TopK stays ours."
    assert len(texts) == 2 and "has a Twice, a name that is taken: Twice stays that of " in texts[1]
    assert type(made).__module__ in texts[1].rpartition(" that of ")[2]
    assert type(cc.parse("TopK(ratio=0.1)")) is cc.TopK
    with pytest.warns(UserWarning, match=r"clash.TopK has the name of one of ours: parse\('TopK\(...\)'\) makes ours"):
        __import__("clash")
    assert type(cc.parse("TopK(ratio=0.1)")) is cc.TopK


def test_the_command_line_plans_with_it(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels, "_BUDGET", 0.0)
    install(site, "theirs_d", METHOD.format(name="Theirs"), "[compcomm.compressors]\nTheirs = theirs_d:Theirs\n")
    (site / "net.py").write_text("def shapes():\n    return [('w', (256, 100))]\n")
    command = f"plan --model {site}/net.py --workers 8 --bandwidth 100mbit --latency 50us --compute 0.2".split()
    assert main([*command, "--reducer", "Theirs(k=50)"]) == 0
    said = capsys.readouterr().out
    assert any(line.startswith("Theirs(k=50) ") for line in said.splitlines()), said


def test_what_the_planner_tells_to_paste_makes_it(site: Path) -> None:
    install(site, "theirs_e", METHOD.format(name="Theirs"), "[compcomm.compressors]\nTheirs = theirs_e:Theirs\n")
    text = repr(cc.parse("Unproven(Theirs(k=3))"))
    assert python(text) == "cc.parse('Unproven(Theirs(k=3))')" and repr(eval(python(text), {"cc": cc})) == text
