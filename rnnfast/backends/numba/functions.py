"""exp, sigmoid, tanh and the other functions of gates, on rows of numbers.

Algorithms and polynomials are those of csrc/simd/math.hpp: x = n ln 2 + r, and a minimax polynomial
for expm1(r). Written without branches, so that LLVM makes vectors of the loops (Numba's own exp and
tanh are calls of the C library, one number at a time). Largest error, measured by
tests/test_numba_backend.py: sigmoid 2.5 and tanh 2.6 ULP in float32, 2.0 and 2.3 in float64.
NaN gives NaN, infinities the limits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types

from ...spec import ACTIVATIONS
from .compiled import jit
from .lanes import part, stay_apart
from .vectors import Number, scalar

NAMES = list(ACTIVATIONS)
_SIGMOID, _TANH, _RELU, _LINEAR = map(NAMES.index, ("sigmoid", "tanh", "relu", "linear"))
_AFFINE, _LEAKY, _THRESHOLDED = map(NAMES.index, ("affine", "leaky_relu", "thresholded_relu"))
_SCALED_TANH, _HARD_SIGMOID = map(NAMES.index, ("scaled_tanh", "hard_sigmoid"))
_ELU, _SOFTSIGN, _SOFTPLUS = map(NAMES.index, ("elu", "softsign", "softplus"))


_LOG2_E, _LN2_HIGH, _LN2_LOW, _MAGIC = map(
    float.fromhex, ("0x1.715476p+0", "-0x1.63p-1", "0x1.bd0106p-13", "0x1.8p23")
)
_Q0, _Q1, _Q2, _Q3, _Q4 = map(
    float.fromhex,
    (
        "0x1.000000352a194p-1",
        "0x1.5554af3fe432ap-3",
        "0x1.555486bc8cc22p-5",
        "0x1.12281c7d9e209p-7",
        "0x1.6d9932292202dp-10",
    ),
)
_D_LOG2_E, _D_LN2_HIGH, _D_LN2_LOW, _D_MAGIC = map(
    float.fromhex,
    ("0x1.71547652b82fep+0", "-0x1.62e42feep-1", "-0x1.a39ef35793c76p-33", "0x1.8p52"),
)
_D0, _D1, _D2, _D3, _D4, _D5, _D6, _D7, _D8, _D9 = map(
    float.fromhex,
    (
        "0x1.0000000000005p-1",
        "0x1.555555555555cp-3",
        "0x1.555555555210fp-5",
        "0x1.111111110e6e1p-7",
        "0x1.6c16c17f35260p-10",
        "0x1.a01a01b5d6628p-13",
        "0x1.a019a683f2936p-16",
        "0x1.71ddea050710cp-19",
        "0x1.28a2b3b942033p-22",
        "0x1.af76b299d2343p-26",
    ),
)


def _split_exp(x: Number) -> tuple[Number, Number]:
    """expm1(r) and 2^n for x = n ln 2 + r, x within the range of exp or NaN."""
    single = x.kind == types.float32
    if single:
        shifted = x.fma(_LOG2_E, _MAGIC)
        n = shifted - _MAGIC
        r = n.fma(_LN2_LOW, n.fma(_LN2_HIGH, x))
        r2 = r * r
        q = r2.fma(_Q4, r.fma(_Q3, _Q2)).fma(r2, r.fma(_Q1, _Q0))
    else:
        shifted = x.fma(_D_LOG2_E, _D_MAGIC)
        n = shifted - _D_MAGIC
        r = n.fma(_D_LN2_LOW, n.fma(_D_LN2_HIGH, x))
        r2 = r * r
        q = r.fma(_D9, _D8).fma(r2, r.fma(_D7, _D6))
        q = q.fma(r2, r.fma(_D5, _D4)).fma(r2, r.fma(_D3, _D2))
        q = q.fma(r2, r.fma(_D1, _D0))
    bias, mantissa = (127, 23) if single else (1023, 52)
    exponent = x.builder.add(shifted.bits(), x.integer(bias))
    return r2.fma(q, r), x.of_bits(x.builder.shl(exponent, x.integer(mantissa)))


def _within_range(x: Number) -> Number:
    """x where exp of it is finite and normal, the nearest such number elsewhere, or NaN."""
    low, high = (-88.3, 88.72) if x.kind == types.float32 else (-709.0, 709.7)
    x = x.where(">", high, high, x)
    return x.where("<", low, low, x)


def exp_of(x: Number) -> Number:
    expm1_r, two_n = _split_exp(_within_range(x))
    return (expm1_r + 1) * two_n


def expm1_of(x: Number) -> Number:
    expm1_r, two_n = _split_exp(_within_range(x))
    return two_n.fma(expm1_r, two_n - 1)


def sigmoid_of(x: Number) -> Number:
    return x.number(1) / (exp_of(-x) + 1)


def tanh_of(x: Number) -> Number:
    size = x.magnitude() * 2
    # From 44 on tanh is 1 in either type, and 2^n is far from overflow.
    expm1_r, two_n = _split_exp(size.where(">", 44, 44, size))
    e = two_n.fma(expm1_r, two_n - 1)
    return (e / (e + 2)).signed_like(x)


exp, expm1, sigmoid, tanh = map(scalar, (exp_of, expm1_of, sigmoid_of, tanh_of))


@jit
def limit(a: Any, at: int, count: int, bound: float) -> None:
    """Numbers limited to [-bound, bound]."""
    row = part(a, at, at + count)
    most = type(a[0])(bound)
    for j in range(count):
        x = row[j]
        x = most if x > most else x
        row[j] = -most if x < -most else x


@jit
def activate(f: Any, clip: float, a: Any, at: int, count: int) -> None:
    """Numbers become their f = (function, alpha, beta), the arguments limited by clip if above 0.

    The formulas are those of rnnfast/reference/common.py.
    """
    stay_apart()
    if clip > 0:
        limit(a, at, count, clip)
    row = part(a, at, at + count)
    kind = type(a[0])
    code, alpha, beta = f[0], kind(f[1]), kind(f[2])
    zero, one = kind(0), kind(1)
    if code == _SIGMOID:
        for j in range(count):
            row[j] = sigmoid(row[j])
    elif code == _TANH:
        for j in range(count):
            row[j] = tanh(row[j])
    elif code == _RELU:
        for j in range(count):
            row[j] = zero if row[j] <= zero else row[j]
    elif code == _AFFINE:
        for j in range(count):
            row[j] = alpha * row[j] + beta
    elif code == _LEAKY:
        for j in range(count):
            row[j] = alpha * row[j] if row[j] < zero else row[j]
    elif code == _THRESHOLDED:
        for j in range(count):
            row[j] = zero if row[j] <= alpha else row[j]
    elif code == _SCALED_TANH:
        for j in range(count):
            row[j] = alpha * tanh(beta * row[j])
    elif code == _HARD_SIGMOID:
        for j in range(count):
            y = alpha * row[j] + beta
            y = zero if y <= zero else y
            row[j] = one if y >= one else y
    elif code == _ELU:
        for j in range(count):
            x = row[j]
            row[j] = alpha * expm1(x) if x < zero else x
    elif code == _SOFTSIGN:
        for j in range(count):
            row[j] = row[j] / (one + abs(row[j]))
    elif code == _SOFTPLUS:
        for j in range(count):
            x = row[j]
            row[j] = (zero if x < zero else x) + kind(math.log1p(exp(-abs(x))))


@jit
def _times_slope(f: Any, y: Any, y_at: int, d: Any, d_at: int, count: int) -> None:
    y_row = part(y, y_at, y_at + count)
    row = part(d, d_at, d_at + count)
    kind = type(d[0])
    code, alpha, beta = f[0], kind(f[1]), kind(f[2])
    zero, one = kind(0), kind(1)
    if code == _SIGMOID:
        for j in range(count):
            row[j] = row[j] * y_row[j] * (one - y_row[j])
    elif code == _TANH:
        for j in range(count):
            row[j] = row[j] * (one - y_row[j] * y_row[j])
    elif code == _RELU:
        for j in range(count):
            row[j] = zero if y_row[j] <= zero else row[j]
    elif code == _AFFINE:
        for j in range(count):
            row[j] = row[j] * alpha
    elif code == _LEAKY:
        for j in range(count):
            row[j] = row[j] * alpha if y_row[j] < zero else row[j]
    elif code == _THRESHOLDED:
        for j in range(count):
            row[j] = zero if y_row[j] == zero else row[j]
    elif code == _SCALED_TANH:
        for j in range(count):
            t = y_row[j] / alpha
            row[j] = row[j] * (alpha * beta) * (one - t * t)
    elif code == _HARD_SIGMOID:
        for j in range(count):
            row[j] = row[j] * alpha if y_row[j] > zero and y_row[j] < one else zero
    elif code == _ELU:
        for j in range(count):
            row[j] = row[j] * (y_row[j] + alpha) if y_row[j] < zero else row[j]
    elif code == _SOFTSIGN:
        for j in range(count):
            left = one - abs(y_row[j])
            row[j] = row[j] * left * left
    elif code == _SOFTPLUS:
        for j in range(count):
            row[j] = -row[j] * expm1(-y_row[j])


@jit
def activate_back(
    f: Any, clip: float, most: float, y: Any, y_at: int, d: Any, d_at: int, count: int
) -> None:
    """Gradients of values y become those of the arguments, limited to [-most, most] if above 0.

    A value that one of the bounds of clip has is taken for clipped: where arguments within the
    bounds have it too, the function is flat.
    """
    stay_apart()
    _times_slope(f, y, y_at, d, d_at, count)
    if clip > 0 and count > 0:
        y_row = part(y, y_at, y_at + count)
        row = part(d, d_at, d_at + count)
        first = row[0]  # whose place the ends take, one after the other
        row[0] = -clip
        activate(f, 0.0, d, d_at, np.intp(1))
        low = row[0]
        row[0] = clip
        activate(f, 0.0, d, d_at, np.intp(1))
        high = row[0]
        row[0] = first
        for j in range(count):
            if y_row[j] == low or y_row[j] == high:
                row[j] = type(low)(0)
    if most > 0:
        limit(d, d_at, count, most)
