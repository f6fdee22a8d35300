"""Weights of adapters: transposed, and with their gates in another order, where they lie.

And gradients that nobody wants. None of this changes a bit of what is left.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import (
    Array,
    Case,
    Problem,
    assert_same_bits,
    flatten_state,
    flatten_weights,
    function,
    problem,
    vjp,
)

import rnnfast
from rnnfast.spec import Spec
from rnnfast.weights import InOrder, parse

LAYOUTS = {"rows": np.ascontiguousarray, "transposed": np.asfortranarray}


def theirs(weights: Any, places: tuple[int, ...], layout: str) -> Any:
    """The same weights with gate g as the `places[g]`-th, and matrices in this layout."""

    def moved(a: Array | None) -> Array | None:
        if a is None:
            return None
        gates = np.split(a, len(places))
        return LAYOUTS[layout](np.concatenate([gates[places.index(k)] for k in range(len(places))]))

    if isinstance(weights, rnnfast.Weights):
        return rnnfast.Weights(*map(moved, weights))
    return type(weights)(theirs(w, places, layout) for w in weights)


def places_of(spec: Spec) -> tuple[int, ...]:
    """No gate where it is with us, but for the only one."""
    count = len(spec.info.gates)
    return (*range(1, count), 0)


def both(case: Case, layout: str) -> tuple[Problem, Problem]:
    """A problem, and the same in another order of gates."""
    p = problem(case)
    places = places_of(case.spec)
    return p, replace(p, weights=InOrder(theirs(p.weights, places, layout), places))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("T", "B"), [(1, 1), (1, 3), (5, 9)])
@pytest.mark.parametrize(("L", "state"), [(1, "both"), (2, "none")])
def test_order_of_gates(
    T: int, B: int, L: int, state: str, layout: str, spec: Spec, dtype: str, target: str
) -> None:
    for H, bias in ((17, "both"), (16, "none"), (33, "hh")):
        case = Case(spec, T=T, B=B, I=5, H=H, L=L, dtype=dtype, state=state, bias=bias)
        for ragged in (False, True):
            (wanted, wanted_weights), (got, got_weights) = (
                everything(p, target) for p in both(replace(case, ragged=ragged), layout)
            )
            assert_same_bits(got, wanted)
            in_order = theirs(wanted_weights, places_of(spec), layout)
            assert_same_bits(flatten_weights(got_weights), flatten_weights(in_order))


def everything(p: Problem, backend: str) -> tuple[dict[str, Array], Any]:
    """All results, by name, but for the gradients of the weights, which come apart."""
    how = {"lengths": p.lengths, "backend": backend, **p.keywords}
    y, state_n, backward = function(p.spec, vjp=True)(p.x, p.weights, p.state, **how)
    dx, dweights, dstate = backward(p.dy, p.dstate)
    found = {"y": y, "dx": dx}
    found |= flatten_state(p.spec, state_n, "h_n", "c_n")
    found |= flatten_state(p.spec, dstate, "dh_0", "dc_0")
    if not p.keywords:  # else the masks are those of training
        y, state_n = function(p.spec)(p.x, p.weights, p.state, **how)
        found |= {"inference": y} | flatten_state(p.spec, state_n, "inference h", "inference c")
    return found, dweights


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_lie_as_their_weights(layout: str, spec: Spec, dtype: str) -> None:
    """On the native backend's short way."""
    _, p = both(Case(spec, H=17, dtype=dtype), layout)
    _, [dweights] = everything(p, "native")
    for name in ("w_ih", "w_hh"):
        assert getattr(dweights, name).flags.c_contiguous == (layout == "rows")
        assert getattr(dweights, name).flags.f_contiguous == (layout == "transposed")


@pytest.mark.parametrize(
    "change",
    [{"D": 2}, {"keywords": (("zoneout", 0.3),)}, {"keywords": (("clip", 0.5),)}],
    ids=["two directions", "zoneout", "clip"],
)
def test_what_has_no_short_way(change: dict[str, Any], spec: Spec, backend: str) -> None:
    ours, others = both(Case(spec, T=4, B=3, L=2, **change), "transposed")
    (wanted, wanted_weights), (got, got_weights) = (everything(p, backend) for p in (ours, others))
    assert_same_bits(got, wanted)
    in_order = theirs(wanted_weights, places_of(spec), "rows")
    assert_same_bits(flatten_weights(got_weights), flatten_weights(in_order))


def test_second_derivatives(spec: Spec) -> None:
    ours, others = both(Case(spec, T=3, B=2), "transposed")
    places = places_of(spec)
    rng = np.random.default_rng(0)
    [w] = ours.weights
    along = [rnnfast.Weights(*(None if a is None else rng.standard_normal(a.shape) for a in w))]
    found = []
    for p, direction in ((ours, along), (others, theirs(along, places, "transposed"))):
        _, _, backward = function(spec, vjp=True)(p.x, p.weights, p.state)
        _, double_backward = backward.vjp(p.dy, p.dstate)
        (gx, gweights, _), (gdy, _) = double_backward(None, direction)
        found.append(({"gx": gx, "gdy": gdy}, gweights))
    (wanted, wanted_weights), (got, got_weights) = found
    assert_same_bits(got, wanted)
    assert_same_bits(
        flatten_weights(got_weights), flatten_weights(theirs(wanted_weights, places, "rows"))
    )


def test_the_conversion_is_checked() -> None:
    p = problem(Case(Spec("lstm")))
    with pytest.raises(ValueError, match="w_hh"):
        parse(
            InOrder([p.weights[0]._replace(w_hh=p.weights[0].w_hh[1:])], (1, 2, 3, 0)),
            p.spec.info,
            None,
        )
    with pytest.raises(ValueError, match="places"):
        rnnfast.lstm(p.x, InOrder(p.weights, (0, 1, 1, 2)), p.state)


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("T", [1, 5])
@pytest.mark.parametrize("L", [1, 2])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_gradients_that_are_not_wanted(
    D: int, T: int, L: int, ragged: bool, spec: Spec, target: str
) -> None:
    p = problem(Case(spec, T=T, H=17, L=L, D=D, ragged=ragged))
    _, backward = vjp(p, target)
    dx, dweights, dstate = backward(p.dy, p.dstate)
    no_dx, same, same_state = backward(p.dy, p.dstate, dx=False)
    assert no_dx is None
    assert_same_bits(flatten_weights(same), flatten_weights(dweights))
    names = ("dh_0", "dc_0")
    assert_same_bits(flatten_state(spec, same_state, *names), flatten_state(spec, dstate, *names))
    same_dx, same, no_dstate = backward(p.dy, p.dstate, dstate_0=False)
    assert no_dstate is None
    assert_same_bits({"dx": same_dx}, {"dx": dx})
    assert_same_bits(flatten_weights(same), flatten_weights(dweights))
    assert backward(p.dy, p.dstate, dx=False, dstate_0=False)[::2] == (None, None)


def test_threads(spec: Spec, dtype: str) -> None:
    """Large enough for three threads to divide every product."""
    _, p = both(Case(spec, T=40, B=20, I=70, H=90, dtype=dtype), "transposed")
    before = rnnfast.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            rnnfast.set_num_threads(threads)
            results, dweights = everything(p, "native")
            found.append(results | flatten_weights(dweights))
    finally:
        rnnfast.set_num_threads(before)
    assert_same_bits(*found)
