"""What Numba has no words for, as LLVM: a tile of a matrix product held in registers, a square
transposed there, with or without a product, and a barrier of threads.

A tile is `rows` rows by PANEL columns of c += a w. Each element is one chain of multiply-adds over
k, in rising order, that starts from what c holds: its bits depend neither on the number of rows
of the tile nor on how k is cut into blocks.
"""

from __future__ import annotations

import os
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils

from .compiled import intrinsic

PANEL_BYTES = 256  # of one row of a panel
LINE_BYTES = 64  # of a cache
_WIDE = bool(llvm.get_host_cpu_features().get("avx512f", False))
VECTOR_BYTES, _VECTORS = (64, 4) if _WIDE else (32, 2)  # in registers, for each row of a tile
SQUARE_BYTES = VECTOR_BYTES  # of one row of a square
ROWS = 6  # of the largest tile
_INTP = ir.IntType(types.intp.bitwidth)
_BOUND = ir.IntType(32)


def type_name(kind: Any) -> str:
    return "f32" if kind == types.float32 else "f64"


def fmuladd(builder: Any, kind: Any, lanes: int, *operands: Any) -> Any:
    """a * b + c, fused where the machine can."""
    of = operands[0].type
    suffix = type_name(kind) if lanes == 1 else f"v{lanes}{type_name(kind)}"
    signature = ir.FunctionType(of, [of, of, of])
    f = cgutils.get_or_insert_function(builder.module, signature, f"llvm.fmuladd.{suffix}")
    return builder.call(f, operands)


def _splat(builder: Any, value: Any, of: Any) -> Any:
    """A vector of one value."""
    undefined = ir.Constant(of, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_BOUND, 0))
    zeros = ir.Constant(ir.VectorType(_BOUND, of.count), [0] * of.count)
    return builder.shuffle_vector(first, undefined, zeros)


def _below(builder: Any, lanes: int, left: Any) -> Any:
    """A mask of the lanes before `left`."""
    lane = ir.Constant(ir.VectorType(_BOUND, lanes), list(range(lanes)))
    left = _splat(builder, builder.trunc(left, _BOUND), lane.type)
    return builder.icmp_signed("<", lane, left)


