"""Stacking, directions, what lies between layers, and variable lengths, once for every backend.

A backend passes layers over a packed batch (see `rnnfast.spec.Steps`). Here a batch is sorted and
packed, the layers are run, and everything is put back in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import arrays, batchnorm
from .backends import Backend
from .noise import Between, OnState
from .spec import Masks, Spec, Steps
from .weights import Layer, Weights

Array = NDArray[Any]
State = tuple[Array | None, Array | None]  # h (L*D, B, P) and c (L*D, B, H); None means zeros


@dataclass(frozen=True)
class Ragged:
    """Where the rows of a packed batch stand in the padded one."""

    order: NDArray[np.int64]  # (B,) rows of the caller's batch by falling length
    steps: Steps

    @classmethod
    def of(cls, lengths: NDArray[np.int64]) -> Ragged:
        order = np.argsort(-lengths, kind="stable")
        batch, longest = len(lengths), int(lengths.max(initial=0))
        ended = np.bincount(lengths, minlength=1).cumsum()  # by the end of each step
        return cls(order, Steps(longest, batch, batch - ended[:longest]))

    @cached_property
    def at(self) -> NDArray[np.int64]:
        """(N,) step * B + row of each packed row."""
        step = np.arange(self.steps.num_steps)[:, None]
        runs = np.arange(self.steps.batch) < self.steps.batch_sizes[:, None]  # type: ignore[index]
        rows: NDArray[np.int64] = (step * self.steps.batch + self.order)[runs]
        return rows

    def pack(self, padded: Array) -> Array:
        at = np.asarray(self.at, like=padded)
        rows: Array = padded.reshape(-1, padded.shape[-1]).take(at, axis=0)
        return rows

    def pad(self, packed: Array, num_steps: int) -> Array:
        shape = (num_steps * len(self.order), packed.shape[-1])
        padded = np.zeros(shape, packed.dtype, like=packed)
        padded[np.asarray(self.at, like=packed)] = packed
        return padded.reshape(num_steps, len(self.order), packed.shape[-1])

    def sort(self, state: Array) -> Array:
        return np.take(state, np.asarray(self.order, like=state), axis=1)

    def unsort(self, state: Array, out: Array | None = None) -> Array:
        if out is None:
            out = np.empty_like(state)
        out[:, np.asarray(self.order, like=state)] = state
        return out


@dataclass
class Stack:
    """Layers with prepared weights, run one after the other over some steps of a packed batch."""

    spec: Spec
    backend: Backend
    dtype: np.dtype[Any]
    prepared: list[Any]  # per layer
    hidden: int  # H
    outputs: int  # P, which is H without projection
    directions: int
    between: Between | None = None
    on_state: OnState | None = None
    normed: list[Layer] | None = None  # layers with batch normalisation: prepared as they run
    momentum: float | None = None  # of its running statistics, or None where they are used
    like: Array | None = None  # an array of the kind that masks are to be

    @property
    def width(self) -> int:
        return self.directions * self.outputs

    @property
    def computed(self) -> np.dtype[Any]:
        """What is computed with."""
        return arrays.computed(self.dtype)

    def state_shape(self, batch: int) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """The shapes of h and c, None where there is no c."""
        count = len(self.prepared) * self.directions
        has_c = self.spec.info.has_c
        return (count, batch, self.outputs), (count, batch, self.hidden) if has_c else None

    def forward(
        self,
        rows: Array,  # (N, I)
        first_row: int,  # of the whole batch, for the masks
        steps: Steps,
        state: State,
        y: Array,  # (N, D*P), written
        state_n: State,  # written
        save: str | None,
    ) -> list[Run]:
        """Run every layer; return what each run of layers saved."""
        count = len(self.prepared)
        if self._together:
            h_n, c_n = state_n
            assert h_n is not None
            ys = []
            if count > 1:
                shape = steps.rows, self.width
                ys = [arrays.empty(shape, y.dtype, y) for _ in range(count - 1)]
            kept = self.backend.forward(
                self.spec, self.prepared, rows, steps, *state, [*ys, y], h_n, c_n, save, None
            )
            return [Run(slice(0, count), self.prepared, None, kept)]
        saved = []
        for k in range(count):
            layers = slice(k, k + 1)
            rows = self._dropped(rows, layers, first_row, steps)
            last = k + 1 == count
            out = y if last else arrays.empty((rows.shape[0], self.width), y.dtype, y)
            h_0, c_0 = (self._part_of(s, layers) for s in state)
            h_n, c_n = (self._part_of(s, layers) for s in state_n)
            assert h_n is not None
            prepared, folded = self.prepared[layers], None
            if self.normed is not None:
                folded = batchnorm.fold(self.normed[k], rows, self.momentum)
                prepared = [self.backend.prepare(self.spec, folded.layer, reuse=False)]
            masks = self._masks(layers, first_row, steps)
            kept = self.backend.forward(
                self.spec, prepared, rows, steps, h_0, c_0, [out], h_n, c_n, save, masks
            )
            saved.append(Run(layers, prepared, folded, kept))
            rows = out
        return saved

    def backward(
        self, saved: list[Run], first_row: int, steps: Steps, dy: Array | None, dstate_n: State
    ) -> tuple[Array, list[Weights], State]:
        """Gradients of the rows, of every direction of every layer in order, and of the state."""
        if self._together:
            (run,) = saved
            dx, gradients, *dstate = self.backend.backward(
                self.spec, run.prepared, run.kept, dy, *dstate_n, None
            )
            return dx, gradients, (dstate[0], dstate[1])
        gradients = []
        dh_0: list[Array] = []
        dc_0: list[Array] = []
        for run in reversed(saved):
            layers = run.layers
            dh_n, dc_n = (self._part_of(d, layers) for d in dstate_n)
            masks = self._masks(layers, first_row, steps)
            dy, dweights, dh_k, dc_k = self.backend.backward(
                self.spec, run.prepared, run.kept, dy, dh_n, dc_n, masks
            )
            if run.folded is not None:
                dy, dweights = batchnorm.backward(run.folded, dy, dweights)
            gradients[:0] = dweights
            dh_0.insert(0, dh_k)
            if dc_k is not None:
                dc_0.insert(0, dc_k)
            dy = self._dropped(dy, layers, first_row, steps)
        assert dy is not None  # there is at least one layer
        return dy, gradients, (_joined(dh_0), _joined(dc_0) if dc_0 else None)

    def _dropped(self, rows: Array, layers: slice, first_row: int, steps: Steps) -> Array:
        """The inputs of a run, or their gradients, after dropout."""
        if layers.start == 0 or self.between is None:
            return rows
        mask = self.between.mask(layers.start, first_row, steps, self.computed)
        dropped: Array = rows.astype(self.computed, copy=False) * np.asarray(mask, like=rows)
        return dropped.astype(rows.dtype, copy=False)

    def _masks(self, layers: slice, first_row: int, steps: Steps) -> list[Masks] | None:
        if self.on_state is None:
            return None
        return [
            Masks(*(None if a is None else np.asarray(a, like=self.like) for a in mask))
            for mask in self.on_state.masks(layers.start, first_row, steps, self.computed)
        ]

    @property
    def pads(self) -> bool:
        """Whether `steps.order` may be given."""
        return self._together and self.backend.pads(self.spec, self.dtype)

    @property
    def _together(self) -> bool:
        """Whether nothing lies between the layers, so that a backend is given all of them."""
        return self.between is None and self.on_state is None and self.normed is None

    def _part_of(self, state: Array | None, layers: slice) -> Array | None:
        """The rows of some layers: of (L*D, B, ...)."""
        if state is None:
            return None
        return state[layers.start * self.directions : layers.stop * self.directions]


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class Run(NamedTuple):
    """Layers that a backend ran together, and what they left."""

    layers: slice
    prepared: list[Any]
    folded: batchnorm.Folded | None
    kept: Any


class Segment(NamedTuple):
    """Some consecutive steps of a batch, and the state before them."""

    first_row: int
    steps: Steps
    state: State

    @property
    def rows(self) -> slice:
        return slice(self.first_row, self.first_row + self.steps.rows)


@dataclass
class Tape:
    """What the forward pass of a stack of layers leaves for its backward pass."""

    stack: Stack
    shape: tuple[int, ...]  # of x
    steps: Steps
    how: Ragged | Steps | None  # as `forward` took it
    saved: list[Run]  # what `Stack.forward` returned; with checkpoints nothing
    rows: Array  # (N, I) x
    segments: list[Segment]  # between checkpoints
    save: str


def forward(
    stack: Stack,
    x: Array,
    state: State,
    how: Ragged | Steps | None,
    out: Array | None,
    state_out: State,
    save: str | None,
    checkpoint: int | None,
) -> tuple[Array, State, Tape | None]:
    """Run every layer. x is (T, B, I), C-contiguous and checked; so is everything else.

    `how` is None where all rows have all steps. Where it is Steps, x is (N, 1, I), its rows packed
    already and the states sorted; so is what comes back.

    `save` is None, "all" or "recompute", what the backend saves for a backward pass. With
    `checkpoint` it saves nothing yet: states are kept every so many steps.
    """
    rows, ragged = x.reshape(-1, x.shape[2]), None
    if isinstance(how, Ragged):
        ragged, steps = how, how.steps
        if checkpoint is None and stack.pads:
            steps = steps._replace(order=ragged.order)
        else:
            rows = ragged.pack(x)
        h_0, c_0 = state
        state = (
            None if h_0 is None else ragged.sort(h_0),
            None if c_0 is None else ragged.sort(c_0),
        )
    else:
        steps = Steps(*x.shape[:2]) if how is None else how
    packed = ragged is not None and steps.order is None

    h_n, c_n = state_out if ragged is None else (None, None)
    h_shape, c_shape = stack.state_shape(steps.batch)
    if h_n is None:
        h_n = arrays.empty(h_shape, x.dtype, x)
    if c_n is None and c_shape is not None:
        c_n = arrays.empty(c_shape, x.dtype, x)
    if out is not None and not packed:
        y = out.reshape(-1, stack.width)
    else:
        y = arrays.empty((rows.shape[0], stack.width), x.dtype, x)
    saved: list[Run] = []
    segments: list[Segment] = []
    if checkpoint is None:
        saved = stack.forward(rows, 0, steps, state, y, (h_n, c_n), save)
    else:
        segments = _in_segments(stack, rows, steps, state, y, (h_n, c_n), checkpoint)

    if ragged is None or not packed:
        padded: Array = y.reshape(*x.shape[:2], stack.width)
    else:
        padded = ragged.pad(y, x.shape[0])
        if out is not None:
            out[...] = padded
    if ragged is not None:
        h_n = ragged.unsort(h_n, state_out[0])
        c_n = None if c_n is None else ragged.unsort(c_n, state_out[1])
    tape = None
    if save is not None:
        tape = Tape(stack, x.shape, steps, how, saved, rows, segments, save)
    return padded, (h_n, c_n), tape


def _in_segments(
    stack: Stack, rows: Array, steps: Steps, state: State, y: Array, state_n: State, length: int
) -> list[Segment]:
    """Run segment by segment. `state_n` is the last state in the end."""
    h_n, c_n = (None if s is None else s.astype(stack.computed, copy=False) for s in state_n)
    running = h_n, c_n
    for now, initial in zip(running, state, strict=True):
        if now is not None:
            now[...] = 0 if initial is None else initial
    segments = []
    first_row = 0
    for first in range(0, max(1, steps.num_steps), length):
        part = steps.part(first, length)
        before = _copy_of(running)
        segment = Segment(first_row, part, before)
        after = _empty_like(before)
        stack.forward(rows[segment.rows], first_row, part, before, y[segment.rows], after, None)
        _put(running, after)
        segments.append(segment)
        first_row += part.rows
    _put(state_n, running)
    return segments


def backward(tape: Tape, dy: Array | None, dstate_n: State) -> tuple[Array, list[Weights], State]:
    """Gradients of x, of every direction of every layer in order, and of the initial state."""
    ragged = tape.how if isinstance(tape.how, Ragged) else None
    packed = ragged is not None and tape.steps.order is None
    if dy is not None:
        dy = ragged.pack(dy) if ragged is not None and packed else dy.reshape(-1, dy.shape[-1])
    if ragged is not None:
        dh_n, dc_n = dstate_n
        dstate_n = (
            None if dh_n is None else ragged.sort(dh_n),
            None if dc_n is None else ragged.sort(dc_n),
        )

    if tape.saved:
        dx, dweights, dstate = tape.stack.backward(tape.saved, 0, tape.steps, dy, dstate_n)
    else:
        dx, dweights, dstate = _back_through_segments(tape, dy, dstate_n)

    if ragged is not None:
        if packed:
            dx = ragged.pad(dx, tape.shape[0])
        dh_0, dc_0 = dstate
        assert dh_0 is not None
        dstate = ragged.unsort(dh_0), None if dc_0 is None else ragged.unsort(dc_0)
    return dx.reshape(tape.shape), dweights, dstate


def _back_through_segments(
    tape: Tape, dy: Array | None, dstate_n: State
) -> tuple[Array, list[Weights], State]:
    """From the last segment to the first: run it again, now saving, and back through it."""
    stack, rows = tape.stack, tape.rows
    h_shape, c_shape = stack.state_shape(tape.steps.batch)
    dstate: State = (
        _copy_or_zeros(dstate_n[0], h_shape, rows),
        None if c_shape is None else _copy_or_zeros(dstate_n[1], c_shape, rows),
    )
    dx = np.empty_like(rows)
    dweights: list[Weights] = []
    for segment in reversed(tape.segments):
        at = segment.rows
        y = arrays.empty((segment.steps.rows, stack.width), rows.dtype, rows)
        saved = stack.forward(
            rows[at],
            segment.first_row,
            segment.steps,
            segment.state,
            y,
            _empty_like(segment.state),
            tape.save,
        )
        dx[at], parts, dbefore = stack.backward(
            saved,
            segment.first_row,
            segment.steps,
            None if dy is None else dy[at],
            _copy_of(dstate),
        )
        if stack.spec.truncate is not None and segment.first_row > 0:
            for d in dbefore:
                if d is not None:
                    d[:, : segment.steps.begun] = 0  # others have their last step before
        _put(dstate, dbefore)
        parts = [_converted(w, stack.computed) for w in parts]
        if not dweights:
            dweights = parts
            continue
        for total, part in zip(dweights, parts, strict=True):
            for a, b in zip(total, part, strict=True):
                if a is not None:
                    a += b
    return dx, [_converted(w, stack.dtype) for w in dweights], dstate


def _converted(w: Weights, dtype: np.dtype[Any]) -> Weights:
    return Weights(*(None if a is None else a.astype(dtype, copy=False) for a in w))


def _copy_or_zeros(a: Array | None, shape: tuple[int, ...], like: Array) -> Array:
    return np.zeros(shape, like.dtype, like=like) if a is None else a.copy()


def _copy_of(state: State) -> State:
    h, c = state
    assert h is not None
    return h.copy(), None if c is None else c.copy()


def _put(state: State, values: State) -> None:
    for a, b in zip(state, values, strict=True):
        if a is not None and b is not None:
            a[...] = b


def _empty_like(state: State) -> State:
    h, c = state
    assert h is not None
    return np.empty_like(h), None if c is None else np.empty_like(c)
