"""The native backend's exp, sigmoid and tanh, over their whole range, on each instruction set."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from helpers import Array

_native = pytest.importorskip("rnnfast._native", exc_type=ImportError)

# The maximum errors that csrc/simd/math.hpp states, in units in the last place.
MAX_ULP = {
    "exp": {"float32": 1.1, "float64": 1.0},
    "sigmoid": {"float32": 2.5, "float64": 2.0},
    "tanh": {"float32": 2.6, "float64": 2.3},
}
# From where exp may return infinity, a little before the true value overflows.
EXP_OVERFLOWS = {"float32": 88.37, "float64": 709.43}


@pytest.fixture(params=MAX_ULP)
def activation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@cache
def arguments(dtype: str) -> Array:
    """Finite numbers over the whole range: in float32 every 997th bit pattern, in float64 random
    patterns; and in both, dense samples of where the functions bend, saturate and underflow.
    """
    rng = np.random.default_rng(0)
    kind = np.dtype(dtype)
    if dtype == "float32":
        patterns = np.arange(0, 2**32, 997, dtype=np.uint64).astype(np.uint32).view(kind)
        count, edge = 100_000, 90
    else:
        patterns = rng.integers(0, 2**64, 4000, dtype=np.uint64).view(kind)
        count, edge = 3000, 711
    tiny = np.finfo(kind).tiny
    parts = [
        patterns,
        rng.uniform(-1, 1, count),
        rng.uniform(-25, 25, count),
        rng.uniform(-edge, edge, count),
        rng.choice([-1, 1], count) * 10 ** rng.uniform(-8, 2, count),
        np.log(2) * (rng.integers(-edge, edge, count) + 0.5),  # where the reduced argument jumps
        [0.0, -0.0, tiny, -tiny, tiny / 2, np.finfo(kind).smallest_subnormal, 0.5, 1, 2, 20, 44],
    ]
    with np.errstate(over="ignore"):
        x: Array = np.concatenate([np.asarray(p, kind) for p in parts])
    return x[np.isfinite(x)]


def exactly(name: str, x: Array) -> Array:
    """The function in float64, correct to far less than a unit of float32."""
    x = x.astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        if name == "tanh":
            return np.tanh(x)
        e = np.exp(-np.abs(x)) if name == "sigmoid" else np.exp(x)
        return np.where(x >= 0, 1, e) / (1 + e) if name == "sigmoid" else e


@cache
def truth(name: str, dtype: str) -> tuple[Array, Array]:
    """The function's value rounded to dtype, and the rest that rounding left, in ULP."""
    x = arguments(dtype)
    if dtype == "float32":
        value = exactly(name, x)
        with np.errstate(over="ignore", under="ignore"):
            rounded = value.astype(dtype)
        with np.errstate(invalid="ignore"):
            return rounded, (value - rounded) / unit(rounded)
    mpmath = pytest.importorskip("mpmath")
    rounded, rest = np.empty_like(x), np.empty_like(x)
    with mpmath.workprec(120):
        functions = {
            "exp": mpmath.exp,
            "tanh": mpmath.tanh,
            "sigmoid": lambda v: 1 / (1 + mpmath.exp(-v)),
        }
        for k, v in enumerate(x):
            if abs(v) > 2000:  # saturated; the exact value has too large an exponent
                rounded[k] = {"exp": np.inf if v > 0 else 0, "tanh": np.sign(v)}.get(name, v > 0)
                rest[k] = 0
                continue
            exact = functions[name](mpmath.mpf(float(v)))
            rounded[k] = float(exact)
            rest[k] = 0
            if np.isfinite(rounded[k]):
                rest[k] = float((exact - mpmath.mpf(float(rounded[k]))) / unit(rounded[k]))
    return rounded, rest


def unit(rounded: Any) -> Any:
    """The distance of neighbouring floats at a value; that of the smallest normal ones at 0."""
    tiny = np.finfo(np.asarray(rounded).dtype).tiny
    with np.errstate(invalid="ignore"):
        return np.spacing(np.maximum(np.abs(rounded), tiny)).astype(np.float64)


