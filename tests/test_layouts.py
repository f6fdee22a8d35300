"""How arrays lie in memory, and how the caller lays out time and batch, changes no number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import (
    Array,
    Case,
    assert_same_bits,
    flatten_weights,
    forward,
    problem,
    run,
    vjp,
)

from rnnfast.spec import Spec


def reversed_strides(a: Array) -> Array:
    """The same numbers, with every stride negative."""
    every = (slice(None, None, -1),) * a.ndim
    return np.ascontiguousarray(a[every])[every]


def gaps(a: Array) -> Array:
    """The same numbers, with others between them in memory."""
    wide = np.full([2 * n for n in a.shape], np.nan, a.dtype)
    every_other = (slice(None, None, 2),) * a.ndim
    wide[every_other] = a
    return wide[every_other]


def read_only(a: Array) -> Array:
    a = a.copy()
    a.flags.writeable = False
    return a


def misaligned(a: Array) -> Array:
    """The same numbers, at an address that is no multiple of their size."""
    memory = np.empty(a.nbytes + 1, np.uint8)
    shifted = memory[1:].view(a.dtype).reshape(a.shape)
    shifted[...] = a
    return shifted


class Subclass(np.ndarray):
    """An array that NumPy itself does not make."""


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "Fortran order": np.asfortranarray,
    "reversed strides": reversed_strides,
    "gaps": gaps,
    "read-only": read_only,
    "misaligned": misaligned,
    "subclass": lambda a: a.view(Subclass),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_memory_layouts(layout: str, ragged: bool, spec: Spec, dtype: str, target: str) -> None:
    case = Case(spec, T=4, B=5, I=3, H=17, L=2, D=2, dtype=dtype, ragged=ragged)
    p = problem(case)
    assert_same_bits(run(p.map(LAYOUTS[layout]), target), run(p, target))


def test_layouts_are_what_they_say() -> None:
    a = np.arange(24.0).reshape(2, 3, 4)
    found = {name: layout(a) for name, layout in LAYOUTS.items()}
    assert all(np.array_equal(a, b) for b in found.values())
    assert max(found["reversed strides"].strides) < 0
    assert not found["gaps"].flags.c_contiguous
    assert not found["Fortran order"].flags.c_contiguous
    assert not found["misaligned"].flags.aligned
    assert not found["read-only"].flags.writeable


def test_broadcast_inputs(spec: Spec, target: str) -> None:
    """Arrays whose strides are zero."""
    p = problem(Case(spec, T=4, B=5, I=3, H=17))
    spread = replace(
        p,
        x=np.broadcast_to(p.x[:1, :1], p.x.shape),
        h_0=np.broadcast_to(p.h_0[:, :1], p.h_0.shape),
        dy=np.broadcast_to(p.dy[:1], p.dy.shape),
    )
    assert_same_bits(run(spread, target), run(spread.map(np.ascontiguousarray), target))


@pytest.mark.parametrize("directions", [1, 2])
def test_unbatched(directions: int, spec: Spec, dtype: str, target: str) -> None:
    p = problem(Case(spec, T=4, B=1, I=3, H=17, L=2, D=directions, dtype=dtype))
    wanted = run(p, target)
    for name in ("y", "h_n", "c_n", "dx", "dh_0", "dc_0"):
        if name in wanted:
            wanted[name] = wanted[name][:, 0]
    assert_same_bits(run(p.rows(0), target), wanted)
    assert_same_bits(run(p.rows(0), target, batch_first=True), wanted)


@pytest.mark.parametrize(("T", "B"), [(4, 5), (5, 5), (1, 5), (5, 1)])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_batch_first(T: int, B: int, ragged: bool, spec: Spec, target: str) -> None:
    p = problem(Case(spec, T=T, B=B, I=3, H=17, L=2, D=2, ragged=ragged))
    swapped = replace(p, x=p.x.swapaxes(0, 1), dy=p.dy.swapaxes(0, 1))
    wanted = run(p, target)
    for name in ("y", "dx"):
        wanted[name] = wanted[name].swapaxes(0, 1)
    assert_same_bits(run(swapped, target, batch_first=True), wanted)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize(("T", "B"), [(4, 5), (5, 5), (1, 5), (5, 1)])
def test_out(batch_first: bool, ragged: bool, T: int, B: int, spec: Spec, target: str) -> None:
    """y is written into `out`, which is returned; T == B must not confuse the two layouts."""
    p = problem(Case(spec, T=T, B=B, I=3, H=17, L=2, D=2, ragged=ragged))
    if batch_first:
        p = replace(p, x=p.x.swapaxes(0, 1), dy=p.dy.swapaxes(0, 1))
    wanted = run(p, target, batch_first=batch_first)
    for call in (forward, run):
        out = np.full(wanted["y"].shape, np.nan)
        found = call(p, target, batch_first=batch_first, out=out)
        assert found["y"] is out
        assert_same_bits(found, {name: wanted[name] for name in found})


def test_out_unbatched(spec: Spec, target: str) -> None:
    p = problem(Case(spec, T=4, B=1, I=3, H=17, D=2)).rows(0)
    out = np.full((4, 34), np.nan)
    found = run(p, target, out=out)
    assert found["y"] is out
    assert_same_bits(found, run(p, target))


def test_out_may_hold_an_earlier_result(spec: Spec, target: str) -> None:
    """The same memory for every chunk of a long sequence, the state handed on."""
    p = problem(Case(spec, T=6, B=2, I=3, H=17))
    wanted = forward(p, target)
    out = np.empty_like(wanted["y"][:3])
    first = forward(replace(p, x=p.x[:3]), target, out=out)
    np.testing.assert_array_equal(out, wanted["y"][:3])
    rest = replace(p, x=p.x[3:], h_0=first["h_n"], c_0=first.get("c_n"))
    second = forward(rest, target, out=out)
    np.testing.assert_allclose(out, wanted["y"][3:], rtol=1e-12)
    np.testing.assert_allclose(second["h_n"], wanted["h_n"], rtol=1e-12)


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_an_empty_batch(
    ragged: bool, batch_first: bool, spec: Spec, dtype: str, target: str
) -> None:
    """B = 0 gives empty results of the right shapes, and gradients of zero for the weights."""
    p = problem(Case(spec, T=4, B=2, I=3, H=17, L=2, D=2, dtype=dtype)).rows(slice(0))
    if ragged:
        p.lengths = np.zeros(0, np.int64)
    if batch_first:
        p = replace(p, x=p.x.swapaxes(0, 1), dy=p.dy.swapaxes(0, 1))
    results = run(p, target, batch_first=batch_first)
    shapes = {name: a.shape for name, a in results.items()}
    assert all(a.dtype == dtype for a in results.values())
    assert shapes["y"] == p.dy.shape
    assert shapes["dx"] == p.x.shape
    assert {shapes[k] for k in ("h_n", "c_n", "dh_0", "dc_0") if k in shapes} == {(4, 0, 17)}
    weights = flatten_weights(p.weights)
    assert all(shapes[name] == a.shape for name, a in weights.items())
    assert not any(results[name].any() for name in weights)


def test_results_are_writable_and_own(spec: Spec, target: str) -> None:
    """No result shares memory with an input or with another result."""
    p = problem(Case(spec, T=4, B=5, I=3, H=17, L=2, D=2))
    results = run(p, target)
    arrays: list[Any] = [*results.values(), *p.inputs().values(), p.dy, p.dh_n]
    assert all(a.flags.writeable for a in results.values())
    for k, a in enumerate(results.values()):
        assert not any(np.shares_memory(a, b) for b in arrays[k + 1 :])


def test_backward_takes_its_own_outputs(spec: Spec, target: str) -> None:
    """The gradient of a sum of squares: the outputs themselves are the cotangents."""
    p = problem(Case(spec, T=4, B=5, I=3, H=17, L=2, D=2))
    outputs, backward = vjp(p, target)
    state_n = (outputs["h_n"], outputs["c_n"]) if spec.info.has_c else outputs["h_n"]
    dx, _, _ = backward(outputs["y"], state_n)
    copied = p.map(np.copy)
    _, again = vjp(copied, target)
    named = {f"d{k}": v.copy() for k, v in outputs.items()}
    wanted, _, _ = again(
        named["dy"], (named["dh_n"], named["dc_n"]) if spec.info.has_c else named["dh_n"]
    )
    assert_same_bits({"dx": dx}, {"dx": wanted})
