"""The C++ kernels as a backend."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import __version__, _native
from ..errors import UnsupportedError
from ..spec import Activation, Masks, Spec, Steps
from ..weights import Layer, Weights
from . import Array, Shortcut, ShortTape

if _native.version != __version__:
    raise ImportError(
        f"the compiled module is of version {_native.version}, the Python files of {__version__}; "
        f"install rnnfast again"
    )

_FLEXIBLE = {
    np.dtype(np.float32): _native.FlexibleF32,
    np.dtype(np.float64): _native.FlexibleF64,
    np.dtype(np.complex128): _native.FlexibleDual,
}
_STACKS = {
    _native.LayerF32: _native.StackF32,
    _native.LayerF64: _native.StackF64,
    _native.FlexibleF32: _native.FlexibleStackF32,
    _native.FlexibleF64: _native.FlexibleStackF64,
}
_FIELDS = 10  # of Weights, that the kernels know


def kernel_name(spec: Spec) -> str:
    """What the native module calls a plain cell."""
    if spec.cell == "gru":
        return "gru_after" if spec.reset_after else "gru_before"
    return f"rnn_{spec.nonlinearity}" if spec.cell == "rnn" else spec.cell


def _function(f: Activation) -> tuple[int, float, float]:
    return f.number, f.alpha, f.beta


def flexible_kernel(spec: Spec) -> tuple[str, tuple[Any, ...]]:
    """The kernel of a cell with options, and what these are for it."""
    options = (
        _function(spec.of_gates),
        _function(spec.of_candidate),
        _function(spec.of_output),
        spec.clip or 0.0,
        spec.grad_clip or 0.0,
        spec.input_forget,
        spec.truncate or 0,
    )
    return "rnn" if spec.cell == "rnn" else kernel_name(spec), options


def _flexible(spec: Spec, layer: Layer) -> Any:
    kind = _FLEXIBLE[layer[0].w_hh.dtype]
    return kind(*flexible_kernel(spec), [list(w[:_FIELDS]) for w in layer])


def _of_layer(state: Array | None, k: int, layers: int) -> Array | None:
    """The part of a state (L*D, B, ...) that belongs to a layer."""
    if state is None:
        return None
    directions = state.shape[0] // layers
    return state[k * directions : (k + 1) * directions]


class _Again(NamedTuple):
    """A forward pass of one layer with options that kept nothing but its arguments."""

    x: Array
    steps: Steps
    h_0: Array | None
    c_0: Array | None
    # Of y, h_n and c_n; None where the cell has no c.
    shapes: list[tuple[int, ...] | None]

    def run(self, layer: Any, masks: list[list[Any]]) -> Any:
        """What the pass would have kept."""
        results = [
            None if shape is None else np.empty(shape, self.x.dtype) for shape in self.shapes
        ]
        return layer.forward(self.x, *self.steps[:3], self.h_0, self.c_0, *results, masks, True)


class Native:
    """Plain cells go to fused kernels, whole stacks at a time; cells with options to others."""

    name = "native"
    twice = True

    def supports(self, spec: Spec) -> bool:
        return True

    def pads(self, spec: Spec, dtype: np.dtype[Any]) -> bool:
        return spec.plain and dtype != np.complex128

    def prepare(self, spec: Spec, layer: Layer, reuse: bool, precision: str | None = None) -> Any:
        dtype = layer[0].w_hh.dtype
        if not spec.plain or dtype == np.complex128:
            if precision is not None:
                raise UnsupportedError(
                    f"dtype: backend 'native' has {precision} for plain cells, not for "
                    f"{spec.variants()}; backends 'reference' and 'numba' have it"
                )
            return _flexible(spec, layer)
        kind = _native.LayerF32 if dtype == np.float32 else _native.LayerF64
        return kind(kernel_name(spec), [w[:4] for w in layer], reuse, precision or "")

    def shortcut(self, spec: Spec, prepared: list[Any]) -> Shortcut | None:
        return _STACKS[type(prepared[0])](tuple(prepared)).forward

    def call(
        self, spec: Spec, x: Any, weights: Any, state: Any, lengths: Any, places: tuple[int, ...]
    ) -> tuple[Any, Any] | None:
        if not spec.plain:
            return None
        return _native.call(kernel_name(spec), x, weights, state, lengths, places)

    def call_vjp(
        self, spec: Spec, x: Any, weights: Any, state: Any, lengths: Any, places: tuple[int, ...]
    ) -> tuple[Any, Any, ShortTape] | None:
        if not spec.plain:
            return None
        return _native.call_vjp(kernel_name(spec), x, weights, state, lengths, places)

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
        if kind in (_native.LayerF32, _native.LayerF64):
            return kind.forward(prepared, x, *steps, h_0, c_0, ys, h_n, c_n, save or "")
        own = [] if masks is None else [list(m) for m in masks]
        saved = []
        for k, (layer, y) in enumerate(zip(prepared, ys, strict=True)):
            h, c, h_out, c_out = (_of_layer(s, k, len(prepared)) for s in (h_0, c_0, h_n, c_n))
            if save == "recompute":  # copies, because the last state may take their place
                h_0_k, c_0_k = (None if a is None else a.copy() for a in (h, c))
                shapes = [None if a is None else a.shape for a in (y, h_out, c_out)]
                saved.append(_Again(x, steps, h_0_k, c_0_k, shapes))
            kept = layer.forward(x, *steps[:3], h, c, y, h_out, c_out, own, save == "all")
            if save != "recompute":
                saved.append(kept)
            x = y
        return saved

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
        kind = type(prepared[0])
        if kind in (_native.LayerF32, _native.LayerF64):
            dx, dweights, dh_0, dc_0 = kind.backward(prepared, saved, dy, dh_n, dc_n)
            return dx, [Weights(*w) for w in dweights], dh_0, dc_0
        own = [] if masks is None else [list(m) for m in masks]
        gradients: list[Weights] = []
        states: list[tuple[Array, Array | None]] = []
        for k in reversed(range(len(prepared))):
            dh, dc = (_of_layer(d, k, len(prepared)) for d in (dh_n, dc_n))
            kept = saved[k]
            if type(kept) is _Again:
                kept = kept.run(prepared[k], own)
            dy, dweights, dh_k, dc_k = prepared[k].backward(kept, dy, dh, dc, own)
            gradients[:0] = [Weights(*w) for w in dweights]
            states.insert(0, (dh_k, dc_k))
        assert dy is not None
        dh_0 = np.concatenate([h for h, _ in states])
        if not spec.info.has_c:
            return dy, gradients, dh_0, None
        return dy, gradients, dh_0, np.concatenate([c for _, c in states if c is not None])


BACKEND = Native()


def trainer(
    spec: Spec, weights: list[Weights], tensors: list[Any], types: tuple[type, ...]
) -> Any | None:
    """`Native.call_vjp` for tensors whose weights stay in their memory, or None for other cells.

    Its ``call(tensors, x, state)`` gives y, the state, and a tensor that owns the tape, or None
    where the weights are elsewhere by now, or an argument has to be checked or copied first.

    Parameters
    ----------
    weights
        The arrays, one `Weights` for each layer.
    tensors, types
        Those that have the memory of these arrays, and the types that they and the arguments may
        have: first a type of tensors that tells where their memory is.
    """
    return _native.Trainer(kernel_name(spec), weights, tensors, types) if spec.plain else None


Watch = _native.Watch  # whether tensors still hold the same numbers
