"""The gated recurrence of the article that rnnfast starts from, with gates stacked i f c.

    i = sigmoid(W_i [x, h] + b_i)                   how much of the candidate enters
    f = sigmoid(W_f [x, h] + b_f)                   how much of the state stays
    h' = f * h + i * sigmoid(W_c [x, h] + b_c)

W [x, h] is written as W_ih x + W_hh h, and b as b_ih + b_hh, so that weights look as they do in
the other cells.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..spec import Spec
from ..weights import Weights
from .common import Array, affine, both_vjp, sigmoid


def step(spec: Spec, w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array, Any]:
    a = sigmoid(affine(x, w.w_ih, w.b_ih) + affine(h, w.w_hh, w.b_hh))
    i, f, u = np.split(a, 3, axis=-1)
    return f * h + i * u, c, (x, h, i, f, u)


def step_vjp(
    spec: Spec, w: Weights, saved: Any, dh_next: Array, dc_next: Array
) -> tuple[Array, Array, Array, Weights]:
    x, h, i, f, u = saved
    di, df, du = dh_next * u, dh_next * h, dh_next * i
    da = np.concatenate([di * i * (1 - i), df * f * (1 - f), du * u * (1 - u)], axis=-1)
    dx, dh, dweights = both_vjp(da, da, x, h, w)
    return dx, dh_next * f + dh, dc_next, dweights
