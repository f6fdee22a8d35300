"""LSTM: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000.

In the notation of PyTorch's `torch.nn.LSTM`, whose gate order i f g o it follows:

    i = sigmoid(W_ii x + b_ii + W_hi h + b_hi)      input gate
    f = sigmoid(W_if x + b_if + W_hf h + b_hf)      forget gate
    g = tanh   (W_ig x + b_ig + W_hg h + b_hg)      candidate
    o = sigmoid(W_io x + b_io + W_ho h + b_ho)      output gate
    c' = f * c + i * g
    h' = o * tanh(c')
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..spec import Spec
from ..weights import Weights
from .common import Array, affine, both_vjp, sigmoid


def step(spec: Spec, w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array, Any]:
    a = affine(x, w.w_ih, w.b_ih) + affine(h, w.w_hh, w.b_hh)
    a_i, a_f, a_g, a_o = np.split(a, 4, axis=-1)
    i, f, g, o = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)
    c_next = f * c + i * g
    h_next = o * np.tanh(c_next)
    return h_next, c_next, (x, h, c, i, f, g, o, c_next)


def step_vjp(
    spec: Spec, w: Weights, saved: Any, dh_next: Array, dc_next: Array
) -> tuple[Array, Array, Array, Weights]:
    x, h, c, i, f, g, o, c_next = saved
    tanh_c = np.tanh(c_next)
    do = dh_next * tanh_c
    dc_next = dc_next + dh_next * o * (1 - tanh_c**2)
    di, df, dg = dc_next * g, dc_next * c, dc_next * i
    da = np.concatenate(
        [di * i * (1 - i), df * f * (1 - f), dg * (1 - g**2), do * o * (1 - o)], axis=-1
    )
    dx, dh, dweights = both_vjp(da, da, x, h, w)
    return dx, dh, dc_next * f, dweights
