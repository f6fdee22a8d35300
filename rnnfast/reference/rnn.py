"""The vanilla (Elman 1990) RNN, as PyTorch's `torch.nn.RNN` with more functions:

h' = phi(W_ih x + b_ih + W_hh h + b_hh)

Layer normalisation (Ba et al. 2016, eq. 4) is that of each of the two products.
"""

from __future__ import annotations

from typing import Any

from ..spec import Spec
from ..weights import Weights
from .common import Array, activate, activate_vjp, affine, affine_vjp, limited, masked


def step(
    spec: Spec, w: Weights, x: Array, h: Array, c: Array, mask: Array | None
) -> tuple[Array, Array, Any]:
    a_x, from_x = affine(x, w.w_ih, w.b_ih, w.ln_ih)
    a_h, from_h = affine(masked(h, mask), w.w_hh, w.b_hh, w.ln_hh)
    a = a_x + a_h
    h_next = activate(spec.of_candidate, spec.clip, a)
    return h_next, c, (from_x, from_h, a, h_next)


def step_vjp(
    spec: Spec, w: Weights, saved: Any, mask: Array | None, dh_next: Array, dc_next: Array
) -> tuple[Array, Array, Array, Weights]:
    from_x, from_h, a, h_next = saved
    da = limited(activate_vjp(spec.of_candidate, spec.clip, dh_next, a, h_next), spec.grad_clip)
    by_x = affine_vjp(da, from_x, w.w_ih, w.b_ih, w.ln_ih)
    by_h = affine_vjp(da, from_h, w.w_hh, w.b_hh, w.ln_hh)
    dweights = Weights(by_x.w, by_h.w, by_x.b, by_h.b, ln_ih=by_x.gain, ln_hh=by_h.gain)
    return by_x.x, masked(by_h.x, mask), dc_next, dweights
