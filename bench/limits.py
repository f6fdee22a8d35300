"""What the machine can do at most: float32 arithmetic, bandwidth of each cache, barriers."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import report
from .load import Load, is_loaded
from .rows import Row
from .shapes import Shape
from .suite import Suite

_COLUMNS = {"threads": 7, "FMA GF/s": 8, "barrier ns": 10, "working set": 11, "GB/s": 6}
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

    def share_of_flops(self, threads: int, work: float, seconds: float) -> float:
        return work / seconds / self.flops(threads)

    def share_of_bandwidth(
        self, threads: int, traffic: float, size: float, seconds: float
    ) -> float:
        return traffic / seconds / self.bandwidth(threads, size)


def flops(gates: int, shape: Shape, mode: str) -> float:
    """Operations of the products with w_ih and w_hh; training has three for each of forward."""
    inputs = shape.I
    total = 0
    for _ in range(shape.L):
        total += gates * shape.H * (inputs + shape.H) * shape.D
        inputs = shape.D * shape.H
    valid = (1 + shape.T) / 2 if shape.ragged else shape.T
    return 2.0 * valid * shape.B * total * (3 if mode == "training" else 1)


def recurrent_bytes(gates: int, shape: Shape) -> int:
    """The size of w_hh in float32, of one layer and direction."""
    return 4 * gates * shape.H**2


def traffic(gates: int, shape: Shape, mode: str) -> float:
    """Bytes of weights that must be read: w_hh at every step, w_ih once; training twice that."""
    steps = shape.T * recurrent_bytes(gates, shape) + 4 * gates * shape.H * shape.I
    return float(steps * shape.L * shape.D * (2 if mode == "training" else 1))


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
    others = load.others()
    yield {
        "threads": options.worker,
        **json.loads(done.stdout),
        "other_cores": others,
        "loaded": is_loaded(others),
    }


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
    first = [row["threads"], row["fma_gflops"], row["barrier_ns"]]
    lines = []
    for size, rate in row["read"]:
        if size in _SIZES:
            lines.append(report.line(_COLUMNS, [*first, report.size(size), rate]))
            first = ["", "", ""]
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
