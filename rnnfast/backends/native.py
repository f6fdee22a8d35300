"""The C++ kernels as a backend."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import __version__, _native
from ..spec import Masks, Spec, Steps
from ..weights import Layer, Weights
from . import Array, Shortcut

if _native.version != __version__:
    raise ImportError(
        f"the compiled module is of version {_native.version}, the Python files of {__version__}; "
        f"install rnnfast again"
    )


def _kernel(spec: Spec) -> str:
    if spec.cell == "gru":
        return "gru_after" if spec.reset_after else "gru_before"
    return f"rnn_{spec.nonlinearity}" if spec.cell == "rnn" else spec.cell


class Native:
    name = "native"

    def supports(self, spec: Spec) -> bool:
        return spec.plain

    def prepare(self, spec: Spec, layer: Layer, reuse: bool, precision: str | None = None) -> Any:
        kind = _native.LayerF32 if layer[0].w_hh.dtype == np.float32 else _native.LayerF64
        return kind(_kernel(spec), [w[:4] for w in layer], reuse, precision or "")

    def shortcut(self, prepared: list[Any]) -> Shortcut | None:
        single = isinstance(prepared[0], _native.LayerF32)
        stack = _native.StackF32 if single else _native.StackF64
        return stack(tuple(prepared)).forward

    def call(self, spec: Spec, x: Any, weights: Any, state: Any) -> tuple[Any, Any] | None:
        return _native.call(_kernel(spec), x, weights, state)

    def forward(
        self,
        spec: Spec,
        prepared: list[Any],
        x: Array,
        steps: Steps,
        h_0: Array | None,
        c_0: Array | None,
        ys: list[Array],
        h_n: Array,
        c_n: Array | None,
        save: str | None,
        masks: list[Masks] | None,
    ) -> Any:
        kind = type(prepared[0])
        return kind.forward(prepared, x, *steps, h_0, c_0, ys, h_n, c_n, save or "")

    def backward(
        self,
        spec: Spec,
        prepared: list[Any],
        saved: Any,
        dy: Array | None,
        dh_n: Array | None,
        dc_n: Array | None,
        masks: list[Masks] | None,
    ) -> tuple[Array, list[Weights], Array, Array | None]:
        dx, dweights, dh_0, dc_0 = type(prepared[0]).backward(prepared, saved, dy, dh_n, dc_n)
        return dx, [Weights(*w) for w in dweights], dh_0, dc_0


BACKEND = Native()
