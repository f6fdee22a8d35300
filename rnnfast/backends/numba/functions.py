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
from .compiled import jit, overload
from .lanes import fma, from_bits, stay_apart, to_bits

NAMES = list(ACTIVATIONS)
_SIGMOID, _TANH, _RELU, _LINEAR = map(NAMES.index, ("sigmoid", "tanh", "relu", "linear"))
_AFFINE, _LEAKY, _THRESHOLDED = map(NAMES.index, ("affine", "leaky_relu", "thresholded_relu"))
_SCALED_TANH, _HARD_SIGMOID = map(NAMES.index, ("scaled_tanh", "hard_sigmoid"))
_ELU, _SOFTSIGN, _SOFTPLUS = map(NAMES.index, ("elu", "softsign", "softplus"))


def _numbers(kind: Any, *values: str) -> tuple[Any, ...]:
    return tuple(kind(float.fromhex(value)) for value in values)


_LOG2_E, _LN2_HIGH, _LN2_LOW, _MAGIC = _numbers(
    np.float32, "0x1.715476p+0", "-0x1.63p-1", "0x1.bd0106p-13", "0x1.8p23"
)
_Q0, _Q1, _Q2, _Q3, _Q4 = _numbers(
    np.float32,
    "0x1.000000352a194p-1",
    "0x1.5554af3fe432ap-3",
    "0x1.555486bc8cc22p-5",
    "0x1.12281c7d9e209p-7",
    "0x1.6d9932292202dp-10",
)
_D_LOG2_E, _D_LN2_HIGH, _D_LN2_LOW, _D_MAGIC = _numbers(
    np.float64, "0x1.71547652b82fep+0", "-0x1.62e42feep-1", "-0x1.a39ef35793c76p-33", "0x1.8p52"
)
_D0, _D1, _D2, _D3, _D4, _D5, _D6, _D7, _D8, _D9 = _numbers(
    np.float64,
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
)
_LOWEST, _HIGHEST, _SATURATED = np.float32(-88.3), np.float32(88.72), np.float32(20)


def split_exp(x: Any) -> Any:
    """expm1(r) and 2^n for x = n ln 2 + r, x within the range of exp or NaN."""
    raise NotImplementedError


def within(x: Any) -> Any:
    """x in the range in which exp is finite and normal, or NaN."""
    raise NotImplementedError


@overload(split_exp)
def _split_exp(x: Any) -> Any:
    def single(x: Any) -> Any:
        shifted = fma(x, _LOG2_E, _MAGIC)
        n = shifted - _MAGIC
        r = fma(n, _LN2_LOW, fma(n, _LN2_HIGH, x))
        r2 = r * r
        q = fma(fma(r2, _Q4, fma(r, _Q3, _Q2)), r2, fma(r, _Q1, _Q0))
        two_n = from_bits(np.int32((to_bits(shifted) + np.int32(127)) << np.int32(23)))
        return fma(r2, q, r), two_n

    def double(x: Any) -> Any:
        shifted = fma(x, _D_LOG2_E, _D_MAGIC)
        n = shifted - _D_MAGIC
        r = fma(n, _D_LN2_LOW, fma(n, _D_LN2_HIGH, x))
        r2 = r * r
        q = fma(fma(r, _D9, _D8), r2, fma(r, _D7, _D6))
        q = fma(fma(q, r2, fma(r, _D5, _D4)), r2, fma(r, _D3, _D2))
        q = fma(q, r2, fma(r, _D1, _D0))
        two_n = from_bits(np.int64((to_bits(shifted) + np.int64(1023)) << np.int64(52)))
        return fma(r2, q, r), two_n

    return single if x == types.float32 else double


@overload(within)
def _within(x: Any) -> Any:
    def single(x: Any) -> Any:
        x = _HIGHEST if x > _HIGHEST else x
        return _LOWEST if x < _LOWEST else x

    def double(x: Any) -> Any:
        x = 709.7 if x > 709.7 else x
        return -709.0 if x < -709.0 else x

    return single if x == types.float32 else double


@jit
def exp(x: Any) -> Any:
    expm1_r, two_n = split_exp(within(x))
    return (expm1_r + type(x)(1)) * two_n


@jit
def sigmoid(x: Any) -> Any:
    one = type(x)(1)
    return one / (exp(-x) + one)


@jit
def tanh(x: Any) -> Any:
    kind = type(x)
    size = abs(x) * kind(2)
    most = kind(44)  # where tanh is 1 in either type, and 2^n is far from overflow
    expm1_r, two_n = split_exp(most if size > most else size)
    e = fma(two_n, expm1_r, two_n - kind(1))
    return math.copysign(e / (e + kind(2)), x)


@jit
def limit(a: Any, at: int, count: int, bound: float) -> None:
    """Numbers limited to [-bound, bound]."""
    row = a[at : at + count]
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
    row = a[at : at + count]
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
            row[j] = alpha * (exp(x) - one) if x < zero else x
    elif code == _SOFTSIGN:
        for j in range(count):
            row[j] = row[j] / (one + abs(row[j]))
    elif code == _SOFTPLUS:
        for j in range(count):
            x = row[j]
            row[j] = (zero if x < zero else x) + kind(math.log1p(exp(-abs(x))))


@jit
def _times_slope(f: Any, y: Any, y_at: int, d: Any, d_at: int, count: int) -> None:
    y_row = y[y_at : y_at + count]
    row = d[d_at : d_at + count]
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
            row[j] = row[j] * (alpha if y_row[j] > zero and y_row[j] < one else zero)
    elif code == _ELU:
        for j in range(count):
            row[j] = row[j] * (y_row[j] + alpha) if y_row[j] < zero else row[j]
    elif code == _SOFTSIGN:
        for j in range(count):
            left = one - abs(y_row[j])
            row[j] = row[j] * left * left
    elif code == _SOFTPLUS:
        for j in range(count):
            row[j] = -row[j] * kind(math.expm1(-y_row[j]))


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
    if clip > 0:
        ends = np.empty(2, d.dtype)
        ends[0], ends[1] = -clip, clip
        activate(f, 0.0, ends, np.intp(0), np.intp(2))
        low, high = ends[0], ends[1]
        y_row = y[y_at : y_at + count]
        row = d[d_at : d_at + count]
        for j in range(count):
            if y_row[j] == low or y_row[j] == high:
                row[j] = type(low)(0)
    if most > 0:
        limit(d, d_at, count, most)
