"""The gated recurrence of the article that rnnfast starts from, with gates stacked i f c.

    i = sigmoid(W_i [x, h] + b_i)                   how much of the candidate enters
    f = sigmoid(W_f [x, h] + b_f)                   how much of the state stays
    h' = f * h + i * sigmoid(W_c [x, h] + b_c)

W [x, h] is written as W_ih x + W_hh h, and b as b_ih + b_hh, so that weights look as they do in
the other cells. Layer normalisation is that of each of the two products, over all three gates.
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
    a_x, from_x = affine(x, w.w_ih, w.b_ih, w.ln_ih)
    a_h, from_h = affine(masked(h, mask), w.w_hh, w.b_hh, w.ln_hh)
    a_i, a_f, a_u = np.split(a_x + a_h, 3, axis=-1)
    i = activate(spec.of_gates, spec.clip, a_i)
    f = activate(spec.of_gates, spec.clip, a_f)
    u = activate(spec.of_candidate, spec.clip, a_u)
    return f * h + i * u, c, (from_x, from_h, h, a_i, a_f, a_u, i, f, u)


def step_vjp(
    spec: Spec, w: Weights, saved: Any, mask: Array | None, dh_next: Array, dc_next: Array
) -> tuple[Array, Array, Array, Weights]:
    from_x, from_h, h, a_i, a_f, a_u, i, f, u = saved
    di = activate_vjp(spec.of_gates, spec.clip, dh_next * u, a_i, i)
    df = activate_vjp(spec.of_gates, spec.clip, dh_next * h, a_f, f)
    du = activate_vjp(spec.of_candidate, spec.clip, dh_next * i, a_u, u)
    da = limited(np.concatenate([di, df, du], axis=-1), spec.grad_clip)
    by_x = affine_vjp(da, from_x, w.w_ih, w.b_ih, w.ln_ih)
    by_h = affine_vjp(da, from_h, w.w_hh, w.b_hh, w.ln_hh)
    dweights = Weights(by_x.w, by_h.w, by_x.b, by_h.b, ln_ih=by_x.gain, ln_hh=by_h.gain)
    return by_x.x, dh_next * f + masked(by_h.x, mask), dc_next, dweights
