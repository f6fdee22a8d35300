"""GRU: Cho et al. 2014, in both of the forms that are in use.

With gate order r z n, as in PyTorch's `torch.nn.GRU`:

    r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)              reset gate
    z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)              update gate
    n = tanh(W_in x + b_in + r * (W_hn h + b_hn))           reset_after=True: cuDNN, PyTorch, Keras
    n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)           reset_after=False: the paper
    h' = (1 - z) * n + z * h
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..spec import Spec
from ..weights import Weights
from .common import Array, affine, affine_vjp, both_vjp, sigmoid


def step(spec: Spec, w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array, Any]:
    hidden = h.shape[-1]
    a_x = affine(x, w.w_ih, w.b_ih)
    x_r, x_z, x_n = np.split(a_x, 3, axis=-1)
    gates, candidate = _split(w, hidden)
    h_r, h_z = np.split(affine(h, *gates), 2, axis=-1)
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    if spec.reset_after:
        q = affine(h, *candidate)
        n = np.tanh(x_n + r * q)
    else:
        q = r * h
        n = np.tanh(x_n + affine(q, *candidate))
    return (1 - z) * n + z * h, c, (x, h, r, z, n, q)


def step_vjp(
    spec: Spec, w: Weights, saved: Any, dh_next: Array, dc_next: Array
) -> tuple[Array, Array, Array, Weights]:
    x, h, r, z, n, q = saved
    dz = dh_next * (h - n) * z * (1 - z)
    dn = dh_next * (1 - z) * (1 - n**2)
    if spec.reset_after:
        dr = dn * q * r * (1 - r)
        da_x = np.concatenate([dr, dz, dn], axis=-1)
        da_h = np.concatenate([dr, dz, dn * r], axis=-1)
        dx, dh, dweights = both_vjp(da_x, da_h, x, h, w)
        return dx, dh_next * z + dh, dc_next, dweights
    gates, candidate = _split(w, h.shape[-1])
    drh, dw_n, db_n = affine_vjp(dn, q, *candidate)
    dr = drh * h * r * (1 - r)
    dx, dw_ih, db_ih = affine_vjp(np.concatenate([dr, dz, dn], axis=-1), x, w.w_ih, w.b_ih)
    dh, dw_rz, db_rz = affine_vjp(np.concatenate([dr, dz], axis=-1), h, *gates)
    db_hh = None if db_rz is None or db_n is None else np.concatenate([db_rz, db_n])
    dweights = Weights(dw_ih, np.concatenate([dw_rz, dw_n]), db_ih, db_hh)
    return dx, dh_next * z + drh * r + dh, dc_next, dweights


def _split(
    w: Weights, hidden: int
) -> tuple[tuple[Array, Array | None], tuple[Array, Array | None]]:
    """(w_hh, b_hh) of the two gates, and of the candidate n."""
    at = 2 * hidden
    if w.b_hh is None:
        return (w.w_hh[:at], None), (w.w_hh[at:], None)
    return (w.w_hh[:at], w.b_hh[:at]), (w.w_hh[at:], w.b_hh[at:])
