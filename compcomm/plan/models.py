"""What a text on the command line stands for: a model's parameters, by name and shape."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .known import KNOWN, Shapes


@dataclass(frozen=True)
class Model:
    """Parameters that have gradients, in the order in which they are defined. ``make``: builds the module itself,
    where the text named code that does; None where only shapes are known."""

    name: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    make: Callable[[], nn.Module] | None = field(default=None, compare=False)

    @property
    def numel(self) -> int:
        """Elements of all parameters."""
        return sum(prod(shape) for _, shape in self.shapes)


def find(text: str | nn.Module | Iterable[tuple[str, Iterable[int]]] | Model) -> Model:
    """The model that ``text`` stands for.

    ================== =================================================================================
    ``resnet50``       a known name (``compcomm.plan.known.KNOWN``)
    ``net.py``         a Python file with ``model()``, which gives a module, or ``shapes()``, which gives pairs
    ``net.py:make``    a Python file's function, which gives either. The file is executed
    ``weights.pt``     a state dict (.pt or .pth): its floating-point tensors. Nothing in it is executed
    ================== =================================================================================

    A module or (name, shape) pairs are taken as they are.

    Raises:
        ValueError: there is no such model or file, or it does not hold parameters.
    """
    if isinstance(text, Model):
        return text
    if not isinstance(text, str):
        return _taken(type(text).__name__ if isinstance(text, nn.Module) else "shapes", text)
    if text in KNOWN:
        return Model(text, tuple(KNOWN[text]()))
    file, _, function = text.partition(":") if ".py:" in text else (text, "", "")
    path = Path(file)
    if path.suffix in (".py", ".pt", ".pth"):
        if not path.is_file():
            raise ValueError(f"model {text!r}: there is no file {file}.")
        return _from_code(text, path, function) if path.suffix == ".py" else _from_state(text, path)
    near = get_close_matches(text.lower(), KNOWN, n=1, cutoff=0.4)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise ValueError(
        f"model {text!r}: unknown. {hint}Known: {', '.join(KNOWN)}; or a file: net.py, net.py:function, weights.pt."
    )


def _from_code(text: str, path: Path, function: str) -> Model:
    found = runpy.run_path(str(path))
    names = [function] if function else ["model", "shapes"]
    made = next((found[n] for n in names if callable(found.get(n))), None)
    if made is None:
        wanted = f"{function}()" if function else "model() or shapes()"
        raise ValueError(f"model {text!r}: {path} has no function {wanted}. Write {path}:NAME for another name.")
    result = made()
    model = _taken(text, result)
    return Model(text, model.shapes, made if isinstance(result, nn.Module) else None)


def _from_state(text: str, path: Path) -> Model:
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"model {text!r}: not a state dict that loads with weights_only=True: {error}. Save model.state_dict()."
        ) from error
    pairs: list[tuple[str, Iterable[int]]] = []
    if isinstance(state, Mapping):
        pairs = [(str(n), t.shape) for n, t in state.items() if torch.is_tensor(t) and t.is_floating_point()]
    if not pairs:
        raise ValueError(f"model {text!r}: no floating-point tensors by name in it. Save model.state_dict().")
    return _taken(text, pairs)


def _taken(name: str, made: Any) -> Model:
    if isinstance(made, nn.Module):
        shapes: Shapes = [(n, tuple(p.shape)) for n, p in made.named_parameters() if p.requires_grad]
    else:
        try:
            shapes = [(str(n), tuple(int(size) for size in shape)) for n, shape in made]
        except (TypeError, ValueError):
            raise ValueError(
                f"model {name!r}: it gave {type(made).__name__}, where an nn.Module or (name, shape) pairs are due."
            ) from None
    if not sum(prod(shape) for _, shape in shapes):
        raise ValueError(f"model {name!r}: it has no parameters with gradients: there is nothing to average.")
    return Model(name, tuple(shapes))
