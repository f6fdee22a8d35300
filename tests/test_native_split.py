"""Products of float32 in the matrix unit (AMX), as three bfloat16 parts of each number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from conftest import SPLIT_SET, available_isas, use_isa
from helpers import (
    Array,
    Case,
    Problem,
    assert_same_bits,
    forward,
    function,
    problem,
    run,
    variant,
)

import rnnfast
from rnnfast.spec import Spec

USUAL = "avx512amx"
WITHOUT = USUAL not in available_isas(low=True)

pytestmark = [
    pytest.mark.skipif(WITHOUT, reason="no native backend, or a processor without AMX"),
    pytest.mark.usefixtures("same_threads"),
]

BATCH = 16  # the fewest rows of a batch whose products are split
# T, B, I, H of layers whose products are split in every way: all of them, those with x alone (the
# recurrent weights are read from afar for too few rows), those with h alone, weight gradients too.
SHAPES = [(6, 33, 64, 128), (5, 20, 130, 350), (4, 40, 3, 65), (3, 64, 160, 300)]


@pytest.fixture
def usual() -> Iterator[None]:
    with use_isa(USUAL):
        yield


def in_plain_float32(p: Problem, **options: str) -> dict[str, Array]:
    with use_isa("avx512"):
        return run(p, "native", **options)


def error(got: dict[str, Array], exact: dict[str, Array]) -> dict[str, float]:
    """Root mean squares, relative to the numbers'."""
    return {
        name: float(np.sqrt(np.mean((got[name] - a) ** 2) / np.mean(a**2)))
        for name, a in exact.items()
    }


@pytest.mark.parametrize(("T", "B", "I", "H"), SHAPES)
def test_as_near_as_multiply_adds(T: int, B: int, I: int, H: int, spec: Spec, usual: None) -> None:  # noqa: E741
    """Against float64, on average: no result is further off than that of float32 itself."""
    p = problem(Case(spec, T=T, B=B, I=I, H=H, dtype="float32"))
    got, plain = run(p, "native"), in_plain_float32(p)
    assert any((got[name] != plain[name]).any() for name in got)  # else this tests nothing
    exact = run(p.astype(np.float64), "native")
    ours, theirs = error(got, exact), error(plain, exact)
    for name, bound in theirs.items():
        assert ours[name] <= 1.25 * bound, name


@pytest.mark.parametrize(("T", "B", "I", "H"), SHAPES)
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_same_bits(T: int, B: int, I: int, H: int, ragged: bool, spec: Spec, usual: None) -> None:  # noqa: E741
    """For all threads, packed, recomputed, between checkpoints, and however a sequence is cut."""
    p = problem(Case(spec, T=T, B=B, I=I, H=H, dtype="float32", ragged=ragged))
    rnnfast.set_num_threads(1)
    wanted = run(p, "native")
    for threads in (2, 3, 4):
        rnnfast.set_num_threads(threads)
        assert_same_bits(run(p, "native"), wanted)
        assert_same_bits(run(p, "native", save="recompute"), wanted)
    outputs = {name: wanted[name] for name in forward(p, "native")}
    packed = rnnfast.pack(p.weights, **variant(spec), backend="native")
    for _ in range(2):  # the first call splits what was packed
        assert_same_bits(forward(p, "native", weights=packed), outputs)
    found = run(p, "native", checkpoint=2)
    assert_same_bits({name: found[name] for name in outputs}, outputs)
    assert_same_bits({"dx": found["dx"]}, {"dx": wanted["dx"]})
    if not ragged:
        state, parts = p.state, []
        for x in np.split(p.x, [1, 2]):
            y, state = function(spec)(x, packed, state)
            parts.append(y)
        assert_same_bits({"y": np.concatenate(parts)}, {"y": outputs["y"]})


