"""Calls of one step of one row, whose weights are not packed: see `step.py`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...spec import Spec
from .. import Array
from . import plans, step
from .memory import taken

# w_ih, w_hh, b_ih and b_hh of a layer, as kernels take them.
Arrays = tuple[Array, Array, Array | None, Array | None]

_EMPTY = {dtype: np.empty(0, dtype) for dtype in map(np.dtype, (np.float32, np.float64))}
_NO_STATE = {dtype: np.empty((0, 0, 0), dtype) for dtype in _EMPTY}


class _Tape(NamedTuple):
    """What layers leave for the way back: see `rnnfast.backends.ShortTape`."""

    cell: int
    has_c: bool
    fresh: bool  # whether the initial h was zero
    weights: list[Arrays]
    xs: list[Array]  # of each layer
    tapes: list[Array]

    def backward(
        self, dy: Any, dstate_n: Any, checked: bool
    ) -> tuple[Any, list[tuple[Any, ...]], Any] | None:
        H, dtype = self.weights[0][1].shape[1], self.xs[0].dtype
        if dy is not None:
            dy = taken(dy, dtype, (1, 1, H))
            if dy is None:
                return None
        running = _running(dstate_n, self.has_c, (len(self.weights), 1, H), dtype)
        if running is None:
            return None
        dh, dc = running
        layers = list(zip(self.weights, self.xs, self.tapes, _layers(dh, dc), strict=True))
        gradients: list[tuple[Any, ...]] = []
        of_y = _NO_STATE[dtype] if dy is None else dy
        for w, x, tape, of_state in reversed(layers):
            w_ih, w_hh, b_ih, b_hh = w
            dx, dw_ih, dw_hh = np.empty_like(x), np.empty_like(w_ih), np.empty_like(w_hh)
            db_ih = None if b_ih is None else np.empty_like(b_ih)
            db_hh = None if b_hh is None else np.empty_like(b_hh)
            room = np.empty(len(w_hh) + 2 * H, dtype)
            step.backward(
                self.cell, self.fresh, x, w_ih, w_hh, tape, room, of_y, *of_state, dx, dw_ih,
                dw_hh, _or_empty(db_ih, dtype), _or_empty(db_hh, dtype),
            )  # fmt: skip
            gradients.insert(0, (dw_ih, dw_hh, db_ih, db_hh))
            of_y = dx
        return of_y, gradients, (dh, dc) if self.has_c else dh


def call(
    spec: Spec, x: Any, weights: list[Arrays], state: Any, save: bool
) -> tuple[Array, Any, _Tape] | None:
    """y, the last state, and the way back; None where x or the state needs a conversion.

    x has the shape (1, 1, I), and the weights are of one direction and fit together and x.
    """
    H, dtype, has_c = weights[0][1].shape[1], x.dtype, spec.info.has_c
    x = taken(x, dtype, x.shape)
    running = _running(state, has_c, (len(weights), 1, H), dtype)
    if x is None or running is None:
        return None
    h, c = running
    fresh = state is None or (has_c and state[0] is None)
    kept = _Tape(plans.cell_of(spec), has_c, fresh, weights, [], [])
    for w, of_state in zip(weights, _layers(h, c), strict=True):
        w_ih, w_hh, b_ih, b_hh = w
        y, tape = np.empty((1, 1, H), dtype), np.empty(len(w_hh) + (3 if save else 1) * H, dtype)
        biases = _or_empty(b_ih, dtype), _or_empty(b_hh, dtype)
        step.forward(kept.cell, kept.fresh, x, w_ih, w_hh, *biases, tape, *of_state, y)
        kept.xs.append(x)
        kept.tapes.append(tape)
        x = y
    return x, (h, c) if has_c else h, kept


def _or_empty(a: Array | None, dtype: np.dtype[Any]) -> Array:
    return _EMPTY[dtype] if a is None else a


def _running(
    state: Any, has_c: bool, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> tuple[Array, Array] | None:
    """A copy of a state, or zeros, as kernels take it; None where it is not as they do."""
    if state is None:
        h = np.zeros(shape, dtype)
        return h, np.zeros(shape, dtype) if has_c else _NO_STATE[dtype]
    if not has_c:
        given = taken(state, dtype, shape)
        return None if given is None else (given.copy(), _NO_STATE[dtype])
    if type(state) is not tuple or len(state) != 2:
        return None
    made = []
    for a in state:
        given = np.zeros(shape, dtype) if a is None else taken(a, dtype, shape)
        if given is None:
            return None
        made.append(given.copy())
    return made[0], made[1]


def _layers(h: Array, c: Array) -> list[tuple[Array, Array]]:
    """The states of the layers."""
    if len(h) == 1:
        return [(h, c)]
    return [(h[k : k + 1], c[k : k + 1]) for k in range(len(h))]
