"""The NumPy specification as a backend."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..reference import loop
from ..reference.precision import ROUNDED
from ..spec import Masks, Spec, Steps
from ..weights import Layer, Weights
from . import Array

_NO_MASKS = Masks()
# Imaginary parts, which are derivatives, are made this small, so that their products vanish beside
# the real parts: then complex arithmetic differentiates (Squire & Trapp 1998).
_TINY = 1e-120


class _Saved(NamedTuple):
    steps: Steps
    tapes: list[list[Any]]  # per direction, per step; empty where they are made again
    x: Array
    h_0: Array
    c_0: Array
    masks: list[Masks]


class Reference:
    name = "reference"
    twice = True

    def supports(self, spec: Spec) -> bool:
        return spec.cell in loop.CELLS

    def pads(self, spec: Spec, dtype: np.dtype[Any]) -> bool:
        return False

    def prepare(self, spec: Spec, layer: Layer, reuse: bool, precision: str | None = None) -> Layer:
        if precision is None:
            return tuple(Weights(*(_shrunk(a) for a in w)) for w in layer)
        rounded = ROUNDED[precision]
        return tuple(w._replace(w_ih=rounded(w.w_ih), w_hh=rounded(w.w_hh)) for w in layer)

    def shortcut(self, spec: Spec, prepared: list[Any]) -> None:
        return None

    def call(
        self, spec: Spec, x: Any, weights: Any, state: Any, lengths: Any, places: tuple[int, ...]
    ) -> None:
        return None

    def call_vjp(
        self, spec: Spec, x: Any, weights: Any, state: Any, lengths: Any, places: tuple[int, ...]
    ) -> None:
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
        masks: list[Masks] | None,
    ) -> list[_Saved]:
        x = _shrunk(x)
        first = prepared[0][0]
        outputs = first.w_hh.shape[1]
        count, batch = h_n.shape[:2]
        hidden = first.w_hh.shape[0] // len(spec.info.gates)
        h_0 = np.zeros_like(h_n) if h_0 is None else _shrunk(h_0)
        c_0 = np.zeros((count, batch, hidden), h_n.dtype) if c_0 is None else _shrunk(c_0)
        saved = []
        at = 0  # of the layer's first direction
        for layer, y in zip(prepared, ys, strict=True):
            state = slice(at, at + len(layer))
            tapes = []
            own = masks or [_NO_MASKS] * len(layer)
            for d, w in enumerate(layer):
                y_d, h_n[at], c_d, tape = loop.forward(
                    spec, w, x, steps, h_0[at], c_0[at], d == 1, own[d]
                )
                y[:, d * outputs : (d + 1) * outputs] = y_d
                if c_n is not None:
                    c_n[at] = c_d
                if save == "all":
                    tapes.append(tape)
                at += 1
            # Copies: the caller may change the state before `backward`.
            saved.append(_Saved(steps, tapes, x, h_0[state].copy(), c_0[state].copy(), own))
            x = y.copy() if np.iscomplexobj(y) else y
            _grow(y)
        _grow(h_n)
        if c_n is not None:
            _grow(c_n)
        return saved if save is not None else []

    def backward(
        self,
        spec: Spec,
        prepared: list[Layer],
        saved: list[_Saved],
        dy: Array | None,
        dh_n: Array | None,
        dc_n: Array | None,
        masks: list[Masks] | None,
    ) -> tuple[Array, list[Weights], Array, Array | None]:
        steps = saved[0].steps
        w_hh = prepared[0][0].w_hh
        outputs, directions = w_hh.shape[1], len(prepared[0])
        hidden = w_hh.shape[0] // len(spec.info.gates)
        shape = (len(prepared) * directions, steps.batch)
        h_zeros = np.zeros((*shape, outputs), w_hh.dtype)
        c_zeros = np.zeros((*shape, hidden), w_hh.dtype)
        dh_n = h_zeros if dh_n is None else _shrunk(dh_n)
        dc_n = c_zeros if dc_n is None else _shrunk(dc_n)
        if dy is None:
            dy = np.zeros((steps.rows, directions * outputs), w_hh.dtype)
        dy = _shrunk(dy)
        dh_0, dc_0 = np.empty_like(h_zeros), np.empty_like(c_zeros)
        dweights: list[Weights] = []
        for k in reversed(range(len(prepared))):
            dx = []
            parts = []
            for d, w in enumerate(prepared[k]):
                at = k * directions + d
                own = saved[k].masks[d]
                tape = saved[k].tapes[d] if saved[k].tapes else _again(spec, w, saved[k], d)
                dy_d = dy[:, d * outputs : (d + 1) * outputs]
                dx_d, part, dh_0[at], dc_0[at] = loop.backward(
                    spec, w, steps, tape, dy_d, dh_n[at], dc_n[at], d == 1, own
                )
                dx.append(dx_d)
                parts.append(part)
            dy = np.sum(dx, axis=0)
            dweights[:0] = parts
        for w in dweights:
            for a in w:
                _grow(a)
        for a in (dy, dh_0, dc_0):
            _grow(a)
        return dy, dweights, dh_0, dc_0 if spec.info.has_c else None


def _again(spec: Spec, w: Weights, saved: _Saved, d: int) -> list[Any]:
    """The tape of a forward pass that kept none."""
    *_, tape = loop.forward(
        spec, w, saved.x, saved.steps, saved.h_0[d], saved.c_0[d], d == 1, saved.masks[d]
    )
    return tape


def _shrunk(a: Any) -> Any:
    """The derivatives of a as small as the complex step wants them."""
    return a.real + 1j * (a.imag * _TINY) if np.iscomplexobj(a) else a


def _grow(a: Array | None) -> None:
    """And back again, in place."""
    if a is not None and np.iscomplexobj(a):
        a.imag /= _TINY


BACKEND = Reference()
