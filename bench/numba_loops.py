"""One step of one row as one writes it by hand for Numba: plain loops over PyTorch's layout.

fastmath lets the compiler reorder the sums, without which it cannot use vectors for them. np.dot
is not used: Numba's needs SciPy, and costs more than these loops at the sizes of streaming.
"""

from __future__ import annotations

from math import exp, tanh
from typing import Any

import numpy as np
from numba import njit

_compiled = njit(fastmath=True, error_model="numpy", cache=False)
_ONE = np.float32(1)


@_compiled
def _sigmoid(a: Any) -> Any:
    return _ONE / (_ONE + np.float32(exp(-a)))


@_compiled
def _affine(x: Any, w: Any, b: Any, out: Any) -> None:
    """out = w x + b"""
    for row in range(w.shape[0]):
        total = np.float32(0)
        for k in range(w.shape[1]):
            total += w[row, k] * x[k]
        out[row] = total + b[row]


@_compiled
def _add_affine(x: Any, w: Any, b: Any, out: Any) -> None:
    """out += w x + b"""
    for row in range(w.shape[0]):
        total = np.float32(0)
        for k in range(w.shape[1]):
            total += w[row, k] * x[k]
        out[row] += total + b[row]


@_compiled
def lstm(x: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, h: Any, c: Any, a: Any) -> None:
    _affine(x, w_ih, b_ih, a)
    _add_affine(h, w_hh, b_hh, a)
    H = len(h)
    for j in range(H):
        i, f, o = _sigmoid(a[j]), _sigmoid(a[H + j]), _sigmoid(a[3 * H + j])
        c[j] = f * c[j] + i * np.float32(tanh(a[2 * H + j]))
        h[j] = o * np.float32(tanh(c[j]))


@_compiled
def gru(x: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, h: Any, a: Any, u: Any) -> None:
    _affine(x, w_ih, b_ih, a)
    _affine(h, w_hh, b_hh, u)
    H = len(h)
    for j in range(H):
        r, z = _sigmoid(a[j] + u[j]), _sigmoid(a[H + j] + u[H + j])
        n = np.float32(tanh(a[2 * H + j] + r * u[2 * H + j]))
        h[j] = n + z * (h[j] - n)


@_compiled
def rnn(x: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, h: Any, a: Any) -> None:
    _affine(x, w_ih, b_ih, a)
    _add_affine(h, w_hh, b_hh, a)
    for j in range(len(h)):
        h[j] = np.float32(tanh(a[j]))
