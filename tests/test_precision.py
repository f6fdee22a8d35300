"""Weights packed in 16 and 8 bits: right within the rounding that they promise, and no worse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import NO_NATIVE, available_isas, targets, use_isa
from helpers import Array, Case, Problem, assert_same_bits, forward, function, problem, variant
from tolerance import assert_close, noise_of

import rnnfast
from rnnfast.reference.precision import ROUNDED
from rnnfast.spec import Spec

PRECISIONS = tuple(ROUNDED)
# Each factor of a product is off by at most u = 2^-8 of itself in bfloat16, and by 1/254 of the
# largest number of its row in int8. Many such errors of either sign are summed, saturation shrinks
# them and recurrence repeats them: on the problems below, up to 1.5 u and 9 u are left.
ROUNDING = {"bfloat16": 4 * 2.0**-8, "int8": 16 / 254}


@pytest.fixture(params=available_isas(low=True) or [NO_NATIVE])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_isa(request.param):
        yield request.param


@pytest.fixture(params=targets(low=True))
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    name, _, wanted = request.param.partition("@")
    with use_isa(wanted):
        yield name


def pack(p: Problem, precision: str | None, backend: str) -> rnnfast.Packed:
    return rnnfast.pack(p.weights, backend=backend, dtype=precision, **variant(p.spec))


def with_weights(p: Problem, change: Any) -> Problem:
    """p with w_ih and w_hh changed."""

    def walk(entry: Any) -> Any:
        if isinstance(entry, rnnfast.Weights):
            return entry._replace(w_ih=change(entry.w_ih), w_hh=change(entry.w_hh))
        return type(entry)(map(walk, entry))

    return replace(p, weights=walk(p.weights))


def exact(p: Problem) -> dict[str, Any]:
    return forward(p.astype(np.float64))


def on_grid(a: Array) -> Array:
    """Numbers that int8 and bfloat16 hold: -127 to 127 over 128, with 127 in each row."""
    a = np.rint(a * 64).clip(-126, 126)
    a[..., 0] = 127
    return (a / 128).astype(np.float32)


def float32_allows(p: Problem) -> float:
    noise, longest = noise_of(p.astype(np.float64)), 200
    return float(np.finfo(np.float32).eps * (8 * noise + 4 * longest**0.5 + 16))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("T", "B", "I", "H", "L", "D"), [
    (1, 1, 256, 256, 1, 1), (5, 3, 3, 33, 2, 2), (7, 1, 129, 65, 1, 1), (4, 9, 1, 1, 1, 1),
    (3, 70, 17, 31, 1, 2), (9, 5, 64, 200, 2, 1),
])  # fmt: skip
@pytest.mark.parametrize("ragged", [False, True])
def test_close_to_float32(
    T: int, B: int, I: int, H: int, L: int, D: int,  # noqa: E741
    ragged: bool, precision: str, spec: Spec, target: str,
) -> None:  # fmt: skip
    p = problem(Case(spec, T, B, I, H, L, D, dtype="float32", ragged=ragged))
    got = forward(p, target, weights=pack(p, precision, target))
    assert all(a.dtype == np.float32 for a in got.values())
    assert_close(got, exact(p), ROUNDING[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", [1, 3, 4, 5, 16, 33, 64, 130])
def test_exact_but_for_the_weights(precision: str, size: int, spec: Spec, target: str) -> None:
    """With operands that lose nothing, only the weights are rounded: float32 agreement is left."""
    if spec.info.has_reset_after and not spec.reset_after:
        pytest.skip("its second product multiplies r * h, which is rounded")
    p = problem(Case(spec, T=1, B=7, I=size, H=size + 1, dtype="float32"))
    p = replace(p, x=on_grid(p.x), h_0=on_grid(p.h_0))
    rounded = with_weights(p, ROUNDED[precision])
    got = forward(p, target, weights=pack(p, precision, target))
    assert_close(got, exact(rounded), float32_allows(rounded))


def test_bfloat16_where_the_processor_has_none(spec: Spec, target: str) -> None:
    """Weights are widened and nothing else is rounded, at every step."""
    if target == "native":
        from rnnfast import _native

        if _native.get_isa() in ("avx512bf16", "avx512amx"):
            pytest.skip("it rounds x and h too")
    p = problem(Case(spec, T=6, B=3, I=17, H=35, L=2, D=2, dtype="float32"))
    rounded = with_weights(p, ROUNDED["bfloat16"])
    got = forward(p, target, weights=pack(p, "bfloat16", target))
    assert_close(got, exact(rounded), float32_allows(rounded))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("B", "I", "H"),
    [(7, 30, 150), (45, 64, 40), *((B, 33, 17) for B in (3, 16, 17, 32, 33))],
)
def test_same_bits(B: int, I: int, H: int, precision: str, spec: Spec, isa: str) -> None:  # noqa: E741
    """For every number of threads, a row alone, one step at a time, and a stream of chunks."""
    before = rnnfast.get_num_threads()
    p = problem(Case(spec, T=4, B=B, I=I, H=H, L=2, dtype="float32"))
    packed = pack(p, precision, "native")
    try:
        rnnfast.set_num_threads(1)
        wanted = forward(p, "native", weights=packed)
        for threads in (2, 3, 5):
            rnnfast.set_num_threads(threads)
            assert_same_bits(forward(p, "native", weights=packed), wanted)
    finally:
        rnnfast.set_num_threads(before)
    alone = p.rows(slice(2, 3))
    assert_same_bits(
        forward(alone, "native", weights=packed),
        {name: np.ascontiguousarray(a[:, 2:3]) for name, a in wanted.items()},
    )
    state = p.state
    for t in range(4):
        y, state = function(spec)(p.x[t : t + 1], packed, state)
        assert_same_bits({"y": y[0]}, {"y": wanted["y"][t]})
    stream = rnnfast.Stream(packed, **variant(spec), backend="native")
    stream.state = p.state
    chunks = [stream(x).copy() for x in np.split(p.x, [3])]
    assert_same_bits({"y": np.concatenate(chunks)}, {"y": wanted["y"]})


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row(
    precision: str, poison: float, spec: Spec, target: str
) -> None:
    p = problem(Case(spec, T=2, B=3, I=20, H=18, dtype="float32"))
    packed = pack(p, precision, target)
    clean = forward(p, target, weights=packed)
    p.x[0, 1, 3] = poison
    got = forward(p, target, weights=packed)
    for name, a in got.items():
        assert_same_bits({name: a[:, ::2]}, {name: clean[name][:, ::2]})
        if np.isnan(poison):
            assert not np.isfinite(a[:, 1]).any()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_zeros_and_outliers(precision: str, spec: Spec, target: str) -> None:
    """Rows of zeros, in weights and in x, and numbers of any size."""
    p = problem(Case(spec, T=3, B=4, I=9, H=17, dtype="float32"))
    p.x[:, 0] = 0
    p.x[:, 1] *= 1e-30
    p.x[:, 2] *= 1e4 if spec.nonlinearity != "relu" else 10
    for a in p.weights[0][:2]:
        a[::3] = 0
    got = forward(p, target, weights=pack(p, precision, target))
    assert all(np.isfinite(a).all() for a in got.values())
    part = {name: a[:, :2] for name, a in got.items()}
    assert_close(part, {k: a[:, :2] for k, a in exact(p).items()}, ROUNDING[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_x_and_results_are_float32(precision: str, spec: Spec, target: str) -> None:
    p = problem(Case(spec, dtype="float64"))
    packed = pack(p, precision, target)
    assert precision in repr(packed)
    with pytest.raises(TypeError, match=r"x: expected dtype float32 .* got float64"):
        forward(p, target, weights=packed)
    single = p.astype(np.float32)
    assert_same_bits(
        forward(single, target, weights=packed),
        forward(single, target, weights=pack(single, precision, target)),
    )


def test_sums_that_would_overflow(spec: Spec, target: str) -> None:
    p = problem(Case(spec, T=1, B=1, I=65537, H=1, dtype="float32"))
    with pytest.raises(ValueError, match=r"weights: .* at most 65536 .* int8.* got 65537"):
        pack(p, "int8", target)
    pack(p, "bfloat16", target)


def test_the_longest_sum(target: str) -> None:
    """65536 products of the largest size fit into 32 bits."""
    weights = rnnfast.Weights(np.ones((1, 65536), np.float32), np.zeros((1, 1), np.float32))
    packed = rnnfast.pack(weights, cell="rnn", nonlinearity="relu", dtype="int8", backend=target)
    for sign in (1, -1):
        x = np.full((1, 65536), sign, np.float32)
        y, _ = rnnfast.rnn(x, packed, nonlinearity="relu", backend=target)
        assert y[0, 0] == (65536 if sign > 0 else 0)


def test_rounding_of_the_reference() -> None:
    a = np.array([[1, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-7, 0, np.inf, 3.4e38]], np.float32)
    wanted = [[1, 1, 1 + 2**-6, -1 - 2**-7, 0, np.inf, np.inf]]
    assert (ROUNDED["bfloat16"](a) == wanted).all()
    assert np.isnan(ROUNDED["bfloat16"](np.array([np.nan], np.float32)))
    b = np.array([[2.54, -1.27, 0.011, 0.009], [0, 0, 0, 0]], np.float32)
    wanted = [[2.54, -1.28, 0.02, 0], [0, 0, 0, 0]]
    assert np.allclose(ROUNDED["int8"](b), wanted, atol=1e-6)


def test_rows_too_small_for_int8(target: str) -> None:
    """They count as zero: 127 / max |row| would overflow."""
    p = problem(Case(Spec("rnn"), T=2, B=2, I=8, H=8, dtype="float32"))
    p.weights[0].w_ih[...] *= np.float32(1e-37)
    p.weights[0].w_ih[0, 1] = 0
    got = forward(p, target, weights=pack(p, "int8", target))
    assert_close(got, exact(p), ROUNDING["int8"])


@pytest.mark.parametrize("name", [np.int8, "int8", np.dtype("int8")])
def test_names_of_int8(name: Any, target: str) -> None:
    weights = rnnfast.init_weights("rnn", 3, 4, rng=0)
    assert "int8" in repr(rnnfast.pack(weights, cell="rnn", dtype=name, backend=target))


@pytest.mark.parametrize("name", [np.int16, "bf16", "INT8", np.float16, object()])
def test_other_dtypes(name: Any, target: str) -> None:
    weights = rnnfast.init_weights("rnn", 3, 4, rng=0)
    with pytest.raises(TypeError, match=r"dtype: .*'bfloat16', 'int8' or None, got"):
        rnnfast.pack(weights, cell="rnn", dtype=name, backend=target)
