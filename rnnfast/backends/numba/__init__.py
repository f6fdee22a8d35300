"""Kernels compiled by Numba as a backend. Imported, and compiled, only where it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

try:
    import numba as _  # noqa: F401
except ImportError as error:
    raise ImportError(f"{error}; pip install 'rnnfast[numba]' has it") from error

from ...reference.precision import ROUNDED
from ...spec import Activation, Masks, Spec, Steps
from ...weights import Layer, Weights
from .. import Array, Shortcut
from . import loops, threads
from .functions import NAMES
from .lanes import PANEL_BYTES
from .products import pack, product

_CHUNK = 1 << 22  # bytes of gates that an inference call works on at a time
_SMALL = 2_000_000  # multiplications that are not worth a second thread
_NOBODY = np.zeros(1, np.int64)
_STEP = 150_000  # multiplications of one step that are worth dividing its units
_KINDS = {"lstm": loops.LSTM, "rnn": loops.RNN, "gated": loops.GATED}
_FIRST = {loops.LSTM: 4, loops.RNN: 1, loops.GATED: 3, loops.GRU_AFTER: 2, loops.GRU_BEFORE: 2}


def _function(f: Activation) -> tuple[int, float, float]:
    return NAMES.index(f.name), f.alpha, f.beta


def _options(spec: Spec) -> loops.Options:
    cell = _KINDS.get(spec.cell)
    if cell is None:
        cell = loops.GRU_AFTER if spec.reset_after else loops.GRU_BEFORE
    return loops.Options(
        cell,
        len(spec.info.gates),
        _FIRST[cell],
        _function(spec.of_gates),
        _function(spec.of_candidate),
        _function(spec.of_output),
        float(spec.clip or 0),
        float(spec.grad_clip or 0),
        int(spec.input_forget),
        int(spec.layer_norm),
        int(spec.projection),
    )


def _room(count: int, dtype: Any) -> Array:
    """Memory for numbers, at an address that no vector crosses a cache line from."""
    size = np.dtype(dtype).itemsize
    whole = np.empty(count + 64 // size, dtype)
    skipped = -whole.ctypes.data % 64 // size
    return whole[skipped : skipped + count]


class _Writable:
    """Memory of an array, as NumPy's array interface describes it."""

    def __init__(self, a: Array) -> None:
        self.owner = a
        self.__array_interface__ = {
            **a.__array_interface__,
            "data": (a.__array_interface__["data"][0], False),
        }


def _flat(a: Array) -> Array:
    """A contiguous array as the kernels read it.

    To Numba, arrays that may not be written are of another type, for which it would compile the
    kernels again. They write into none of these.
    """
    if not a.flags.writeable:
        a = np.asarray(_Writable(a))
    return a.reshape(-1)


