"""What the machine can do at most: float32 arithmetic, functions, bandwidth, barriers."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import report
from .load import Load, is_loaded
from .problem import CELLS
from .rows import Row
from .shapes import Shape
from .suite import Suite

_COLUMNS = {
    "threads": 7,
    "FMA GF/s": 8,
    "barrier ns": 10,
    "sigmoid, tanh ns": 16,
    "working set": 11,
    "GB/s": 6,
}
_APART = 2.5  # times the best: of threads whose cores share no cache
_SIZES = [1 << k for k in range(15, 40, 2)]  # of the printed lines; the JSON has more


class Limits:
    """Bounds made from the rows of `python -m bench limits`."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = {row["threads"]: row for row in rows}

    def threads(self) -> list[int]:
        return sorted(self._rows)

    def flops(self, threads: int) -> float:
        """Operations a second, of multiply-adds from registers."""
        return float(self._rows[threads]["fma_gflops"]) * 1e9

    def bandwidth(self, threads: int, size: float) -> float:
        """Bytes a second that all threads together read of a working set of `size` bytes."""
        sizes, rates = np.transpose(self._rows[threads]["read"])
        return float(np.interp(math.log(size), np.log(sizes), rates)) * 1e9

    def barrier(self, row: Row) -> float:
        """Seconds in which a row's threads meet: at best, or as they did when it was timed."""
        best = float(self._rows[row["threads"]]["barrier_ns"] or 0)
        return max(best, row.get("meeting_ns") or 0) / 1e9

    def are_apart(self, row: Row) -> bool:
        """Whether a row was timed while its threads took far longer to meet than they can."""
        if row["threads"] not in self._rows:
            return False
        best = float(self._rows[row["threads"]]["barrier_ns"] or 0) / 1e9
        return self.barrier(row) > _APART * best

    def function(self, threads: int, name: str) -> float:
        """Seconds for each number of a long array in the nearest caches, divided among threads."""
        return float(self._rows[threads].get("function_ns", {}).get(name, 0)) / 1e9 / threads


def work(row: Row) -> float:
    """Operations of the products with w_ih and w_hh; training has three for each of forward."""
    gates, shape = _problem(row)
    inputs, total = shape.I, 0
    for _ in range(shape.L):
        total += gates * shape.H * (inputs + shape.H) * shape.D
        inputs = shape.D * shape.H
    steps = (1 + shape.T) / 2 if shape.ragged else shape.T  # of a row, on average
    return 2.0 * steps * shape.B * total * (3 if row["mode"] == "training" else 1)


def traffic(row: Row) -> float:
    """Bytes of weights that must be read: w_hh at every step, w_ih once; training twice that."""
    gates, shape = _problem(row)
    inputs, total = shape.I, 0
    for _ in range(shape.L):
        total += 4 * gates * shape.H * (shape.T * shape.H + inputs) * shape.D
        inputs = shape.D * shape.H
    return float(total * (2 if row["mode"] == "training" else 1))


def working_set(row: Row) -> int:
    """Bytes that are read again and again: w_hh at each step; of a stream all weights."""
    gates, shape = _problem(row)
    return 4 * gates * shape.H * (shape.H + (shape.I if shape.T == 1 else 0)) * shape.D


def bounds(limits: Limits, row: Row) -> tuple[float, float]:
    """Seconds that a row of the table takes at least: to calculate, and to read its weights."""
    threads = row["threads"]
    rate = limits.bandwidth(threads, working_set(row))
    return work(row) / limits.flops(threads), traffic(row) / rate


def in_turn(limits: Limits, row: Row) -> float:
    """Seconds of a row that does one thing after the other, each at its own higher bound.

    Each layer multiplies all inputs at once, then loops over the steps, which read w_hh each and
    evaluate the cell's functions. Training does both products again for dx and dh, and has one
    more of each kind for the gradients of the weights. Where there is one row, one direction and
    one layer, threads divide units and meet in each step, or one of them does it alone.
    """
    threads, (_, shape) = row["threads"], _problem(row)
    least = _on(limits, row, threads)
    if threads == 1 or (shape.B, shape.D, shape.L) != (1, 1, 1) or 1 not in limits.threads():
        return least
    passes = 2 if row["mode"] == "training" else 1
    return min(least + passes * shape.T * limits.barrier(row), _on(limits, row, 1))


