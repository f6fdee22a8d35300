"""Rows of different lengths: each row gets what it would get alone, and nothing past its end."""

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
    function,
    gradients,
    problem,
    run,
    variant,
    vjp,
)
from tolerance import TORCH, assert_close

import rnnfast
from rnnfast.spec import Spec

LENGTHS = [[3, 0, 5, 1, 5, 2], [5, 4, 3, 2, 1, 0], [0, 0, 1, 2, 2, 4], [2, 2, 2, 2, 2, 2]]


def ragged(spec: Spec, lengths: list[int], directions: int = 2, dtype: str = "float64") -> Problem:
    p = problem(Case(spec, T=5, B=6, I=3, H=17, L=2, D=directions, dtype=dtype))
    p.lengths = np.array(lengths)
    return p


def one_row(p: Problem, b: int) -> Problem:
    """Row b alone, cut at its end."""
    n = int(p.lengths[b])
    row = p.rows(slice(b, b + 1))
    return replace(row, x=row.x[:n], dy=row.dy[:n], lengths=None)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("directions", [1, 2])
def test_each_row_is_as_if_alone(
    lengths: list[int], directions: int, spec: Spec, target: str
) -> None:
    p = ragged(spec, lengths, directions)
    results = run(p, target)
    total: dict[str, Array] = {}
    for b, n in enumerate(lengths):
        row = {k: results[k][:, b : b + 1] for k in results if not k.startswith("dw")}
        assert not row["y"][n:].any()
        assert not row["dx"][n:].any()
        row["y"], row["dx"] = row["y"][:n], row["dx"][:n]
        if n == 0:
            pairs = [("h_n", p.h_0), ("dh_0", p.dh_n), ("c_n", p.c_0), ("dc_0", p.dc_n)]
            for name, given in pairs:
                if given is not None:
                    np.testing.assert_array_equal(row[name], given[:, b : b + 1])
            continue
        alone = run(one_row(p, b), target)
        assert_close(row, {k: alone[k] for k in row}, TORCH)
        for name in alone.keys() - row.keys():
            total[name] = total.get(name, 0) + alone[name]
    assert_close({name: results[name] for name in total}, total, TORCH)


@pytest.mark.parametrize("directions", [1, 2])
def test_padding_is_never_read(directions: int, spec: Spec, dtype: str, target: str) -> None:
    p = ragged(spec, [3, 0, 5, 1, 5, 2], directions, dtype)
    wanted = run(p, target)
    for b, n in enumerate(p.lengths):
        p.x[n:, b] = p.dy[n:, b] = np.nan
    assert_same_bits(run(p, target), wanted)


def test_full_lengths_are_no_lengths(spec: Spec, target: str) -> None:
    p = ragged(spec, [5] * 6)
    assert_close(run(p, target), run(replace(p, lengths=None), target), TORCH)


def test_all_rows_empty(spec: Spec, dtype: str, target: str) -> None:
    """The state passes through every layer untouched, and so do its gradients."""
    p = ragged(spec, [0] * 6, dtype=dtype)
    results = run(p, target)
    assert results["y"].shape == p.dy.shape
    np.testing.assert_array_equal(results["h_n"], p.h_0)
    np.testing.assert_array_equal(results["dh_0"], p.dh_n)
    others = results.keys() - {"h_n", "c_n", "dh_0", "dc_0"}
    assert not any(results[name].any() for name in others)


def test_order_of_rows_does_not_matter(spec: Spec, target: str) -> None:
    p = ragged(spec, [3, 0, 5, 1, 5, 2])
    order = np.array([4, 2, 0, 5, 1, 3])
    moved = p.map(lambda a: a[:, order] if a.ndim == 3 else a)
    moved.lengths = p.lengths[order]
    wanted = {k: v[:, order] if v.ndim == 3 else v for k, v in run(p, target).items()}
    assert_close(run(moved, target), wanted, TORCH)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
def test_inference_is_as_training(
    directions: int, packed: bool, spec: Spec, dtype: str, target: str
) -> None:
    """Over many chunks of rows, into buffers or not; the last steps have no row at all."""
    p = problem(Case(spec, T=70, B=7, I=3, H=17, L=2, D=directions, dtype=dtype))
    p.lengths = np.array([60, 3, 0, 41, 41, 17, 58])
    wanted = {k: v for k, v in run(p, target).items() if k in ("y", "h_n", "c_n")}
    for b, n in enumerate(p.lengths):
        p.x[n:, b] = np.nan
    call = function(spec)
    weights = rnnfast.pack(p.weights, backend=target, **variant(spec)) if packed else p.weights
    has_c = spec.info.has_c
    for into in (False, True):
        out = None
        if into:
            made = [np.full_like(wanted[k], np.nan) for k in ("y", "h_n", "c_n")[: 2 + has_c]]
            out = (made[0], (made[1], made[2]) if has_c else made[1])
        y, state = call(p.x, weights, p.state, lengths=p.lengths, out=out, backend=target)
        states = state if has_c else (state,)
        assert_same_bits(dict(zip(("y", "h_n", "c_n"), (y, *states), strict=False)), wanted)


def test_recompute_over_many_chunks(spec: Spec, dtype: str, target: str) -> None:
    p = problem(Case(spec, T=150, B=7, I=3, H=5, D=2, dtype=dtype))
    p.lengths = np.array([140, 3, 0, 141, 141, 117, 58])
    wanted = run(p, target)
    assert_same_bits(run(p, target, save="recompute"), wanted)


KINDS: dict[str, Any] = {
    **{
        f"{kind}{bits}": np.dtype(f"{kind}{bits}").type
        for kind in ("int", "uint")
        for bits in (8, 16, 32, 64)
    },
    "big-endian": lambda a: np.asarray(a, ">i4"),
    "list": list,
    "tuple": tuple,
    "strided": lambda a: np.repeat(a, 2)[::2],
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_lengths(kind: str, target: str) -> None:
    p = ragged(Spec("lstm"), [3, 0, 5, 1, 5, 2])
    wanted = run(p, target)
    assert_same_bits(run(replace(p, lengths=KINDS[kind]([3, 0, 5, 1, 5, 2])), target), wanted)


def test_lengths_may_be_changed_before_backward(spec: Spec, target: str) -> None:
    p = ragged(spec, [3, 0, 5, 1, 5, 2])
    wanted = run(p, target)
    results, backward = vjp(p, target)
    p.lengths[:] = 77
    assert_same_bits(results | gradients(p, backward), wanted)
