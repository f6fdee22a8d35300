"""A layer pass in NumPy: the time loop and its reversal (BPTT), the same for every cell.

A direction visits the steps of a packed batch in its own order. Row b of the state is touched
only at steps that row b reaches, so that a reverse direction starts at each row's own end.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from ..spec import Spec, Steps
from ..weights import Weights
from . import gated, gru, lstm, rnn
from .common import Array

CELLS: dict[str, ModuleType] = {"lstm": lstm, "gru": gru, "rnn": rnn, "gated": gated}


def visits(steps: Steps, reverse: bool) -> Iterator[tuple[slice, int]]:
    """The packed rows of each step and their number, in the order of one direction."""
    sizes = steps.sizes()
    ends = np.cumsum(sizes)
    found = [(slice(int(end) - n, int(end)), n) for end, n in zip(ends, sizes, strict=True)]
    return iter(found[::-1] if reverse else found)


def forward(
    spec: Spec, w: Weights, x: Array, steps: Steps, h_0: Array, c_0: Array, reverse: bool
) -> tuple[Array, Array, Array, list[Any]]:
    """y (N, H), h_n (B, H), c_n (B, H) and what each step saved."""
    cell = CELLS[spec.cell]
    h, c = h_0.copy(), c_0.copy()
    y = np.empty((x.shape[0], h.shape[1]), x.dtype)
    tape = []
    for rows, n in visits(steps, reverse):
        h[:n], c[:n], saved = cell.step(spec, w, x[rows], h[:n].copy(), c[:n].copy())
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
) -> tuple[Array, Weights, Array, Array]:
    """dx (N, I), dweights, dh_0 (B, H) and dc_0 (B, H)."""
    cell = CELLS[spec.cell]
    dh, dc = dh_n.copy(), dc_n.copy()
    dx = np.empty((dy.shape[0], w.w_ih.shape[1]), dy.dtype)
    total = Weights(*(None if a is None else np.zeros_like(a) for a in w))
    for (rows, n), saved in reversed(list(zip(visits(steps, reverse), tape, strict=True))):
        dx[rows], dh[:n], dc[:n], dw = cell.step_vjp(spec, w, saved, dh[:n] + dy[rows], dc[:n])
        for into, part in zip(total, dw, strict=True):
            if into is not None and part is not None:
                into += part
    return dx, total, dh, dc
