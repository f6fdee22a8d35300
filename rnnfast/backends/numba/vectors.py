"""Formulas of floats, or of vectors of them, written as LLVM where Numba's loops are too slow.

A `Number` stands for a value of code that is being written; Python's operators write instructions.
`update` makes of a formula a function that goes over rows in vectors, all of its loads and stores
in one loop: LLVM would make of Numba's loop scalar code, or checks for overlaps before it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from .compiled import intrinsic
from .lanes import VECTOR_BYTES, fmuladd, type_name

_INTP = ir.IntType(types.intp.bitwidth)
_BOUND = ir.IntType(32)


class Number:
    """A float or a vector of floats, of `kind`."""

    def __init__(self, builder: Any, kind: Any, value: Any) -> None:
        self.builder, self.kind, self.value = builder, kind, value
        of = value.type
        self.lanes = of.count if isinstance(of, ir.VectorType) else 1

    def _with(self, value: Any) -> Number:
        return Number(self.builder, self.kind, value)

    def _repeated(self, of: Any, value: Any) -> Any:
        if self.lanes == 1:
            return ir.Constant(of, value)
        return ir.Constant(ir.VectorType(of, self.lanes), [value] * self.lanes)

    def number(self, value: float) -> Number:
        """A constant of the same type."""
        single = self.kind == types.float32
        of = ir.FloatType() if single else ir.DoubleType()
        return self._with(self._repeated(of, float(np.float32(value)) if single else float(value)))

    def _other(self, other: Any) -> Any:
        return other.value if isinstance(other, Number) else self.number(other).value

    def __add__(self, other: Any) -> Number:
        return self._with(self.builder.fadd(self.value, self._other(other)))

    def __sub__(self, other: Any) -> Number:
        return self._with(self.builder.fsub(self.value, self._other(other)))

    def __rsub__(self, other: Any) -> Number:
        return self._with(self.builder.fsub(self._other(other), self.value))

    def __mul__(self, other: Any) -> Number:
        return self._with(self.builder.fmul(self.value, self._other(other)))

    def __truediv__(self, other: Any) -> Number:
        return self._with(self.builder.fdiv(self.value, self._other(other)))

    def __neg__(self) -> Number:
        return self._with(self.builder.fneg(self.value))

    def fma(self, by: Any, plus: Any) -> Number:
        """self * by + plus, rounded once where the machine can."""
        by, plus = self._other(by), self._other(plus)
        return self._with(fmuladd(self.builder, self.kind, self.lanes, self.value, by, plus))

    def where(self, comparison: str, other: Any, yes: Any, no: Any) -> Number:
        """`yes` where the comparison, which is false for NaN, holds."""
        holds = self.builder.fcmp_ordered(comparison, self.value, self._other(other))
        return self._with(self.builder.select(holds, self._other(yes), self._other(no)))

    def bits(self) -> Any:
        of = ir.IntType(self.kind.bitwidth)
        return self.builder.bitcast(
            self.value, of if self.lanes == 1 else ir.VectorType(of, self.lanes)
        )

    def integer(self, value: int) -> Any:
        """A constant of the type of `bits`."""
        return self._repeated(ir.IntType(self.kind.bitwidth), value)

    def of_bits(self, bits: Any) -> Number:
        return self._with(self.builder.bitcast(bits, self.value.type))

    def _sign(self) -> tuple[Any, Any]:
        most = 1 << self.kind.bitwidth - 1
        bits = self.bits()
        return (
            self.builder.and_(bits, self.integer(most)),
            self.builder.and_(bits, self.integer(most - 1)),
        )

    def magnitude(self) -> Number:
        return self.of_bits(self._sign()[1])

    def signed_like(self, other: Number) -> Number:
        """self, which is not negative, with the sign of the other."""
        return self.of_bits(self.builder.or_(self.bits(), other._sign()[0]))


def scalar(formula: Callable[[Number], Number]) -> Any:
    """The formula for a float, to be called by compiled functions."""

    @intrinsic
    def function(typingctx: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return formula(Number(builder, x, arguments[0])).value

        return x(x), generate

    return function


class Place:
    """Part of a row: as many numbers as a vector has or, with a mask, some of them."""

    def __init__(self, builder: Any, kind: Any, pointer: Any, mask: Any, there: Any = None) -> None:
        self._builder, self._kind = builder, kind
        self._mask, self._there = mask, there  # None for all of the vector, and for certainly
        lanes = VECTOR_BYTES * 8 // kind.bitwidth
        self._vector = ir.VectorType(pointer.type.pointee, lanes)
        self._pointer = builder.bitcast(pointer, self._vector.as_pointer())
        self._size = kind.bitwidth // 8

    def _with(self, there: Any) -> Any:
        """The mask of those that are there; None for all."""
        if there is None:
            return self._mask
        of = ir.VectorType(ir.IntType(1), self._vector.count)
        yes = ir.Constant(of, [1] * of.count) if self._mask is None else self._mask
        return self._builder.select(there, yes, ir.Constant(of, [0] * of.count))

    def _masked(self, name: str, result: Any, *arguments: Any) -> Any:
        name = f"llvm.masked.{name}.v{self._vector.count}{type_name(self._kind)}.p0"
        signature = ir.FunctionType(result, [a.type for a in arguments])
        f = cgutils.get_or_insert_function(self._builder.module, signature, name)
        return self._builder.call(f, arguments)

    def load(self) -> Number:
        """The numbers; zeros where the array is empty."""
        mask = self._with(self._there)
        if mask is None:
            value = self._builder.load(self._pointer, align=self._size)
        else:
            align, nothing = ir.Constant(_BOUND, self._size), ir.Constant(self._vector, None)
            value = self._masked("load", self._vector, self._pointer, align, mask, nothing)
        return Number(self._builder, self._kind, value)

    def store(self, number: Number, beside: Place | None = None) -> None:
        """Store numbers, unless the array is empty, or the one beside it."""
        mask = self._with((beside or self)._there)
        if mask is None:
            self._builder.store(number.value, self._pointer, align=self._size)
        else:
            align = ir.Constant(_BOUND, self._size)
            self._masked("store", ir.VoidType(), number.value, self._pointer, align, mask)


def update(formula: Callable[..., None]) -> Any:
    """formula(place, ...) as a function (n, array, at, array, at, ...) of compiled ones.

    It goes over n numbers of rows that begin at `at`, which do not overlap or are the same. Arrays
    of the formula's keyword-only arguments may be empty.
    """
    parameters = inspect.signature(formula).parameters
    names = list(parameters)
    optional = [p.kind == inspect.Parameter.KEYWORD_ONLY for p in parameters.values()]

    def function(typingctx: Any, n: Any, *arguments: Any) -> Any:
        arrays = arguments[::2]
        kind = arrays[0].dtype
        lanes = VECTOR_BYTES * 8 // kind.bitwidth

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            count = values[0]
            rows: list[Any] = []
            there: list[Any] = []
            for k, array in enumerate(arrays):
                made = context.make_array(array)(context, builder, values[1 + 2 * k])
                row: Any = builder.gep(made.data, [values[2 + 2 * k]])
                some: Any = None
                if optional[k]:
                    # Memory that is not mapped takes long, even if no lane of the mask is set.
                    some = builder.icmp_signed("!=", made.nitems, ir.Constant(_INTP, 0))
                    row = builder.select(some, row, rows[0])
                rows.append(row)
                there.append(some)

            def write(at: Any, mask: Any) -> None:
                places = {
                    name: Place(builder, kind, builder.gep(row, [at]), mask, some)
                    for name, row, some in zip(names, rows, there, strict=True)
                }
                formula(**places)

            of = ir.VectorType(_BOUND, lanes)
            undefined, step = ir.Constant(of, ir.Undefined), ir.Constant(_INTP, lanes)
            whole = builder.and_(count, ir.Constant(_INTP, -lanes))
            loop = cgutils.for_range_slice(builder, ir.Constant(_INTP, 0), whole, step, _INTP)
            with loop as (at, _):
                write(at, None)
            left = builder.sub(count, whole)
            with builder.if_then(builder.icmp_signed("!=", left, ir.Constant(_INTP, 0))):
                left = builder.trunc(left, _BOUND)
                left = builder.insert_element(undefined, left, ir.Constant(_BOUND, 0))
                left = builder.shuffle_vector(left, undefined, ir.Constant(of, [0] * lanes))
                lane = ir.Constant(of, list(range(lanes)))
                write(whole, builder.icmp_signed("<", lane, left))
            return context.get_dummy_value()

        pairs = [kind for array in arrays for kind in (array, types.intp)]
        return types.void(types.intp, *pairs), generate

    each = inspect.Parameter.POSITIONAL_OR_KEYWORD
    given = ["typingctx", "how_many", *(part for name in names for part in (name, f"{name}_at"))]
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, each) for name in given]
    )
    function.__name__ = formula.__name__
    return intrinsic(function)
