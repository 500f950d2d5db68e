"""The parameter shapes of real models, without the models: what benchmarks and tests of hosts need."""

from __future__ import annotations


def resnet50(width: int = 64, classes: int = 1000) -> list[tuple[str, tuple[int, ...]]]:
    """The 161 parameters of ResNet-50 in the order in which they are defined: 25,557,032 elements at width 64.

    A stem, four stages of 3, 4, 6 and 3 bottlenecks (1x1, 3x3 and 1x1 convolutions, each with a scale and a shift; the
    first of a stage with a projection beside it), and a classifier. Source: He, Zhang, Ren, Sun 2016
    (arXiv:1512.03385), Table 1. A smaller ``width`` keeps the 161 tensors and makes them narrower.

    >>> shapes = resnet50()
    >>> len(shapes), shapes[0], shapes[-2]
    (161, ('conv1.weight', (64, 3, 7, 7)), ('fc.weight', (1000, 2048)))
    """
    shapes: list[tuple[str, tuple[int, ...]]] = []

    def convolution(name: str, norm: str, out: int, into: int, kernel: int) -> None:
        shapes.append((f"{name}.weight", (out, into, kernel, kernel)))
        shapes.extend([(f"{norm}.weight", (out,)), (f"{norm}.bias", (out,))])

    convolution("conv1", "bn1", width, 3, 7)
    channels = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = width << stage
        for block in range(blocks):
            at = f"layer{stage + 1}.{block}"
            convolution(f"{at}.conv1", f"{at}.bn1", inner, channels, 1)
            convolution(f"{at}.conv2", f"{at}.bn2", inner, inner, 3)
            convolution(f"{at}.conv3", f"{at}.bn3", 4 * inner, inner, 1)
            if block == 0:
                convolution(f"{at}.downsample.0", f"{at}.downsample.1", 4 * inner, channels, 1)
            channels = 4 * inner
    shapes.extend([("fc.weight", (classes, channels)), ("fc.bias", (classes,))])
    return shapes


def gpt2(width: int = 768, blocks: int = 12) -> list[tuple[str, tuple[int, ...]]]:
    """The 148 parameters of GPT-2 small, whose output layer is the embedding: 124,439,808 elements.

    Two embeddings, then blocks of attention and of a layer four times as wide, each behind a norm. Source: Radford et
    al. 2019, Table 2.

    >>> shapes = gpt2()
    >>> len(shapes), shapes[0], shapes[4]
    (148, ('wte.weight', (50257, 768)), ('h.0.attn.c_attn.weight', (768, 2304)))
    """
    shapes: list[tuple[str, tuple[int, ...]]] = [("wte.weight", (50257, width)), ("wpe.weight", (1024, width))]

    def both(name: str, *weight: int) -> None:
        shapes.extend([(f"{name}.weight", weight), (f"{name}.bias", weight[-1:])])

    for block in range(blocks):
        at = f"h.{block}"
        both(f"{at}.ln_1", width)
        both(f"{at}.attn.c_attn", width, 3 * width)
        both(f"{at}.attn.c_proj", width, width)
        both(f"{at}.ln_2", width)
        both(f"{at}.mlp.c_fc", width, 4 * width)
        both(f"{at}.mlp.c_proj", 4 * width, width)
    both("ln_f", width)
    return shapes
