"""Every usable backend, on each of its instruction sets, gives the reference's numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import (
    BIASES,
    COTANGENTS,
    SIZES,
    STATES,
    Case,
    assert_same_bits,
    forward,
    gradients,
    problem,
    run,
    vjp,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from tolerance import allowed, assert_agrees, assert_close, truth, well_conditioned

from rnnfast.spec import CELLS, Spec

WORK = 2e7  # multiplications in the products of one forward pass, about


def covering() -> list[tuple[int, int, int]]:
    """(H, I, B) such that each size meets each place twice, in different company."""
    n = len(SIZES)
    return [
        (SIZES[k], SIZES[(5 * k + shift) % n], SIZES[(7 * k + 3 * shift) % n])
        for shift in (2, 6)
        for k in range(n)
    ]


def sized(spec: Spec, dtype: str, H: int, I: int, B: int) -> Case:  # noqa: E741
    """A case of these sizes, as many steps as the work allows, and options drawn from them."""
    rng = np.random.default_rng([H, I, B])
    layers, directions = int(rng.choice([1, 1, 2, 3])), int(rng.choice([1, 2]))
    if H * B > 20_000:
        layers = 1
    features = I + H + (layers - 1) * (directions + 1) * H
    work = directions * B * len(spec.info.gates) * H * features
    return Case(
        spec,
        T=int(np.clip(WORK / work, 1, rng.integers(1, 51))),
        B=B,
        I=I,
        H=H,
        L=layers,
        D=directions,
        dtype=dtype,
        bias=str(rng.choice(BIASES)),
        state=str(rng.choice(STATES)),
        ragged=bool(rng.choice([False, True])),
        cotangents=str(rng.choice(COTANGENTS)),
    )


def check(case: Case, backend: str) -> None:
    """Training and inference on one case."""
    p = problem(case)
    assert_agrees(case, run(p, backend))
    outputs = forward(p, backend)
    wanted = truth(case)[0]
    assert_close(outputs, {name: wanted[name] for name in outputs}, allowed(case))


# A fixture rather than a mark, because fixtures vary in the order in which a test names them:
# with `target` last, its values share the cached truth of one case.
@pytest.fixture(params=covering(), ids="H{0[0]}-I{0[1]}-B{0[2]}".format)
def sizes(request: pytest.FixtureRequest) -> tuple[int, int, int]:
    found: tuple[int, int, int] = request.param
    return found


def test_sizes_around_every_tile(
    sizes: tuple[int, int, int], spec: Spec, dtype: str, target: str
) -> None:
    check(sized(spec, dtype, *sizes), target)


def test_many_steps(spec: Spec, dtype: str, target: str) -> None:
    check(Case(spec, T=1000, B=3, I=5, H=17, D=2, dtype=dtype, ragged=True), target)


def test_many_features(spec: Spec, dtype: str, target: str) -> None:
    check(Case(spec, T=2, B=3, I=4096, H=3, dtype=dtype), target)


def test_many_units(target: str) -> None:
    smallest = min(CELLS.values(), key=lambda cell: len(cell.gates))
    check(Case(Spec(smallest.name), T=2, B=2, I=3, H=4096, dtype="float32"), target)


@pytest.mark.parametrize("factor", [10, 100, 1e3, 1e6, 1e30])
def test_saturated_gates(factor: float, spec: Spec, dtype: str, target: str) -> None:
    """Pre-activations far out on both sides, where exp over- or underflows."""
    p = problem(Case(spec, T=4, B=8, I=16, H=33, dtype=dtype))
    p.x *= np.asarray(factor, dtype)
    got = forward(p, target)
    assert all(np.isfinite(a).all() for a in got.values())
    # No slope is above 1, so outputs are off by no more than pre-activations are.
    largest = max(1.0, float(np.abs(p.x).max() / np.abs(got["y"]).max()))
    rtol = 4 * p.x.shape[-1] * largest * float(np.finfo(dtype).eps)
    if rtol < 0.01:
        assert_close(got, forward(p.astype(np.float64)), rtol)


@given(data=st.data())
def test_anything(spec: Spec, dtype: str, target: str, data: Any) -> None:
    size = st.integers(1, 40)
    case = Case(
        spec,
        T=data.draw(st.integers(1, 50), "T"),
        B=data.draw(size, "B"),
        I=data.draw(size, "I"),
        H=data.draw(size, "H"),
        L=data.draw(st.integers(1, 3), "L"),
        D=data.draw(st.integers(1, 2), "D"),
        dtype=dtype,
        bias=data.draw(st.sampled_from(BIASES), "bias"),
        state=data.draw(st.sampled_from(STATES), "state"),
        ragged=data.draw(st.booleans(), "ragged"),
        cotangents=data.draw(st.sampled_from(COTANGENTS), "cotangents"),
        seed=data.draw(st.integers(0, 2**32 - 1), "seed"),
    )
    assume(well_conditioned(case))
    check(case, target)


def test_a_missing_cotangent_is_zero(spec: Spec, target: str) -> None:
    p = problem(Case(spec, T=4, B=3, I=5, H=17, L=2, D=2))
    zero = p.map(lambda a: a)
    zero.dy, zero.dh_n = np.zeros_like(p.dy), np.zeros_like(p.dh_n)
    p.dy = p.dh_n = None
    assert_close(run(p, target), run(zero, target), 0)


def test_no_cotangent_at_all(spec: Spec, target: str) -> None:
    p = problem(Case(spec, T=4, B=3, I=5, H=17, L=2, D=2))
    _, backward = vjp(p, target)
    dx, dweights, _ = backward(None, None)
    assert not dx.any()
    assert not any(a.any() for pair in dweights for w in pair for a in w if a is not None)


def test_backward_twice_is_the_same(spec: Spec, dtype: str, target: str) -> None:
    p = problem(Case(spec, T=6, B=9, I=5, H=33, L=2, D=2, dtype=dtype, ragged=True))
    _, backward = vjp(p, target)
    assert_same_bits(gradients(p, backward), gradients(p, backward))


def test_backward_twice_with_other_cotangents(spec: Spec, dtype: str, target: str) -> None:
    """The second backward neither sees the first's cotangents nor changes its results."""
    p = problem(Case(spec, T=6, B=9, I=5, H=33, L=2, D=2, dtype=dtype))
    _, backward = vjp(p, target)
    first = gradients(p, backward)
    kept = {name: a.copy() for name, a in first.items()}
    doubled = p.map(lambda a: 2 * a)
    second = gradients(doubled, backward)
    assert_same_bits(first, kept)
    assert_same_bits(second, {name: 2 * a for name, a in kept.items()})


