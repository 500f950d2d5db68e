"""Nonconvex logistic regression on LIBSVM data, split among clients.

f_i(x) = 1/N_i sum_j log(1 + exp(-y_j <a_j, x>)) + lambda sum_k x_k^2/(1 + x_k^2), lambda = 0.1; the clients hold equal
contiguous parts in the order of the file, the last one the remainder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import compcomm as cc
from compcomm.core.optional import need

SITE = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary.html"
LAMBDA = 0.1


class Missing(FileNotFoundError):
    """A data file is not there."""


@dataclass(frozen=True)
class Logistic:
    """``features`` [N, d] dense or sparse, ``labels`` +-1, rows of each client."""

    features: Any
    labels: np.ndarray
    parts: tuple[slice, ...]

    @classmethod
    def split(cls, features: Any, labels: np.ndarray, clients: int) -> Logistic:
        size = len(labels) // clients
        ends = [*(size * (i + 1) for i in range(clients - 1)), len(labels)]
        parts = tuple(slice(size * i, end) for i, end in enumerate(ends))
        return cls(features, np.where(labels == labels.min(), -1.0, 1.0), parts)

    @property
    def dimension(self) -> int:
        return int(self.features.shape[1])

    def constants(self) -> tuple[float, list[float]]:
        """L, and the L_i."""
        whole = cc.smoothness(self.features, regularization=2 * LAMBDA)
        return whole, [cc.smoothness(self.features[p], regularization=2 * LAMBDA) for p in self.parts]

    def gradients(self, x: Tensor) -> Tensor:
        """[clients, runs, d] at x [runs, d]."""
        at = x.numpy().T
        margin = self.labels[:, None] * np.asarray(self.features @ at)
        pull = -self.labels[:, None] / (1 + np.exp(margin))
        found = np.stack([np.asarray(self.features[p].T @ pull[p]) / (p.stop - p.start) for p in self.parts])
        return torch.from_numpy(np.ascontiguousarray((found + 2 * LAMBDA * at / (1 + at * at) ** 2).transpose(0, 2, 1)))


def load(folder: Path, name: str, clients: int) -> Logistic:
    """The data set of that name in ``folder``, in svmlight format.

    Raises:
        Missing: with the place to download it from.
    """
    path = folder / name
    if not path.is_file():
        raise Missing(
            f"{path} is not there. Download {name!r} from {SITE} into {folder}, or name its folder in --data."
        )
    features, labels = need("sklearn.datasets", "logistic.py").load_svmlight_file(str(path))
    return Logistic.split(features.tocsr(), labels, clients)