def _packed(w: Array) -> Array:
    """A matrix, or a transposed one, as panels."""
    rows, columns = w.shape
    width = PANEL_BYTES // w.itemsize
    number = -(-columns // width)
    panels = _room(number * width * rows, w.dtype)
    flat = _flat(w if w.flags.c_contiguous else w.T)
    row, column = (stride // w.itemsize for stride in w.strides)
    pack(flat, row, column, rows, columns, panels, 0, number)
    return panels


class Direction:
    """Weights of one direction of one layer, packed as they are needed."""

    def __init__(self, spec: Spec, options: loops.Options, w: Weights) -> None:
        self.w = w
        self.spec = spec
        self.options = options
        self.empty = np.empty(0, w.w_hh.dtype)
        self.hidden = w.w_hh.shape[0] // options.gates
        self.split = options.first * self.hidden  # rows of w_hh in the first product

    def _or_empty(self, a: Array | None) -> Array:
        return self.empty if a is None else _flat(a)

    @cached_property
    def by_input(self) -> Array:
        return _packed(self.w.w_ih.T)

    @cached_property
    def by_input_back(self) -> Array:
        return _packed(self.w.w_ih)

    @cached_property
    def bias(self) -> Array:
        """What the x part of every gate gets."""
        w = self.w
        if self.options.norm or (w.b_ih is None and w.b_hh is None):
            return self.empty
        total: Array = np.zeros(w.w_hh.shape[0], w.w_hh.dtype) if w.b_ih is None else w.b_ih.copy()
        if w.b_hh is not None:
            count = self.split if self.options.cell == loops.GRU_AFTER else len(total)
            total[:count] += w.b_hh[:count]
        return total

    @cached_property
    def recurrent(self) -> loops.Recurrent:
        return self._recurrent(back=False)

    @cached_property
    def recurrent_back(self) -> loops.Recurrent:
        return self._recurrent(back=True)

    def _recurrent(self, back: bool) -> loops.Recurrent:
        w, o = self.w, self.options
        matrices = [w.w_hh[: self.split]]
        if o.projection:
            matrices.append(w.w_hr)
        elif self.split < w.w_hh.shape[0]:
            matrices.append(w.w_hh[self.split :])
        first, second = [*(_packed(m if back else m.T) for m in matrices), self.empty][:2]
        after = o.cell == loops.GRU_AFTER and not o.norm and w.b_hh is not None
        return loops.Recurrent(
            first,
            second,
            _flat(w.b_hh[self.split :]) if after else self.empty,
            self._or_empty(w.w_peep),
            self._or_empty(w.ln_hh),
            self._or_empty(w.b_hh) if o.norm else self.empty,
            self._or_empty(w.ln_c),
            self._or_empty(w.ln_c_shift),
        )


@dataclass
class _Saved:
    """What a layer left for its backward pass; a tape for each direction, or none yet."""

    x: Array
    steps: Steps
    h_0: Array | None
    c_0: Array | None
    tapes: list[_Tape] = field(default_factory=list)


@dataclass
class _Tape:
    tape: loops.Tape
    x_hats: Array
    x_scales: Array


class Numba:
    """Time loops compiled by Numba; the products before and after them too."""

    name = "numba"
    twice = False

    def supports(self, spec: Spec) -> bool:
        return True

    def pads(self, spec: Spec, dtype: np.dtype[Any]) -> bool:
        return False

    def prepare(
        self, spec: Spec, layer: Layer, reuse: bool, precision: str | None = None
    ) -> list[Direction]:
        options = _options(spec)
        if precision is not None:
            rounded = ROUNDED[precision]
            layer = tuple(w._replace(w_ih=rounded(w.w_ih), w_hh=rounded(w.w_hh)) for w in layer)
        return [Direction(spec, options, w) for w in layer]

    def shortcut(self, prepared: list[list[Direction]]) -> Shortcut:
        return _Shortcut(prepared)

    def call(self, spec: Spec, x: Any, weights: Any, state: Any, lengths: Any) -> None:
        return None

    def call_vjp(self, spec: Spec, x: Any, weights: Any, state: Any, lengths: Any) -> None:
        return None

    def forward(
        self,
        spec: Spec,
        prepared: list[list[Direction]],
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
        _start(h_n, h_0)
        if c_n is not None:
            _start(c_n, c_0)
        one = prepared[0][0]
        work = x.shape[0] * one.w.w_hh.size * len(prepared[0]) * len(prepared)
        state = h_n, c_n
        if work <= _SMALL:
            return self._layers(spec, prepared, x, steps, ys, state, save, masks, 1)
        with threads.several() as count:
            return self._layers(spec, prepared, x, steps, ys, state, save, masks, count)

    def _layers(
        self,
        spec: Spec,
        prepared: list[list[Direction]],
        x: Array,
        steps: Steps,
        ys: list[Array],
        state: tuple[Array, Array | None],
        save: str | None,
        masks: list[Masks] | None,
        count: int,
    ) -> list[_Saved]:
        saved: list[_Saved] = []
        at = 0
        for layer, y in zip(prepared, ys, strict=True):
            of = slice(at, at + len(layer))
            h, c = (None if s is None else s[of] for s in state)
            assert h is not None
            kept = _Saved(x, steps, None, None)
            if save == "recompute":
                kept.h_0 = h.copy()
                kept.c_0 = None if c is None else c.copy()
            tapes = _forward(spec, layer, x, steps, h, c, y, masks, save == "all", count)
            if save == "all":
                kept.tapes = tapes
            if save is not None:
                saved.append(kept)
            x = y
            at = of.stop
        return saved

    def backward(
        self,
        spec: Spec,
        prepared: list[list[Direction]],
        saved: list[_Saved],
        dy: Array | None,
        dh_n: Array | None,
        dc_n: Array | None,
        masks: list[Masks] | None,
    ) -> tuple[Array, list[Weights], Array, Array | None]:
        first = prepared[0][0]
        dtype, batch = first.empty.dtype, saved[0].steps.batch
        shape = len(prepared) * len(prepared[0]), batch
        dh, dc = np.empty((*shape, first.w.w_hh.shape[1]), dtype), None
        _start(dh, dh_n)
        if spec.info.has_c:
            dc = np.empty((*shape, first.hidden), dtype)
            _start(dc, dc_n)
        gradients: list[Weights] = []
        at = shape[0]
        with threads.several() as count:
            for layer, kept in zip(reversed(prepared), reversed(saved), strict=True):
                of = slice(at - len(layer), at)
                tapes = kept.tapes
                if not tapes:
                    tapes = _again(spec, layer, kept, masks, count)
                dy, dweights = _backward(
                    spec, layer, kept, tapes, dy, dh[of], None if dc is None else dc[of], masks,
                    count,
                )  # fmt: skip
                gradients[:0] = dweights
                at = of.start
        assert dy is not None
        return dy, gradients, dh, dc


class _Shortcut:
    """Calls that need no conversion, without buffers of the caller's."""

    def __init__(self, prepared: list[list[Direction]]) -> None:
        one = prepared[0][0]
        self.prepared = prepared
        self.spec = one.spec
        self.dtype = one.empty.dtype
        self.input_size = one.w.w_ih.shape[1]
        self.directions, self.count = len(prepared[0]), len(prepared[0]) * len(prepared)
        self.sizes = one.w.w_hh.shape[1], one.hidden

    def __call__(self, x: Any, state: Any, out: Any, lengths: Any) -> tuple[Any, Any] | None:
        if (
            out is not None
            or lengths is not None
            or not self._fits(x)
            or x.ndim != 3
            or x.shape[2] != self.input_size
        ):
            return None
        num_steps, batch, _ = x.shape
        shapes = [(self.count, batch, size) for size in self.sizes]
        has_c = self.spec.info.has_c
        given = (state,) if not has_c else state
        if state is None:
            given = None, None
        elif (
            type(given) is not tuple
            or len(given) != 1 + has_c
            or not all(
                self._fits(a) and a.shape == shape for a, shape in zip(given, shapes, strict=False)
            )
        ):
            return None
        if num_steps == 0:
            return None
        y = np.empty((num_steps, batch, self.directions * self.sizes[0]), self.dtype)
        rows = num_steps * batch
        flat = y.reshape(rows, y.shape[2])
        ys = [np.empty_like(flat) for _ in self.prepared[1:]] + [flat]
        h_n, c_n = np.empty(shapes[0], self.dtype), None
        if has_c:
            c_n = np.empty(shapes[1], self.dtype)
        BACKEND.forward(
            self.spec,
            self.prepared,
            x.reshape(rows, self.input_size),
            Steps(num_steps, batch),
            given[0],
            given[1] if has_c else None,
            ys,
            h_n,
            c_n,
            None,
            None,
        )
        return y, (h_n, c_n) if has_c else h_n

    def _fits(self, a: Any) -> bool:
        if type(a) is not np.ndarray or a.dtype != self.dtype:
            return False
        flags = a.flags
        return flags.c_contiguous and flags.aligned


def _start(running: Array, initial: Array | None) -> None:
    running[...] = 0 if initial is None else initial


def _visits(steps: Steps, reverse: bool, truncate: int | None) -> loops.Steps:
    """Every step in the order of one direction; rows count from that of the whole batch."""
    if steps.batch_sizes is None:
        return _visits_of_all(steps.num_steps, steps.batch, reverse, truncate)
    return _visits_of(np.ascontiguousarray(steps.batch_sizes), reverse, truncate)


@lru_cache(maxsize=32)
def _visits_of_all(steps: int, batch: int, reverse: bool, truncate: int | None) -> loops.Steps:
    return _visits_of(np.full(steps, batch, np.int64), reverse, truncate)


def _visits_of(count: Array, reverse: bool, truncate: int | None) -> loops.Steps:
    row = np.cumsum(count) - count
    cut = np.zeros(len(count), np.uint8)
    if truncate is not None:
        cut[truncate::truncate] = 1
        if reverse:  # there it is on the way from t - 1 to t
            cut[:-1] = cut[1:]
            cut[-1:] = 0
    order = slice(None, None, -1 if reverse else 1)
    return loops.Steps(*(np.ascontiguousarray(a[order]) for a in (row, count, cut)))


def _chunks(visits: loops.Steps, most: int) -> list[tuple[int, int]]:
    """Visits in groups of about so many rows."""
    found, begin, rows = [], 0, 0
    for i, n in enumerate(visits.count):
        rows += n
        if rows >= most:
            found.append((begin, i + 1))
            begin, rows = i + 1, 0
    return [*found, (begin, len(visits.count))] if rows else found


def _teams(
    count: int, directions: int, batch: int, steps: int, work: int, whole_rows: bool
) -> list[list[loops.Team]]:
    """Who does what in the loops of each direction; `work` is that of one row in one step."""
    if count == 1 or work * batch * steps * directions <= _SMALL:
        return [[loops.Team(0, batch, 0, 0, 1, _NOBODY)] for _ in range(directions)]
    members = max(1, count // directions)
    counter = [np.zeros(1, np.int64) for _ in range(directions)]
    if members > 1 and batch < 4 * members and not whole_rows:
        if work * batch < _STEP:
            members = 1
        return [
            [loops.Team(0, batch, 1, k, members, counter[d]) for k in range(members)]
            for d in range(directions)
        ]
    members = max(1, min(members, batch))
    bounds = [batch * k // members for k in range(members + 1)]
    return [
        [loops.Team(bounds[k], bounds[k + 1], 0, k, members, counter[d]) for k in range(members)]
        for d in range(directions)
    ]


def _together(
    count: int, teams: list[list[loops.Team]], work: int, tasks: list[list[threads.Task]]
) -> None:
    """Run the tasks of all directions at the same time, or one direction after the other."""
    if count >= sum(map(len, teams)) and work > _SMALL:
        threads.run([task for of in tasks for task in of])
    else:
        for of in tasks:
            threads.run(of)


def _divided(count: int, work: int, function: Any, arguments: tuple[Any, ...], rows: int) -> None:
    """function(*arguments, begin, end) over all rows, in parts."""
    if count == 1 or work <= _SMALL:
        function(*arguments, 0, rows)
        return
    parts = count
    parts = max(1, min(parts, rows))
    bounds = [rows * k // parts for k in range(parts + 1)]
    threads.run([(function, (*arguments, bounds[k], bounds[k + 1])) for k in range(parts)])


def _of_masks(
    masks: list[Masks] | None, d: int, first: int, last: int, empty: Array
) -> loops.Masks:
    if masks is None:
        return loops.Masks(empty, empty, empty)
    found = []
    for k, mask in enumerate(masks[d]):
        if mask is None:
            found.append(empty)
        else:
            part = mask if k == 0 or mask.shape[0] == 1 else mask[first:last]
            found.append(np.ascontiguousarray(part).reshape(-1))
    return loops.Masks(*found)


def _forward(
    spec: Spec,
    layer: list[Direction],
    x: Array,
    steps: Steps,
    h: Array,  # (D, B, P) in and out
    c: Array | None,
    y: Array,
    masks: list[Masks] | None,
    save: bool,
    count: int,
) -> list[_Tape]:
    """One layer. The tapes are whole where they are to be saved, else of the last chunk."""
    one = layer[0]
    o, H, dtype, empty = one.options, one.hidden, one.empty.dtype, one.empty
    D, B, P = h.shape
    G, I = o.gates, x.shape[1]  # noqa: E741
    visits = [_visits(steps, d == 1, None) for d in range(D)]
    most, rows = _CHUNK // (G * H * dtype.itemsize), steps.rows
    if save or rows <= most:
        chunks = [[(0, steps.num_steps)]] * D
    else:
        chunks = [_chunks(v, most) for v in visits]
        rows = max(
            int(v.count[i:j].sum()) for v, of in zip(visits, chunks, strict=True) for i, j in of
        )

    def room(width: int, wanted: bool = True) -> Array:
        return np.empty(rows * width, dtype) if wanted else empty

    tapes, running = [], []
    for d in range(D):
        before = room(P)
        masked = masks is not None and masks[d].recurrent is not None
        tape = loops.Tape(
            room(G * H),
            room(H, o.cell in (loops.LSTM, loops.GRU_AFTER, loops.GRU_BEFORE)),
            before,
            room(P) if masked else before,
            room(H, save and c is not None),
            room(H, save and spec.peepholes),
            room(G * H, spec.layer_norm),
            room(H, layer[d].w.ln_c is not None),
            room(3, spec.layer_norm),
        )
        tapes.append(_Tape(tape, room(G * H, spec.layer_norm), room(2, spec.layer_norm)))
        running.append(
            loops.Running(
                h[d].reshape(-1),
                empty if c is None else c[d].reshape(-1),
                np.empty(B * P, dtype),
                np.empty(B * G * H if spec.layer_norm else 0, dtype),
                np.empty(B * H, dtype),
            )
        )
    step_work = G * H * P
    work = step_work * steps.rows * D
    teams = _teams(count, D, B, steps.num_steps, step_work, spec.layer_norm)
    flat_x, flat_y = _flat(x), y.reshape(-1)
    for k in range(max(map(len, chunks))):
        tasks: list[list[threads.Task]] = []
        for d in range(D):
            if k >= len(chunks[d]):
                continue
            w, kept, (i, j) = layer[d], tapes[d], chunks[d][k]
            local, first, n = visits[d], 0, steps.rows
            if n > rows:
                row, size = local.row[i:j], local.count[i:j]
                first, n = int(row.min()), int(size.sum())
                local = loops.Steps(row - first, size, local.cut[i:j])
            t = kept.tape
            _divided(
                count, G * H * I * n, product,
                (t.gates, G * H, G * H, w.bias, flat_x, first * I, I, 1, w.by_input, I), n,
            )  # fmt: skip
            if spec.layer_norm:
                gain = _flat(w.w.ln_ih)
                shift = empty if w.w.b_ih is None else _flat(w.w.b_ih)
                _divided(
                    count, n * G * H * 10, loops.normalise_inputs,
                    (t.gates, kept.x_hats, kept.x_scales, gain, shift, G, H, o.first), n,
                )  # fmt: skip
            own = _of_masks(masks, d, first, first + n, empty)
            sizes = loops.Sizes(H, P, D, d)
            at = first * D * P
            tasks.append(
                [
                    (
                        loops.forward,
                        (o, sizes, team, local, w.recurrent, own, t, running[d], flat_y, at),
                    )
                    for team in teams[d]
                ]
            )
        _together(count, teams, work, tasks)
    return tapes


def _again(
    spec: Spec, layer: list[Direction], kept: _Saved, masks: list[Masks] | None, count: int
) -> list[_Tape]:
    """The tapes of a forward pass that kept none."""
    assert kept.h_0 is not None
    h, c = kept.h_0.copy(), None if kept.c_0 is None else kept.c_0.copy()
    y = np.empty((kept.x.shape[0], len(layer) * h.shape[2]), h.dtype)
    return _forward(spec, layer, kept.x, kept.steps, h, c, y, masks, True, count)


def _backward(
    spec: Spec,
    layer: list[Direction],
    kept: _Saved,
    tapes: list[_Tape],
    dy: Array | None,
    dh: Array,  # (D, B, P) in and out
    dc: Array | None,
    masks: list[Masks] | None,
    count: int,
) -> tuple[Array, list[Weights]]:
    one = layer[0]
    o, H, dtype, empty = one.options, one.hidden, one.empty.dtype, one.empty
    D, B, P = dh.shape
    G, N = o.gates, kept.steps.rows
    slots = G + (o.cell == loops.GRU_AFTER)
    teams = _teams(count, D, B, kept.steps.num_steps, G * H * P, spec.layer_norm)
    tasks: list[list[threads.Task]] = []
    found: list[loops.Gradients] = []
    for d, w in enumerate(layer):
        own = _of_masks(masks, d, 0, N, empty)
        step = np.empty((N if spec.projection else B) * P, dtype)
        g = loops.Gradients(
            dh[d].reshape(-1),
            empty if dc is None else dc[d].reshape(-1),
            step,
            np.empty(B * H, dtype) if spec.projection else step,
            np.empty(B * H, dtype),
            np.empty(B * H, dtype) if own.keep_c.size else empty,
            np.empty(B * P, dtype) if own.recurrent.size else empty,
            np.empty(N * slots * H, dtype),
            np.empty(N * G * H, dtype) if spec.layer_norm else empty,
            np.empty(N * H, dtype) if w.w.ln_c is not None else empty,
        )
        found.append(g)
        visits = _visits(kept.steps, d == 1, spec.truncate)
        sizes = loops.Sizes(H, P, D, d)
        flat_dy = empty if dy is None else _flat(dy)
        tasks.append(
            [
                (
                    loops.backward,
                    (o, sizes, team, visits, w.recurrent_back, own, tapes[d].tape, g, flat_dy),
                )
                for team in teams[d]
            ]
        )
    _together(count, teams, G * H * P * N * D, tasks)
    dx: Array | None = None
    dweights = []
    inputs = _packed(kept.x)
    for w, tape, g in zip(layer, tapes, found, strict=True):
        part, dw = _weights(spec, w, kept.x, inputs, tape, g, slots, count)
        dx = part if dx is None else dx + part
        dweights.append(dw)
    assert dx is not None
    return dx, dweights


def _weights(
    spec: Spec,
    w: Direction,
    x: Array,
    inputs: Array,  # x as panels
    tape: _Tape,
    g: loops.Gradients,
    slots: int,
    count: int,
) -> tuple[Array, Weights]:
    """dx and the gradients of the weights, from those of the arguments of all steps."""
    o, H, dtype, empty = w.options, w.hidden, w.empty.dtype, w.empty
    P, G = w.w.w_hh.shape[1], o.gates
    N, I = x.shape  # noqa: E741
    t, d = tape.tape, g.d.reshape(N, slots * H)
    # The arguments' gradients as W_hh h has them: with q in the place of n.
    of_h = np.concatenate([d[:, : 2 * H], d[:, 3 * H :]], axis=1) if slots > G else d
    by_x, x_row, by_h, h_row = g.d, slots * H, g.d, slots * H
    more: dict[str, Array | None] = {}
    if spec.layer_norm:
        by_x, x_row, by_h, h_row = np.empty(N * G * H, dtype), G * H, g.d_norm, G * H
        _divided(
            count, N * G * H * 10, loops.normalise_inputs_back,
            (g.d, slots * H, tape.x_hats, tape.x_scales, _flat(w.w.ln_ih), G, H, o.first, by_x), N,
        )  # fmt: skip
        more["ln_ih"] = np.einsum("nk,nk->k", d[:, : G * H], tape.x_hats.reshape(N, G * H))
        more["ln_hh"] = np.einsum("nk,nk->k", of_h, t.hats.reshape(N, G * H))
        if w.w.ln_c is not None:
            du = g.du.reshape(N, H)
            more["ln_c"] = np.einsum("nk,nk->k", du, t.c_hats.reshape(N, H))
            more["ln_c_shift"] = None if w.w.ln_c_shift is None else du.sum(axis=0)

    def transposed(
        a: Array, a_at: int, a_row: int, rows: int, panels: Array, columns: int
    ) -> Array:
        """The sum over all steps of a's numbers times those in the panels."""
        total = np.empty((rows, columns), dtype)
        arguments = (total.reshape(-1), columns, columns, empty, a, a_at, 1, a_row, panels, N)
        _divided(count, rows * columns * N, product, arguments, rows)
        return total

    dx = np.empty((N, I), dtype)
    arguments = (dx.reshape(-1), I, I, empty, by_x, 0, x_row, 1, w.by_input_back, G * H)
    _divided(count, N * I * G * H, product, arguments, N)
    dw_ih = transposed(by_x, 0, x_row, G * H, inputs, I)
    operand = _packed(t.operand.reshape(N, P))
    dw_hh = transposed(by_h, 0, h_row, w.split, operand, P)
    if w.split < G * H:
        if o.cell == loops.GRU_BEFORE:
            operand = _packed(t.extra.reshape(N, H))
        slot = 2 if spec.layer_norm or o.cell == loops.GRU_BEFORE else 3
        dw_hh = np.concatenate([dw_hh, transposed(by_h, slot * H, h_row, H, operand, P)])
    gates = t.gates.reshape(N, G, H)
    if spec.projection:
        m = gates[:, 3] * t.extra.reshape(N, H)
        more["w_hr"] = transposed(g.step, 0, P, P, _packed(m), H)
    if spec.peepholes:
        args = d.reshape(N, G, H)
        c_before, c_step = t.c_before.reshape(N, H), t.c_step.reshape(N, H)
        pairs = ((args[:, 0], c_before), (args[:, 1], c_before), (args[:, 3], c_step))
        more["w_peep"] = np.stack([np.einsum("nk,nk->k", a, b) for a, b in pairs])
    return dx, Weights(
        dw_ih,
        dw_hh,
        None if w.w.b_ih is None else d[:, : G * H].sum(axis=0),
        None if w.w.b_hh is None else of_h.sum(axis=0),
        **more,
    )


BACKEND = Numba()
