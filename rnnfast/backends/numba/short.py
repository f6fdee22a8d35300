"""Short calls with weights that are not packed, in one thread and one direction a layer.

What such a call takes is for the most part Python: there is as little here as can be.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ...arrays import FLOATS
from ...spec import Spec, Steps
from ...weights import Weights
from .. import Array
from . import packing, plain, plans, step, threads
from .memory import NO_MATRIX, NO_ROW, NO_STATE, taken
from .plans import Extent, Plan, Shape
from .threads import NOBODY, SMALL
from .visits import visits_of

# w_ih, w_hh, b_ih and b_hh of a layer, as kernels take them.
Arrays = tuple[Array, Array, Array | None, Array | None]
_State = tuple[Array, Array]  # h and c, or an empty array


class Facts(NamedTuple):
    """About a cell without options."""

    spec: Spec
    cell: int
    gates: int
    has_c: bool


@lru_cache
def facts_of(spec: Spec) -> Facts | None:
    """None for a cell with options."""
    if not spec.plain:
        return None
    info = spec.info
    return Facts(spec, plans.cell_of(spec), len(info.gates), info.has_c)


class _Pass(NamedTuple):
    plan: Plan
    row: Array
    size: Array


@lru_cache(maxsize=256)
def _pass(spec: Spec, sizes: tuple[Any, ...], steps: int, batch: int, save: bool) -> _Pass:
    """For a layer of (H, I, bytes of a number, whether there is b_ih, b_hh)."""
    H, I, itemsize, b_ih, b_hh = sizes  # noqa: E741
    shape = Shape(H, H, I, 1, itemsize, b_ih, b_hh, False, False)
    extent = Extent(steps * batch, batch, save, (False, False, False))
    row, size, _ = visits_of(Steps(steps, batch), False, None)
    return _Pass(plans.make(spec, shape, 0, extent), row, size)


class _Layer(NamedTuple):
    """What a layer leaves for its way back."""

    weights: Arrays
    x: Array
    tape: Array
    how: _Pass | None  # None for one step of one row, whose weights are not packed
    # For the panels of BPTT. One array with those that the forward pass read: the C library keeps
    # the memory of larger arrays for the next call, where it would return it to the system.
    panels: Array | None


def layers_of(facts: Facts, x: Any, weights: Any) -> list[Arrays] | None:
    """Weights of one direction a layer, for x and one another, that need no conversion."""
    if type(x) is not np.ndarray or x.ndim < 2 or x.dtype not in FLOATS:
        return None
    found: list[Arrays] = []
    gates, dtype, inputs, H = facts.gates, x.dtype, x.shape[-1], None
    for w in weights if type(weights) is list else (weights,):
        if type(w) is not Weights:
            if type(w) is not tuple or not 2 <= len(w) <= 4 or type(w[0]) is not np.ndarray:
                return None
            w = Weights(*w)
        if type(w.w_hh) is not np.ndarray or w.w_hh.ndim != 2:
            return None
        w_ih, w_hh, b_ih, b_hh, *more = w
        for a in more:
            if a is not None:
                return None
        if H is None:
            H = w_hh.shape[1]
        rows = gates * H
        w_ih, w_hh = taken(w_ih, dtype, (rows, inputs)), taken(w_hh, dtype, (rows, H))
        if w_ih is None or w_hh is None or w_ih.size == 0:
            return None
        if b_ih is not None and (b_ih := taken(b_ih, dtype, (rows,))) is None:
            return None
        if b_hh is not None and (b_hh := taken(b_hh, dtype, (rows,))) is None:
            return None
        found.append((w_ih, w_hh, b_ih, b_hh))
        inputs = H
    return found or None


def takes(x: Array, layers: list[Arrays]) -> bool:
    """Whether a call without lengths is for `run`."""
    if x.ndim != 3:
        return False
    rows: int = x.shape[0] * x.shape[1]
    step = layers[0][1].size
    work = rows * step * len(layers)
    if rows == 1 or not 0 < work <= SMALL:
        return rows == 1
    return not (threads.divisible(step, x.shape[1]) and threads.worth(work))


class Tape(NamedTuple):
    """See `rnnfast.backends.ShortTape`."""

    facts: Facts
    fresh: bool  # whether the initial h was zero
    y_shape: tuple[int, ...]
    layers: list[_Layer]

    def backward(
        self, dy: Any, dstate_n: Any, checked: bool, wants_dx: bool, wants_dh: bool
    ) -> tuple[Any, list[tuple[Any, ...]], Any] | None:
        layers, shape = self.layers, self.y_shape
        dtype, has_c = layers[0].x.dtype, self.facts.has_c
        d = NO_STATE[dtype] if dy is None else taken(dy, dtype, shape)
        running = _running(dstate_n, has_c, (len(layers), *shape[1:]), dtype)
        if d is None or running is None:
            return None
        dh, dc = running
        gradients: list[tuple[Any, ...]] = []
        for k in range(len(layers) - 1, -1, -1):
            state = running if len(layers) == 1 else (dh[k : k + 1], dc[k : k + 1])
            d, of_weights = _backward(layers[k], self.facts.cell, self.fresh, d, state)
            gradients.append(of_weights)
        return d, gradients[::-1], running if has_c else dh


def run(
    facts: Facts, x: Any, layers: list[Arrays], state: Any, kept: list[_Layer] | None = None
) -> tuple[Array, Any] | None:
    """y and the last state; None where x or the initial state needs a conversion.

    What the way back needs is appended to `kept`.
    """
    dtype, nothing = x.dtype, NO_ROW[x.dtype]
    num_steps, batch, _ = x.shape
    H = layers[0][1].shape[1]
    x = taken(x, dtype, x.shape)
    running = _running(state, facts.has_c, (len(layers), batch, H), dtype)
    if x is None or running is None:
        return None
    h, c = of_layer = running
    fresh = _is_fresh(facts, state)
    for k, arrays in enumerate(layers):
        w_ih, w_hh, b_ih, b_hh = arrays
        if len(layers) > 1:
            of_layer = h[k : k + 1], c[k : k + 1]
        biases = nothing if b_ih is None else b_ih, nothing if b_hh is None else b_hh
        y, how, back = np.empty((num_steps, batch, H), dtype), None, None
        if num_steps * batch == 1:
            tape = np.empty((facts.gates + (1 if kept is None else 3)) * H, dtype)
            step.forward(facts.cell, fresh, x, w_ih, w_hh, *biases, tape, *of_layer, y)
        else:
            sizes = H, x.shape[2], dtype.itemsize, b_ih is not None, b_hh is not None
            how = plan, row, size = _pass(facts.spec, sizes, num_steps, batch, kept is not None)
            tape = np.empty(plan.tape, dtype)
            if kept is None:
                panels = np.empty(plan.weights, dtype)
            else:
                both = np.empty(plan.weights + plan.back, dtype)
                panels, back = both[: plan.weights], both[plan.weights :]
            numbers, begun = plan.numbers, 0 if fresh else batch
            packing.pack_forward(numbers, NOBODY, w_ih, w_hh, *biases, NO_MATRIX[dtype], panels)
            plain.forward(numbers, NOBODY, row, size, begun, x, panels, tape, *of_layer, y)
        if kept is not None:
            kept.append(_Layer(arrays, x, tape, how, back))
        x = y
    return x, running if facts.has_c else h


def run_vjp(
    facts: Facts, x: Any, layers: list[Arrays], state: Any
) -> tuple[Array, Any, Tape] | None:
    """The same, and the way back."""
    kept: list[_Layer] = []
    done = run(facts, x, layers, state, kept)
    if done is None:
        return None
    y, state_n = done
    return y, state_n, Tape(facts, _is_fresh(facts, state), y.shape, kept)


def _is_fresh(facts: Facts, state: Any) -> bool:
    """Whether h of an initial state is zero."""
    return state is None or (facts.has_c and state[0] is None)


def _running(
    state: Any, has_c: bool, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> _State | None:
    """A copy of a state, or zeros; None where it needs a conversion."""
    if state is None:
        return np.zeros(shape, dtype), np.zeros(shape, dtype) if has_c else NO_STATE[dtype]
    if not has_c:
        given = taken(state, dtype, shape)
        return None if given is None else (given.copy(), NO_STATE[dtype])
    if type(state) is not tuple or len(state) != 2:
        return None
    made = []
    for a in state:
        given = np.zeros(shape, dtype) if a is None else taken(a, dtype, shape)
        if given is None:
            return None
        made.append(given if a is None else given.copy())
    return made[0], made[1]


def _backward(
    layer: _Layer, cell: int, fresh: bool, dy: Array, state: _State
) -> tuple[Array, tuple[Any, ...]]:
    """dx and the gradients of the weights; those of the state run in place."""
    (w_ih, w_hh, b_ih, b_hh), x, tape, how, panels = layer
    dtype, nothing, H = x.dtype, NO_ROW[x.dtype], w_hh.shape[1]
    dx = np.empty(x.shape, dtype)
    dw_ih, dw_hh = np.empty(w_ih.shape, dtype), np.empty(w_hh.shape, dtype)
    db_ih = None if b_ih is None else np.empty(b_ih.shape, dtype)
    db_hh = None if b_hh is None else np.empty(b_hh.shape, dtype)
    biases = nothing if db_ih is None else db_ih, nothing if db_hh is None else db_hh
    results = dx, dw_ih, dw_hh, *biases
    if how is None or panels is None:
        room = np.empty(len(w_hh) + 2 * H, dtype)
        step.backward(cell, fresh, x, w_ih, w_hh, tape, room, dy, *state, *results)
    else:
        plan, row, size = how
        room = np.empty(plan.room, dtype)
        packing.pack_backward(plan.numbers, NOBODY, w_ih, w_hh, NO_MATRIX[dtype], panels)
        plain.backward(plan.numbers, NOBODY, row, size, panels, tape, dy, *state, room, x, *results)
    return dx, (dw_ih, dw_hh, db_ih, db_hh)
