"""The alternating engine: one product for the inputs of all steps; then, step by step, one product
with w_hh and one kernel for everything else. A GRU whose reset gate comes first, and an LSTM with
projection, have two of each.

Works for every size. Letters as in `rnnfast.spec`; N is the number of packed rows.

With weights of 16 bits everything is computed and kept in float32 but for what is read by a product
(`_OPERANDS`), which is rounded, and for what the caller gives and gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cupy
import numpy as np

from ...arrays import computed
from ...spec import Masks, Spec, Steps
from ...weights import Weights
from .. import Array
from . import persistent
from .launch import Kernels, Matrix, Operation, Products, cell_name, launch, run
from .parameters import BACKWARD_STEP, FORWARD_STEP, options

_GROUPS = {"lstm": 1, "gru": 2, "rnn": 1, "gated": 1}  # of gates that are normalised together
# What has a row for each row of the batch, whatever the step.
_OF_BATCH = ("h", "c", "operand", "recurrent", "dh", "dc")
_OPERANDS = ("operand", "extra", "dh_step", "product_h", "product_x")
_SAVED = (
    *("x", "gates", "value", "c_step", "extra", "q", "h_before", "c_before"),
    *("hat_c", "scale_h", "scale_c", "scale_x"),
)
_ALIGNMENT = 256  # bytes


class Visits(NamedTuple):
    """The steps in the order of one direction, those without rows left out."""

    first: Array  # the first packed row of each
    rows: Array  # how many take part
    cut: Array  # how many pass no gradient to the visit before


def visits(steps: Steps, reverse: bool, truncate: int | None) -> Visits:
    sizes = np.asarray(steps.sizes(), np.int64)
    first = np.cumsum(sizes) - sizes
    order = np.flatnonzero(sizes)[:: -1 if reverse else 1]
    rows = sizes[order]
    cut = np.zeros_like(rows)
    if truncate is not None:
        boundary = np.maximum(order[1:], order[:-1]) % truncate == 0
        cut[1:] = np.where(boundary, np.minimum(rows[1:], rows[:-1]), 0)
    return Visits(first[order], rows, cut)


def pointer(a: Any) -> int:
    """Where a device array begins."""
    return int(a.data.ptr)


class Pass:
    """One direction on its way through all steps.

    `arrays` has, by the names of steps.cu and of `Weights`, everything that operations touch. An
    array that has a row for every packed row is saved; one for the rows of a step is used anew.
    Its own arrays are one allocation for each dtype, so that the same call again is likely to find
    the same places, and a graph for them.
    """

    struct: np.dtype[Any]
    laid_out: str  # what has the strides of y

    def __init__(
        self, spec: Spec, w: Weights, steps: Steps, reverse: bool, masks: Masks | None
    ) -> None:
        self.spec, self.steps, self.reverse = spec, steps, reverse
        self.dtype = w.w_hh.dtype
        self.real = computed(self.dtype)
        self.narrow = self.real != self.dtype
        self.width, self.outputs = w.w_hh.shape  # G*H, P
        self.hidden = self.width // len(spec.info.gates)
        self.second = cell_name(spec) == "GruBefore"
        # What of G*H the first product of a step makes.
        self.first = 2 * self.hidden if self.second else self.width
        self.kernels = Kernels(spec, self.dtype)
        self.product = Products(self.dtype)
        masks = masks or Masks()
        self.arrays: dict[str, Array | None] = {**w._asdict(), **masks._asdict()}

    @property
    def key(self) -> Any:
        """What determines the steps."""
        steps = self.steps
        sizes = None if steps.batch_sizes is None else steps.batch_sizes.tobytes()
        touched = ((n, self.arrays.get(n)) for n in (*(self.struct.names or ()), "w_hh", "w_hr"))
        named = tuple((n, pointer(a), a.shape, a.strides) for n, a in touched if a is not None)
        kind = (type(self).__name__, self.spec, self.reverse, self.dtype.name, self.product.compute)
        return (*kind, steps.num_steps, steps.batch, sizes, named)

    def allocate(self, shapes: dict[str, tuple[int, int]]) -> None:
        """Arrays of these names, in one piece of memory for each dtype."""
        for dtype in dict.fromkeys((self.real, self.dtype)):
            own = {
                name: shape
                for name, shape in shapes.items()
                if dtype == (self.dtype if name in _OPERANDS else self.real)
            }
            step = _ALIGNMENT // dtype.itemsize
            sizes = [-(-rows * width // step) * step for rows, width in own.values()]
            memory = cupy.empty(sum(sizes), dtype)
            first = 0
            for (name, shape), size in zip(own.items(), sizes, strict=True):
                part = memory[first : first + shape[0] * shape[1]]
                self.arrays[name] = part.reshape(shape)
                first += size

    @property
    def visited(self) -> Visits:
        return visits(self.steps, self.reverse, self.spec.truncate)

    def origin(self) -> Any:
        """The parameters of a step whose first packed row is row 0."""
        return self.parameters(np.zeros(1, np.int64))[0]

    def parameters(self, first: Array) -> Array:
        """Those of steps that begin with these packed rows."""
        made = np.zeros(len(first), self.struct)
        for name in self.struct.names or ():
            array = self.arrays.get(name)
            if array is None:
                continue
            made[name] = pointer(array)
            if name not in _OF_BATCH and array.shape[0] == self.steps.rows and array.ndim == 2:
                made[name] += first * array.strides[0]
        made["hidden"], made["outputs"] = self.hidden, self.outputs
        made["options"] = options(self.spec)
        for name in ("keep_h", "keep_c"):
            keep = self.arrays[name]
            if keep is not None and keep.shape[0] > 1:
                made[name + "_stride"] = keep.shape[1]
        laid_out = self.arrays[self.laid_out]
        if laid_out is not None:
            made[self.laid_out + "_stride"] = laid_out.strides[0] // laid_out.itemsize
        return made

    def whole(self, name: str) -> Matrix:
        a = self.arrays[name]
        assert a is not None
        return Matrix(pointer(a), a.shape[0], a.shape[1], max(1, a.strides[0] // a.itemsize))

    def of_steps(self) -> list[Operation]:
        raise NotImplementedError

    def rows(self, at: Any, count: Any, columns: int, stride: int) -> Matrix:
        return Matrix(int(at), int(count), columns, stride)

    def gates(self, name: str, at: Any, count: Any, second: bool = False) -> Matrix:
        """Some rows of an array (N, G*H), as far as the first product of a step is about them.

        With `second`, the rest.
        """
        array = self.arrays[name]
        assert array is not None
        columns = self.width - self.first if second else self.first
        offset = self.first * array.itemsize if second else 0
        return self.rows(int(at) + offset, count, columns, self.width)

    def recurrent_weights(self, second: bool = False) -> Matrix:
        w = self.whole("w_hh")
        if not second:
            return w._replace(rows=self.first)
        offset = self.first * w.stride * self.dtype.itemsize
        return w._replace(pointer=w.pointer + offset, rows=self.width - self.first)


class Forward(Pass):
    struct = FORWARD_STEP
    laid_out = "y"

    def __init__(
        self,
        spec: Spec,
        w: Weights,
        x: Array,
        steps: Steps,
        reverse: bool,
        masks: Masks | None,
        h_0: Array | None,  # (B, P)
        c_0: Array | None,  # (B, H)
        y: Array,  # (N, P), perhaps a part of the columns of an array
        h_n: Array,  # (B, P)
        c_n: Array | None,  # (B, H)
        save: bool,
    ) -> None:
        super().__init__(spec, w, steps, reverse, masks)
        H, P, N, B = self.hidden, self.outputs, steps.rows, steps.batch
        kept = N if save else B
        norm, lstm = spec.layer_norm, spec.info.has_c
        own = self.arrays
        own |= {"x": x, "h": h_n, "c": c_n, "y": y}
        self.state_n = {"h": h_n, "c": c_n}
        shapes = {"gx": (N, self.width), "raw": (kept if norm else B, self.width)}
        if self.narrow:
            shapes |= {"h": (B, P), "c": (B, H)} if lstm else {"h": (B, P)}
        if own["recurrent"] is not None or self.narrow:
            shapes["operand"] = (B, P)
        if save and norm:
            shapes["gates"] = (N, self.width)
        if w.w_hr is not None:
            shapes["step_h"] = (B, P)
        if w.w_hr is not None or self.second:
            shapes["extra"] = (kept, H)
        elif save and spec.cell == "gru":
            shapes["q"] = (N, H)
        if save:
            shapes["h_before"] = (N, P)
        if save and lstm:
            shapes |= {"c_before": (N, H), "value": (N, H)}
        if save and w.w_peep is not None:
            shapes["c_step"] = (N, H)
        if norm:
            groups = _GROUPS[spec.cell]
            shapes |= {"scale_x": (N, groups), "scale_h": (kept, groups)}
        if w.ln_c is not None:
            shapes |= {"hat_c": (kept, H), "scale_c": (kept, 1)}
        self.allocate(shapes)
        # Gates take the place of gx, which each thread has read before, unless that is needed.
        if "gates" not in shapes and (save or self.second or w.ln_c is not None):
            own["gates"] = own["gx"]
        for name, initial in (("h", h_0), ("c", c_0)):
            state = own[name]
            if state is not None:
                state[...] = 0 if initial is None else initial
        operand, recurrent = own.get("operand"), own["recurrent"]
        if operand is not None:
            operand[...] = own["h"] if recurrent is None else own["h"] * recurrent

    def finish(self) -> None:
        """After the steps: the state goes to where it is wanted."""
        for name, wanted in self.state_n.items():
            if wanted is not None and wanted is not self.arrays[name]:
                wanted[...] = self.arrays[name]

    def of_inputs(self) -> list[Operation]:
        """Before the steps."""
        H, N = self.hidden, self.steps.rows
        if N == 0:
            return []
        inputs = self.whole("gx")
        product = self.product(self.whole("x"), self.whole("w_ih"), inputs, b_transposed=True)
        if not self.spec.layer_norm:
            return [product]
        pointers = np.int64(inputs.pointer), np.int64(self.whole("scale_x").pointer)
        return [product, self.kernels("inputs", N, H, *pointers, np.int64(H))]

    def of_steps(self) -> list[Operation]:
        H, P = self.hidden, self.outputs
        visited = self.visited
        steps = self.parameters(visited.first)
        found: list[Operation] = []
        operand = self.whole("operand" if self.arrays.get("operand") is not None else "h")
        w_hh = self.recurrent_weights()
        for k, n in enumerate(visited.rows.tolist()):
            p = steps[k, ...]
            raw = self.gates("raw", p["raw"], n)
            found.append(self.product(operand._replace(rows=n), w_hh, raw, b_transposed=True))
            found.append(self.kernels("forward", n, H, p))
            if self.second:
                extra, rest = self.rows(p["extra"], n, H, H), self.gates("raw", p["raw"], n, True)
                w = self.recurrent_weights(True)
                found.append(self.product(extra, w, rest, b_transposed=True))
                found.append(self.kernels("forward_second", n, H, p))
            elif self.spec.projection:
                extra, made = self.rows(p["extra"], n, H, H), self.rows(p["step_h"], n, P, P)
                found.append(self.product(extra, self.whole("w_hr"), made, b_transposed=True))
                found.append(self.kernels("forward_second", n, P, p))
        return found


class Backward(Pass):
    """BPTT through what a `Forward` saved."""

    struct = BACKWARD_STEP
    laid_out = "dy"

    def __init__(
        self,
        forward: Forward,
        w: Weights,
        masks: Masks | None,
        dy: Array | None,  # (N, P), perhaps a part of the columns of an array
        dh: Array,  # (B, P) that of h_n, then of h_0
        dc: Array | None,  # (B, H)
    ) -> None:
        spec, steps = forward.spec, forward.steps
        super().__init__(spec, w, steps, forward.reverse, masks)
        H, P, N, B = self.hidden, self.outputs, steps.rows, steps.batch
        saved = forward.arrays
        own = self.arrays
        for name in _SAVED:
            own[name] = saved.get(name)
        own |= {"dy": dy, "dh": dh, "dc": dc}
        own["operand_before"] = own["h_before"]
        recurrent, before = own["recurrent"], own["h_before"]
        if recurrent is not None and before is not None:
            own["operand_before"] = before * recurrent[cupy.asarray(_row_in_batch(steps))]
        own["operand_before"] = _stored(own["operand_before"], self.dtype)
        shapes = {"d": (N, self.width)}
        if spec.cell == "gru" and spec.reset_after:
            shapes["d_h"] = (N, self.width)
        if spec.layer_norm:
            own["hat_x"], own["hat_h"] = saved["gx"], saved["raw"]
            shapes["product_x"] = (N, self.width)
        if spec.layer_norm or self.narrow:
            shapes["product_h"] = (N, self.width)
        if recurrent is not None or self.second or w.w_hr is not None:
            shapes["sum"] = (B, max(H, P))
        if w.w_hr is not None:
            shapes["dh_step"] = (N, P)
        if w.ln_c is not None:
            shapes |= {"du": (N, H), "dc_norm": (B, H)}
        self.allocate(shapes)
        one = "d_h" not in shapes  # for both products
        for name, same in (
            ("d_h", "d"),
            ("product_h", "d_h"),
            ("product_x", "product_h" if one else "d"),
        ):
            own[name] = own.get(name, own[same])
        of = {"w_ih": w.w_ih, "w_hh": w.w_hh, "w_hr": w.w_hr}
        make = cupy.empty if N > 0 else cupy.zeros
        for name, matrix in of.items():
            if matrix is not None:
                own["d" + name] = make(matrix.shape, self.real)

    def of_steps(self) -> list[Operation]:
        H, P = self.hidden, self.outputs
        visited = self.visited
        steps = self.parameters(visited.first)
        steps["cut"] = visited.cut
        found: list[Operation] = []
        masked = self.arrays["recurrent"] is not None
        dh, w_hh = self.whole("dh"), self.recurrent_weights()
        for k in reversed(range(len(steps))):
            p, n = steps[k, ...], int(visited.rows[k])
            if self.spec.projection:
                found.append(self.kernels("gather", n, P, p))
                step, total = self.rows(p["dh_step"], n, P, P), self.rows(p["sum"], n, H, H)
                found.append(self.product(step, self.whole("w_hr"), total))
            found.append(self.kernels("backward", n, H, p))
            if self.second:
                rest = self.gates("product_h", p["product_h"], n, True)
                total = self.rows(p["sum"], n, H, H)
                found.append(self.product(rest, self.recurrent_weights(True), total))
                found.append(self.kernels("backward_second", n, H, p))
            d = self.gates("product_h", p["product_h"], n)
            to = self.rows(p["sum"], n, P, P) if masked else dh._replace(rows=n)
            found.append(self.product(d, w_hh, to, add=not masked))
            if masked or p["cut"]:
                found.append(self.kernels("pass", n, max(H, P), p))
        return found

    def of_weights(self) -> list[Operation]:
        """After the steps."""
        H, N = self.hidden, self.steps.rows
        found: list[Operation] = []
        if N == 0:
            return found
        if self.spec.layer_norm:
            arrays = (self.arrays[n] for n in ("d", "ln_ih", "hat_x", "scale_x", "product_x"))
            pointers = [np.int64(pointer(a)) for a in arrays if a is not None]
            found.append(self.kernels("inputs_back", N, H, *pointers, np.int64(H)))
        self.arrays["product_x"] = _stored(self.arrays["product_x"], self.dtype)
        product_h = self.whole("product_h").pointer
        of_w_hh = self.whole("dw_hh")
        found += [
            self.product(
                self.whole("product_x"), self.whole("x"), self.whole("dw_ih"), a_transposed=True
            ),
            self.product(
                self.gates("product_h", product_h, N),
                self.whole("operand_before"),
                of_w_hh._replace(rows=self.first),
                a_transposed=True,
            ),
        ]
        if self.second:
            offset = self.first * of_w_hh.stride * self.real.itemsize
            rest = of_w_hh._replace(pointer=of_w_hh.pointer + offset, rows=self.width - self.first)
            d = self.gates("product_h", product_h, N, True)
            found.append(self.product(d, self.whole("extra"), rest, a_transposed=True))
        if self.spec.projection:
            dh, m, of_w_hr = self.whole("dh_step"), self.whole("extra"), self.whole("dw_hr")
            found.append(self.product(dh, m, of_w_hr, a_transposed=True))
        return found

    def of_x(self, dx: Matrix, add: bool) -> list[Operation]:
        if dx.rows == 0:
            return []
        return [self.product(self.whole("product_x"), self.whole("w_ih"), dx, add=add)]

    def gradients(self) -> Weights:
        """Those of the weights, after the operations have been launched."""
        own = self.arrays
        d, d_h = own["d"], own["d_h"]
        assert d is not None
        assert d_h is not None
        found = {name: own.get("d" + name) for name in ("w_ih", "w_hh", "w_hr")}
        if own["b_ih"] is not None:
            found["b_ih"] = d.sum(axis=0)
        if own["b_hh"] is not None:
            found["b_hh"] = d_h.sum(axis=0)
        if self.spec.layer_norm:
            found["ln_ih"] = (d * own["hat_x"]).sum(axis=0)
            found["ln_hh"] = (d_h * own["hat_h"]).sum(axis=0)
        if self.spec.peepholes:
            c, after = own["c_before"], own["c_step"]
            parts = zip((0, 1, 3), (c, c, after), strict=True)
            H = self.hidden
            found["w_peep"] = cupy.stack(
                [(d[:, g * H : (g + 1) * H] * by).sum(axis=0) for g, by in parts]
            )
        if own["ln_c"] is not None:
            du = own["du"]
            assert du is not None
            found["ln_c"] = (du * own["hat_c"]).sum(axis=0)
            if own["ln_c_shift"] is not None:
                found["ln_c_shift"] = du.sum(axis=0)
        return Weights(**{name: _stored(a, self.dtype) for name, a in found.items()})


def _stored(a: Any, dtype: np.dtype[Any]) -> Any:
    """`a` itself, or rounded."""
    return None if a is None else a.astype(dtype, copy=False)


def _row_in_batch(steps: Steps) -> Array:
    """Of each packed row."""
    return np.concatenate([np.arange(n) for n in steps.sizes()] or [np.arange(0)])


def run_forward(passes: Sequence[Forward]) -> None:
    """Both directions of a layer."""
    plan = persistent.plan_of(passes)
    run(o for p in passes for o in p.of_inputs())
    _run_steps(passes, plan)
    for p in passes:
        p.finish()


def run_backward(passes: Sequence[Backward], dx: Array) -> None:
    _run_steps(passes, persistent.plan_of(passes))
    run(o for p in passes for o in p.of_weights())
    to = Matrix(pointer(dx), dx.shape[0], dx.shape[1], dx.shape[1])
    run(o for k, p in enumerate(passes) for o in p.of_x(to, add=k > 0))


def _run_steps(passes: Sequence[Pass], plan: persistent.Plan | None) -> None:
    if passes[0].steps.rows == 0:
        return
    if plan is not None:
        persistent.run(passes, plan)
        return
    launch(tuple(p.key for p in passes), lambda: [p.of_steps() for p in passes])