def test_outputs_may_be_changed_before_backward(spec: Spec, dtype: str, target: str) -> None:
    p = problem(Case(spec, T=6, B=9, I=5, H=33, L=2, D=2, dtype=dtype))
    outputs, backward = vjp(p, target)
    wanted = gradients(p, backward)
    for array in outputs.values():
        array[...] = np.nan
    assert_same_bits(gradients(p, backward), wanted)


def test_state_and_out_may_be_changed_before_backward(spec: Spec, target: str) -> None:
    """Only x and the weights must keep their values, as the docstring of lstm_vjp says."""
    p = problem(Case(spec, T=6, B=9, I=5, H=33, L=2, D=1))
    wanted = run(p, target)
    out = np.empty_like(wanted["y"])
    _, backward = vjp(p, target, out=out)
    out[...] = np.nan
    cotangents = p.map(np.copy)
    for array in (p.h_0, p.c_0):
        if array is not None:
            array[...] = np.nan
    found = gradients(cotangents, backward)
    assert_same_bits(found, {name: wanted[name] for name in found})


def test_calls_do_not_share_buffers(spec: Spec, dtype: str, target: str) -> None:
    """Results and tapes of one call survive another call of the same sizes."""
    case = Case(spec, T=6, B=9, I=5, H=33, L=2, D=2, dtype=dtype)
    p, other = problem(case), problem(case).map(lambda a: -a)
    wanted = run(p, target)
    outputs, backward = vjp(p, target)
    run(other, target)
    assert_same_bits(outputs | gradients(p, backward), wanted)


def test_arguments_are_not_written(spec: Spec, dtype: str, target: str) -> None:
    p = problem(Case(spec, T=6, B=9, I=5, H=33, L=2, D=2, dtype=dtype, ragged=True))
    before = p.map(np.copy)
    run(p, target)
    assert_same_bits(p.inputs(), before.inputs())
    for name in ("dy", "dh_n", "dc_n", "lengths"):
        np.testing.assert_array_equal(getattr(p, name), getattr(before, name))
