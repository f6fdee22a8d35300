"""Stacking, directions, dropout between layers and variable lengths, once for every backend.

A backend passes one layer over a packed batch (see `rnnfast.spec.Steps`). Here a batch is sorted
and packed, the layers are run one after the other, and everything is put back in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

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
    at: tuple[NDArray[np.int64], NDArray[np.int64]]  # (N,), (N,) step and row of each packed row
    steps: Steps

    @classmethod
    def of(cls, lengths: NDArray[np.int64]) -> Ragged:
        order = np.argsort(-lengths, kind="stable")
        longest = int(lengths.max(initial=0))
        sizes = np.array([np.count_nonzero(lengths > t) for t in range(longest)], dtype=np.int64)
        step = np.repeat(np.arange(longest), sizes)
        row = np.concatenate([order[:n] for n in sizes]) if longest else order[:0]
        return cls(order, (step, row), Steps(longest, len(lengths), sizes))

    def pack(self, padded: Array) -> Array:
        return padded[self.at]

    def pad(self, packed: Array, num_steps: int) -> Array:
        padded = np.zeros((num_steps, len(self.order), packed.shape[-1]), packed.dtype)
        padded[self.at] = packed
        return padded

    def sort(self, state: Array) -> Array:
        return np.take(state, self.order, axis=1)

    def unsort(self, state: Array, out: Array | None = None) -> Array:
        if out is None:
            out = np.empty_like(state)
        out[:, self.order] = state
        return out


@dataclass
class Tape:
    """What the forward pass of a stack of layers leaves for its backward pass."""

    spec: Spec
    backend: Backend
    num_steps: int
    steps: Steps
    ragged: Ragged | None
    layers: list[tuple[Any, Any]]  # (prepared weights, what the backend saved), per layer
    masks: list[Array | None]  # dropout on the input of each layer
    dtype: np.dtype[Any]
    input_size: int


def forward(
    spec: Spec,
    backend: Backend,
    x: Array,
    prepared: list[Any],
    hidden: int,
    directions: int,
    state: State,
    lengths: NDArray[np.int64] | None,
    dropout: float,
    rng: np.random.Generator | None,
    out: Array | None,
    state_out: State,
    save: bool,
) -> tuple[Array, State, Tape | None]:
    """Run every layer. x is (T, B, I), C-contiguous and checked; so is everything else."""
    num_steps, batch, input_size = x.shape
    h_0, c_0 = state
    ragged = None
    if lengths is None:
        steps = Steps(num_steps, batch)
        rows = x.reshape(num_steps * batch, input_size)
    else:
        ragged = Ragged.of(lengths)
        steps, rows = ragged.steps, ragged.pack(x)
        h_0 = None if h_0 is None else ragged.sort(h_0)
        c_0 = None if c_0 is None else ragged.sort(c_0)

    count, width = len(prepared), directions * hidden
    h_n, c_n = state_out if ragged is None else (None, None)
    if h_n is None:
        h_n = np.empty((count * directions, batch, hidden), x.dtype)
    if c_n is None and spec.info.has_c:
        c_n = np.empty_like(h_n)
    layers: list[tuple[Any, Any]] = []
    masks: list[Array | None] = []
    for k, weights in enumerate(prepared):
        mask = None
        if k > 0 and dropout > 0 and rng is not None:
            mask = _dropout_mask(rng, rows.shape, dropout, x.dtype)
            rows = rows * mask
        if out is not None and ragged is None and k + 1 == count:
            y = out.reshape(num_steps * batch, width)
        else:
            y = np.empty((rows.shape[0], width), x.dtype)
        saved = backend.forward(
            spec,
            weights,
            rows,
            steps,
            _part_of(h_0, k, count),
            _part_of(c_0, k, count),
            y,
            _part_of(h_n, k, count),
            _part_of(c_n, k, count),
            save,
        )
        rows = y
        layers.append((weights, saved))
        masks.append(mask)

    if ragged is None:
        padded: Array = rows.reshape(num_steps, batch, width)
    else:
        padded = ragged.pad(rows, num_steps)
        h_n = ragged.unsort(h_n, state_out[0])
        c_n = None if c_n is None else ragged.unsort(c_n, state_out[1])
        if out is not None:
            out[...] = padded
    tape = None
    if save:
        tape = Tape(spec, backend, num_steps, steps, ragged, layers, masks, x.dtype, input_size)
    return padded, (h_n, c_n), tape


_S = TypeVar("_S", Array, Array | None)


def _part_of(state: _S, layer: int, count: int) -> _S:
    """The rows of one of `count` layers: (D, B, H) of (L*D, B, H)."""
    if state is None or count == 1:
        return state
    directions = state.shape[0] // count
    part: Array = state[layer * directions : (layer + 1) * directions]
    return part


def backward(tape: Tape, dy: Array | None, dstate_n: State) -> tuple[Array, list[Weights], State]:
    """Gradients of x, of every direction of every layer in order, and of the initial state."""
    ragged = tape.ragged
    dh_n, dc_n = dstate_n
    if ragged is not None:
        dy = None if dy is None else ragged.pack(dy)
        dh_n = None if dh_n is None else ragged.sort(dh_n)
        dc_n = None if dc_n is None else ragged.sort(dc_n)
    elif dy is not None:
        dy = dy.reshape(tape.steps.num_steps * tape.steps.batch, dy.shape[-1])

    count = len(tape.layers)
    gradients: list[list[Weights]] = []
    dh_0: list[Array] = []
    dc_0: list[Array] = []
    for k in reversed(range(count)):
        weights, saved = tape.layers[k]
        drows, dweights, dh_k, dc_k = tape.backend.backward(
            tape.spec, weights, saved, dy, _part_of(dh_n, k, count), _part_of(dc_n, k, count)
        )
        gradients.insert(0, dweights)
        dh_0.insert(0, dh_k)
        if dc_k is not None:
            dc_0.insert(0, dc_k)
        mask = tape.masks[k]
        dy = drows if mask is None else drows * mask

    assert dy is not None  # there is at least one layer
    dx = dy if ragged is None else ragged.pad(dy, tape.num_steps)
    initial = [np.concatenate(parts) for parts in (dh_0, dc_0) if parts]
    if ragged is not None:
        initial = [ragged.unsort(d) for d in initial]
    return (
        dx.reshape(tape.num_steps, tape.steps.batch, tape.input_size),
        [direction for layer in gradients for direction in layer],
        (initial[0], initial[1] if dc_0 else None),
    )


def _dropout_mask(
    rng: np.random.Generator, shape: tuple[int, ...], rate: float, dtype: np.dtype[Any]
) -> Array:
    """Zeros with probability `rate`, else 1 / (1 - rate)."""
    keep = rng.random(shape) >= rate
    return np.where(keep, 1 / (1 - rate) if rate < 1 else 0, 0).astype(dtype)
