"""The matrix products of training, which are most of its arithmetic, beside other libraries."""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

import rnnfast

from . import report
from .limits import Limits
from .problem import CELLS, Array
from .rows import Row, said, timed
from .shapes import Shape, select
from .suite import Suite
from .table import shape_name
from .timing import Call


class Product(NamedTuple):
    """(M, K) times (K, N). With `tn` the first is stored as (K, M) and used transposed."""

    tn: bool
    M: int
    N: int
    K: int

    def __str__(self) -> str:
        return f"{'tn' if self.tn else 'nn'} {self.M},{self.N},{self.K}"

    def flops(self) -> float:
        return 2.0 * self.M * self.N * self.K


def products(gates: int, shape: Shape) -> dict[Product, str]:
    """Those of a training step: gates for all steps, the gradients of w_ih and w_hh, and of x."""
    rows, wide = shape.T * shape.B, gates * shape.H
    found = {}
    for inputs in (shape.I, shape.D * shape.H)[: shape.L]:  # of the first layer, of all others
        found |= {
            Product(False, rows, wide, inputs): "input projection",
            Product(True, wide, inputs, rows): "weight gradient",
            Product(False, rows, inputs, wide): "dx",
        }
    return found | {Product(True, wide, shape.H, rows): "weight gradient"}


# Makes the call that leaves the product of a and b in c; rnnfast's returns it instead.
_Maker = Callable[[Product, Array, Array, Array, int], Callable[[], Any]]


def _ours(product: Product, a: Array, b: Array, c: Array, threads: int) -> Callable[[], Any]:
    from rnnfast import _native

    rnnfast.set_num_threads(threads)
    multiply = _native.multiply_tn if product.tn else _native.multiply_nn
    return lambda: multiply(a, b)


def _in_matrix_unit(
    product: Product, a: Array, b: Array, c: Array, threads: int
) -> Callable[[], Any]:
    """As layers multiply batches of 16 rows and more where there is AMX."""
    from rnnfast import _native

    if not _native.get_isa().startswith("avx512amx"):
        raise ImportError("no matrix unit is in use")
    rnnfast.set_num_threads(threads)
    multiply = _native.multiply_tn if product.tn else _native.multiply_nn
    return lambda: multiply(a, b, in_parts=True)


def _numpy(product: Product, a: Array, b: Array, c: Array, threads: int) -> Callable[[], Any]:
    left = a.T if product.tn else a
    return lambda: np.matmul(left, b, out=c)


def _torch(product: Product, a: Array, b: Array, c: Array, threads: int) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(threads)
    left, right, out = map(torch.from_numpy, (a, b, c))
    left = left.t() if product.tn else left
    return lambda: torch.mm(left, right, out=out)


def _openblas(product: Product, a: Array, b: Array, c: Array, threads: int) -> Callable[[], Any]:
    """cblas_sgemm of the package scipy-openblas32."""
    import scipy_openblas32 as package  # type: ignore[import-untyped]

    library = ctypes.CDLL(f"{package.get_lib_dir()}/{package.get_library(fullname=True)}")
    library.scipy_openblas_set_num_threads(threads)
    sgemm, number = library.scipy_cblas_sgemm, ctypes.c_float
    row_major, plain, transposed = 101, 111, 112
    M, N, K = product.M, product.N, product.K

    def pointer(array: Array) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data)

    order = (row_major, transposed if product.tn else plain, plain, M, N, K)
    left = (pointer(a), M if product.tn else K)
    arguments = (*order, number(1), *left, pointer(b), N, number(0), pointer(c), N)
    return lambda: sgemm(*arguments)


MATRIX = "rnnfast-matrix"
MAKERS: dict[str, _Maker] = {
    "rnnfast": _ours,
    MATRIX: _in_matrix_unit,
    "numpy": _numpy,
    "torch": _torch,
    "scipy-openblas32": _openblas,
}
_COLUMNS = {
    "threads": 7,
    "product": 19,
    "tn/nn M,N,K": 19,
    "rnnfast GF/s": 12,
    "of FMA peak": 11,
    MATRIX: 14,
    "numpy": 7,
    "torch": 7,
    "scipy-openblas32": 16,
    "": 8,
}


def measured(product: Product, use: str, threads: int, budget: float) -> Row:
    rng = np.random.default_rng(0)
    M, N, K = product.M, product.N, product.K
    a = rng.standard_normal((K, M) if product.tn else (M, K), np.float32)
    b = rng.standard_normal((K, N), np.float32)
    c = np.empty((M, N), np.float32)
    truth = (a.T if product.tn else a).astype(np.float64) @ b.astype(np.float64)
    calls: dict[str, Call] = {}
    failed: dict[str, str] = {}
    absent: dict[str, str] = {}
    for name, make in MAKERS.items():
        try:
            call = make(product, a, b, c, threads)
            c[:] = np.nan
            result = call()
            error = np.abs((result if name.startswith("rnnfast") else c) - truth).max()
            # As in `problem.tolerance`: roundings of a sum of K terms of both signs.
            allowed = np.finfo(np.float32).eps * (16 + 4 * K**0.5) * np.abs(truth).max()
            if not error <= allowed:
                raise ArithmeticError(f"error {error:.2g}")
        except ImportError as error:
            absent[name] = str(error)
        except Exception as error:
            failed[name] = said(error)
        else:
            calls[name] = call
    timings, load = timed(calls, budget)
    rates = {}
    for name, timing in timings.items():
        spread = timing.milliseconds()
        rates[name] = {
            "median": product.flops() / spread.median / 1e6,
            "q1": product.flops() / spread.q3 / 1e6,
            "q3": product.flops() / spread.q1 / 1e6,
            "calls": timing.calls(),
        }
    return {
        "threads": threads,
        "use": use,
        "name": str(product),
        **load,
        "failed": failed,
        "absent": absent,
        "gflops": rates,
    }


def _arguments(add: Any) -> None:
    add("--cells", nargs="+", choices=("lstm", "gru", "rnn"), default=["lstm"])
    add("--shapes", nargs="+", type=shape_name, metavar="SHAPE", help="as the table takes them")


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    wanted: dict[Product, str] = {}
    for cell in options.cells:
        for shape in select(options.shapes or ["table"]):
            if shape.T > 1 and not shape.ragged and (shape.quick or not options.quick):
                wanted |= products(len(CELLS[cell].info.gates), shape)
    for product, use in wanted.items():
        yield measured(product, use, options.worker, options.budget)


def _lines(row: Row) -> list[str]:
    where = [row["threads"], row["use"], row["name"]]
    rates = {name: rate["median"] for name, rate in row["gflops"].items()}
    limits = Limits(report.limits())
    share = ""
    if "rnnfast" in rates and row["threads"] in limits.threads():
        share = f"{rates['rnnfast'] * 1e9 / limits.flops(row['threads']):.0%}"
    found = [f"{rates[name]:.0f}" if name in rates else "" for name in MAKERS]
    cells = [*where, found[0], share, *found[1:], "LOADED" * row["loaded"]]
    reasons = [f"  {name}: {why}" for name, why in (row["failed"] | row["absent"]).items()]
    return [report.line(_COLUMNS, cells), *reasons]


main = Suite(
    name="products",
    about=__doc__,
    rows=_rows,
    header=lambda: report.header(_COLUMNS),
    lines=_lines,
    arguments=_arguments,
    summary=lambda rows: ["\nGF/s, float32, medians; packing is part of the call."],
).main
