"""CuPy arrays on a CUDA device as a backend. docs/cuda.md has what there is and how it is checked.

The weights are read as they are, without packing. Work is put on the current CuPy stream and
nothing waits for it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

try:
    import cupy
except ImportError as error:
    raise ImportError(f"CuPy cannot be imported ({error})") from error

from ...arrays import computed
from ...spec import Masks, Spec, Steps
from ...weights import Layer, Weights
from .. import Array
from .cluster import able
from .engine import Backward, Forward, run_backward, run_forward
from .inference import Calls
from .launch import check_dtype, check_precision, check_stream, limits


def _count_devices() -> int:
    try:
        return int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise ImportError(f"CuPy finds no CUDA device ({error})") from error


if _count_devices() == 0:
    raise ImportError("CuPy finds no CUDA device")


class _Saved(NamedTuple):
    """What one layer left: the passes, or what makes them again."""

    layer: Layer
    x: Array
    steps: Steps
    state: tuple[Array | None, Array | None]
    passes: list[Forward]


class Cuda:
    name = "cuda"
    twice = False

    def supports(self, spec: Spec) -> bool:
        return True

    def pads(self, spec: Spec, dtype: np.dtype[Any]) -> bool:
        return False

    def prepare(self, spec: Spec, layer: Layer, reuse: bool, precision: str | None = None) -> Layer:
        check_precision(precision)
        check_dtype(layer[0].w_hh.dtype)
        return layer

    def shortcut(self, spec: Spec, prepared: list[Any]) -> Calls | None:
        return Calls(spec, prepared) if able(spec, prepared[0][0].w_hh.dtype, limits()) else None

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
        check_stream()
        saved = []
        for k, (layer, y) in enumerate(zip(prepared, ys, strict=True)):
            at = slice(k * len(layer), (k + 1) * len(layer))
            state = tuple(None if s is None else s[at] for s in (h_0, c_0))
            into = h_n[at], None if c_n is None else c_n[at]
            passes = _passes(spec, layer, x, steps, state, y, into, save == "all", masks)
            if save == "all":
                saved.append(_Saved(layer, x, steps, (None, None), passes))
            elif save is not None:
                h, c = (None if s is None else s.copy() for s in state)
                saved.append(_Saved(layer, x, steps, (h, c), []))
            x = y
        return saved

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
        check_stream()
        w_hh, batch = prepared[0][0].w_hh, saved[0].steps.batch
        dtype = w_hh.dtype
        count, outputs = len(prepared) * len(prepared[0]), w_hh.shape[1]
        hidden = w_hh.shape[0] // len(spec.info.gates)
        dh_0 = cupy.empty((count, batch, outputs), dtype)
        dc_0 = cupy.empty((count, batch, hidden), dtype) if spec.info.has_c else None
        dweights: list[Weights] = []
        for k in reversed(range(len(prepared))):
            one = saved[k]
            passes = one.passes or _again(spec, one, outputs, hidden, masks)
            back = []
            for d, (w, forward) in enumerate(zip(one.layer, passes, strict=True)):
                at = k * len(one.layer) + d
                of_y = None if dy is None else dy[:, d * outputs : (d + 1) * outputs]
                mask = None if masks is None else masks[d]
                start_h, start_c, end_c = (None if s is None else s[at] for s in (dh_n, dc_n, dc_0))
                states = start_h, start_c, dh_0[at], end_c
                back.append(Backward(forward, w, mask, of_y, *states))
            dx = cupy.empty(one.x.shape, computed(dtype))
            run_backward(back, dx)
            dweights[:0] = [b.gradients() for b in back]
            dy = dx.astype(dtype, copy=False)
        assert dy is not None
        return dy, dweights, dh_0, dc_0


def _passes(
    spec: Spec,
    layer: Layer,
    x: Array,
    steps: Steps,
    state: tuple[Array | None, ...],
    y: Array,
    state_n: tuple[Array, Array | None],
    save: bool,
    masks: list[Masks] | None,
) -> list[Forward]:
    """Pass a layer forward."""
    outputs = state_n[0].shape[-1]
    made = []
    for d, w in enumerate(layer):
        h_0, c_0, h_n, c_n = (None if s is None else s[d] for s in (*state, *state_n))
        assert h_n is not None
        y_d = y[:, d * outputs : (d + 1) * outputs]
        mask = None if masks is None else masks[d]
        made.append(Forward(spec, w, x, steps, d == 1, mask, h_0, c_0, y_d, h_n, c_n, save))
    run_forward(made)
    return made


def _again(
    spec: Spec, saved: _Saved, outputs: int, hidden: int, masks: list[Masks] | None
) -> list[Forward]:
    """The passes of a layer that kept none."""
    directions, batch, dtype = len(saved.layer), saved.steps.batch, saved.x.dtype
    y = cupy.empty((saved.steps.rows, directions * outputs), dtype)
    of_state = dtype if saved.state[0] is None else saved.state[0].dtype
    h_n = cupy.empty((directions, batch, outputs), of_state)
    c_n = cupy.empty((directions, batch, hidden), of_state) if spec.info.has_c else None
    return _passes(spec, saved.layer, saved.x, saved.steps, saved.state, y, (h_n, c_n), True, masks)


BACKEND = Cuda()
