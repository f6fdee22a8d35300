"""Stacking, directions, dropout between layers and variable lengths, once for every backend.

A backend passes one layer over a packed batch (see `rnnfast.spec.Steps`). Here a batch is sorted
and packed, the layers are run one after the other, and everything is put back in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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

    def unsort(self, state: Array) -> Array:
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
    save: bool,
) -> tuple[Array, State, Tape | None]:
    """Run every layer. x is (T, B, I), C-contiguous and checked; so is everything else."""
    num_steps, batch, input_size = x.shape
    if lengths is None:
        ragged, steps = None, Steps(num_steps, batch)
        rows = x.reshape(num_steps * batch, input_size)
    else:
        ragged = Ragged.of(lengths)
        steps, rows = ragged.steps, ragged.pack(x)
        state = tuple(None if s is None else ragged.sort(s) for s in state)  # type: ignore[assignment]

    count = len(prepared) * directions
    final = [np.empty((count, batch, hidden), x.dtype) for _ in range(1 + spec.info.has_c)]
    layers: list[tuple[Any, Any]] = []
    masks: list[Array | None] = []
    for k, weights in enumerate(prepared):
        mask = None
        if k > 0 and dropout > 0 and rng is not None:
            mask = _dropout_mask(rng, rows.shape, dropout, x.dtype)
            rows = rows * mask
        part = slice(k * directions, (k + 1) * directions)
        into = None
        if out is not None and ragged is None and k + 1 == len(prepared):
            into = out.reshape(num_steps * batch, out.shape[-1])
        if into is None:
            into = np.empty((rows.shape[0], directions * hidden), x.dtype)
        saved = backend.forward(
            spec,
            weights,
            rows,
            steps,
            tuple(None if s is None else s[part] for s in state),
            into,
            tuple(f[part] for f in final),
            save,
        )
        rows = into
        layers.append((weights, saved))
        masks.append(mask)

    if ragged is None:
        y = rows.reshape(num_steps, batch, rows.shape[-1])
    else:
        y = ragged.pad(rows, num_steps)
        final = [ragged.unsort(f) for f in final]
        if out is not None:
            out[...] = y
            y = out
    h_n, c_n = final[0], final[1] if spec.info.has_c else None
    tape = None
    if save:
        tape = Tape(spec, backend, num_steps, steps, ragged, layers, masks, x.dtype, input_size)
    return y, (h_n, c_n), tape


def backward(
    tape: Tape, dy: Array | None, dstate: State
) -> tuple[Array, list[Weights], tuple[Array, ...]]:
    """Gradients of x, of every direction of every layer in order, and of the initial state."""
    ragged = tape.ragged
    if ragged is not None:
        dy = None if dy is None else ragged.pack(dy)
        dstate = tuple(None if d is None else ragged.sort(d) for d in dstate)  # type: ignore[assignment]
    elif dy is not None:
        dy = dy.reshape(tape.steps.rows, dy.shape[-1])

    gradients: list[list[Weights]] = []
    initial: list[tuple[Array, ...]] = []
    for k in reversed(range(len(tape.layers))):
        weights, saved = tape.layers[k]
        directions = tape.backend.directions(weights)
        part = slice(k * directions, (k + 1) * directions)
        drows, dweights, d_0 = tape.backend.backward(
            tape.spec,
            weights,
            saved,
            dy,
            tuple(None if d is None else d[part] for d in dstate),
        )
        gradients.append(dweights)
        initial.append(d_0)
        mask = tape.masks[k]
        dy = drows if mask is None else drows * mask

    assert dy is not None  # there is at least one layer
    dx = dy if ragged is None else ragged.pad(dy, tape.num_steps)
    d_initial = tuple(np.concatenate(parts[::-1]) for parts in zip(*initial, strict=True))
    if ragged is not None:
        d_initial = tuple(ragged.unsort(d) for d in d_initial)
    return (
        dx.reshape(tape.num_steps, tape.steps.batch, tape.input_size),
        [direction for layer in reversed(gradients) for direction in layer],
        d_initial,
    )


def _dropout_mask(
    rng: np.random.Generator, shape: tuple[int, ...], rate: float, dtype: np.dtype[Any]
) -> Array:
    """Zeros with probability `rate`, else 1 / (1 - rate)."""
    keep = rng.random(shape) >= rate
    return np.where(keep, 1 / (1 - rate) if rate < 1 else 0, 0).astype(dtype)