def test_the_batch_decides(spec: Spec, usual: None) -> None:
    """Smaller ones are multiplied in float32, and larger ones all alike, row by row."""
    whole = problem(Case(spec, T=4, B=3 * BATCH, I=64, H=96, dtype="float32"))
    few = whole.rows(slice(0, BATCH - 1))
    assert_same_bits(run(few, "native"), in_plain_float32(few))
    wanted = forward(whole, "native")
    for rows in (slice(0, BATCH), slice(5, 5 + BATCH), slice(1, 3 * BATCH)):
        found = forward(whole.rows(rows), "native")
        assert_same_bits(found, {name: a[:, rows] for name, a in wanted.items()})


@pytest.mark.parametrize("place", ["x", "weights"])
@pytest.mark.parametrize("value", [
    np.nan, np.inf, -np.inf, 3.4028235e38, -1e38, 2.0**63, 1e30, 1e-38, 1e-45, -0.0,
])  # fmt: skip
def test_special_numbers(value: float, place: str, spec: Spec) -> None:
    """They give what they give in float32, and nothing to other rows and other units."""
    p = problem(Case(spec, T=1, B=20, I=70, H=70, dtype="float32"))
    clean = replace(p, x=p.x.copy())
    if place == "x":
        p.x[0, 7, 33] = value
    else:
        p.weights[0].w_ih[3, 40] = value
    for isa in (USUAL, SPLIT_SET):
        with use_isa(isa), np.errstate(all="ignore"):
            got = forward(p, "native")
            beside = forward(clean, "native") if place == "x" else None
        with use_isa("avx512"), np.errstate(all="ignore"):
            wanted = forward(p, "native")
        for name, a in wanted.items():
            eps = np.finfo(np.float32).eps
            np.testing.assert_allclose(got[name], a, rtol=200 * eps, atol=200 * eps)
            if beside is not None:
                others = np.arange(20) != 7
                assert_same_bits({name: got[name][:, others]}, {name: beside[name][:, others]})


def test_sums_that_overflow() -> None:
    """A product of parts must not overflow where, or with another sign than, the product does."""
    rng = np.random.default_rng(0)
    x = np.zeros((1, 16, 64), np.float32)
    x[0, :, 0] = rng.standard_normal(16) * 1e30
    w = np.zeros((64, 64), np.float32)
    w[:, 0] = rng.standard_normal(64) * 1e30
    weights = rnnfast.Weights(w, np.zeros((64, 64), np.float32))
    with use_isa(USUAL), np.errstate(over="ignore"):
        y, _ = rnnfast.rnn(x, weights, backend="native")
        assert_same_bits({"y": y[0]}, {"y": np.sign(x[0, :, :1] * w[:, 0])})


def test_the_largest_number() -> None:
    largest = np.finfo(np.float32).max
    x = np.full((1, 16, 64), largest, np.float32)
    weights = rnnfast.Weights(np.zeros((64, 64), np.float32), np.zeros((64, 64), np.float32))
    weights.w_ih[0, 5] = 0.5
    with use_isa(USUAL):
        y, _ = rnnfast.rnn(x, weights, nonlinearity="relu", backend="native")
    assert (y[..., 0] == largest / 2).all()
    assert (y[..., 1:] == 0).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18])
def test_numbers_of_any_size(scale: float) -> None:
    """What a large factor makes of small numbers is as near as it is of others."""
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((3, 32, 128)) * scale).astype(np.float32)
    w = (rng.standard_normal((96, 128)) / scale / 10).astype(np.float32)
    weights = rnnfast.Weights(w, np.zeros((96, 96), np.float32))
    wanted = np.maximum(x.astype(np.float64) @ w.T.astype(np.float64), 0)
    with use_isa(USUAL):
        y, _ = rnnfast.rnn(x, weights, nonlinearity="relu", backend="native")
    size = np.abs(x.astype(np.float64)) @ np.abs(w.T.astype(np.float64))
    assert (np.abs(y - wanted) / size).max() < 8 * np.finfo(np.float32).eps
