"""The parameter shapes of two well-known models, so that gradients of their size can be made without the models."""

from __future__ import annotations

from collections.abc import Iterator

Named = tuple[str, tuple[int, ...]]


def resnet50() -> Iterator[Named]:
    """ResNet-50 for 1,000 classes (He et al., 2015, arXiv 1512.03385, table 1): 161 tensors, in forward order.

    >>> from math import prod
    >>> sizes = [prod(shape) for _, shape in resnet50()]
    >>> len(sizes), sum(sizes)
    (161, 25557032)
    """
    yield from _convolution("conv1", "bn1", 64, 3, 7)
    width_in = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 1):
        for block in range(blocks):
            at = f"layer{stage}.{block}."
            yield from _convolution(at + "conv1", at + "bn1", width, width_in, 1)
            yield from _convolution(at + "conv2", at + "bn2", width, width, 3)
            yield from _convolution(at + "conv3", at + "bn3", 4 * width, width, 1)
            if block == 0:
                yield from _convolution(at + "downsample.0", at + "downsample.1", 4 * width, width_in, 1)
            width_in = 4 * width
    yield "fc.weight", (1000, 2048)
    yield "fc.bias", (1000,)


def _convolution(name: str, norm: str, out: int, into: int, size: int) -> Iterator[Named]:
    yield name + ".weight", (out, into, size, size)
    yield norm + ".weight", (out,)
    yield norm + ".bias", (out,)


def gpt2() -> Iterator[Named]:
    """GPT-2 small (Radford et al., 2019; output layer tied to the embedding): 148 tensors, in forward order.

    >>> from math import prod
    >>> sizes = [prod(shape) for _, shape in gpt2()]
    >>> len(sizes), sum(sizes)
    (148, 124439808)
    """
    width = 768
    yield "wte.weight", (50257, width)
    yield "wpe.weight", (1024, width)
    for block in range(12):
        at = f"h.{block}."
        yield from _both(at + "ln_1", (width,), width)
        yield from _both(at + "attn.c_attn", (width, 3 * width), 3 * width)
        yield from _both(at + "attn.c_proj", (width, width), width)
        yield from _both(at + "ln_2", (width,), width)
        yield from _both(at + "mlp.c_fc", (width, 4 * width), 4 * width)
        yield from _both(at + "mlp.c_proj", (4 * width, width), width)
    yield from _both("ln_f", (width,), width)


def _both(name: str, weight: tuple[int, ...], bias: int) -> Iterator[Named]:
    yield name + ".weight", weight
    yield name + ".bias", (bias,)
