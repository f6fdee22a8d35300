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

    def shortcut(self, prepared: list[Any]) -> None:
        return None

    def call(self, spec: Spec, x: Any, weights: Any, state: Any) -> None:
        return None

    def forward(
        self,
        spec: Spec,
        prepared: list[Layer],
        x: Array,
        steps: Steps,
        h_0: Array | None,
        c_0: Array | None,
        ys: list[Array],
        h_n: Array,
        c_n: Array | None,
        save: str | None,
    ) -> list[_Saved]:
        zeros = np.zeros_like(h_n)
        h_0 = zeros if h_0 is None else h_0
        c_0 = zeros if c_0 is None else c_0
        hidden = h_n.shape[-1]
        saved = []
        at = 0  # of the layer's first direction
        for layer, y in zip(prepared, ys, strict=True):
            state = slice(at, at + len(layer))
            tapes = []
            for d, w in enumerate(layer):
                y_d, h_n[at], c_d, tape = loop.forward(
                    spec, w, x, steps, h_0[at], c_0[at], reverse=d == 1
                )
                y[:, d * hidden : (d + 1) * hidden] = y_d
                if c_n is not None:
                    c_n[at] = c_d
                if save == "all":
                    tapes.append(tape)
                at += 1
            saved.append(_Saved(steps, tapes, x, h_0[state], c_0[state]))
            x = y
        return saved if save is not None else []

    def backward(
        self,
        spec: Spec,
        prepared: list[Layer],
        saved: list[_Saved],
        dy: Array | None,
        dh_n: Array | None,
        dc_n: Array | None,
    ) -> tuple[Array, list[Weights], Array, Array | None]:
        steps = saved[0].steps
        w_hh = prepared[0][0].w_hh
        hidden, directions = w_hh.shape[1], len(prepared[0])
        zeros = np.zeros((len(prepared) * directions, steps.batch, hidden), w_hh.dtype)
        dh_n = zeros if dh_n is None else dh_n
        dc_n = zeros if dc_n is None else dc_n
        if dy is None:
            dy = np.zeros((steps.rows, directions * hidden), w_hh.dtype)
        dh_0, dc_0 = np.empty_like(zeros), np.empty_like(zeros)
        dweights: list[Weights] = []
        for k in reversed(range(len(prepared))):
            dx = []
            parts = []
            for d, w in enumerate(prepared[k]):
                at = k * directions + d
                tape = saved[k].tapes[d] if saved[k].tapes else _again(spec, w, saved[k], d)
                dy_d = dy[:, d * hidden : (d + 1) * hidden]
                dx_d, part, dh_0[at], dc_0[at] = loop.backward(
                    spec, w, steps, tape, dy_d, dh_n[at], dc_n[at], reverse=d == 1
                )
                dx.append(dx_d)
                parts.append(part)
            dy = np.sum(dx, axis=0)
            dweights[:0] = parts
        return dy, dweights, dh_0, dc_0 if spec.info.has_c else None


def _again(spec: Spec, w: Weights, saved: _Saved, d: int) -> list[Any]:
    """The tape of a forward pass that kept none."""
    h_0, c_0 = saved.h_0[d], saved.c_0[d]
    *_, tape = loop.forward(spec, w, saved.x, saved.steps, h_0, c_0, reverse=d == 1)
    return tape


BACKEND = Reference()
