"""The NumPy specification as a backend."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..reference import loop
from ..spec import Spec, Steps
from ..weights import Layer, Weights
from . import Array


class _Saved(NamedTuple):
    steps: Steps
    tapes: list[list[Any]]  # per direction, per step


class Reference:
    name = "reference"

    def supports(self, spec: Spec) -> bool:
        return spec.cell in loop.CELLS

    def prepare(self, spec: Spec, layer: Layer) -> Layer:
        return layer

    def directions(self, prepared: Layer) -> int:
        return len(prepared)

    def forward(
        self,
        spec: Spec,
        prepared: Layer,
        x: Array,
        steps: Steps,
        state: tuple[Array | None, ...],
        y: Array,
        state_n: tuple[Array, ...],
        save: bool,
    ) -> _Saved | None:
        hidden = prepared[0].w_hh.shape[1]
        tapes = []
        for d, w in enumerate(prepared):
            h_0, c_0 = (_or_zeros(s, d, steps.batch, hidden, x.dtype) for s in _two(state))
            y_d, h_n, c_n, tape = loop.forward(spec, w, x, steps, h_0, c_0, reverse=d == 1)
            y[:, d * hidden : (d + 1) * hidden] = y_d
            for into, value in zip(state_n, (h_n, c_n), strict=False):
                into[d] = value
            tapes.append(tape)
        return _Saved(steps, tapes) if save else None

    def backward(
        self,
        spec: Spec,
        prepared: Layer,
        saved: _Saved,
        dy: Array | None,
        dstate_n: tuple[Array | None, ...],
    ) -> tuple[Array, list[Weights], tuple[Array, ...]]:
        steps = saved.steps
        hidden = prepared[0].w_hh.shape[1]
        dtype = prepared[0].w_hh.dtype
        if dy is None:
            dy = np.zeros((steps.rows, len(prepared) * hidden), dtype)
        results = []
        for d, (w, tape) in enumerate(zip(prepared, saved.tapes, strict=True)):
            dh_n, dc_n = (_or_zeros(s, d, steps.batch, hidden, dtype) for s in _two(dstate_n))
            dy_d = dy[:, d * hidden : (d + 1) * hidden]
            results.append(loop.backward(spec, w, steps, tape, dy_d, dh_n, dc_n, reverse=d == 1))
        dx = sum(r[0] for r in results)
        dstate = tuple(np.stack([r[k] for r in results]) for k in range(2, 3 + spec.info.has_c))
        return np.asarray(dx), [r[1] for r in results], dstate


def _two(state: tuple[Array | None, ...]) -> tuple[Array | None, Array | None]:
    return state[0], state[1] if len(state) > 1 else None


def _or_zeros(
    state: Array | None, direction: int, batch: int, hidden: int, dtype: np.dtype[Any]
) -> Array:
    return np.zeros((batch, hidden), dtype) if state is None else state[direction]


BACKEND = Reference()