# Evaluations for each unit of a step; those of the vanilla RNN are its nonlinearity's.
_FUNCTIONS = {
    "lstm": {"sigmoid": 3, "tanh": 2},
    "gru": {"sigmoid": 2, "tanh": 1},
    "gated": {"sigmoid": 3},
}


def _on(limits: Limits, row: Row, threads: int) -> float:
    """`in_turn` on threads that never wait."""
    gates, shape = _problem(row)
    rate = limits.bandwidth(threads, working_set(row))
    steps = (1 + shape.T) / 2 if shape.ragged else shape.T
    training = row["mode"] == "training"

    def at_least(width: int, reads: int) -> float:
        numbers = gates * shape.H * width * shape.D
        operations = 2.0 * steps * shape.B * numbers
        return max(operations / limits.flops(threads), 4.0 * numbers * reads / rate)

    spec = CELLS[row["cell"]]
    functions = {spec.nonlinearity: 1} if spec.cell == "rnn" else _FUNCTIONS[spec.cell]
    of_unit = sum(count * limits.function(threads, name) for name, count in functions.items())
    inputs, total = shape.I, 0.0
    for _ in range(shape.L):
        total += steps * shape.B * shape.D * shape.H * of_unit
        total += (at_least(inputs, 1) + at_least(shape.H, shape.T)) * (2 if training else 1)
        if training:
            total += at_least(inputs, 1) + at_least(shape.H, 1)
        inputs = shape.D * shape.H
    return total


def _problem(row: Row) -> tuple[int, Shape]:
    return len(CELLS[row["cell"]].info.gates), Shape(**row["shape"])


def _arguments(add: Any) -> None:
    add("--megabytes", type=int, default=256, help="the largest working set")


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    seconds = min(options.budget, 1.0) / 100
    largest = 4 if options.quick else options.megabytes
    with tempfile.TemporaryDirectory() as folder:
        program = compiled(Path(folder))
        load = Load()
        command = [program, str(options.worker), str(largest), str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    functions = {name: _function_ns(name) for name in ("sigmoid", "tanh")}
    others = load.others()
    yield {
        "threads": options.worker,
        **json.loads(done.stdout),
        "function_ns": functions,
        "other_cores": others,
        "loaded": is_loaded(others),
    }


def _function_ns(name: str) -> float:
    """Nanoseconds of one thread for each of 65536 numbers, the best of many trials."""
    from rnnfast import _native

    x = np.linspace(-4, 4, 1 << 16, dtype=np.float32)
    seconds = []
    for _ in range(200):
        start = time.perf_counter()
        _native.evaluate(name, x)
        seconds.append(time.perf_counter() - start)
    return min(seconds) / x.size * 1e9


def compiled(folder: Path) -> str:
    """The path of limits.cpp, compiled for this machine."""
    source, program = Path(__file__).with_suffix(".cpp"), str(folder / "limits")
    compiler = os.environ.get("CXX", "c++")
    found = shutil.which(compiler)
    if found is None:
        raise SystemExit(f"limits: no C++ compiler: {compiler!r} is not there; set CXX to one")
    flags = ["-std=c++17", "-O3", "-march=native", "-pthread"]
    done = subprocess.run(
        [found, *flags, str(source), "-o", program], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"limits: {compiler} could not compile {source.name}:\n{done.stderr}")
    return program


def _lines(row: Row) -> list[str]:
    functions = ", ".join(f"{ns:.3f}" for ns in row["function_ns"].values())
    first = [row["threads"], row["fma_gflops"], row["barrier_ns"], functions]
    lines = []
    for size, rate in row["read"]:
        if size in _SIZES:
            lines.append(report.line(_COLUMNS, [*first, report.size(size), rate]))
            first = [""] * 4
    return lines


main = Suite(
    name="limits",
    about=__doc__,
    rows=_rows,
    header=lambda: report.header(_COLUMNS),
    lines=_lines,
    arguments=_arguments,
    more=lambda rows: {"limits": rows},
).main
