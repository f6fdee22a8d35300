"""The vanilla (Elman 1990) RNN, as PyTorch's `torch.nn.RNN` with a sigmoid added:

h' = phi(W_ih x + b_ih + W_hh h + b_hh),    phi one of tanh, relu, sigmoid
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..spec import Spec
from ..weights import Weights
from .common import Array, affine, both_vjp, sigmoid


def step(spec: Spec, w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array, Any]:
    a = affine(x, w.w_ih, w.b_ih) + affine(h, w.w_hh, w.b_hh)
    if spec.nonlinearity == "tanh":
        h_next = np.tanh(a)
    elif spec.nonlinearity == "relu":
        h_next = np.maximum(a, 0)
    else:
        h_next = sigmoid(a)
    return h_next, c, (x, h, h_next)


def step_vjp(
    spec: Spec, w: Weights, saved: Any, dh_next: Array, dc_next: Array
) -> tuple[Array, Array, Array, Weights]:
    x, h, h_next = saved
    if spec.nonlinearity == "tanh":
        da = dh_next * (1 - h_next**2)
    elif spec.nonlinearity == "relu":
        da = np.where(h_next <= 0, 0, dh_next)  # NaN stays
    else:
        da = dh_next * h_next * (1 - h_next)
    dx, dh, dweights = both_vjp(da, da, x, h, w)
    return dx, dh, dc_next, dweights
