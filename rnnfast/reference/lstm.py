"""LSTM: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000.

In the notation of PyTorch's `torch.nn.LSTM`, whose gate order i f g o it follows:

    i = sigmoid(W_ii x + b_ii + W_hi h + b_hi)      input gate
    f = sigmoid(W_if x + b_if + W_hf h + b_hf)      forget gate
    g = tanh   (W_ig x + b_ig + W_hg h + b_hg)      candidate
    o = sigmoid(W_io x + b_io + W_ho h + b_ho)      output gate
    c' = f * c + i * g
    h' = o * tanh(c')

Options, each where it is asked for:

    peepholes (Gers & Schmidhuber 2000; ONNX's P)   p_i * c and p_f * c enter i and f, p_o * c' o
    input_forget (ONNX)                             f = 1 - i
    projection (Sak et al. 2014; PyTorch's proj_size)   h' = W_hr (o * tanh(c'))
    layer normalisation (Ba et al. 2016, eq. 20-22) gain_ih * normed(W_ih x) + b_ih and
                                                    gain_hh * normed(W_hh h) + b_hh, each over all
                                                    four gates; tanh(gain_c * normed(c') + shift_c)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..spec import Spec
from ..weights import Weights
from .common import (
    Array,
    activate,
    activate_vjp,
    affine,
    affine_vjp,
    limited,
    masked,
    normed,
    normed_vjp,
)


def step(
    spec: Spec, w: Weights, x: Array, h: Array, c: Array, mask: Array | None
) -> tuple[Array, Array, Any]:
    a_x, from_x = affine(x, w.w_ih, w.b_ih, w.ln_ih)
    a_h, from_h = affine(masked(h, mask), w.w_hh, w.b_hh, w.ln_hh)
    a_i, a_f, a_g, a_o = np.split(a_x + a_h, 4, axis=-1)
    if w.w_peep is not None:
        a_i, a_f = a_i + w.w_peep[0] * c, a_f + w.w_peep[1] * c
    i = activate(spec.of_gates, spec.clip, a_i)
    f = 1 - i if spec.input_forget else activate(spec.of_gates, spec.clip, a_f)
    g = activate(spec.of_candidate, spec.clip, a_g)
    c_next = f * c + i * g
    if w.w_peep is not None:
        a_o = a_o + w.w_peep[2] * c_next
    o = activate(spec.of_gates, spec.clip, a_o)
    u, n = c_next, None
    if w.ln_c is not None:
        n = normed(c_next)
        u = w.ln_c * n.hat if w.ln_c_shift is None else w.ln_c * n.hat + w.ln_c_shift
    v = activate(spec.of_output, None, u)
    h_next = o * v if w.w_hr is None else (o * v) @ w.w_hr.T
    return h_next, c_next, (from_x, from_h, c, a_i, a_f, a_g, a_o, i, f, g, o, c_next, n, u, v)


def step_vjp(
    spec: Spec,
    w: Weights,
    saved: Any,
    mask: Array | None,
    dh_next: Array,
    dc_next: Array,
) -> tuple[Array, Array, Array, Weights]:
    from_x, from_h, c, a_i, a_f, a_g, a_o, i, f, g, o, c_next, n, u, v = saved
    dw_hr = None
    if w.w_hr is not None:
        dw_hr = dh_next.T @ (o * v)
        dh_next = dh_next @ w.w_hr
    do = activate_vjp(spec.of_gates, spec.clip, dh_next * v, a_o, o)
    do = limited(do, spec.grad_clip)
    du = activate_vjp(spec.of_output, None, dh_next * o, u, v)
    dln_c = dln_c_shift = None
    if w.ln_c is not None:
        dln_c = (du * n.hat).sum(axis=0)
        dln_c_shift = None if w.ln_c_shift is None else du.sum(axis=0)
        du = normed_vjp(du * w.ln_c, n)
    dc_next = dc_next + du
    if w.w_peep is not None:
        dc_next = dc_next + do * w.w_peep[2]
    di = dc_next * g
    df = dc_next * c
    if spec.input_forget:
        di, df = di - df, np.zeros_like(df)
    di = limited(activate_vjp(spec.of_gates, spec.clip, di, a_i, i), spec.grad_clip)
    if not spec.input_forget:
        df = limited(activate_vjp(spec.of_gates, spec.clip, df, a_f, f), spec.grad_clip)
    dg = activate_vjp(spec.of_candidate, spec.clip, dc_next * i, a_g, g)
    dg = limited(dg, spec.grad_clip)
    dc = dc_next * f
    dw_peep = None
    if w.w_peep is not None:
        dc = dc + di * w.w_peep[0] + df * w.w_peep[1]
        dw_peep = np.stack([(di * c).sum(0), (df * c).sum(0), (do * c_next).sum(0)])
    da = np.concatenate([di, df, dg, do], axis=-1)
    by_x = affine_vjp(da, from_x, w.w_ih, w.b_ih, w.ln_ih)
    by_h = affine_vjp(da, from_h, w.w_hh, w.b_hh, w.ln_hh)
    dweights = Weights(
        by_x.w,
        by_h.w,
        by_x.b,
        by_h.b,
        w_hr=dw_hr,
        w_peep=dw_peep,
        ln_ih=by_x.gain,
        ln_hh=by_h.gain,
        ln_c=dln_c,
        ln_c_shift=dln_c_shift,
    )
    return by_x.x, masked(by_h.x, mask), dc, dweights
