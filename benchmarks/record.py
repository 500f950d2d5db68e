"""Records real gradients, a few steps into training: of ResNet-50, GPT-2 small, and three small models.

    python benchmarks/record.py                 # into runs/recorded, in three minutes on one core
    python benchmarks/record.py embedding --again

Nothing is downloaded: pictures are scikit-learn's digits, texts those of the quickstart. All seeds are fixed. A file
holds named tensors (`torch.load(..., weights_only=True)`); `load` records what is missing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from tasks import Batch
from tasks.charlm import CharLM
from tasks.gpt2 import GPT2, Tokens
from tasks.resnet50 import Pictures, ResNet50
from tasks.words import WordModel, Words
from torch import Tensor, nn
from torch.nn import functional

from compcomm.core.optional import need

FOLDER = Path(__file__).resolve().parents[1] / "runs" / "recorded"
Named = dict[str, Tensor]


def resnet50(quick: bool = False) -> Named:
    """The gradient of all 161 parameters after twenty steps of SGD with momentum (width 8 instead of 64 if quick)."""
    torch.manual_seed(0)
    data, model = Pictures(), ResNet50(8 if quick else 64)
    optimizer = torch.optim.SGD(model.parameters(), 0.002, 0.9)
    steps = 1 if quick else 20
    for step in shown("ResNet-50", steps):
        descend(model, data.batch(step), optimizer)
    return gradient(model, data.batch(steps))


def transformer(quick: bool = False) -> Named:
    """The gradient of the quickstart's transformer after sixty steps of AdamW."""
    model, later = _transformer(1 if quick else 60)
    return gradient(model, later(0))


def ranks(world: int, quick: bool = False) -> list[Named]:
    """What ``world`` workers have to average: the transformer as above, on a batch for each."""
    model, later = _transformer(1 if quick else 60)
    return [gradient(model, later(rank)) for rank in shown(f"{world} workers", world)]


def _transformer(steps: int) -> tuple[nn.Module, Callable[[int], Batch]]:
    task = CharLM()
    model = task.model(0)
    optimizer, schedule = task.optimizer(model)
    for step in shown("transformer", steps):
        descend(model, task.batch(0, step, 0), optimizer)
        schedule.step()
    return model, lambda rank: task.batch(0, steps, rank)


def embedding(quick: bool = False) -> Named:
    """The gradient of a word model's embedding after thirty steps of SGD: most rows are zero."""
    torch.manual_seed(0)
    data = Words()
    model = WordModel(data.vocabulary)
    optimizer = torch.optim.SGD(model.parameters(), 0.5, 0.9)
    steps = 1 if quick else 30
    for step in shown("word embedding", steps):
        descend(model, data.batch(step), optimizer)
    return {"words.weight": gradient(model, data.batch(steps))["words.weight"]}


def gpt2(quick: bool = False) -> Named:
    """The gradient of GPT-2 small after twelve steps of AdamW on 256 words each."""
    data, model = Tokens(), GPT2(quick)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4)
    steps = 1 if quick else 12
    for step in shown("GPT-2", steps):
        descend(model, data.batch(step), optimizer)
    return {name[6:].replace("/", "."): g for name, g in gradient(model, data.batch(steps)).items()}


def digits(quick: bool = False) -> Named:
    """The gradient of the digits' network 64-128-64-10 after 300 steps of SGD with momentum."""
    torch.manual_seed(0)
    pictures, classes = need("sklearn.datasets", "record.py").load_digits(return_X_y=True)
    x, y = torch.tensor(pictures, dtype=torch.float32) / 16.0, torch.tensor(classes)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)

    def batch(step: int) -> Batch:
        picked = torch.randint(len(y), (64,), generator=torch.Generator().manual_seed(step))
        return Batch(x[picked], y[picked])

    steps = 5 if quick else 300
    for step in shown("digits", steps):
        descend(model, batch(step), optimizer)
    return gradient(model, batch(steps))


RECORDINGS: dict[str, Callable[[bool], Named]] = {
    "resnet50": resnet50,
    "transformer": transformer,
    "embedding": embedding,
    "digits": digits,
    "gpt2": gpt2,
}


def descend(model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
    """One step of training."""
    gradient(model, batch)
    optimizer.step()


def gradient(model: nn.Module, batch: Batch) -> Named:
    """The gradient of the mean cross entropy on a batch, by name; the model's own until it has another."""
    model.zero_grad(set_to_none=True)
    logits = model(batch.x)
    functional.cross_entropy(logits.flatten(0, -2), batch.y.flatten()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def shown(what: str, count: int) -> Iterable[int]:
    """0..count-1 with a progress bar where a person looks on."""
    if not sys.stdout.isatty():
        return range(count)
    return need("rich.progress", "record.py").track(range(count), f"recording: {what}", transient=True)


def load(name: str, folder: Path = FOLDER, *, quick: bool = False, again: bool = False) -> Named:
    """A recording by name, from its file or made now.

    Raises:
        ValueError: for a name that no recording has.
    """
    if name not in RECORDINGS:
        raise ValueError(f"load({name!r}): no such recording; there are {', '.join(RECORDINGS)}.")
    file = folder / f"{name}{'-quick' if quick else ''}.pt"
    if again or not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        found = RECORDINGS[name](quick)
        torch.save(found, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)
        numel = sum(t.numel() for t in found.values())
        print(f"recorded: {file}, {numel:,} elements in {time.perf_counter() - begin:.1f} s", flush=True)
    return torch.load(file, weights_only=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(RECORDINGS)} (default: all)")
    parser.add_argument("--again", action="store_true", help="also those that are there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.names or RECORDINGS:
        load(name, again=options.again)


if __name__ == "__main__":
    main()
