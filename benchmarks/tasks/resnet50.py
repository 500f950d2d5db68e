"""ResNet-50 and small coloured pictures for it: a real gradient of real convolutions, without a download."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from compcomm.plan.shapes import resnet50

from . import Batch
from .digits import Digits

SIDE, BATCH, HUES = 64, 16, 10


class Bottleneck(nn.Module):
    """1x1 down to ``inner`` channels, 3x3, 1x1 up to four times as many, and the input added (projected if need be)."""

    def __init__(self, into: int, inner: int, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, 4 * inner, 1, bias=False), nn.BatchNorm2d(4 * inner)
        self.downsample = (
            nn.Sequential(nn.Conv2d(into, 4 * inner, 1, stride, bias=False), nn.BatchNorm2d(4 * inner))
            if project
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.bn1(self.conv1(x)))
        h = functional.relu(self.bn2(self.conv2(h)))
        return functional.relu(self.bn3(self.conv3(h)) + self.downsample(x))


class ResNet50(nn.Module):
    """Pictures ``[n, 3, side, side]`` -> logits ``[n, classes]``.

    The stride sits in the 3x3 convolution. Source: He, Zhang, Ren, Sun 2016 (arXiv:1512.03385), Table 1; parameters are
    those of ``compcomm.plan.shapes.resnet50``, name by name.
    """

    def __init__(self, width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        channels = width
        for stage, blocks in enumerate((3, 4, 6, 3), 1):
            inner = width << (stage - 1)
            made: list[nn.Module] = []
            for block in range(blocks):
                made.append(Bottleneck(channels, inner, 2 if stage > 1 and block == 0 else 1, block == 0))
                channels = 4 * inner
            self.add_module(f"layer{stage}", nn.Sequential(*made))
        self.fc = nn.Linear(channels, classes)
        for p in self.parameters():
            if p.dim() == 4:
                nn.init.kaiming_normal_(p, mode="fan_out", nonlinearity="relu")
        found = [(name, tuple(p.shape)) for name, p in self.named_parameters()]
        assert found == resnet50(width, classes), "not the parameters of ResNet-50"

    def forward(self, x: Tensor) -> Tensor:
        h = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(1, 5):
            h = self.get_submodule(f"layer{stage}")(h)
        return self.fc(h.mean((2, 3)))


class Pictures:
    """Handwritten digits enlarged to 64 x 64, in one of ten hues on the opposite one; the class is 10 digit + hue."""

    def __init__(self) -> None:
        digits = Digits()
        self.digits, self.data = digits.train, digits.data
        turn = 2 * torch.pi * torch.arange(HUES)[:, None] / HUES
        self.hues = 0.5 + 0.5 * torch.cos(turn - 2 * torch.pi * torch.arange(3) / 3)

    def batch(self, step: int) -> Batch:
        draw = torch.Generator().manual_seed(step)
        chosen = torch.randint(len(self.digits.x), (BATCH,), generator=draw)
        hue = torch.randint(HUES, (BATCH,), generator=draw)
        ink = self.digits.x[chosen].view(-1, 1, 8, 8)
        ink = functional.interpolate(ink, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        colour = self.hues[hue][:, :, None, None]
        x = ink * colour + (1 - ink) * (1 - colour) + 0.1 * torch.randn(BATCH, 3, SIDE, SIDE, generator=draw)
        return Batch(2 * x - 1, 10 * self.digits.y[chosen] + hue)
