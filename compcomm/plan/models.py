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

from .models_by_name import KNOWN, Shapes

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Buffers of batch norms: a state dict holds them beside the parameters, and they have no gradients."""


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
        return _count(self.shapes)


def find(text: str | nn.Module | Iterable[tuple[str, Iterable[int]]] | Model) -> Model:
    """The model that ``text`` stands for.

    ================== =================================================================================
    ``resnet50``       a known name (``compcomm.plan.models_by_name.KNOWN``)
    ``net.py``         a Python file with ``model()``, which gives a module, or ``shapes()``, which gives pairs
    ``net.py:make``    a Python file's function, which gives either. The file is executed
    ``weights.pt``     a state dict (.pt or .pth): its floating-point tensors, tied ones once, without the statistics of
                       batch norms. Nothing in it is executed
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
    found = _ran(f"model {text!r}: {path}", lambda: runpy.run_path(str(path)), "Run it alone to see where.")
    names = [function] if function else ["model", "shapes"]
    name = next((n for n in names if callable(found.get(n))), None)
    if name is None:
        wanted = f"{function}()" if function else "model() or shapes()"
        raise ValueError(f"model {text!r}: {path} has no function {wanted}. Write {path}:NAME for another name.")
    made = found[name]
    result = _ran(f"model {text!r}: {path}:{name}", made, f"{name}() is called without arguments.")
    model = _taken(text, result)
    return Model(text, model.shapes, made if isinstance(result, nn.Module) else None)


def _ran(what: str, call: Callable[[], Any], hint: str) -> Any:
    """What ``call`` gives: somebody else's code, which may raise anything."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        raise ValueError(f"{what} raised {type(error).__name__}: {_line(error)}. {hint}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _from_state(text: str, path: Path) -> Model:
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"model {text!r}: not a state dict that loads with weights_only=True: {_line(error)}. Save "
            f"model.state_dict()."
        ) from error
    pairs = _trained(state)
    inside = {key: _trained(value) for key, value in state.items()} if isinstance(state, Mapping) else {}
    held = [key for key, found in inside.items() if _count(found) > _count(pairs)]
    if held:
        raise ValueError(
            f"model {text!r}: a checkpoint, with a state dict under {', '.join(map(repr, held))}. Save that alone: "
            f"torch.save(checkpoint[{held[0]!r}], 'weights.pt')."
        )
    if not pairs:
        raise ValueError(f"model {text!r}: no floating-point tensors by name in it. Save model.state_dict().")
    return _taken(text, pairs)


def _trained(state: Any) -> Shapes:
    """A state dict's tensors that may have gradients: tied ones once, no statistics. Empty where it is none."""
    found: dict[Any, tuple[str, tuple[int, ...]]] = {}
    for name, tensor in state.items() if isinstance(state, Mapping) else ():
        if torch.is_tensor(tensor) and tensor.is_floating_point() and str(name).rpartition(".")[2] not in _STATISTICS:
            where = tensor.data_ptr() or id(tensor)  # one without memory is like no other
            found.setdefault((where, tensor.shape), (str(name), tuple(tensor.shape)))
    return list(found.values())


def _count(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> int:
    return sum(prod(shape) for _, shape in shapes)


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
    if not _count(shapes):
        raise ValueError(f"model {name!r}: it has no parameters with gradients: there is nothing to average.")
    return Model(name, tuple(shapes))