def test_errors_of_functions(activation: str, dtype: str, isa: str) -> None:
    x = arguments(dtype)
    rounded, rest = truth(activation, dtype)
    got = _native.evaluate(activation, x)
    assert got.dtype == dtype
    assert not np.isnan(got).any()
    tiny = np.finfo(dtype).tiny
    flushed = (np.abs(rounded) < tiny) & (got == 0)
    ok = flushed | (got == rounded)
    if activation == "exp":
        ok |= np.isinf(got) & (got > 0) & (x >= EXP_OVERFLOWS[dtype])
    with np.errstate(invalid="ignore", over="ignore"):
        # got - rounded is exact, as they are neighbours; the rest is what rounding hid.
        error = np.where(ok, 0, np.abs((got.astype(np.float64) - rounded) / unit(rounded) - rest))
    worst = int(error.argmax())
    assert error[worst] <= MAX_ULP[activation][dtype], (
        f"{activation}({float(x[worst]).hex()}) = {float(got[worst]).hex()} is off by "
        f"{error[worst]:.2f} ULP"
    )


def test_stated_errors_are_not_far_off(activation: str, dtype: str, isa: str) -> None:
    """A third of what the header states does occur: the sample finds the hard cases."""
    rounded, rest = truth(activation, dtype)
    got = _native.evaluate(activation, arguments(dtype)).astype(np.float64)
    normal = (np.abs(rounded) > np.finfo(dtype).tiny) & np.isfinite(got) & np.isfinite(rounded)
    got, rounded, rest = got[normal], rounded[normal], rest[normal]
    assert np.abs((got - rounded) / unit(rounded) - rest).max() > MAX_ULP[activation][dtype] / 3


def test_special_arguments(activation: str, dtype: str, isa: str) -> None:
    x = np.array([np.inf, -np.inf, np.nan, -np.nan, 0.0, -0.0], dtype)
    got = _native.evaluate(activation, x)
    limits = {"exp": (np.inf, 0, 1), "sigmoid": (1, 0, 0.5), "tanh": (1, -1, 0)}[activation]
    assert got[0] == limits[0]
    assert got[1] == limits[1]
    assert np.isnan(got[2:4]).all()
    assert (got[4:] == limits[2]).all()
    if activation == "tanh":
        np.testing.assert_array_equal(np.signbit(got[4:]), [False, True])


def test_functions_keep_their_order(activation: str, dtype: str, isa: str) -> None:
    """Within their error, the functions rise; they never leave their range."""
    x = np.sort(arguments(dtype))
    got = _native.evaluate(activation, x)
    assert got.min() >= (-1 if activation == "tanh" else 0)
    if activation != "exp":
        assert got.max() <= 1
    got = got[np.isfinite(got)]
    fall = got[:-1].astype(np.float64) - got[1:]
    assert (fall <= 2 * MAX_ULP[activation][dtype] * unit(got[:-1])).all()


def test_lanes_do_not_matter(activation: str, dtype: str, isa: str) -> None:
    """A number has one result, wherever in a vector or in its tail it stands."""
    x = np.resize(np.linspace(-9, 9, 37), 41).astype(dtype)
    whole = _native.evaluate(activation, x)
    for start in range(len(x)):
        np.testing.assert_array_equal(_native.evaluate(activation, x[start:].copy()), whole[start:])
    np.testing.assert_array_equal(whole[37:], whole[:4])
    assert _native.evaluate(activation, x[:0]).size == 0


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 17, 5), (70, 33, 600), (129, 200, 1100)])
def test_products(shape: tuple[int, int, int], dtype: str, isa: str) -> None:
    m, n, k = shape
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    wanted = a.astype(np.float64) @ b
    allowed = np.finfo(dtype).eps * (16 + 4 * k**0.5) * np.abs(wanted).max()
    for got in (_native.multiply_nn(a, b), _native.multiply_tn(np.ascontiguousarray(a.T), b)):
        assert got.dtype == dtype
        assert np.abs(got - wanted).max() <= allowed
