"""A layer pass in NumPy: the time loop and its reversal (BPTT), the same for every cell.

A direction visits the steps of a packed batch in its own order. Row b of the state is touched
only at steps that row b reaches, so that a reverse direction starts at each row's own end.

Zoneout (Krueger et al. 2017) is the same for every cell too: h' becomes h' + k (h - h') and c'
likewise, where k is 1 with the probability of zoneout and else 0, or that probability itself in
inference. h' is made from the c' of the step, as in their equation 3.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ..spec import Masks, Spec, Steps
from ..weights import Weights
from . import gated, gru, lstm, rnn
from .common import Array

CELLS: dict[str, ModuleType] = {"lstm": lstm, "gru": gru, "rnn": rnn, "gated": gated}


class Visit(NamedTuple):
    """One step as a direction comes to it: rows 0 to n - 1 of the batch take part."""

    rows: slice  # packed
    n: int
    continuing: int  # rows that were there in the visit before
    cut: bool  # whether gradients stop on the way to the visit before


def visits(steps: Steps, reverse: bool, truncate: int | None = None) -> list[Visit]:
    """Every step in the order of one direction."""
    sizes = steps.sizes()
    ends = np.cumsum(sizes)
    order = list(range(len(sizes)))[:: -1 if reverse else 1]
    found = []
    for i, t in enumerate(order):
        rows = slice(int(ends[t]) - sizes[t], int(ends[t]))
        before = order[i - 1] if i > 0 else t
        continuing = min(sizes[t], sizes[before]) if i > 0 else 0
        cut = i > 0 and truncate is not None and max(t, before) % truncate == 0
        found.append(Visit(rows, sizes[t], continuing, cut))
    return found


def forward(
    spec: Spec,
    w: Weights,
    x: Array,
    steps: Steps,
    h_0: Array,
    c_0: Array,
    reverse: bool,
    masks: Masks,
) -> tuple[Array, Array, Array, list[Any]]:
    """y (N, P), h_n (B, P), c_n (B, H) and what each step saved."""
    cell = CELLS[spec.cell]
    h, c = h_0.copy(), c_0.copy()
    y = np.empty((x.shape[0], h.shape[1]), x.dtype)
    tape = []
    for rows, n, _, _ in visits(steps, reverse):
        h_before, c_before = h[:n].copy(), c[:n].copy()
        recurrent = _first(masks.recurrent, n)
        h_step, c_step, saved = cell.step(spec, w, x[rows], h_before, c_before, recurrent)
        h[:n] = zoned_out(masks.keep_h, rows, h_before, h_step)
        c[:n] = zoned_out(masks.keep_c, rows, c_before, c_step)
        y[rows] = h[:n]
        tape.append(saved)
    return y, h, c, tape


def backward(
    spec: Spec,
    w: Weights,
    steps: Steps,
    tape: list[Any],
    dy: Array,
    dh_n: Array,
    dc_n: Array,
    reverse: bool,
    masks: Masks,
) -> tuple[Array, Weights, Array, Array]:
    """dx (N, I), dweights, dh_0 (B, P) and dc_0 (B, H)."""
    cell = CELLS[spec.cell]
    dh, dc = dh_n.copy(), dc_n.copy()
    dx = np.empty((dy.shape[0], w.w_ih.shape[1]), dy.dtype)
    total = Weights(*(None if a is None else np.zeros_like(a) for a in w))
    order = visits(steps, reverse, spec.truncate)
    for (rows, n, continuing, cut), saved in reversed(list(zip(order, tape, strict=True))):
        dh_kept, dh_step = zoned_out_vjp(masks.keep_h, rows, dh[:n] + dy[rows])
        dc_kept, dc_step = zoned_out_vjp(masks.keep_c, rows, dc[:n].copy())
        recurrent = _first(masks.recurrent, n)
        dx[rows], dh[:n], dc[:n], dw = cell.step_vjp(spec, w, saved, recurrent, dh_step, dc_step)
        dh[:n] += dh_kept
        dc[:n] += dc_kept
        if cut:
            dh[:continuing] = dc[:continuing] = 0
        for into, part in zip(total, dw, strict=True):
            if into is not None and part is not None:
                into += part
    return dx, total, dh, dc


def zoned_out(keep: Array | None, rows: slice, before: Array, after: Array) -> Array:
    if keep is None:
        return after
    k = _at(keep, rows)
    return np.asarray(k * before + (1 - k) * after)  # exactly one of them where k is 0 or 1


def zoned_out_vjp(keep: Array | None, rows: slice, d: Array) -> tuple[Array | float, Array]:
    """What goes to the state before without the step, and what goes through the step."""
    if keep is None:
        return 0.0, d
    kept = _at(keep, rows) * d
    return kept, d - kept


def _at(keep: Array, rows: slice) -> Array:
    return keep if keep.shape[0] == 1 else keep[rows]


def _first(mask: Array | None, n: int) -> Array | None:
    return None if mask is None else mask[:n]
