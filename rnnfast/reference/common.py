"""Functions that several cells share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..weights import Weights

Array = NDArray[Any]


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow and accurate in both tails."""
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1, e) / (1 + e))


def affine(x: Array, w: Array, b: Array | None) -> Array:
    """x W^T + b."""
    a: Array = x @ w.T
    return a if b is None else a + b


def affine_vjp(da: Array, x: Array, w: Array, b: Array | None) -> tuple[Array, Array, Array | None]:
    """Gradients of x, W and b for a = x W^T + b."""
    return da @ w, da.T @ x, None if b is None else da.sum(axis=0)


def both_vjp(
    da_x: Array, da_h: Array, x: Array, h: Array, w: Weights
) -> tuple[Array, Array, Weights]:
    """dx, dh and dweights where the input gives a_x = x W_ih^T + b_ih, the state a_h likewise."""
    dx, dw_ih, db_ih = affine_vjp(da_x, x, w.w_ih, w.b_ih)
    dh, dw_hh, db_hh = affine_vjp(da_h, h, w.w_hh, w.b_hh)
    return dx, dh, Weights(dw_ih, dw_hh, db_ih, db_hh)
