"""How smooth the workers' losses are: the L_i that EF21's step and its weights are made of, for generalised linear
models."""

from __future__ import annotations

from collections.abc import Iterable
from math import fsum
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CURVATURE = {"logistic": 0.25, "least-squares": 1.0}
"""The largest second derivative of a sample's loss."""


def smoothness(features: Any, loss: str = "logistic", regularization: float = 0.0) -> float:
    """L = c/N * lambda_max(A^T A) + regularization: the Lipschitz constant of the gradient of a mean over N samples.

    For f(x) = 1/N sum_j l(a_j^T x) + r(x) with |l''| <= c: c = 1/4 for ``"logistic"``, l(z) = log(1 + exp(-y z)), y = 1
    or -1; c = 1 for ``"least-squares"``, l(z) = (z - b)^2/2, so without the 1/N that some texts leave out. ``features``
    is A, one sample per row: a tensor, an array or a SciPy sparse matrix. ``regularization`` is the smoothness of r:
    mu for mu/2 |x|^2, 2 lambda for lambda sum_j x_j^2/(1 + x_j^2).

    Computed in float64 from the smaller of A^T A and A A^T. Every worker knows its own; gather them for
    ``EF21(weights=)``, which takes L_i/sum of all L_j. Neural networks have no such constant: leave the weights out.

    >>> smoothness([[3.0, 0.0], [0.0, 4.0]], "least-squares"), smoothness([[3.0, 0.0], [0.0, 4.0]], "logistic", 0.5)
    (8.0, 2.5)

    Raises:
        ValueError: no samples, no features, numbers that are not finite, an unknown loss, or a loss that is flat.
    """
    if loss not in _CURVATURE:
        raise ValueError(f"smoothness(loss={loss!r}): known are {' and '.join(map(repr, _CURVATURE))}.")
    if not isinstance(regularization, int | float) or not 0.0 <= regularization < float("inf"):
        raise ValueError(
            f"smoothness(regularization={regularization!r}): the smoothness of r, finite and not negative."
        )
    a = _matrix(features)
    samples = a.shape[0]
    wide = a.shape[1] > samples
    gram = _dense(a @ a.T if wide else a.T @ a)
    if not np.isfinite(gram).all():
        raise ValueError("smoothness(features): not all are finite, or they are too large to be squared.")
    found = _CURVATURE[loss] / samples * float(np.linalg.eigvalsh(gram)[-1]) + regularization
    if not found > 0.0:
        raise ValueError("smoothness(features): all are zero, so the loss is flat and has no step size of its own.")
    return found


def smoothness_weights(
    features: Iterable[Any], loss: str = "logistic", regularization: float = 0.0
) -> tuple[float, ...]:
    """w_i = L_i/(L_1 + ... + L_W), for ``EF21(weights=)``: one feature matrix per worker, in rank order.

    L_i is that of ``smoothness``. The mean is over workers, f = 1/W sum_i f_i, whatever their numbers of samples.

    >>> smoothness_weights([[[1.0]], [[2.0], [2.0]], [[1.0], [3.0]]], "least-squares")
    (0.1, 0.4, 0.5)

    Source: Richtarik, Gasanov, Burlachenko 2024 (arXiv:2402.10774), Section 3.

    Raises:
        ValueError: as in ``smoothness``, or no worker.
    """
    constants: list[float] = []
    for worker, a in enumerate(features):
        try:
            constants.append(smoothness(a, loss, regularization))
        except ValueError as error:
            raise ValueError(f"smoothness_weights, worker {worker}: {error}") from error
    if not constants:
        raise ValueError("smoothness_weights(features=[]): give one feature matrix per worker, in rank order.")
    total = fsum(constants)
    return tuple(found / total for found in constants)


def _matrix(features: Any) -> Any:
    """A float64 array, or a sparse matrix of float64, of two dimensions."""
    if hasattr(features, "detach"):
        features = features.detach().to_dense().double().cpu().numpy()
    a = features.astype(np.float64) if hasattr(features, "toarray") else np.asarray(features, dtype=np.float64)
    if len(a.shape) != 2 or 0 in a.shape:
        raise ValueError(f"smoothness(features of shape {tuple(a.shape)}): a matrix with a sample per row is needed.")
    return a


def _dense(gram: Any) -> NDArray[np.float64]:
    return np.asarray(gram.toarray() if hasattr(gram, "toarray") else gram)
