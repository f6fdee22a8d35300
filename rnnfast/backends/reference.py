"""The NumPy specification as a backend."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..reference import loop
from ..reference.precision import ROUNDED
from ..spec import Spec, Steps
from ..weights import Layer, Weights
from . import Array


class _Saved(NamedTuple):
    steps: Steps
    tapes: list[list[Any]]  # per direction, per step; empty where they are made again
    x: Array
    h_0: Array
    c_0: Array


class Reference:
    name = "reference"

    def supports(self, spec: Spec) -> bool:
        return spec.cell in loop.CELLS

    def prepare(self, spec: Spec, layer: Layer, reuse: bool, precision: str | None = None) -> Layer:
        if precision is None:
            return layer
        rounded = ROUNDED[precision]
        return tuple(w._replace(w_ih=rounded(w.w_ih), w_hh=rounded(w.w_hh)) for w in layer)

    def directions(self, prepared: Layer) -> int:
        return len(prepared)

    def shortcut(self, prepared: list[Any]) -> None:
        return None

    def forward(
        self,
        spec: Spec,
        prepared: Layer,
        x: Array,
        steps: Steps,
        h_0: Array | None,
        c_0: Array | None,
        y: Array,
        h_n: Array,
        c_n: Array | None,
        save: str | None,
    ) -> _Saved | None:
        zeros = np.zeros_like(h_n)
        h_0 = zeros if h_0 is None else h_0
        c_0 = zeros if c_0 is None else c_0
        hidden = h_n.shape[-1]
        tapes = []
        for d, w in enumerate(prepared):
            y_d, h_n[d], c_d, tape = loop.forward(spec, w, x, steps, h_0[d], c_0[d], reverse=d == 1)
            y[:, d * hidden : (d + 1) * hidden] = y_d
            if c_n is not None:
                c_n[d] = c_d
            if save == "all":
                tapes.append(tape)
        return _Saved(steps, tapes, x, h_0, c_0) if save is not None else None

    def backward(
        self,
        spec: Spec,
        prepared: Layer,
        saved: _Saved,
        dy: Array | None,
        dh_n: Array | None,
        dc_n: Array | None,
    ) -> tuple[Array, list[Weights], Array, Array | None]:
        steps = saved.steps
        w_hh = prepared[0].w_hh
        hidden = w_hh.shape[1]
        zeros = np.zeros((len(prepared), steps.batch, hidden), w_hh.dtype)
        dh_n = zeros if dh_n is None else dh_n
        dc_n = zeros if dc_n is None else dc_n
        if dy is None:
            dy = np.zeros((steps.rows, len(prepared) * hidden), w_hh.dtype)
        results = []
        for d, w in enumerate(prepared):
            if saved.tapes:
                tape = saved.tapes[d]
            else:
                h_0, c_0 = saved.h_0[d], saved.c_0[d]
                *_, tape = loop.forward(spec, w, saved.x, steps, h_0, c_0, reverse=d == 1)
            dy_d = dy[:, d * hidden : (d + 1) * hidden]
            results.append(
                loop.backward(spec, w, steps, tape, dy_d, dh_n[d], dc_n[d], reverse=d == 1)
            )
        dx, dweights, dh_0, dc_0 = zip(*results, strict=True)
        return (
            np.sum(dx, axis=0),
            list(dweights),
            np.stack(dh_0),
            np.stack(dc_0) if spec.info.has_c else None,
        )


BACKEND = Reference()
