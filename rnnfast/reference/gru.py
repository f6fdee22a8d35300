"""GRU: Cho et al. 2014, in both of the forms that are in use.

With gate order r z n, as in PyTorch's `torch.nn.GRU`:

    r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)              reset gate
    z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)              update gate
    n = tanh(W_in x + b_in + r * (W_hn h + b_hn))           reset_after=True: cuDNN, PyTorch, Keras
    n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)           reset_after=False: the paper
    h' = (1 - z) * n + z * h

Layer normalisation (Ba et al. 2016, appendix, eq. 23-27) is that of each product, over r and z
together and over n alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..spec import Spec
from ..weights import Weights
from .common import Array, activate, activate_vjp, affine, affine_vjp, limited, masked


def step(
    spec: Spec, w: Weights, x: Array, h: Array, c: Array, mask: Array | None
) -> tuple[Array, Array, Any]:
    rz, candidate = slice(0, 2 * w.w_hh.shape[1]), slice(2 * w.w_hh.shape[1], None)
    x_rz, x_to_rz = affine(x, *_part("ih", w, rz))
    x_n, x_to_n = affine(x, *_part("ih", w, candidate))
    operand = masked(h, mask)
    h_rz, h_to_rz = affine(operand, *_part("hh", w, rz))
    a_r, a_z = np.split(x_rz + h_rz, 2, axis=-1)
    r = activate(spec.of_gates, spec.clip, a_r)
    z = activate(spec.of_gates, spec.clip, a_z)
    if spec.reset_after:
        q, h_to_n = affine(operand, *_part("hh", w, candidate))
        a_n = x_n + r * q
    else:
        q, h_to_n = affine(r * operand, *_part("hh", w, candidate))
        a_n = x_n + q
    n = activate(spec.of_candidate, spec.clip, a_n)
    saved = (x_to_rz, x_to_n, h_to_rz, h_to_n, h, operand, a_r, a_z, a_n, r, z, n, q)
    return (1 - z) * n + z * h, c, saved


def step_vjp(
    spec: Spec, w: Weights, saved: Any, mask: Array | None, dh_next: Array, dc_next: Array
) -> tuple[Array, Array, Array, Weights]:
    x_to_rz, x_to_n, h_to_rz, h_to_n, h, operand, a_r, a_z, a_n, r, z, n, q = saved
    rz, candidate = slice(0, 2 * w.w_hh.shape[1]), slice(2 * w.w_hh.shape[1], None)
    dz = activate_vjp(spec.of_gates, spec.clip, dh_next * (h - n), a_z, z)
    dn = activate_vjp(spec.of_candidate, spec.clip, dh_next * (1 - z), a_n, n)
    dz, dn = limited(dz, spec.grad_clip), limited(dn, spec.grad_clip)
    dq = dn * r if spec.reset_after else dn
    n_by_h = affine_vjp(dq, h_to_n, *_part("hh", w, candidate))
    dr = dn * q if spec.reset_after else n_by_h.x * operand
    dr = limited(activate_vjp(spec.of_gates, spec.clip, dr, a_r, r), spec.grad_clip)
    drz = np.concatenate([dr, dz], axis=-1)
    rz_by_h = affine_vjp(drz, h_to_rz, *_part("hh", w, rz))
    rz_by_x = affine_vjp(drz, x_to_rz, *_part("ih", w, rz))
    n_by_x = affine_vjp(dn, x_to_n, *_part("ih", w, candidate))
    doperand = rz_by_h.x + (n_by_h.x if spec.reset_after else n_by_h.x * r)
    dweights = Weights(
        _both(rz_by_x.w, n_by_x.w),
        _both(rz_by_h.w, n_by_h.w),
        _both(rz_by_x.b, n_by_x.b),
        _both(rz_by_h.b, n_by_h.b),
        ln_ih=_both(rz_by_x.gain, n_by_x.gain),
        ln_hh=_both(rz_by_h.gain, n_by_h.gain),
    )
    return rz_by_x.x + n_by_x.x, dh_next * z + masked(doperand, mask), dc_next, dweights


def _part(product: str, w: Weights, rows: slice) -> tuple[Array, Array | None, Array | None]:
    """Some rows of the matrix, the bias and the gain of a product."""
    found = [getattr(w, kind + product) for kind in ("w_", "b_", "ln_")]
    matrix, bias, gain = (None if a is None else a[rows] for a in found)
    assert matrix is not None
    return matrix, bias, gain


def _both(first: Array | None, second: Array | None) -> Array | None:
    return None if first is None or second is None else np.concatenate([first, second])
