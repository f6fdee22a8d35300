"""The tolerance that all tests share is tight: small mistakes in one place do not pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from helpers import Array, Case, Problem, problem, run
from tolerance import allowed, assert_agrees, truth

from rnnfast import Weights
from rnnfast.spec import Spec


def swap_gates(w: Weights, gates: int) -> Weights:
    """The rows of the first gate where those of the last belong; with one gate, two units."""

    def swapped(a: Array) -> Array:
        parts = np.split(a, gates if gates > 1 else len(a))
        return np.concatenate([parts[-1], *parts[1:-1], parts[0]])

    return Weights(*(None if a is None else swapped(a) for a in w))


def nudged(a: Array) -> Array:
    """One number of the first unit, which is alive even with relu, changed by a thousandth."""
    a = a.copy()
    first = a[:1] if a.ndim == 1 else a[0]
    first[np.abs(first).argmax()] *= 1.001
    return a


MISTAKES: dict[str, Callable[[Weights, int], Weights]] = {
    "gates swapped": swap_gates,
    "b_hh forgotten": lambda w, _: w._replace(b_hh=0 * w.b_hh),
    "b_ih forgotten": lambda w, _: w._replace(b_ih=0 * w.b_ih),
    "a thousandth of one input weight": lambda w, _: w._replace(w_ih=nudged(w.w_ih)),
    "a thousandth of one recurrent weight": lambda w, _: w._replace(w_hh=nudged(w.w_hh)),
    "last column of w_hh not summed": lambda w, _: w._replace(
        w_hh=np.concatenate([w.w_hh[:, :-1], 0 * w.w_hh[:, -1:]], axis=1)
    ),
    "a thousandth of one bias": lambda w, _: w._replace(b_ih=nudged(w.b_ih)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_weights_is_seen(mistake: str, spec: Spec, dtype: str) -> None:
    case = Case(spec, T=20, B=4, I=17, H=17, dtype=dtype)
    p = problem(case)
    wrong = MISTAKES[mistake](p.weights[0], len(spec.info.gates))
    with pytest.raises(AssertionError, match="relative errors above"):
        assert_agrees(case, run(replace(p, weights=[wrong])))
    assert_agrees(case, run(p))


def forget_h_0(p: Problem) -> Problem:
    return replace(p, h_0=np.zeros_like(p.h_0))


def nudge_a_cotangent(p: Problem) -> Problem:
    assert p.dh_n is not None
    dh_n = p.dh_n.copy()
    dh_n[..., 0] *= 0.999
    return replace(p, dh_n=dh_n)


@pytest.mark.parametrize("mistake", [forget_h_0, nudge_a_cotangent])
def test_a_mistake_in_the_state_is_seen(
    mistake: Callable[[Problem], Problem], spec: Spec, dtype: str
) -> None:
    case = Case(spec, T=4, B=2, I=5, H=7, dtype=dtype)
    with pytest.raises(AssertionError, match="relative errors above"):
        assert_agrees(case, run(mistake(problem(case))))


def test_a_zero_array_must_be_zero(spec: Spec) -> None:
    case = Case(spec, cotangents="")
    results = run(problem(case))
    assert_agrees(case, results)
    results["dx"] = results["dx"] + 1e-300
    with pytest.raises(AssertionError, match="dx"):
        assert_agrees(case, results)


def test_nan_does_not_pass(spec: Spec) -> None:
    case = Case(spec)
    results = run(problem(case))
    results["y"][0, 0, 0] = np.nan
    with pytest.raises(AssertionError, match="y"):
        assert_agrees(case, results)


def test_allowed_errors_are_small(spec: Spec) -> None:
    """No more than a few hundred units in the last place, even at 50 steps of 64 units."""
    case = Case(spec, T=50, B=16, I=64, H=64, L=2, D=2)
    assert truth(case)[1] < 100
    assert allowed(case) < 1e-13
