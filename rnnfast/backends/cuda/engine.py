"""The alternating engine: one product for the inputs of all steps; then, step by step, one product
with w_hh and one kernel for everything else. A GRU whose reset gate comes first, and an LSTM with
projection, have two of each.

Works for every size. Letters as in `rnnfast.spec`; N is the number of packed rows.

With weights of 16 bits everything is computed and kept in float32 but for what is read by a product
(`_OPERANDS`), which is rounded, and for what the caller gives and gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import cupy
import numpy as np

from ...arrays import computed
from ...errors import UnsupportedError
from ...spec import Masks, Spec, Steps
from ...weights import Weights
from .. import Array
from . import choice, cluster, grid
from .launch import Kernels, Matrix, Operation, cell_name, divided, launch, limits, products, run
from .parameters import BACKWARD_STEP, FORWARD_STEP, array, pointers, step
from .sequences import has_visits

_GROUPS = {"lstm": 1, "gru": 2, "rnn": 1, "gated": 1}  # of gates that are normalised together
# What has a row for each row of the batch, whatever the step.
_OF_BATCH = ("h", "c", "operand", "recurrent", "dh", "dc")
_OPERANDS = ("operand", "extra", "dh_step", "product_h", "product_x")
_SAVED = (
    *("x", "gates", "value", "c_step", "extra", "q", "h_before", "c_before"),
    *("hat_c", "scale_h", "scale_c", "scale_x"),
)
_ALIGNMENT = 256  # bytes
_MOST_ROWS = 2**31 - 1


def aligned(size: int, to: int = _ALIGNMENT) -> int:
    """The next multiple."""
    return divided(size, to) * to


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


class Piece(NamedTuple):
    """A matrix within a larger allocation, of which `array` makes an array."""

    memory: Array
    first: int  # number in it
    pointer: int
    shape: tuple[int, int]

    def array(self) -> Array:
        rows, columns = self.shape
        part: Array = self.memory[self.first : self.first + rows * columns].reshape(self.shape)
        return part


def pointer(a: Any) -> int:
    """Where a device array begins, or a piece."""
    begin: int = a.pointer if type(a) is Piece else a.data.ptr
    return begin


def row_stride(a: Any) -> int:
    """Numbers between two rows of a matrix; of one row, whose stride may be any, its columns."""
    dense = type(a) is Piece or a.shape[0] == 1
    stride: int = a.shape[1] if dense else a.strides[0] // a.itemsize
    return max(1, stride)


@lru_cache(256)  # the number of packed rows is in it
def _layout(
    shapes: tuple[tuple[str, tuple[int, int]], ...], real: np.dtype[Any], stored: np.dtype[Any]
) -> list[tuple[np.dtype[Any], int, list[tuple[str, int, tuple[int, int]]]]]:
    """For each dtype, how many numbers matrices of these names take, and where each begins."""
    found = []
    for dtype in dict.fromkeys((real, stored)):
        step, size, places = _ALIGNMENT // dtype.itemsize, 0, []
        for name, shape in shapes:
            if dtype == (stored if name in _OPERANDS else real):
                places.append((name, size, shape))
                size += aligned(shape[0] * shape[1], step)
        if places:
            found.append((dtype, size, places))
    return found


class Pass:
    """One direction on its way through all steps.

    `arrays` has, by the names of steps.cu and of `Weights`, everything that operations touch. An
    array that has a row for every packed row is saved; one for the rows of a step is used anew.
    Its own arrays are one allocation for each dtype, so that the same call again is likely to find
    the same places, and a graph for them.
    """

    struct: np.dtype[Any]
    laid_out: str  # what has the strides of y
    states: dict[str, str]  # the arrays that the state, or its gradient, is in, by h and c
    # The state, or its gradient, that steps start from (h_0, c_0) and that they leave (h_n, c_n).
    ends: dict[str, Array | None]

    def __init__(
        self, spec: Spec, w: Weights, steps: Steps, reverse: bool, masks: Masks | None
    ) -> None:
        if steps.rows > _MOST_ROWS:
            raise UnsupportedError(
                f"x: backend 'cuda' has at most {_MOST_ROWS} rows in all steps together, as cuBLAS "
                f"counts them in 32 bits; got {steps.rows}"
            )
        self.spec, self.steps, self.reverse = spec, steps, reverse
        self.dtype = w.w_hh.dtype
        self.real = computed(self.dtype)
        self.narrow = self.real != self.dtype
        self.width, self.outputs = w.w_hh.shape  # G*H, P
        self.hidden = self.width // len(spec.info.gates)
        self.second = cell_name(spec) == "GruBefore"
        # What of G*H the first product of a step makes.
        self.first = 2 * self.hidden if self.second else self.width
        self.product = products(self.dtype)
        masks = masks or Masks()
        # Arrays or pieces.
        self.arrays: dict[str, Any] = {**w._asdict(), **masks._asdict()}

    @property
    def key(self) -> Any:
        """What determines the steps."""
        steps = self.steps
        sizes = None if steps.batch_sizes is None else steps.batch_sizes.tobytes()
        touched = ((n, self.arrays.get(n)) for n in (*(self.struct.names or ()), "w_hh", "w_hr"))
        named = tuple(
            (n, pointer(a), a.shape, row_stride(a) if len(a.shape) == 2 else 1)
            for n, a in touched
            if a is not None
        )
        kind = (type(self).__name__, self.spec, self.reverse, self.dtype, self.product.compute)
        return (*kind, steps.num_steps, steps.batch, sizes, named)

    def allocate(self, shapes: dict[str, tuple[int, int]]) -> None:
        """Pieces of these names, of one allocation for each dtype."""
        for dtype, size, places in _layout(tuple(shapes.items()), self.real, self.dtype):
            memory = cupy.empty(size, dtype)
            begin, itemsize = memory.data.ptr, dtype.itemsize
            for name, first, shape in places:
                self.arrays[name] = Piece(memory, first, begin + first * itemsize, shape)

    def array(self, name: str) -> Any:
        """What has this name, as an array; None where there is none."""
        found = self.arrays.get(name)
        return found.array() if type(found) is Piece else found

    @property
    def visited(self) -> Visits:
        return visits(self.steps, self.reverse, self.spec.truncate)

    @property
    def places(self) -> list[int]:
        """Where what belongs to packed row 0 begins, for each pointer of a step; 0 for none."""
        found = map(self.arrays.get, pointers(self.struct))
        return [0 if a is None else pointer(a) for a in found]

    def origin(self, places: list[int]) -> bytes:
        """The parameters of a step whose first packed row is row 0."""
        own = self.arrays
        numbers = {"hidden": self.hidden, "outputs": self.outputs}
        for name in ("keep_h", "keep_c"):
            keep = own[name]
            if keep is not None and keep.shape[0] > 1:
                numbers[name + "_stride"] = keep.shape[1]
        laid_out = own[self.laid_out]
        if laid_out is not None:
            numbers[self.laid_out + "_stride"] = row_stride(laid_out)
        return step(self.struct, places, numbers, self.spec)

    def parameters(self, first: Array) -> Array:
        """Those of steps that begin with these packed rows."""
        made = np.repeat(array(self.struct, self.origin(self.places)), len(first))
        for name in self.struct.names or ():
            a = self.arrays.get(name)
            if a is None or name in _OF_BATCH:
                continue
            if len(a.shape) == 2 and a.shape[0] == self.steps.rows:
                itemsize = a.memory.itemsize if type(a) is Piece else a.itemsize
                made[name] += first * row_stride(a) * itemsize
        return made

    @cached_property
    def kernel(self) -> Kernels:
        return Kernels(self.spec, self.dtype)

    def whole(self, name: str) -> Matrix:
        a = self.arrays[name]
        return Matrix(pointer(a), a.shape[0], a.shape[1], row_stride(a))

    @property
    def wide_ends(self) -> bool:
        """Whether `ends` have what is computed with, not the dtype of weights."""
        kinds = {a.dtype for a in self.ends.values() if a is not None}
        assert len(kinds) == 1, "all of one dtype"
        return self.narrow and kinds == {self.real}

    def begin(self) -> None:
        """Before the steps: the state that they start from."""
        for name, of in self.states.items():
            state, initial = self.array(of), self.ends[name + "_0"]
            if state is not None:
                state[...] = 0 if initial is None else initial

    def finish(self) -> None:
        """After the steps: the state goes to where it is wanted."""
        for name, of in self.states.items():
            wanted = self.ends[name + "_n"]
            if wanted is not None and wanted is not self.arrays[of]:
                wanted[...] = self.array(of)

    def of_steps(self) -> list[Operation]:
        raise NotImplementedError

    def rows(self, at: Any, count: Any, columns: int, stride: int) -> Matrix:
        return Matrix(int(at), int(count), columns, stride)

    def gates(self, name: str, at: Any, count: Any, second: bool = False) -> Matrix:
        """Some rows of an array (N, G*H), as far as the first product of a step is about them.

        With `second`, the rest.
        """
        columns = self.width - self.first if second else self.first
        itemsize = (self.dtype if name in _OPERANDS else self.real).itemsize
        offset = self.first * itemsize if second else 0
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
    states = {"h": "h", "c": "c"}  # noqa: RUF012

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
        h_0, c_0 = _contiguous(h_0), _contiguous(c_0)
        self.ends = {"h_0": h_0, "c_0": c_0, "h_n": h_n, "c_n": c_n}
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

    def begin(self) -> None:
        super().begin()
        operand, recurrent, h = (self.array(name) for name in ("operand", "recurrent", "h"))
        if operand is not None:
            operand[...] = h if recurrent is None else h * recurrent

    def of_inputs(self) -> list[Operation]:
        """Before the steps."""
        H, N = self.hidden, self.steps.rows
        if N == 0:
            return []
        inputs = self.whole("gx")
        product = self.product(self.whole("x"), self.whole("w_ih"), inputs, b_transposed=True)
        if not self.spec.layer_norm:
            return [product]
        numbers = np.array([inputs.pointer, self.whole("scale_x").pointer, H])
        return [product, self.kernel("inputs", N, H, *numbers)]

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
            found.append(self.kernel("forward", n, H, p))
            if self.second:
                extra, rest = self.rows(p["extra"], n, H, H), self.gates("raw", p["raw"], n, True)
                w = self.recurrent_weights(True)
                found.append(self.product(extra, w, rest, b_transposed=True))
                found.append(self.kernel("forward_second", n, H, p))
            elif self.spec.projection:
                extra, made = self.rows(p["extra"], n, H, H), self.rows(p["step_h"], n, P, P)
                found.append(self.product(extra, self.whole("w_hr"), made, b_transposed=True))
                found.append(self.kernel("forward_second", n, P, p))
        return found


class Backward(Pass):
    """BPTT through what a `Forward` saved."""

    struct = BACKWARD_STEP
    laid_out = "dy"
    states = {"h": "dh", "c": "dc"}  # noqa: RUF012

    def __init__(
        self,
        forward: Forward,
        w: Weights,
        masks: Masks | None,
        dy: Array | None,  # (N, P), perhaps a part of the columns of an array
        dh_n: Array | None,  # (B, P)
        dc_n: Array | None,  # (B, H)
        dh_0: Array,  # (B, P)
        dc_0: Array | None,  # (B, H)
    ) -> None:
        spec, steps = forward.spec, forward.steps
        super().__init__(spec, w, steps, forward.reverse, masks)
        H, P, N, B = self.hidden, self.outputs, steps.rows, steps.batch
        saved = forward.arrays
        own = self.arrays
        for name in _SAVED:
            own[name] = saved.get(name)
        own |= {"dy": dy, "dh": dh_0, "dc": dc_0}
        dh_n, dc_n = _contiguous(dh_n), _contiguous(dc_n)
        self.ends = {"h_0": dh_n, "c_0": dc_n, "h_n": dh_0, "c_n": dc_0}
        recurrent, own["operand_before"] = own["recurrent"], own["h_before"]
        if recurrent is not None:
            each_row = cupy.asarray(_row_in_batch(steps))
            own["operand_before"] = self.array("h_before") * recurrent[each_row]
        if self.narrow:
            own["operand_before"] = self.array("operand_before").astype(self.dtype)
        shapes = {"d": (N, self.width)}
        if self.narrow:
            shapes |= {"dh": (B, P)} if dc_0 is None else {"dh": (B, P), "dc": (B, H)}
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
        one = "d_h" not in shapes  # for both products
        biases = [name for name in ("b_ih", "b_hh") if own[name] is not None]
        if biases:
            shapes["ones"] = (len(biases) if one else 1, N)
        self.allocate(shapes)
        for name, same in (
            ("d_h", "d"),
            ("product_h", "d_h"),
            ("product_x", "product_h" if one else "d"),
        ):
            own[name] = own.get(name, own[same])
        matrices = {"w_ih": w.w_ih, "w_hh": w.w_hh, "w_hr": w.w_hr}
        make = cupy.empty if N > 0 else cupy.zeros
        for name, matrix in matrices.items():
            if matrix is not None:
                own["d" + name] = make(matrix.shape, self.real)
        summed = {"b_ih": "d", "b_hh": "d" if one else "d_h"}
        self.of_biases = {}  # by what they are sums of, one row for each
        for of in dict.fromkeys(summed[name] for name in biases):
            names = [name for name in biases if summed[name] == of]
            rows = self.of_biases[of] = make((len(names), self.width), self.real)
            own |= {"d" + name: row for name, row in zip(names, rows, strict=True)}

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
                found.append(self.kernel("gather", n, P, p))
                step, total = self.rows(p["dh_step"], n, P, P), self.rows(p["sum"], n, H, H)
                found.append(self.product(step, self.whole("w_hr"), total))
            found.append(self.kernel("backward", n, H, p))
            if self.second:
                rest = self.gates("product_h", p["product_h"], n, True)
                total = self.rows(p["sum"], n, H, H)
                found.append(self.product(rest, self.recurrent_weights(True), total))
                found.append(self.kernel("backward_second", n, H, p))
            d = self.gates("product_h", p["product_h"], n)
            to = self.rows(p["sum"], n, P, P) if masked else dh._replace(rows=n)
            found.append(self.product(d, w_hh, to, add=not masked))
            if masked or p["cut"]:
                found.append(self.kernel("pass", n, max(H, P), p))
        return found

    def of_weights(self) -> list[Operation]:
        """After the steps."""
        H, N = self.hidden, self.steps.rows
        found: list[Operation] = []
        if N == 0:
            return found
        if self.spec.layer_norm:
            arrays = (self.arrays[n] for n in ("d", "ln_ih", "hat_x", "scale_x", "product_x"))
            numbers = np.array([*(pointer(a) for a in arrays if a is not None), H])
            found.append(self.kernel("inputs_back", N, H, *numbers))
        if self.arrays["product_x"] is self.arrays["d"] and self.narrow:
            self.arrays["product_x"] = self.array("d").astype(self.dtype)
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
        found += self._sums()
        if self.spec.projection:
            dh, m, of_w_hr = self.whole("dh_step"), self.whole("extra"), self.whole("dw_hr")
            found.append(self.product(dh, m, of_w_hr, a_transposed=True))
        return found

    def _sums(self) -> list[Operation]:
        """Over all rows, of the gradients of gates: those of the biases."""
        if not self.of_biases:
            return []
        real = products(self.real)
        self.array("ones").fill(1)
        return [
            real(
                self.whole("ones"),
                self.whole(name),
                Matrix(pointer(sums), len(sums), self.width, self.width),
            )
            for name, sums in self.of_biases.items()
        ]

    def of_x(self, dx: Matrix, add: bool) -> list[Operation]:
        if dx.rows == 0:
            return []
        return [self.product(self.whole("product_x"), self.whole("w_ih"), dx, add=add)]

    def gradients(self) -> Weights:
        """Those of the weights, after the operations have been launched."""
        own = self.arrays
        names = ("w_ih", "w_hh", "w_hr", "b_ih", "b_hh")
        found = {name: own.get("d" + name) for name in names if own[name] is not None}
        if self.spec.layer_norm:
            found["ln_ih"] = (self.array("d") * self.array("hat_x")).sum(axis=0)
            found["ln_hh"] = (self.array("d_h") * self.array("hat_h")).sum(axis=0)
        if self.spec.peepholes:
            d, before, after = (self.array(name) for name in ("d", "c_before", "c_step"))
            parts = zip((0, 1, 3), (before, before, after), strict=True)
            H = self.hidden
            found["w_peep"] = cupy.stack(
                [(d[:, g * H : (g + 1) * H] * by).sum(axis=0) for g, by in parts]
            )
        if own["ln_c"] is not None:
            du = self.array("du")
            found["ln_c"] = (du * self.array("hat_c")).sum(axis=0)
            if own["ln_c_shift"] is not None:
                found["ln_c_shift"] = du.sum(axis=0)
        if not self.narrow:
            return Weights(**found)
        rounded = {name: a.astype(self.dtype) for name, a in found.items() if a is not None}
        return Weights(**rounded)


def _contiguous(a: Array | None) -> Array | None:
    return a if a is None or a.flags.c_contiguous else a.copy()


def _row_in_batch(steps: Steps) -> Array:
    """Of each packed row."""
    return np.concatenate([np.arange(n) for n in steps.sizes()] or [np.arange(0)])


def run_forward(passes: Sequence[Forward]) -> None:
    """Both directions of a layer."""
    run(o for p in passes for o in p.of_inputs())
    _run_steps(passes)


def run_backward(passes: Sequence[Backward], dx: Array) -> None:
    _run_steps(passes)
    run(o for p in passes for o in p.of_weights())
    to = Matrix(pointer(dx), dx.shape[0], dx.shape[1], dx.shape[1])
    run(o for k, p in enumerate(passes) for o in p.of_x(to, add=k > 0))


def _run_steps(passes: Sequence[Pass]) -> None:
    plan = plan_of(passes)
    if isinstance(plan, cluster.Plan):
        cluster.run(passes, plan)
        return
    for p in passes:
        p.begin()
    if plan is not None:
        grid.run(passes, plan)
    elif passes[0].steps.rows > 0:
        launch(tuple(p.key for p in passes), lambda: [p.of_steps() for p in passes])
    for p in passes:
        p.finish()


def plan_of(passes: Sequence[Pass]) -> cluster.Plan | grid.Plan | None:
    """How a launch for all steps of a layer is divided; None for the alternating engine."""
    one, forced = passes[0], choice.forced()
    spec, dtype, hidden, batch = one.spec, one.dtype, one.hidden, one.steps.batch
    if one.steps.rows == 0 or forced == "alternating":
        return None
    on = limits()
    most = choice.rows(spec.cell, dtype.name, hidden)
    if forced == "cluster" or (forced is None and batch <= most.cluster):
        equal, backward = not has_visits(one), isinstance(one, Backward)
        found = cluster.plan(spec, dtype, hidden, batch, len(passes), equal, backward, on)
        if found is not None:
            return found
    if forced == "grid" or (forced is None and batch <= most.grid):
        divided = grid.plan(spec, dtype, hidden, batch, len(passes), on)
        if divided is not None:
            return divided
    if forced is not None:
        raise UnsupportedError(
            f"RNNFAST_CUDA_ENGINE={forced}: it has no {spec.variants()} of {hidden} units in "
            f"{dtype} on a device with {on.blocks} multiprocessors of {on.shared} bytes of shared "
            f"memory; 'alternating' has every cell, size and option"
        )
    return None
