"""Functions that several cells share.

All of them are analytic wherever a real number decides a branch, so that they also work in complex
numbers with a tiny imaginary part: the complex step (Squire & Trapp 1998) that gives second
derivatives.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..spec import Activation

Array = NDArray[Any]

NORM_EPS = 1e-5  # added to variances, as in torch.nn.LayerNorm
_NOTHING = 1e-200  # what tiny imaginary parts leave in a real one by their products is smaller


def real(x: Array) -> Array:
    """The real part, which decides a branch."""
    if not np.iscomplexobj(x):
        return x
    return np.where(np.abs(x.real) < _NOTHING, 0, x.real)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow and accurate in both tails."""
    e = np.exp(np.where(x.real < 0, x, -x))
    return np.asarray(np.where(x.real >= 0, 1, e) / (1 + e))


def magnitude(x: Array) -> Array:
    return np.where(real(x) < 0, -x, x)


def limited(x: Array, bound: float | None) -> Array:
    """x where it lies in [-bound, bound], else the bound that it passes."""
    if bound is None:
        return x
    limit = x.real.dtype.type(bound)
    return np.where(x.real >= limit, limit, np.where(x.real <= -limit, -limit, x))


def activate(f: Activation, clip: float | None, a: Array) -> Array:
    """f(a), the argument limited to [-clip, clip]; the formulas are those of ONNX's LSTM."""
    a = limited(a, clip)
    alpha, beta = a.real.dtype.type(f.alpha), a.real.dtype.type(f.beta)
    if f.name == "sigmoid":
        return sigmoid(a)
    if f.name == "tanh":
        return np.asarray(np.tanh(a))
    if f.name == "relu":
        return np.where(real(a) <= 0, 0, a)  # NaN stays
    if f.name == "linear":
        return a
    if f.name == "affine":
        return np.asarray(alpha * a + beta)
    if f.name == "leaky_relu":
        return np.where(real(a) < 0, alpha * a, a)
    if f.name == "thresholded_relu":
        return np.where(real(a) <= alpha, 0, a)
    if f.name == "scaled_tanh":
        return np.asarray(alpha * np.tanh(beta * a))
    if f.name == "hard_sigmoid":
        y = alpha * a + beta
        return np.where(real(y) <= 0, 0, np.where(y.real >= 1, 1, y))
    if f.name == "elu":
        negative = real(a) < 0
        return np.where(negative, alpha * np.expm1(np.where(negative, a, 0)), a)
    if f.name == "softsign":
        return np.asarray(a / (1 + magnitude(a)))
    assert f.name == "softplus"
    return np.where(real(a) >= 0, a, 0) + np.log1p(np.exp(-magnitude(a)))


def activate_vjp(f: Activation, clip: float | None, dy: Array, a: Array, y: Array) -> Array:
    """Gradient of a, given that of y = activate(f, clip, a)."""
    alpha, beta = a.real.dtype.type(f.alpha), a.real.dtype.type(f.beta)
    if f.name == "sigmoid":
        da = dy * y * (1 - y)
    elif f.name == "tanh":
        da = dy * (1 - y**2)
    elif f.name == "relu":
        da = np.where(real(y) <= 0, 0, dy)  # NaN stays
    elif f.name == "linear":
        da = dy
    elif f.name == "affine":
        da = dy * alpha
    elif f.name == "leaky_relu":
        da = np.where(real(y) < 0, alpha * dy, dy)
    elif f.name == "thresholded_relu":
        da = np.where(real(y) == 0, 0, dy)
    elif f.name == "scaled_tanh":
        da = dy * (alpha * beta) * (1 - (y / alpha) ** 2)
    elif f.name == "hard_sigmoid":
        da = np.where((real(y) > 0) & (y.real < 1), alpha * dy, 0)
    elif f.name == "elu":
        da = np.where(real(y) < 0, dy * (y + alpha), dy)
    elif f.name == "softsign":
        da = dy * (1 - magnitude(y)) ** 2
    else:
        assert f.name == "softplus"
        da = -dy * np.expm1(-y)
    if clip is None:
        return np.asarray(da)
    return np.asarray(np.where(magnitude(a).real >= a.real.dtype.type(clip), 0, da))


# ------------------------------------------------------------------ products with a norm


class Normed(NamedTuple):
    """Numbers brought to mean 0 and variance 1 along the last axis, and what scaled them."""

    hat: Array
    scale: Array


def normed(a: Array) -> Normed:
    """Layer normalisation without gain and shift (Ba, Kiros & Hinton 2016, eq. 3)."""
    centred = a - a.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    scale = 1 / np.sqrt(variance + a.real.dtype.type(NORM_EPS))
    return Normed(centred * scale, scale)


def normed_vjp(dhat: Array, n: Normed) -> Array:
    parallel = (dhat * n.hat).mean(axis=-1, keepdims=True)
    return np.asarray(n.scale * (dhat - dhat.mean(axis=-1, keepdims=True) - n.hat * parallel))


def affine(x: Array, w: Array, b: Array | None, gain: Array | None) -> tuple[Array, Any]:
    """x W^T + b or, with a gain, gain * normed(x W^T) + b; and what its gradient needs."""
    a: Array = x @ w.T
    n = None
    if gain is not None:
        n = normed(a)
        a = gain * n.hat
    return (a if b is None else a + b), (x, n)


class AffineGradient(NamedTuple):
    x: Array
    w: Array
    b: Array | None
    gain: Array | None


def affine_vjp(
    da: Array, saved: Any, w: Array, b: Array | None, gain: Array | None
) -> AffineGradient:
    x, n = saved
    db = None if b is None else da.sum(axis=0)
    dgain = None
    if gain is not None:
        dgain = (da * n.hat).sum(axis=0)
        da = normed_vjp(da * gain, n)
    return AffineGradient(da @ w, da.T @ x, db, dgain)


def masked(h: Array, mask: Array | None) -> Array:
    return h if mask is None else h * mask