def _masked_load(builder: Any, kind: Any, pointer: Any, mask: Any) -> Any:
    """Part of a vector; the rest is zero."""
    of = pointer.type.pointee
    f = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(of, [pointer.type, _BOUND, mask.type, of]),
        f"llvm.masked.load.v{of.count}{type_name(kind)}.p0",
    )
    align = ir.Constant(_BOUND, kind.bitwidth // 8)
    return builder.call(f, [pointer, align, mask, ir.Constant(of, None)])


def _masked_store(builder: Any, kind: Any, value: Any, pointer: Any, mask: Any) -> None:
    f = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(ir.VoidType(), [value.type, pointer.type, _BOUND, mask.type]),
        f"llvm.masked.store.v{value.type.count}{type_name(kind)}.p0",
    )
    builder.call(f, [value, pointer, ir.Constant(_BOUND, kind.bitwidth // 8), mask])


def _fetch(builder: Any, pointer: Any) -> None:
    """Bring a line into the second-level cache."""
    byte = ir.IntType(8).as_pointer()
    signature = ir.FunctionType(ir.VoidType(), [byte, _BOUND, _BOUND, _BOUND])
    f = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    how = (ir.Constant(_BOUND, number) for number in (0, 2, 1))  # read, near, data
    builder.call(f, [builder.bitcast(pointer, byte), *how])


def _tile(rows: int, panels: int = 1, packed: bool = True, vectors: int = _VECTORS) -> Any:
    @intrinsic
    def tile(
        typingctx: Any,
        c: Any,  # array
        c_at: Any,  # of its first element
        c_row: Any,  # elements from row to row
        columns: Any,  # of c that are there, from 1 up; what lies beyond is not touched
        a: Any,
        a_at: Any,
        a_row: Any,
        a_k: Any,  # elements from k to k + 1
        w: Any,  # rows of PANEL numbers, or the rows of a matrix
        w_at: Any,
        w_next: Any,  # elements from panel to panel, or from row to row
        count: Any,  # of k
        ahead: Any,  # of w, where what is fetched meanwhile begins
    ) -> Any:
        kind = c.dtype
        size = kind.bitwidth // 8
        lanes = VECTOR_BYTES // size

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            c_, c_at_, c_row_, columns_, a_, a_at_, a_row_, a_k_ = arguments[:8]
            w_, w_at_, w_next_, count_, ahead_ = arguments[8:]
            panel = PANEL_BYTES // size
            # (panel, column) of the vectors of a row
            places = [(p, v * lanes) for p in range(panels) for v in range(vectors)]
            scalar = context.get_value_type(kind)
            vector = ir.VectorType(scalar, lanes)
            pointer = vector.as_pointer()

            def data(array_type: Any, value: Any, at: Any) -> Any:
                base = context.make_array(array_type)(context, builder, value).data
                return builder.gep(base, [at])

            c_base = data(c, c_, c_at_)
            a_base = data(a, a_, a_at_)
            w_base = data(w, w_, w_at_)
            zero = ir.Constant(_INTP, 0)
            left = _splat(builder, builder.trunc(columns_, _BOUND), ir.VectorType(_BOUND, lanes))
            sums = [[cgutils.alloca_once(builder, vector) for _ in places] for _ in range(rows)]
            one_panel = ir.Constant(_INTP, panel)
            end = builder.select(builder.icmp_signed("<", columns_, one_panel), columns_, one_panel)
            with cgutils.for_range_slice(
                builder, zero, end, ir.Constant(_INTP, vectors * lanes), _INTP
            ) as (column, _):
                here = builder.trunc(column, _BOUND)
                masks: list[Any] = []
                targets: list[list[Any]] = []
                for p, v in places:
                    lane = ir.Constant(
                        ir.VectorType(_BOUND, lanes), [p * panel + v + k for k in range(lanes)]
                    )
                    number = builder.add(_splat(builder, here, lane.type), lane)
                    masks.append(builder.icmp_signed("<", number, left))
                for r in range(rows):
                    row = builder.mul(c_row_, ir.Constant(_INTP, r))
                    start = builder.gep(c_base, [builder.add(row, column)])
                    targets.append([])
                    for at, (p, v) in enumerate(places):
                        target = builder.gep(start, [ir.Constant(_INTP, p * panel + v)])
                        target = builder.bitcast(target, pointer)
                        targets[r].append(target)
                        loaded = _masked_load(builder, kind, target, masks[at])
                        builder.store(loaded, sums[r][at])
                a_rows = [
                    builder.gep(a_base, [builder.mul(a_row_, ir.Constant(_INTP, r))])
                    for r in range(rows)
                ]
                w_start = builder.gep(w_base, [column])
                # Where registers hold a part of a row, the first pass of some is what fetches.
                is_first = builder.icmp_signed("==", column, zero)
                fetched = builder.select(is_first, data(w, w_, ahead_), w_start)
                with cgutils.for_range(builder, count_, intp=_INTP) as loop:
                    k = loop.index
                    w_row = ir.Constant(_INTP, panel) if packed else w_next_
                    w_k = builder.gep(w_start, [builder.mul(k, w_row)])
                    if rows > 1:
                        line = builder.mul(k, ir.Constant(_INTP, LINE_BYTES // size))
                        _fetch(builder, builder.gep(fetched, [line]))
                    loaded = []
                    for at, (p, v) in enumerate(places):
                        place = builder.gep(w_k, [ir.Constant(_INTP, v)])
                        if p:
                            place = builder.gep(place, [w_next_])
                        place = builder.bitcast(place, pointer)
                        if packed:
                            loaded.append(builder.load(place, align=size))
                        else:
                            loaded.append(_masked_load(builder, kind, place, masks[at]))
                    step = builder.mul(k, a_k_)
                    for r in range(rows):
                        factor = builder.load(builder.gep(a_rows[r], [step]))
                        factor = _splat(builder, factor, vector)
                        for v in range(len(places)):
                            total = builder.load(sums[r][v])
                            total = fmuladd(builder, kind, lanes, factor, loaded[v], total)
                            builder.store(total, sums[r][v])
                for r in range(rows):
                    for v in range(len(places)):
                        total = builder.load(sums[r][v])
                        _masked_store(builder, kind, total, targets[r][v], masks[v])
            return context.get_dummy_value()

        integers = types.intp
        return types.void(c, *[integers] * 3, a, *[integers] * 3, w, *[integers] * 4), generate

    return tile


TILES = tuple(_tile(rows) for rows in range(1, ROWS + 1))
tile1 = TILES[0]
pair1 = _tile(1, panels=2)  # one row keeps a processor busy with two panels at a time
# A tile reads all of a row of its panel: where half of it is padding, these are enough.
HALF_BYTES = PANEL_BYTES // 2 if _WIDE else 0
HALVES = tuple(_tile(rows, vectors=_VECTORS // 2) for rows in range(1, ROWS + 1))
half1 = HALVES[0]
tile_of_rows = _tile(1, packed=False)


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """The columns of as many vectors as each has lanes."""
    lanes, rows = len(rows), list(rows)
    # Of every square of 2s by 2s the upper right and the lower left part change places.
    s = 1
    while s < lanes:
        for r in range(lanes):
            if r & s:
                continue
            a, b = rows[r], rows[r + s]
            upper = [k if not k & s else lanes + k - s for k in range(lanes)]
            lower = [k + s if not k & s else lanes + k for k in range(lanes)]
            masks = (ir.Constant(ir.VectorType(_BOUND, lanes), m) for m in (upper, lower))
            rows[r], rows[r + s] = (builder.shuffle_vector(a, b, m) for m in masks)
        s *= 2
    return rows


@intrinsic
def square(typingctx: Any, w: Any, w_at: Any, w_row: Any, to: Any, to_at: Any) -> Any:
    """to[k][j] = w[j][k] for a square of one vector a row; rows of `to` are those of a panel."""
    kind = w.dtype
    size = kind.bitwidth // 8
    lanes = VECTOR_BYTES // size

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        w_, w_at_, w_row_, to_, to_at_ = arguments
        vector = ir.VectorType(context.get_value_type(kind), lanes)

        def place(array: Any, value: Any, at: Any, row: int, stride: Any) -> Any:
            base = builder.gep(context.make_array(array)(context, builder, value).data, [at])
            here = builder.gep(base, [builder.mul(stride, ir.Constant(_INTP, row))])
            return builder.bitcast(here, vector.as_pointer())

        rows = [builder.load(place(w, w_, w_at_, r, w_row_), align=size) for r in range(lanes)]
        rows = _transposed(builder, rows)
        panel = ir.Constant(_INTP, PANEL_BYTES // size)
        for r in range(lanes):
            builder.store(rows[r], place(to, to_, to_at_, r, panel), align=size)
        return context.get_dummy_value()

    integer = types.intp
    return types.void(w, integer, integer, to, integer), generate


@intrinsic
def dot_rows(
    typingctx: Any,
    c: Any,
    c_at: Any,
    rows: Any,  # of w, from 1 up, of which as many as a vector has lanes are used
    a: Any,
    a_at: Any,
    w: Any,
    w_at: Any,
    w_row: Any,  # elements from row to row
    count: Any,  # of k
) -> Any:
    """c[j] += the sum of a[k] w[j][k], in the order of a tile's."""
    kind = c.dtype
    size = kind.bitwidth // 8
    lanes = VECTOR_BYTES // size

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        c_, c_at_, rows_, a_, a_at_, w_, w_at_, w_row_, count_ = arguments
        scalar = context.get_value_type(kind)
        vector = ir.VectorType(scalar, lanes)
        zero = ir.Constant(_INTP, 0)

        def data(array_type: Any, value: Any, at: Any) -> Any:
            base = context.make_array(array_type)(context, builder, value).data
            return builder.gep(base, [at])

        factors = data(a, a_, a_at_)
        last = builder.sub(rows_, ir.Constant(_INTP, 1))
        starts = []
        for r in range(lanes):  # rows that are not there are the last one again
            row = ir.Constant(_INTP, r)
            row = builder.select(builder.icmp_signed("<", row, last), row, last)
            starts.append(data(w, w_, builder.add(w_at_, builder.mul(row, w_row_))))
        there = _below(builder, lanes, rows_)
        target = builder.bitcast(data(c, c_, c_at_), vector.as_pointer())
        total = cgutils.alloca_once(builder, vector)
        builder.store(_masked_load(builder, kind, target, there), total)

        def add_square(k: Any, left: Any = None) -> None:
            mask = None if left is None else _below(builder, lanes, left)
            loaded = []
            for start in starts:
                place = builder.bitcast(builder.gep(start, [k]), vector.as_pointer())
                if mask is None:
                    loaded.append(builder.load(place, align=size))
                else:
                    loaded.append(_masked_load(builder, kind, place, mask))
            for j, column in enumerate(_transposed(builder, loaded)):
                at = builder.add(k, ir.Constant(_INTP, j))
                if left is None:
                    factor = builder.load(builder.gep(factors, [at]))
                else:  # -0 times 0 changes no sum
                    some = builder.icmp_signed("<", ir.Constant(_INTP, j), left)
                    at = builder.select(some, at, k)
                    factor = builder.load(builder.gep(factors, [at]))
                    factor = builder.select(some, factor, ir.Constant(scalar, -0.0))
                factor = _splat(builder, factor, vector)
                plus = builder.load(total)
                builder.store(fmuladd(builder, kind, lanes, factor, column, plus), total)

        whole = builder.and_(count_, ir.Constant(_INTP, -lanes))
        step = ir.Constant(_INTP, lanes)
        with cgutils.for_range_slice(builder, zero, whole, step, _INTP) as (k, _):
            add_square(k)
        left = builder.sub(count_, whole)
        with builder.if_then(builder.icmp_signed("!=", left, zero)):
            add_square(whole, left)
        _masked_store(builder, kind, builder.load(total), target, there)
        return context.get_dummy_value()

    integer = types.intp
    return types.void(c, *[integer] * 2, a, integer, w, *[integer] * 3), generate


@intrinsic
def part(typingctx: Any, a: Any, begin: Any, end: Any) -> Any:
    """a[begin:end] of an array of one axis, both within it, that does not keep its memory.

    Who calls from Python does; Numba's own slices count references at each step of a loop.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole = context.make_array(a)(context, builder, arguments[0])
        made = context.make_array(a)(context, builder)
        count = builder.sub(arguments[2], arguments[1])
        size = ir.Constant(_INTP, context.get_abi_sizeof(whole.data.type.pointee))
        context.populate_array(
            made,
            data=builder.gep(whole.data, [arguments[1]]),
            shape=cgutils.pack_array(builder, [count]),
            strides=cgutils.pack_array(builder, [size]),
            itemsize=size,
            meminfo=None,
        )
        return made._getvalue()

    return a(a, types.intp, types.intp), generate


def on_stack(count: int) -> Any:
    """What makes an array of so many numbers, like another one, which ends with its function."""

    @intrinsic
    def make(typingctx: Any, like: Any) -> Any:
        of = types.Array(like.dtype, 1, "C")

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = context.get_value_type(of.dtype)
            size = ir.Constant(_INTP, context.get_abi_sizeof(kind))
            with builder.goto_entry_block():
                data = builder.alloca(kind, ir.Constant(_BOUND, count))
                data.align = 64
            made = context.make_array(of)(context, builder)
            context.populate_array(
                made,
                data=data,
                shape=cgutils.pack_array(builder, [ir.Constant(_INTP, count)]),
                strides=cgutils.pack_array(builder, [size]),
                itemsize=size,
                meminfo=None,
            )
            return made._getvalue()

        return of(like), generate

    return make


@intrinsic
def held(typingctx: Any, a: Any) -> Any:
    """All of a C-contiguous array, of any number of axes, as `part` has it."""
    flat = types.Array(a.dtype, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole = context.make_array(a)(context, builder, arguments[0])
        made = context.make_array(flat)(context, builder)
        context.populate_array(
            made,
            data=whole.data,
            shape=cgutils.pack_array(builder, [whole.nitems]),
            strides=cgutils.pack_array(builder, [whole.itemsize]),
            itemsize=whole.itemsize,
            meminfo=None,
        )
        return made._getvalue()

    return flat(a), generate


@intrinsic
def arrive(typingctx: Any, counter: Any) -> Any:
    """Add 1 to counter[0]; return what it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(counter)(context, builder, arguments[0]).data
        one = ir.Constant(data.type.pointee, 1)
        return builder.atomic_rmw("add", data, one, "acq_rel")

    return types.int64(counter), generate


@intrinsic
def arrived(typingctx: Any, counter: Any) -> Any:
    """counter[0], as other threads have left it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(counter)(context, builder, arguments[0]).data
        return builder.load_atomic(data, "acquire", 8)

    return types.int64(counter), generate


@intrinsic
def give_way(typingctx: Any) -> Any:
    """Let another thread have the processor, where the system has a call for that."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if os.name == "posix":
            f = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, f, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def stay_apart(typingctx: Any) -> Any:
    """The function that this stands in is called, never copied into its callers.

    Without it LLVM compiles the larger ones a dozen times.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate
