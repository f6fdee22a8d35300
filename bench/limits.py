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
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import peers, report
from .load import Load, is_loaded
from .problem import CELLS, DEFAULT_CELLS, MODES, Mode, draw
from .rows import READING, Row
from .shapes import Shape
from .suite import Suite

_COLUMNS = {
    "threads": 7,
    "FMA GF/s": 8,
    "matrix GF/s": 11,
    "barrier ns": 10,
    "sigmoid, tanh ns": 16,
    "working set": 11,
    "GB/s": 6,
}
MATRIX_ROWS = 16  # that a matrix unit multiplies at a time
_APART = 2.5  # times the best: of threads whose cores share no cache
_SIZES = [1 << k for k in range(15, 40, 2)]  # of the printed lines; the JSON has more


class Limits:
    """Bounds made from the rows of `python -m bench limits`."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = {row["threads"]: row for row in rows}

    def threads(self) -> list[int]:
        return sorted(self._rows)

    def peaks(self, threads: int) -> tuple[float, float]:
        """Operations a second in float32 of multiply-adds from registers, and of a matrix unit for
        bfloat16 from the second-level cache; 0 where there is none.

        That takes six products of parts of the numbers for one, as csrc/kernels/split.hpp does.
        """
        row = self._rows[threads]
        return float(row["fma_gflops"]) * 1e9, float(row.get("matrix_gflops", 0)) * 1e9

    def flops(self, threads: int, rows: float = 1) -> float:
        """The higher one that products of so many rows can reach."""
        fma, matrix = self.peaks(threads)
        return max(fma, matrix) if rows >= MATRIX_ROWS else fma

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

    def step(self, cell: str) -> float | None:
        """Seconds of a step of one row of 16 units, or None where none was measured."""
        ns = self._rows.get(1, {}).get("step_ns", {}).get(cell)
        return None if ns is None else float(ns) / 1e9

    def call(self, mode: str) -> float | None:
        """Seconds of a call from Python with a single such step, or of one that reads nothing."""
        us = self._rows.get(1, {}).get("call_us", {}).get(mode)
        return None if us is None else float(us) / 1e6


def work(row: Row) -> float:
    """Operations of the products with w_ih and w_hh; training has three for each of forward."""
    gates, shape = _problem(row)
    inputs, total = shape.I, 0
    for _ in range(shape.L):
        total += gates * shape.H * (inputs + shape.H) * shape.D
        inputs = shape.D * shape.H
    return 2.0 * shape.steps * shape.B * total * (3 if row["mode"] == "training" else 1)


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
    return work(row) / limits.flops(threads, _problem(row)[1].B), traffic(row) / rate


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


def at_limit(limits: Limits, row: Row, rival: dict[str, Any]) -> float:
    """The ratio to a rival of what does everything at the limits.

    Of a single step that is reading, which was timed in turns with it: how fast weights come from
    the caches depends on what else is there at the time.
    """
    if "at_reading" in rival:
        return float(rival["at_reading"]["median"])
    return float(row["times_ms"][rival["peer"]]["median"]) / 1e3 / in_turn(limits, row)


# Evaluations for each unit of a step; those of the vanilla RNN are its nonlinearity's.
_FUNCTIONS = {
    "lstm": {"sigmoid": 3, "tanh": 2},
    "gru": {"sigmoid": 2, "tanh": 1},
    "gated": {"sigmoid": 3},
}


def _on(limits: Limits, row: Row, threads: int) -> float:
    """`in_turn` on threads that never wait."""
    _, shape = _problem(row)
    passes = 2 if row["mode"] == "training" else 1
    inputs, total = shape.I, 0.0
    for _ in range(shape.L):
        total += functions(limits, row, threads)
        total += product(limits, row, threads, inputs) * passes
        total += product(limits, row, threads, shape.H, shape.T) * passes
        if passes == 2:
            total += product(limits, row, threads, inputs)
            total += product(limits, row, threads, shape.H)
        inputs = shape.D * shape.H
    return total


def product(
    limits: Limits,
    row: Row,
    threads: int,
    width: int,
    reads: int = 1,
    peaks: tuple[float, float] | None = None,
) -> float:
    """Seconds of a layer's product of all steps with weights [G*H, width], read so many times.

    In the faster way: of numbers of 4 bytes, or in a matrix unit, which reads 6 and has place for
    16 rows whether there are so many or not. `peaks` are those of the limits, or others.
    """
    gates, shape = _problem(row)
    numbers = gates * shape.H * width * shape.D
    operations = 2.0 * shape.steps * shape.B * numbers
    rows = shape.steps * shape.B / reads
    fma, matrix = peaks or limits.peaks(threads)

    def reading(size: int) -> float:
        rate = limits.bandwidth(threads, working_set(row) * size / 4)
        return numbers * reads * size / rate

    by_numbers = max(operations / fma, reading(4))
    if rows < MATRIX_ROWS or not matrix:
        return by_numbers
    places = math.ceil(rows / MATRIX_ROWS) * MATRIX_ROWS
    return min(by_numbers, max(operations * places / rows / matrix, reading(6)))


def functions(limits: Limits, row: Row, threads: int) -> float:
    """Seconds of a layer's sigmoids and hyperbolic tangents, forward."""
    spec, shape = CELLS[row["cell"]], Shape(**row["shape"])
    counts = {spec.nonlinearity: 1} if spec.cell == "rnn" else _FUNCTIONS[spec.cell]
    of_unit = sum(count * limits.function(threads, name) for name, count in counts.items())
    return shape.steps * shape.B * shape.D * shape.H * of_unit


def _problem(row: Row) -> tuple[int, Shape]:
    return len(CELLS[row["cell"]].info.gates), Shape(**row["shape"])


def _arguments(add: Any) -> None:
    add("--megabytes", type=int, default=256, help="the largest working set")


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    from rnnfast import _native

    seconds = min(options.budget, 1.0) / 100
    largest = 4 if options.quick else options.megabytes
    with tempfile.TemporaryDirectory() as folder:
        program = compiled(Path(folder))
        load = Load()
        command = [program, str(options.worker), str(largest), str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    of_functions = {name: _function_ns(name) for name in ("sigmoid", "tanh")}
    others = load.others()
    yield {
        "threads": options.worker,
        **json.loads(done.stdout),
        "function_ns": of_functions,
        "step_ns": {cell: _step_ns(cell) for cell in DEFAULT_CELLS},
        "call_us": {
            **{mode: _us(_single_step(mode)) for mode in MODES},
            READING: _us(partial(_native.total, np.zeros(1, np.float32))),
        },
        "other_cores": others,
        "loaded": is_loaded(others),
    }


def _function_ns(name: str) -> float:
    """Nanoseconds of one thread for each of 65536 numbers, the best of many trials."""
    from rnnfast import _native

    x = np.linspace(-4, 4, 1 << 16, dtype=np.float32)
    return _best(lambda: _native.evaluate(name, x), 200) / x.size * 1e9


def _step_ns(cell: str, steps: int = 1000) -> float:
    """Nanoseconds of a step of one row of 16 units, where hardly anything is multiplied."""
    problem = draw(CELLS[cell], Shape("step", steps, 1, 16, 16), "forward")
    return _best(peers.RnnfastPacked().make(problem, 1).run, 50) / steps * 1e9


def _single_step(mode: Mode) -> Callable[[], Any]:
    """A call with one such step, in training with its way back."""
    problem = draw(CELLS["lstm"], Shape("call", 1, 1, 16, 16), mode)
    peer = peers.RnnfastPacked() if mode == "forward" else peers.Rnnfast()
    return peer.make(problem, 1).run


def _us(call: Callable[[], Any]) -> float:
    """Microseconds of a short call from Python."""

    def many() -> None:
        for _ in range(500):
            call()

    return _best(many, 20) / 500 * 1e6


def _best(call: Callable[[], Any], trials: int) -> float:
    """Seconds of the fastest."""
    call()
    seconds = []
    for _ in range(trials):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


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
    matrix = row["matrix_gflops"] or ""
    first = [row["threads"], row["fma_gflops"], matrix, row["barrier_ns"], functions]
    lines = []
    for size, rate in row["read"]:
        if size in _SIZES:
            lines.append(report.line(_COLUMNS, [*first, report.size(size), rate]))
            first = [""] * 5
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
