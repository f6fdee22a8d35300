"""Kernels compiled by Numba as a backend. Imported, and compiled, only where it is asked for."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

try:
    import numba as _  # noqa: F401
except ImportError as error:
    raise ImportError(f"{error}; pip install 'rnnfast[numba]' has it") from error

from ...reference.precision import ROUNDED
from ...spec import Masks, Spec, Steps
from ...weights import Layer, Weights
from .. import Array, Shortcut, ShortTape
from . import loops, packing, plain, plans, short, threads
from .memory import NO_MATRIX, NO_ROW, NO_STATE, flat, readable, scratch, taken
from .plans import BARRIERS, GRU_AFTER, GRU_BEFORE, Extent, Plan, Shape
from .products import pack, panel_size, product, sums
from .threads import LEAST, NOBODY, SMALL
from .visits import chunks, visits_of

_CHUNK = 1 << 22  # bytes of gates that an inference call works on at a time
_PANELS = 100_000  # numbers that are worth packing together
_NO_MASKS = (False, False, False)


def _packed(w: Array) -> Array:
    """A matrix as panels."""
    rows, columns = w.shape
    panels = np.empty(panel_size(rows, columns, w.itemsize), w.dtype)
    pack(flat(w), columns, 1, rows, columns, panels)
    return panels


class Direction:
    """Weights of one direction of one layer, packed as they are needed."""

    def __init__(
        self, spec: Spec, w: Weights, directions: int, direction: int, reuse: bool
    ) -> None:
        self.w = w
        self.spec = spec
        self.dtype = w.w_hh.dtype
        self.empty, self.no_state = NO_ROW[self.dtype], NO_STATE[self.dtype]
        self.direction = direction
        self.reuse = reuse
        self._panels: Array | None = None
        self._panels_back: Array | None = None
        rows, outputs = w.w_hh.shape
        self.shape = Shape(
            rows // len(spec.info.gates),
            outputs,
            w.w_ih.shape[1],
            directions,
            self.dtype.itemsize,
            w.b_ih is not None,
            w.b_hh is not None,
            w.ln_c is not None,
            w.ln_c_shift is not None,
        )

    @cached_property
    def _memory(self) -> tuple[Array, Array]:
        """For panels, and for those of BPTT.

        One array where both will be freed soon, so that fewer are small enough for the C library,
        which would return some of them to the system each time.
        """
        plan = self.plan(_NOTHING)
        if self.reuse:
            return scratch(plan.weights, self.dtype), scratch(plan.back, self.dtype)
        both = scratch(plan.weights + plan.back, self.dtype)
        return both[: plan.weights], both[plan.weights :]

    def plan(self, extent: Extent) -> Plan:
        return plans.make(self.spec, self.shape, self.direction, extent)

    def _or_empty(self, a: Array | None) -> Array:
        return self.empty if a is None else readable(a)

    def packed(self, count: int) -> Array:
        """All that the forward pass reads; so many threads pack it where it is not yet."""
        if self._panels is None:
            self._panels = self._pack(count)
        return self._panels

    def _pack(self, count: int) -> Array:
        w, plan = self.w, self.plan(_NOTHING)
        to = self._memory[0]
        matrices = readable(w.w_ih), readable(w.w_hh)
        biases = self._or_empty(w.b_ih), self._or_empty(w.b_hh)
        w_hr = NO_MATRIX[self.dtype] if w.w_hr is None else readable(w.w_hr)
        _alike(count, plan, packing.pack_forward, (*matrices, *biases, w_hr, to))
        if not self.spec.plain:
            shift = w.b_hh if self.spec.layer_norm else None
            for k, a in enumerate((w.w_peep, w.ln_hh, shift, w.ln_c, w.ln_c_shift)):
                if a is not None:
                    plan.part(to, plans.WEIGHTS, 5 + k)[:] = a.reshape(-1)
        return to

    def packed_back(self, count: int) -> Array:
        """The matrices that BPTT reads; packed likewise."""
        if self._panels_back is None:
            w, plan = self.w, self.plan(_NOTHING)
            to = self._memory[1]
            w_hr = NO_MATRIX[self.dtype] if w.w_hr is None else readable(w.w_hr)
            arrays = readable(w.w_ih), readable(w.w_hh), w_hr, to
            _alike(count, plan, packing.pack_backward, arrays)
            self._panels_back = to
        return self._panels_back


_NOTHING = Extent(0, 0, False, _NO_MASKS)


@dataclass
class _Saved:
    """What a layer left for its backward pass; a tape for each direction, or none yet."""

    x: Array
    steps: Steps
    begun: int  # rows of h_0 that are not zero
    h_0: Array | None
    c_0: Array | None
    tapes: list[Array] = field(default_factory=list)


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
        if precision is not None:
            rounded = ROUNDED[precision]
            layer = tuple(w._replace(w_ih=rounded(w.w_ih), w_hh=rounded(w.w_hh)) for w in layer)
        return [Direction(spec, w, len(layer), d, reuse) for d, w in enumerate(layer)]

    def shortcut(self, spec: Spec, prepared: list[list[Direction]]) -> Shortcut:
        return _Shortcut(prepared)

    def call(
        self, spec: Spec, x: Any, weights: Any, state: Any, lengths: Any, places: tuple[int, ...]
    ) -> tuple[Any, Any] | None:
        facts = None if places else short.facts_of(spec)
        layers = None if facts is None else short.layers_of(facts, x, weights)
        if facts is None or layers is None:
            return None
        if lengths is None and short.takes(x, layers):
            return short.run(facts, x, layers, state)
        return _Shortcut(_prepared(spec, layers))(x, state, None, lengths)

    def call_vjp(
        self, spec: Spec, x: Any, weights: Any, state: Any, lengths: Any, places: tuple[int, ...]
    ) -> tuple[Any, Any, ShortTape] | None:
        facts = None if places or lengths is not None else short.facts_of(spec)
        layers = None if facts is None else short.layers_of(facts, x, weights)
        if facts is None or layers is None:
            return None
        if short.takes(x, layers):
            return short.run_vjp(facts, x, layers, state)
        way = _Shortcut(_prepared(spec, layers))
        known = way.known_of(x)
        x = None if known is None else taken(x, way.dtype, known.x_shape)
        running = None if known is None else way.start(known, state)
        if known is None or x is None or running is None:
            return None
        y = np.empty(known.y_shape, way.dtype)
        begun = 0 if state is None else known.steps.batch
        saved = way.run(known, x, running, begun, y, "all")
        return y, way.state_of(running), _ShortTape(way.prepared, saved, known)

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
        begun = 0 if h_0 is None else steps.batch
        return self.run(spec, prepared, x, steps, ys, (h_n, c_n), begun, save, masks)

    def run(
        self,
        spec: Spec,
        prepared: list[list[Direction]],
        x: Array,
        steps: Steps,
        ys: list[Array],
        state: tuple[Array, Array | None],  # in and out
        begun: int,  # rows of h that are not zero: all of them or none
        save: str | None,
        masks: list[Masks] | None,
    ) -> list[_Saved]:
        one = prepared[0][0]
        work = x.shape[0] * one.w.w_hh.size * len(prepared[0]) * len(prepared)
        with threads.several(work) as count:
            return self._layers(spec, prepared, x, steps, ys, state, begun, save, masks, count)

    def _layers(
        self,
        spec: Spec,
        prepared: list[list[Direction]],
        x: Array,
        steps: Steps,
        ys: list[Array],
        state: tuple[Array, Array | None],
        begun: int,
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
            kept = _Saved(x, steps, begun, None, None)
            if save == "recompute":
                kept.h_0 = h.copy()
                kept.c_0 = None if c is None else c.copy()
            tapes = _forward(spec, layer, x, steps, h, c, begun, y, masks, save == "all", count)
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
        dtype, batch = first.dtype, saved[0].steps.batch
        shape = len(prepared) * len(prepared[0]), batch
        dh, dc = np.empty((*shape, first.w.w_hh.shape[1]), dtype), None
        _start(dh, dh_n)
        if spec.info.has_c:
            dc = np.empty((*shape, first.shape.hidden), dtype)
            _start(dc, dc_n)
        gradients: list[Weights] = []
        at = shape[0]
        work = saved[0].x.shape[0] * first.w.w_hh.size * len(prepared[0])
        with threads.several(work) as count:
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


def _prepared(spec: Spec, layers: list[short.Arrays]) -> list[list[Direction]]:
    return [[Direction(spec, Weights(*arrays), 1, 0, False)] for arrays in layers]


def _plain(a: Any) -> bool:
    """Whether it is an array that the kernels read as it is."""
    if type(a) is not np.ndarray:
        return False
    flags = a.flags
    return flags.c_contiguous and flags.aligned


class _Pass(NamedTuple):
    """One direction of one layer, in one thread."""

    numbers: Array  # of its plan
    row: Array
    size: Array
    panels: Array


class _Known(NamedTuple):
    """What follows from the shape of x."""

    x_shape: tuple[int, ...]
    y_shape: tuple[int, ...]
    state_shapes: list[tuple[int, int, int]]
    written: list[tuple[int, int, int]]  # the shapes of y and of the state
    steps: Steps
    work: int  # that threads might share
    small: bool  # so that one thread may do it

    @classmethod
    def of(cls, call: _Shortcut, x_shape: tuple[int, ...]) -> _Known:
        num_steps, batch, _ = x_shape
        rows = num_steps * batch
        shapes = [(call.count, batch, size) for size in call.sizes[: 1 + call.has_c]]
        step = call.prepared[0][0].w.w_hh.size
        work = rows * step * call.count
        y_shape = num_steps, batch, call.directions * call.sizes[0]
        small = call.spec.plain and work <= SMALL
        alone = call.directions == 1 and not threads.divisible(step, batch)
        steps, written = Steps(num_steps, batch), [y_shape, *shapes]
        return cls(x_shape, y_shape, shapes, written, steps, 0 if small and alone else work, small)


class _Here(NamedTuple):
    """The passes of a call in this thread."""

    known: _Known
    passes: list[list[_Pass]]  # of each layer
    alone: _Pass | None  # where there is one
    tape: int  # a size that is enough for each of the passes

    @classmethod
    def of(cls, call: _Shortcut, known: _Known) -> _Here:
        steps = known.steps
        extent = _extent(steps.rows, steps.batch, False, None, 0)
        passes, tape = [], 0
        for layer in call.prepared:
            plan_of = [w.plan(extent) for w in layer]
            tape = max(tape, *[plan.tape for plan in plan_of])
            visits = [visits_of(steps, d == 1, None)[:2] for d in range(len(layer))]
            of_each = zip(plan_of, visits, layer, strict=True)
            passes.append([_Pass(plan.numbers, *v, w.packed(1)) for plan, v, w in of_each])
        return cls(known, passes, passes[0][0] if call.count == 1 else None, tape)


class _Shortcut:
    """Calls that need no conversion. Most are short: every step here is a part of their time."""

    def __init__(self, prepared: list[list[Direction]]) -> None:
        one = prepared[0][0]
        self.prepared = prepared
        self.spec = one.spec
        self.dtype = one.dtype
        self.has_c = one.spec.info.has_c
        self.no_state = one.no_state
        self.input_size = one.shape.inputs
        self.directions, self.count = len(prepared[0]), len(prepared[0]) * len(prepared)
        self.sizes = one.shape.outputs, one.shape.hidden
        self.known: _Known | None = None  # of the last call
        self.here: _Here | None = None

    def __call__(self, x: Any, state: Any, out: Any, lengths: Any) -> tuple[Any, Any] | None:
        pair = type(out) is tuple
        if lengths is not None or type(x) is not np.ndarray or (pair and len(out) != 2):
            return None
        known, dtype = self.known, self.dtype
        if known is None or x.shape != known.x_shape:
            known = self.known_of(x)
            if known is None:
                return self._unbatched(x, state, out) if x.ndim == 2 else None
        if x.dtype != dtype or not x.flags.carray:
            x = taken(x, dtype, known.x_shape)
            if x is None:
                return None
        if out is None:
            y, running = np.empty(known.y_shape, dtype), self.start(known, state)
        elif pair and out[1] is state and state is not None:
            y, running = self._in_place(known, out)
        else:
            y, running = self._into(known, x, state, out)
        if running is None:
            return None
        begun = 0 if state is None else known.steps.batch
        here = None
        if known.small and not threads.worth(known.work):
            here = self.here
            if here is None or here.known is not known:  # another thread's call may be of another
                here = self.here = _Here.of(self, known)
        if here is not None and here.alone is not None:
            numbers, row, size, panels = here.alone
            h, c = running if self.has_c else (running[0], self.no_state)
            tape = np.empty(here.tape, dtype)
            if not plain.forward(numbers, NOBODY, row, size, begun, x, panels, tape, h, c, y):
                return None
        elif out is not None and not _apart(x, y, *running):
            return None
        elif here is not None:
            self._run_here(known, here, x, running, begun, y)
        else:
            self.run(known, x, running, begun, y, None)
        return y, out[1] if pair else self.state_of(running)

    def known_of(self, x: Array) -> _Known | None:
        """What follows from the shape of x; None for one that does not fit."""
        known = self.known
        if known is None or x.shape != known.x_shape:
            if x.ndim != 3 or x.shape[2] != self.input_size or x.shape[0] == 0:
                return None
            known = self.known = _Known.of(self, x.shape)
        return known

    def start(self, known: _Known, state: Any) -> tuple[Array, ...] | None:
        """The initial state, to be run on; None where it needs a conversion."""
        if state is None:
            h, *c = known.state_shapes
            made = np.zeros(h, self.dtype)
            return (made, np.zeros(c[0], self.dtype)) if c else (made,)
        given = self._states(known, state)
        return None if given is None else tuple([a.copy() for a in given])

    def run(
        self,
        known: _Known,
        x: Array,
        running: tuple[Array, ...],  # becomes the last state
        begun: int,
        y: Array,
        save: str | None,
    ) -> list[_Saved]:
        """By way of the backend, which uses threads."""
        rows, width = known.steps.rows, y.shape[2]
        ys = [scratch(rows * width, self.dtype).reshape(rows, width) for _ in self.prepared[1:]]
        ys.append(y.reshape(rows, width))
        state = running[0], running[1] if self.has_c else None
        x = x.reshape(rows, self.input_size)
        return BACKEND.run(self.spec, self.prepared, x, known.steps, ys, state, begun, save, None)

    def _run_here(
        self,
        known: _Known,
        here: _Here,
        x: Array,
        running: tuple[Array, ...],
        begun: int,
        y: Array,
    ) -> None:
        """In this thread."""
        h, c = running if self.has_c else (running[0], self.no_state)
        tape = np.empty(here.tape, self.dtype)
        at = 0
        for layer in here.passes:
            to = y if layer is here.passes[-1] else np.empty(known.y_shape, self.dtype)
            for numbers, row, size, panels in layer:
                state = h[at : at + 1], c[at : at + 1]
                plain.forward(numbers, NOBODY, row, size, begun, x, panels, tape, *state, to)
                at += 1
            x = to

    def state_of(self, running: tuple[Array, ...]) -> Any:
        """A state as the API has it."""
        return running if self.has_c else running[0]

    def _states(self, known: _Known, state: Any) -> tuple[Array, ...] | None:
        """The arrays of a state, as they are or, where that may not be written, can be read."""
        given = state if self.has_c else (state,)
        if type(given) is not tuple or len(given) != len(known.state_shapes):
            return None
        found = []
        for a, shape in zip(given, known.state_shapes, strict=True):
            array = taken(a, self.dtype, shape)
            if array is None:
                return None
            found.append(array)
        return tuple(found)

    def _in_place(self, known: _Known, out: Any) -> tuple[Any, tuple[Array, ...] | None]:
        """y and the state to be run on, of the caller; None for the latter as by a `Shortcut`."""
        y, state = out
        running: tuple[Array, ...] = state if self.has_c else (state,)
        if type(running) is not tuple or len(running) != len(known.state_shapes):
            return y, None
        dtype, kind = self.dtype, np.ndarray
        for a, shape in zip((y, *running), known.written, strict=True):
            if type(a) is not kind or a.shape != shape or a.dtype != dtype or not a.flags.carray:
                return y, None
        return y, running

    def _into(
        self, known: _Known, x: Array, state: Any, out: Any
    ) -> tuple[Any, tuple[Array, ...] | None]:
        """The same, where the initial state stands elsewhere."""
        if type(out) is tuple:  # rare, but for the start of a loop
            y, running = self._in_place(known, out)
            if running is None or not _apart(x, y, *running):
                return y, None
            if state is None:
                for a in running:
                    a[...] = 0
            elif not _same(running, state):
                return y, None
            return y, running
        read = () if state is None else self._states(known, state)
        y = taken(out, self.dtype, known.y_shape)
        if read is None or y is None or y is not out or not _apart(x, y, *read):
            return y, None
        return y, self.start(known, state)

    def _unbatched(self, x: Array, state: Any, out: Any) -> tuple[Any, Any] | None:
        """A call whose arrays have no batch axis."""
        if not _without_batch((state, out)):
            return None
        lifted, to = _batched(state), _batched(out)
        if type(out) is tuple and len(out) == 2 and out[1] is state:
            to = to[0], lifted
        done = self(x[:, None], lifted, to, None)
        if done is None:
            return None
        if out is None:
            return done[0][:, 0], _unbatched(done[1])
        return out if type(out) is tuple else (out, _unbatched(done[1]))


def _without_batch(a: Any) -> bool:
    """Whether an array, or each of a tuple, has as many axes as that of an unbatched call."""
    if type(a) is tuple:
        return all(map(_without_batch, a))
    return type(a) is not np.ndarray or a.ndim == 2


def _batched(a: Any) -> Any:
    """An array, or each of a tuple, with a batch axis; anything else as it is."""
    if type(a) is tuple:
        return tuple(map(_batched, a))
    return a[:, None] if type(a) is np.ndarray else a


def _unbatched(state: Any) -> Any:
    return tuple([a[:, 0] for a in state]) if type(state) is tuple else state[:, 0]


def _same(arrays: tuple[Array, ...], state: Any) -> bool:
    """Whether a state is of these arrays."""
    given = state if type(state) is tuple else (state,)
    return len(given) == len(arrays) and all(map(operator.is_, arrays, given))


def _apart(*arrays: Array) -> bool:
    """Whether no two of them have memory in common."""
    return not any(np.may_share_memory(a, b) for a, b in combinations(arrays, 2))


class _ShortTape(NamedTuple):
    """See `rnnfast.backends.ShortTape`."""

    prepared: list[list[Direction]]
    saved: list[_Saved]
    known: _Known

    def backward(
        self, dy: Any, dstate_n: Any, checked: bool, wants_dx: bool, wants_dh: bool
    ) -> tuple[Any, list[tuple[Any, ...]], Any] | None:
        shapes, way = self.known.state_shapes, self.prepared[0][0]
        given = dstate_n if len(shapes) == 2 else (dstate_n,)
        if dstate_n is None:
            given = (None,) * len(shapes)
        if type(given) is not tuple or len(given) != len(shapes):
            return None
        wanted = zip((dy, *given), (self.known.y_shape, *shapes), strict=True)
        for a, shape in wanted:
            if a is not None and not (_plain(a) and a.dtype == way.dtype and a.shape == shape):
                return None
        rows = None if dy is None else dy.reshape(self.known.steps.rows, dy.shape[2])
        dh_n, dc_n = given[0], given[1] if len(shapes) == 2 else None
        dx, dweights, dh, dc = BACKEND.backward(
            way.spec, self.prepared, self.saved, rows, dh_n, dc_n, None
        )
        given_weights: list[tuple[Any, ...]] = list(dweights)
        return dx.reshape(self.known.x_shape), given_weights, dh if dc is None else (dh, dc)


def _start(running: Array, initial: Array | None) -> None:
    running[...] = 0 if initial is None else initial


class _Member(NamedTuple):
    """What falls to one thread: see `shared.Team`."""

    begin: int
    end: int
    units: int
    member: int
    members: int
    barrier: int = BARRIERS[0]

    def numbers(self, plan: Plan) -> Array:
        """Those of a plan, for this member."""
        numbers: Array = plan.numbers.copy()
        numbers[plans.BEGIN : plans.BEGIN + 5] = self[:5]
        numbers[plans.BARRIER] = self.barrier
        return numbers


def _alike(count: int, plan: Plan, function: Any, arguments: tuple[Any, ...]) -> None:
    """A pass whose members share all there is."""
    if plan.weights < _PANELS:
        count = 1
    members = [_Member(0, 0, 0, k, count) for k in range(count)]
    threads.run_passes([(function, (m.numbers(plan), NOBODY, *arguments)) for m in members])


def _teams(
    count: int, directions: int, batch: int, steps: int, work: int, whole_rows: bool
) -> list[list[_Member]]:
    """Who does what in the loops of each direction; `work` is that of one row in one step."""
    if count == 1 or work * batch * steps * directions <= LEAST:
        return [[_Member(0, batch, 0, 0, 1)] for _ in range(directions)]
    members = max(1, count // directions)
    if members > 1 and batch < 4 * members and not whole_rows:
        if not threads.divisible(work, batch, members):
            members = 1
        return [
            [_Member(0, batch, 1, k, members, BARRIERS[d]) for k in range(members)]
            for d in range(directions)
        ]
    members = max(1, min(members, batch))
    bounds = [batch * k // members for k in range(members + 1)]
    return [
        [_Member(bounds[k], bounds[k + 1], 0, k, members, BARRIERS[d]) for k in range(members)]
        for d in range(directions)
    ]


def _together(
    count: int, teams: list[list[_Member]], work: int, tasks: list[list[threads.Task]]
) -> None:
    """Run the tasks of all directions at the same time, or one direction after the other."""
    if count >= sum(map(len, teams)) and work > LEAST:
        threads.run_passes([task for of in tasks for task in of])
    else:
        for of in tasks:
            threads.run_passes(of)


def _divided(count: int, work: int, function: Any, arguments: tuple[Any, ...], rows: int) -> None:
    """function(*arguments, begin, end) over all rows, in parts."""
    if count == 1 or work <= SMALL:
        function(*arguments, 0, rows)
        return
    parts = count
    parts = max(1, min(parts, rows))
    bounds = [rows * k // parts for k in range(parts + 1)]
    threads.run([(function, (*arguments, bounds[k], bounds[k + 1])) for k in range(parts)])


def _of_masks(
    masks: list[Masks] | None, d: int, first: int, last: int, empty: Array
) -> tuple[Array, Array, Array]:
    if masks is None:
        return empty, empty, empty
    found = []
    for k, mask in enumerate(masks[d]):
        if mask is None:
            found.append(empty)
        else:
            part = mask if k == 0 or mask.shape[0] == 1 else mask[first:last]
            found.append(np.ascontiguousarray(part).reshape(-1))
    recurrent, keep_h, keep_c = found
    return recurrent, keep_h, keep_c


def _extent(rows: int, batch: int, save: bool, masks: list[Masks] | None, d: int) -> Extent:
    if masks is None:
        return Extent(rows, batch, save, _NO_MASKS)
    recurrent, keep_h, keep_c = (a is not None for a in masks[d])
    return Extent(rows, batch, save, (recurrent, keep_h, keep_c))


def _forward_task(
    plan: Plan,
    numbers: Array,
    row: Array,
    size: Array,
    begun: int,
    x: Array,  # (N, I)
    panels: Array,
    masks: tuple[Array, Array, Array],
    tape: Array,
    h: Array,  # (1, B, P)
    c: Array,  # (1, B, H)
    y: Array,  # (N, D*P)
) -> threads.Task:
    given = numbers, NOBODY
    if plan.plain:
        return plain.forward, (*given, row, size, begun, x[None], panels, tape, h, c, y[None])
    state = h.reshape(-1), c.reshape(-1)
    arrays = x.reshape(-1), panels, *masks, tape, *state, y.reshape(-1)
    return loops.forward, (*given, plan.floats, row, size, *arrays)


def _forward(
    spec: Spec,
    layer: list[Direction],
    x: Array,
    steps: Steps,
    h: Array,  # (D, B, P) in and out
    c: Array | None,
    begun: int,  # rows of h that are not zero: all of them or none
    y: Array,
    masks: list[Masks] | None,
    save: bool,
    count: int,
) -> list[Array]:
    """One layer. The tapes are whole where they are to be saved, else of the last chunk."""
    H, P, I, D = layer[0].shape[:4]  # noqa: E741
    dtype, empty = layer[0].dtype, layer[0].empty
    B, G = steps.batch, len(spec.info.gates)
    most, rows = _CHUNK // (G * H * dtype.itemsize), steps.rows
    x = readable(x)
    states = [(h[d : d + 1], layer[0].no_state if c is None else c[d : d + 1]) for d in range(D)]
    if count == 1 and (save or rows <= most) and not spec.layer_norm:
        tapes = []
        for d, w in enumerate(layer):
            plan = w.plan(_extent(rows, B, save, masks, d))
            tape = scratch(plan.tape, dtype)
            row, size, _ = visits_of(steps, d == 1, None)
            own = _of_masks(masks, d, 0, rows, empty)
            arguments = row, size, begun, x, w.packed(count), own, tape, *states[d], y
            threads.run_passes([_forward_task(plan, plan.numbers, *arguments)])
            tapes.append(tape)
        return tapes
    visits = [visits_of(steps, d == 1, None) for d in range(D)]
    if save or rows <= most:
        parts = [[(0, steps.num_steps)]] * D
    else:
        parts = [chunks(v, most) for v in visits]
        rows = max(
            int(v.size[i:j].sum()) for v, of in zip(visits, parts, strict=True) for i, j in of
        )
    of_direction = [w.plan(_extent(rows, B, save, masks, d)) for d, w in enumerate(layer)]
    tapes = [scratch(plan.tape, dtype) for plan in of_direction]
    step_work = G * H * P
    work = step_work * steps.rows * D
    teams = _teams(count, D, B, steps.num_steps, step_work, spec.layer_norm)
    for k in range(max(map(len, parts))):
        tasks: list[list[threads.Task]] = []
        for d in range(D):
            if k >= len(parts[d]):
                continue
            w, tape, plan, (i, j) = layer[d], tapes[d], of_direction[d], parts[d][k]
            row, size, _ = visits[d]
            first, n, before = 0, steps.rows, begun
            if len(parts[d]) > 1:
                if i:
                    before = max(before, int(size[i - 1]))
                row, size = row[i:j], size[i:j]
                first, n = int(row.min()), int(size.sum())
                row = row - first
            if spec.layer_norm:  # of all that the product makes
                gates = plan.part(tape, plans.TAPE, 0)
                panels = w.packed(count)
                by_input, bias = (plan.part(panels, plans.WEIGHTS, part) for part in range(2))
                _divided(
                    count, G * H * I * n, product,
                    (gates, G * H, G * H, bias, x.reshape(-1), first * I, I, 1, by_input, I), n,
                )  # fmt: skip
                gain = flat(w.w.ln_ih)
                shift = empty if w.w.b_ih is None else flat(w.w.b_ih)
                hats, scales = (plan.part(tape, plans.TAPE, part) for part in (9, 10))
                _divided(
                    count, n * G * H * 10, loops.normalise_inputs,
                    (gates, hats, scales, gain, shift, G, H, plan.first), n,
                )  # fmt: skip
            own = _of_masks(masks, d, first, first + n, empty)
            tasks.append([])
            for member in teams[d]:
                numbers = member.numbers(plan)
                whole = not spec.layer_norm
                numbers[[plans.WHOLE, plans.FIRST_ROW, plans.ROWS]] = whole, first, n
                arguments = row, size, before, x, w.packed(count), own, tape, *states[d], y
                tasks[-1].append(_forward_task(plan, numbers, *arguments))
        _together(count, teams, work, tasks)
    return tapes


def _again(
    spec: Spec, layer: list[Direction], kept: _Saved, masks: list[Masks] | None, count: int
) -> list[Array]:
    """The tapes of a forward pass that kept none."""
    assert kept.h_0 is not None
    h, c = kept.h_0.copy(), None if kept.c_0 is None else kept.c_0.copy()
    y = np.empty((kept.x.shape[0], len(layer) * h.shape[2]), h.dtype)
    return _forward(spec, layer, kept.x, kept.steps, h, c, kept.begun, y, masks, True, count)


def _backward(
    spec: Spec,
    layer: list[Direction],
    kept: _Saved,
    tapes: list[Array],
    dy: Array | None,
    dh: Array,  # (D, B, P) in and out
    dc: Array | None,
    masks: list[Masks] | None,
    count: int,
) -> tuple[Array, list[Weights]]:
    H, P, I, D = layer[0].shape[:4]  # noqa: E741
    dtype, empty = layer[0].dtype, layer[0].empty
    B, N, G = kept.steps.batch, kept.steps.rows, len(spec.info.gates)
    teams = _teams(count, D, B, kept.steps.num_steps, G * H * P, spec.layer_norm)
    no_state = NO_STATE[dtype]
    dy = no_state if dy is None else readable(dy)[None]
    tasks: list[list[threads.Task]] = []
    rooms: list[Array] = []
    dxs: list[Array] = []
    dweights: list[Weights] = []
    of_direction: list[Plan] = []
    for d, w in enumerate(layer):
        plan = w.plan(_extent(N, B, True, masks, d))
        room = scratch(plan.room, dtype)
        row, size, cut = visits_of(kept.steps, d == 1, spec.truncate)
        state = dh[d : d + 1], no_state if dc is None else dc[d : d + 1]
        own = _of_masks(masks, d, 0, N, empty)
        of_direction.append(plan)
        rooms.append(room)
        tasks.append([])
        if plan.plain:
            dx = np.empty((N, I), dtype)
            dw_ih, dw_hh = np.empty(w.w.w_ih.shape, dtype), np.empty(w.w.w_hh.shape, dtype)
            biases = [None if b is None else np.empty(b.shape, dtype) for b in (w.w.b_ih, w.w.b_hh)]
            b_ih, b_hh = (empty if b is None else b for b in biases)
            dxs.append(dx)
            dweights.append(Weights(dw_ih, dw_hh, *biases))
            made = readable(kept.x)[None], dx[None], dw_ih, dw_hh, b_ih, b_hh
            arrays = w.packed_back(count), tapes[d], dy, *state, room, *made
        for member in teams[d]:
            numbers = plan.numbers if member.members == 1 else member.numbers(plan)
            visits = numbers, NOBODY, row, size
            if plan.plain:
                tasks[-1].append((plain.backward, (*visits, *arrays)))
                continue
            of_member = tapes[d], dy.reshape(-1), *(a.reshape(-1) for a in state), room
            given = plan.floats, cut, w.packed(count), w.packed_back(count), *own
            tasks[-1].append((loops.backward, (*visits, *given, *of_member)))
    _together(count, teams, G * H * P * N * D, tasks)
    if not dweights:
        inputs = _packed(kept.x)
        for w, plan, tape, room in zip(layer, of_direction, tapes, rooms, strict=True):
            part, dw = _weights(spec, w, plan, kept.x, inputs, tape, room, count)
            dxs.append(part)
            dweights.append(dw)
    total: Array = dxs[0] if D == 1 else dxs[0] + dxs[1]
    return total, dweights


def _weights(
    spec: Spec,
    w: Direction,
    plan: Plan,
    x: Array,
    inputs: Array,  # x as panels
    tape: Array,
    room: Array,
    count: int,
) -> tuple[Array, Weights]:
    """dx and the gradients of the weights, from those of the arguments of all steps."""
    H, P, I = w.shape[:3]  # noqa: E741
    G, cell, dtype, empty = plan.gates, plan.cell, w.dtype, w.empty
    N = x.shape[0]
    slots = G + (cell == GRU_AFTER)
    split = plan.first * H
    (gates, extra, _, operand, c_before, c_step, hats, c_hats, _, x_hats, x_scales) = (
        plan.part(tape, plans.TAPE, k) for k in range(11)
    )
    step, _, _, _, _, flat_d, d_norm, du = (plan.part(room, plans.GRADIENTS, k) for k in range(8))
    d = flat_d.reshape(N, slots * H)
    by_x, x_row, by_h, h_row = flat_d, slots * H, flat_d, slots * H
    more: dict[str, Array | None] = {}
    if spec.layer_norm:
        # The arguments' gradients as W_hh h has them: with q in the place of n.
        of_h = np.concatenate([d[:, : 2 * H], d[:, 3 * H :]], axis=1) if slots > G else d
        by_x, x_row, by_h, h_row = np.empty(N * G * H, dtype), G * H, d_norm, G * H
        _divided(
            count, N * G * H * 10, loops.normalise_inputs_back,
            (flat_d, slots * H, x_hats, x_scales, flat(w.w.ln_ih), G, H, plan.first, by_x), N,
        )  # fmt: skip
        more["ln_ih"] = np.einsum("nk,nk->k", d[:, : G * H], x_hats.reshape(N, G * H))
        more["ln_hh"] = np.einsum("nk,nk->k", of_h, hats.reshape(N, G * H))
        if w.w.ln_c is not None:
            du = du.reshape(N, H)
            more["ln_c"] = np.einsum("nk,nk->k", du, c_hats.reshape(N, H))
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
    by_input_back = plan.part(w.packed_back(count), plans.BACK, 2)
    arguments = (dx.reshape(-1), I, I, empty, by_x, 0, x_row, 1, by_input_back, G * H)
    _divided(count, N * I * G * H, product, arguments, N)
    dw_ih = transposed(by_x, 0, x_row, G * H, inputs, I)
    panels = _packed(operand.reshape(N, P))
    dw_hh = transposed(by_h, 0, h_row, split, panels, P)
    if split < G * H:
        if cell == GRU_BEFORE:
            panels = _packed(extra.reshape(N, H))
        slot = 2 if spec.layer_norm or cell == GRU_BEFORE else 3
        dw_hh = np.concatenate([dw_hh, transposed(by_h, slot * H, h_row, H, panels, P)])
    of_gates = gates.reshape(N, G, H)
    if spec.projection:
        m = of_gates[:, 3] * extra.reshape(N, H)
        more["w_hr"] = transposed(step, 0, P, P, _packed(m), H)
    if spec.peepholes:
        args = d.reshape(N, G, H)
        before, after = c_before.reshape(N, H), c_step.reshape(N, H)
        pairs = ((args[:, 0], before), (args[:, 1], before), (args[:, 3], after))
        more["w_peep"] = np.stack([np.einsum("nk,nk->k", a, b) for a, b in pairs])

    def summed(parts: list[tuple[int, int]]) -> Array:
        """Over all steps, of d's columns (first, count)."""
        total = np.empty(G * H, dtype)
        at = 0
        for first, columns in parts:
            sums(total[at:], flat_d, first, slots * H, columns, N)
            at += columns
        return total

    return dx, Weights(
        dw_ih,
        dw_hh,
        None if w.w.b_ih is None else summed([(0, G * H)]),
        None if w.w.b_hh is None else summed([(0, split), ((slots - 1) * H, G * H - split)]),
        **more,
    )


BACKEND = Numba()
