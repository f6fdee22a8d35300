"""Calls with packed weights: what depends on the shape of x alone is found out once.

For layers that cluster.cu passes in one launch each, all rows with all steps. A call then allocates
its results, and for each layer launches a product for each direction and one kernel.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any, NamedTuple

import cupy
import numpy as np

from ...spec import Spec, Steps
from ...weights import Layer
from .. import Array
from . import choice, cluster
from .engine import Forward, aligned, plan_of, pointer
from .launch import Matrix, check_stream, gemms, launch_clusters, of_cluster, products
from .parameters import FORWARD_SEQUENCES, FORWARD_STEP, SEQUENCE, array, by_value
from .sequences import launch

_KEPT = 64  # shapes of x


class _Launch(NamedTuple):
    """Of one layer. `changing` has, for each direction, the places of pointers in `values`."""

    plan: cluster.Plan
    options: tuple[str, ...]
    form: struct.Struct
    values: list[Any]
    changing: list[dict[str, int]]


class Calls:
    """A `Shortcut` for layers on a device."""

    def __init__(self, spec: Spec, layers: list[Layer]) -> None:
        self.spec, self.layers = spec, layers
        w = layers[0][0]
        self.dtype, self.features, self.device = w.w_ih.dtype, w.w_ih.shape[1], w.w_ih.device.id
        self.hidden, self.directions = w.w_hh.shape[1], len(layers[0])
        self.launches = lru_cache(_KEPT)(self._launches)

    def __call__(self, x: Any, state: Any, out: Any, lengths: Any) -> Any:
        if lengths is not None or out is not None or type(x) is not cupy.ndarray:
            return None
        shape, device = x.shape, x.device.id
        if len(shape) != 3 or shape[2] != self.features or 0 in shape or x.dtype != self.dtype:
            return None
        if not x.flags.c_contiguous or not device == self.device == cupy.cuda.Device().id:
            return None
        has_c = self.spec.info.has_c
        batch = shape[1]
        rows = (len(self.layers) * self.directions, batch, self.hidden)
        given: tuple[Any, ...] = (None, None)
        if state is not None:
            given = state if has_c else (state, None)
            if type(given) is not tuple or len(given) != 2:
                return None
            for a in given[: 1 + has_c]:
                if type(a) is not cupy.ndarray or a.shape != rows or a.dtype != self.dtype:
                    return None
                if not a.flags.c_contiguous or a.device.id != device:
                    return None
        check_stream()
        launches = self.launches(shape, device, choice.forced())
        if launches is None:
            return None
        y, state_n = self._run(launches, x, given, rows)
        return y, state_n if has_c else state_n[0]

    def _launches(
        self, shape: tuple[int, int, int], device: int, engine: str | None
    ) -> list[_Launch] | None:
        """For x of a shape on the current device, by the engine that is forced."""
        T, B, features = shape
        steps, found = Steps(T, B), []
        rows = cupy.empty((T * B, features), self.dtype)
        for layer in self.layers:
            y = cupy.empty((T * B, self.directions * self.hidden), self.dtype)
            passes = []
            for d, w in enumerate(layer):
                ends = [cupy.empty((B, self.hidden), self.dtype) for _ in range(2)]
                c_n = ends[1] if self.spec.info.has_c else None
                y_d = y[:, d * self.hidden : (d + 1) * self.hidden]
                of = self.spec, w, rows, steps, d == 1, None, None, None, y_d, ends[0], c_n, False
                passes.append(Forward(*of))
            plan = plan_of(passes)
            if not isinstance(plan, cluster.Plan):
                return None
            found.append(_launch(passes, plan))
            rows = y
        return found

    def _run(
        self, launches: list[_Launch], x: Array, given_state: tuple[Any, ...], rows: tuple[int, ...]
    ) -> tuple[Array, tuple[Array, Array | None]]:
        T, B, features = x.shape
        H, D, N, itemsize = self.hidden, self.directions, x.shape[0] * x.shape[1], x.itemsize
        y = cupy.empty((T, B, D * H), self.dtype)
        h_n = cupy.empty(rows, self.dtype)
        c_n = cupy.empty(rows, self.dtype) if self.spec.info.has_c else None
        real = products(self.dtype).result
        width = self.layers[0][0].w_hh.shape[0]
        of_inputs = aligned(N * width * real.itemsize)
        between = aligned(N * D * H * itemsize) if len(launches) > 1 else 0
        memory = cupy.empty(D * of_inputs + 2 * between, np.uint8)
        gx, places = pointer(memory), pointer(memory) + D * of_inputs
        ends = {
            name: pointer(a)
            for name, a in zip(("h_0", "c_0", "h_n", "c_n"), (*given_state, h_n, c_n), strict=True)
            if a is not None
        }
        of_state = B * H * itemsize
        reads = Matrix(pointer(x), N, features, features)
        for k, (layer, one) in enumerate(zip(self.layers, launches, strict=True)):
            writes = pointer(y) if k + 1 == len(launches) else places + k % 2 * between
            values = one.values.copy()
            inputs = []
            for d, (w, changing) in enumerate(zip(layer, one.changing, strict=True)):
                to = Matrix(gx + d * of_inputs, N, width, width)
                w_ih = Matrix(pointer(w.w_ih), width, w.w_ih.shape[1], w.w_ih.shape[1])
                inputs.append(products(self.dtype).arguments(reads, w_ih, to, b_transposed=True))
                values[changing["gx"]] = to.pointer
                values[changing["y"]] = writes + d * H * itemsize
                for name, at in ends.items():
                    values[changing[name]] = at + (k * D + d) * of_state
            gemms(inputs)
            given = by_value(array(FORWARD_SEQUENCES, one.form.pack(*values)))
            plan = one.plan
            grid = plan.blocks, plan.row_blocks, D
            launch_clusters(one.options, "forward_steps", grid, plan.shared, given)
            reads = Matrix(writes, N, D * H, D * H)
        return y, (h_n, c_n)


def _launch(passes: list[Forward], plan: cluster.Plan) -> _Launch:
    one = launch(passes, of_cluster(plan.division), plan.units, plan.rows)
    names = [*(SEQUENCE.names or ()), *(n for n in FORWARD_STEP.names or () if n != "options")]
    size = FORWARD_STEP.fields["options"][0].itemsize  # type: ignore[index]
    form = struct.Struct("=" + f"{len(names)}q{size}s" * len(passes))
    values = list(form.unpack(bytes(one.parameters)[: form.size]))
    changing = []
    for d in range(len(passes)):
        first = d * (len(names) + 1)
        changing.append({name: first + k for k, name in enumerate(names)})
    return _Launch(plan, one.options, form, values, changing)
