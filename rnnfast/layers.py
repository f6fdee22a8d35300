"""Stacking, directions, dropout between layers and variable lengths, once for every backend.

A backend passes one layer over a packed batch (see `rnnfast.spec.Steps`). Here a batch is sorted
and packed, the layers are run one after the other, and everything is put back in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .backends import Backend
from .spec import Spec, Steps
from .weights import Weights

Array = NDArray[Any]
State = tuple[Array | None, Array | None]  # (h, c), each (L*D, B, H); None means zeros


@dataclass(frozen=True)
class Ragged:
    """Where the rows of a packed batch stand in the padded one."""

    order: NDArray[np.int64]  # (B,) rows of the caller's batch by falling length
    at: NDArray[np.int64]  # (N,) step * B + row of each packed row
    steps: Steps

    @classmethod
    def of(cls, lengths: NDArray[np.int64]) -> Ragged:
        order = np.argsort(-lengths, kind="stable")
        batch, longest = len(lengths), int(lengths.max(initial=0))
        step = np.arange(longest)[:, None]
        runs = step < lengths[order]
        return cls(order, (step * batch + order)[runs], Steps(longest, batch, runs.sum(axis=1)))

    def pack(self, padded: Array) -> Array:
        rows: Array = padded.reshape(-1, padded.shape[-1]).take(self.at, axis=0)
        return rows

    def pad(self, packed: Array, num_steps: int) -> Array:
        padded = np.zeros((num_steps * len(self.order), packed.shape[-1]), packed.dtype)
        padded[self.at] = packed
        return padded.reshape(num_steps, len(self.order), packed.shape[-1])

    def sort(self, state: Array) -> Array:
        return np.take(state, self.order, axis=1)

    def unsort(self, state: Array, out: Array | None = None) -> Array:
        if out is None:
            out = np.empty_like(state)
        out[:, self.order] = state
        return out


class Dropout:
    """The masks on the inputs of all layers but the first: drawn layer by layer, kept as bits."""

    def __init__(
        self, rng: np.random.Generator, rate: float, layers: int, rows: int, width: int
    ) -> None:
        self.scale = 1 / (1 - rate) if rate < 1 else 0.0
        self.width = width
        # In blocks of rows, which draw the same numbers as one block and need little memory.
        block = max(1, _DRAWN_AT_ONCE // max(1, width))
        self.bits = []
        for _ in range(layers - 1):
            bits = np.empty((rows, (width + 7) // 8), np.uint8)
            for first in range(0, rows, block):
                at = bits[first : first + block]
                at[...] = np.packbits(rng.random((len(at), width)) >= rate, axis=1)
            self.bits.append(bits)

    def mask(self, layer: int, first: int, rows: int, dtype: np.dtype[Any]) -> Array:
        """What multiplies some rows of the input of a layer: 0 or 1 / (1 - rate)."""
        bits = self.bits[layer - 1][first : first + rows]
        kept = np.unpackbits(bits, axis=1, count=self.width)
        return np.asarray(kept * dtype.type(self.scale))


_DRAWN_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Stack:
    """Layers with prepared weights, run one after the other over some steps of a packed batch."""

    spec: Spec
    backend: Backend
    prepared: list[Any]  # per layer
    hidden: int
    directions: int
    dropout: Dropout | None

    @property
    def width(self) -> int:
        return self.directions * self.hidden

    def forward(
        self,
        rows: Array,  # (N, I)
        first_row: int,  # of the whole batch, for the masks
        steps: Steps,
        state: State,
        y: Array,  # (N, D*H), written
        state_n: State,  # written
        save: str | None,
    ) -> list[Any]:
        """Run every layer; return what each run of layers saved."""
        count = len(self.prepared)
        saved = []
        for layers in self._runs():
            if layers.start > 0 and self.dropout is not None:
                rows = rows * self.dropout.mask(layers.start, first_row, rows.shape[0], rows.dtype)
            ys = [
                y if k + 1 == count else np.empty((rows.shape[0], self.width), y.dtype)
                for k in range(layers.start, layers.stop)
            ]
            h_0, c_0 = (self._part_of(s, layers) for s in state)
            h_n, c_n = (self._part_of(s, layers) for s in state_n)
            assert h_n is not None
            saved.append(
                self.backend.forward(
                    self.spec, self.prepared[layers], rows, steps, h_0, c_0, ys, h_n, c_n, save
                )
            )
            rows = ys[-1]
        return saved

    def backward(
        self, saved: list[Any], first_row: int, dy: Array | None, dstate_n: State
    ) -> tuple[Array, list[Weights], State]:
        """Gradients of the rows, of every direction of every layer in order, and of the state."""
        gradients: list[Weights] = []
        dh_0: list[Array] = []
        dc_0: list[Array] = []
        for layers, kept in zip(reversed(self._runs()), reversed(saved), strict=True):
            dh_n, dc_n = (self._part_of(d, layers) for d in dstate_n)
            dy, dweights, dh_k, dc_k = self.backend.backward(
                self.spec, self.prepared[layers], kept, dy, dh_n, dc_n
            )
            gradients[:0] = dweights
            dh_0.insert(0, dh_k)
            if dc_k is not None:
                dc_0.insert(0, dc_k)
            if layers.start > 0 and self.dropout is not None:
                dy = dy * self.dropout.mask(layers.start, first_row, dy.shape[0], dy.dtype)
        assert dy is not None  # there is at least one layer
        return dy, gradients, (_joined(dh_0), _joined(dc_0) if dc_0 else None)

    def _runs(self) -> list[slice]:
        """The layers with nothing between them."""
        count = len(self.prepared)
        if self.dropout is None:
            return [slice(0, count)]
        return [slice(k, k + 1) for k in range(count)]

    def _part_of(self, state: Array | None, layers: slice) -> Array | None:
        """The rows of some layers: of (L*D, B, H)."""
        if state is None:
            return None
        return state[layers.start * self.directions : layers.stop * self.directions]


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class Segment(NamedTuple):
    """Some consecutive steps of a batch, and the state before them."""

    first_row: int
    steps: Steps  # of the rows that still run when it begins
    state: State

    @property
    def rows(self) -> slice:
        return slice(self.first_row, self.first_row + self.steps.rows)


@dataclass
class Tape:
    """What the forward pass of a stack of layers leaves for its backward pass."""

    stack: Stack
    num_steps: int
    input_size: int
    steps: Steps
    ragged: Ragged | None
    saved: list[Any]  # what `Stack.forward` returned; with checkpoints nothing
    rows: Array  # (N, I) x
    segments: list[Segment]  # between checkpoints
    save: str


def forward(
    stack: Stack,
    x: Array,
    state: State,
    lengths: NDArray[np.int64] | None,
    out: Array | None,
    state_out: State,
    save: str | None,
    checkpoint: int | None,
) -> tuple[Array, State, Tape | None]:
    """Run every layer. x is (T, B, I), C-contiguous and checked; so is everything else.

    `save` is None, "all" or "recompute", what the backend saves for a backward pass. With
    `checkpoint` it saves nothing yet: states are kept every so many steps.
    """
    num_steps, batch, input_size = x.shape
    ragged = None
    if lengths is None:
        steps = Steps(num_steps, batch)
        rows = x.reshape(num_steps * batch, input_size)
    else:
        ragged = Ragged.of(lengths)
        steps, rows = ragged.steps, ragged.pack(x)
        h_0, c_0 = state
        state = (
            None if h_0 is None else ragged.sort(h_0),
            None if c_0 is None else ragged.sort(c_0),
        )

    h_n, c_n = state_out if ragged is None else (None, None)
    if h_n is None:
        h_n = np.empty((len(stack.prepared) * stack.directions, batch, stack.hidden), x.dtype)
    if c_n is None and stack.spec.info.has_c:
        c_n = np.empty_like(h_n)
    if out is not None and ragged is None:
        y = out.reshape(num_steps * batch, stack.width)
    else:
        y = np.empty((rows.shape[0], stack.width), x.dtype)
    saved: list[Any] = []
    segments: list[Segment] = []
    if checkpoint is None:
        saved = stack.forward(rows, 0, steps, state, y, (h_n, c_n), save)
    else:
        segments = _in_segments(stack, rows, steps, state, y, (h_n, c_n), checkpoint)

    if ragged is None:
        padded: Array = y.reshape(num_steps, batch, stack.width)
    else:
        padded = ragged.pad(y, num_steps)
        h_n = ragged.unsort(h_n, state_out[0])
        c_n = None if c_n is None else ragged.unsort(c_n, state_out[1])
        if out is not None:
            out[...] = padded
    tape = None
    if save is not None:
        tape = Tape(stack, num_steps, input_size, steps, ragged, saved, rows, segments, save)
    return padded, (h_n, c_n), tape


def _in_segments(
    stack: Stack, rows: Array, steps: Steps, state: State, y: Array, state_n: State, length: int
) -> list[Segment]:
    """Run segment by segment. `state_n` is the running state, and the last one in the end."""
    for running, initial in zip(state_n, state, strict=True):
        if running is not None:
            running[...] = 0 if initial is None else initial
    segments = []
    first_row = 0
    for first in range(0, max(1, steps.num_steps), length):
        part = steps.part(first, length)
        before = _rows_of(state_n, part.batch)
        segment = Segment(first_row, part, before)
        after = _empty_like(before)
        stack.forward(rows[segment.rows], first_row, part, before, y[segment.rows], after, None)
        _put_rows(state_n, after)
        segments.append(segment)
        first_row += part.rows
    return segments


def backward(tape: Tape, dy: Array | None, dstate_n: State) -> tuple[Array, list[Weights], State]:
    """Gradients of x, of every direction of every layer in order, and of the initial state."""
    ragged, stack = tape.ragged, tape.stack
    if ragged is not None:
        dy = None if dy is None else ragged.pack(dy)
        dh_n, dc_n = dstate_n
        dstate_n = (
            None if dh_n is None else ragged.sort(dh_n),
            None if dc_n is None else ragged.sort(dc_n),
        )
    elif dy is not None:
        dy = dy.reshape(tape.rows.shape[0], dy.shape[-1])

    if tape.saved:
        dx, dweights, dstate = stack.backward(tape.saved, 0, dy, dstate_n)
    else:
        dx, dweights, dstate = _back_through_segments(tape, dy, dstate_n)

    if ragged is not None:
        dx = ragged.pad(dx, tape.num_steps)
        dh_0, dc_0 = dstate
        assert dh_0 is not None
        dstate = ragged.unsort(dh_0), None if dc_0 is None else ragged.unsort(dc_0)
    return dx.reshape(tape.num_steps, tape.steps.batch, tape.input_size), dweights, dstate


def _back_through_segments(
    tape: Tape, dy: Array | None, dstate_n: State
) -> tuple[Array, list[Weights], State]:
    """From the last segment to the first: run it again, now saving, and back through it."""
    stack, rows = tape.stack, tape.rows
    shape = (len(stack.prepared), tape.steps.batch, stack.hidden)
    dstate: State = (
        _copy_or_zeros(dstate_n[0], shape, rows.dtype),
        _copy_or_zeros(dstate_n[1], shape, rows.dtype) if stack.spec.info.has_c else None,
    )
    dx = np.empty_like(rows)
    dweights: list[Weights] = []
    for segment in reversed(tape.segments):
        at = segment.rows
        y = np.empty((segment.steps.rows, stack.width), rows.dtype)
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
            None if dy is None else dy[at],
            _rows_of(dstate, segment.steps.batch),
        )
        _put_rows(dstate, dbefore)
        if not dweights:
            dweights = parts
            continue
        for total, part in zip(dweights, parts, strict=True):
            for a, b in zip(total, part, strict=True):
                if a is not None:
                    a += b
    return dx, dweights, dstate


def _copy_or_zeros(a: Array | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    return np.zeros(shape, dtype) if a is None else a.copy()


def _rows_of(state: State, batch: int) -> State:
    """A copy of the first rows of a state."""
    h, c = state
    assert h is not None
    return h[:, :batch].copy(), None if c is None else c[:, :batch].copy()


def _put_rows(state: State, rows: State) -> None:
    for a, b in zip(state, rows, strict=True):
        if a is not None and b is not None:
            a[:, : b.shape[1]] = b


def _empty_like(state: State) -> State:
    h, c = state
    assert h is not None
    return np.empty_like(h), None if c is None else np.empty_like(c)
