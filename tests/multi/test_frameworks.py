"""Lightning and Accelerate as they are: the same bits as a plain loop, across a checkpoint that their rank 0 writes."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import compcomm as cc

from . import models
from .harness import Workers

pytestmark = pytest.mark.multi

EF = "ErrorFeedback(TopK(ratio=0.05))"
STEPS = 4
QUIET: dict[str, Any] = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False, "use_distributed_sampler": False,
}  # fmt: skip
"""Of Lightning's trainers."""


def needs(package: str) -> pytest.MarkDecorator:
    missing = find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"no {package}: pip install compcomm[frameworks]")


@contextmanager
def launched(rank: int, world: int) -> Iterator[None]:
    """As torchrun leaves the environment, and the frameworks' own warnings and messages unsaid."""
    before = dict(os.environ)
    names = dict.fromkeys(("RANK", "LOCAL_RANK"), rank) | dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), world)
    os.environ.update({n: str(v) for n, v in names.items()}, GROUP_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    os.environ.update(TORCHELASTIC_RUN_ID="here")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def batches(rank: int) -> list[Tensor]:
    """One, again and again: where in an epoch a framework goes on after a checkpoint is its own affair."""
    return models.batches(rank, 1) * STEPS


def plain(rank: int) -> list[Tensor]:
    """After so many steps and after twice as many, the memory saved for any number of ranks in between."""
    model, found = DDP(models.mlp()), []
    hook = cc.attach(model, cc.parse(EF), seed=3, timeout=20)
    for _ in range(2):
        found.append(models.train(model, batches(rank)))
        hook.load_portable_state_dict(hook.portable_state_dict())
    return found


class Trained:
    """What Lightning asks of a module, on ``net``, in the rank that ``launched`` says."""

    net: Any

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        return self.net(batch).pow(2).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)  # type: ignore[attr-defined]

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(batches(int(os.environ["RANK"])), batch_size=None)


def by_lightning(rank: int, world: int, home: str, folder: str) -> Any:
    with launched(rank, world):
        from importlib import import_module

        lightning = import_module(home)
        from compcomm.hosts.lightning import Attach

        logging.getLogger(home).setLevel(logging.ERROR)

        class Module(Trained, lightning.LightningModule):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.net = models.mlp()

        def fit(steps: int, path: str | None = None) -> Any:
            callback, module = Attach(cc.parse(EF), seed=3, timeout=20), Module()
            trainer = lightning.Trainer(devices=world, strategy="ddp", max_steps=steps, callbacks=[callback], **QUIET)
            trainer.fit(module, ckpt_path=path)
            return callback, trainer, module

        path = os.path.join(folder, "half.ckpt")
        first, trainer, module = fit(STEPS)
        half = models.flat(module)
        trainer.save_checkpoint(path)
        second, trainer, module = fit(2 * STEPS, path)
        saved = torch.load(path, weights_only=True)["callbacks"]["Attach"]["step"]
        foreign = SimpleNamespace(strategy=SimpleNamespace(model=nn.Linear(1, 1)), world_size=2)
        refused = models.caught(lambda: first.on_fit_start(foreign, None))
        report, whole = second.attachment.report(), models.flat(module)
        trainer.fit_loop.epoch_loop.max_steps, trainer.fit_loop.max_epochs = 3 * STEPS, 9  # the same trainer goes on
        trainer.fit(module)
        steps = (saved, report.steps, second.attachment.step)
    return [half, whole], steps, refused, plain(rank)


@needs("lightning")
def test_lightnings_callback(two: Workers, tmp_path: Path) -> None:
    for found, steps, refused, expected in two.run(
        by_lightning, home="lightning.pytorch", folder=str(tmp_path), timeout=150
    ):
        assert steps == (STEPS, STEPS, 3 * STEPS)
        assert all(map(torch.equal, found, expected))
        assert refused[0] == "TypeError"
        assert "Give Trainer(strategy='ddp')" in refused[1]


def sharded_by_lightning(rank: int, world: int) -> Any:
    """``training_step`` is called, and not the root's forward: every layer is a root of its own to FSDP."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    def shard(net: nn.Module, mesh: Any) -> Any:
        for layer in net.children():
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        return cc.attach(net, cc.parse("ErrorFeedback(QSGD(bits=4, rounding='nearest'))"), seed=3, timeout=20)

    def whole(net: Any) -> Tensor:
        return torch.cat([p.full_tensor().detach().flatten() for p in net.parameters()])

    net: Any = models.mlp()
    shard(net, init_device_mesh("cpu", (world,)))
    models.train(net, batches(rank))
    expected = whole(net)
    with launched(rank, world):
        import lightning.pytorch as lightning
        from lightning.pytorch.strategies import ModelParallelStrategy

        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

        class Module(Trained, lightning.LightningModule):
            hook: Any = None

            def configure_model(self) -> None:
                if self.hook is None:
                    self.net = models.mlp()
                    self.hook = shard(self.net, self.device_mesh["data_parallel"])

        strategy = ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1)
        module = Module()
        lightning.Trainer(devices=world, strategy=strategy, max_steps=STEPS, **QUIET).fit(module)
    return whole(module.net), expected, module.hook.step


@needs("lightning")
def test_lightnings_model_parallel_strategy(two: Workers) -> None:
    for found, expected, steps in two.run(sharded_by_lightning, timeout=150):
        assert steps == STEPS and torch.equal(found, expected)


def by_accelerate(rank: int, world: int, folder: str) -> Any:
    found = []
    with launched(rank, world):
        from accelerate import Accelerator

        for _ in range(2):
            accelerator = Accelerator(cpu=True)
            net = models.mlp()
            model, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.1))
            hook = cc.attach(model, cc.parse(EF), seed=3, timeout=20)
            accelerator.register_for_checkpointing(hook.portable)
            if found:
                accelerator.load_state(folder)
            for x in batches(rank):
                optimizer.zero_grad()
                accelerator.backward(model(x).pow(2).mean())
                optimizer.step()
            found.append(models.flat(net))
            if len(found) == 1:
                accelerator.save_state(folder)
                accelerator.wait_for_everyone()
    return found, hook.step, plain(rank)


@needs("accelerate")
def test_accelerates_checkpoints(two: Workers, tmp_path: Path) -> None:
    for found, steps, expected in two.run(by_accelerate, folder=str(tmp_path), timeout=150):
        assert steps == 2 * STEPS
        assert all(map(torch.equal, found, expected))
