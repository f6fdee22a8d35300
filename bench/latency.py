"""One step of one row with packed weights, called from Python and carrying the state."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import rnnfast

from . import report
from .problem import CELLS, Array, Problem, draw, options
from .rows import Row, said, timed
from .shapes import Shape
from .streams import OURS, THEIRS, Stream
from .suite import Suite
from .timing import Call

SIZES = (16, 32, 64, 128, 256, 512, 1024)
PEERS = {
    "torch": ("torch",),
    "onnxruntime": ("onnxruntime", "onnxruntime-bound"),
    "numba": ("numba",),
}
_TIMED = ("rnnfast-out", "rnnfast-stream", "rnnfast")
_STEPS = 5  # that are compared with the reference
_TOLERANCE = 2e-5  # of h, whose numbers are below 1
_COLUMNS = {
    "threads": 7,
    "cell": 5,
    "H": 5,
    "kernel us": 9,
    "out=": 14,
    "Stream": 14,
    "plain call": 14,
    "torch": 14,
    "onnxruntime": 14,
    "numba": 14,
    "ratio torch": 11,
    "onnx": 6,
    "numba ": 6,
    "": 8,
}


def measured(cell: str, size: int, threads: int, budget: float) -> Row:
    problem = draw(CELLS[cell], Shape("streaming", 1, 1, size, size), "forward")
    streams: dict[str, Stream] = {}
    failed: dict[str, str] = {}
    absent: dict[str, str] = {}
    for name, make in (OURS | THEIRS).items():
        try:
            stream = _checked(make, problem, threads)
        except ImportError as error:
            absent[name] = str(error)
        except Exception as error:
            failed[name] = said(error)
        else:
            streams[name] = stream
    calls: dict[str, Call] = {name: stream.step for name, stream in streams.items()}
    calls["nothing"] = lambda: None  # what reading the clock costs
    timings, load = timed(calls if "rnnfast" in calls else {}, budget)
    ours = [name for name in OURS if name in timings and name != "kernel"]
    return {
        "threads": threads,
        "cell": cell,
        "H": size,
        **load,
        "failed": failed,
        "absent": absent,
        "times_us": {
            name: {
                **{k: v * 1e3 for k, v in t.milliseconds()._asdict().items()},
                "p99": t.milliseconds_at(0.99) * 1e3,
                "calls": t.calls(),
            }
            for name, t in timings.items()
        },
        "ratios": {
            name: {own: timings[name].over(timings[own])._asdict() for own in ours}
            for name in THEIRS
            if name in timings
        },
    }


def _checked(make: Callable[[Problem, int], Stream], problem: Problem, threads: int) -> Stream:
    """The stream, if its first steps agree with the reference in float64."""
    stream = make(problem, threads)
    for _ in range(_STEPS):
        stream.step()
    error = float(np.abs(stream.h() - _truth(problem)).max())
    if not error <= _TOLERANCE:
        raise ArithmeticError(f"error of h {error:.2g}, above {_TOLERANCE:.2g}")
    return stream


def _truth(problem: Problem) -> Array:
    x = np.repeat(problem.x.astype(np.float64), _STEPS, axis=0)
    weights = rnnfast.Weights(*(a.astype(np.float64) for a in problem.weights[0][:4]))
    how = {**options(problem.spec), "backend": "reference"}
    y, _ = getattr(rnnfast, problem.spec.cell)(x, weights, **how)
    last: Array = y[-1, 0]
    return last


def best(row: Row, peer: str) -> str | None:
    """The faster of the ways in which a peer was called, by median."""
    found = [name for name in PEERS[peer] if name in row["times_us"]]
    return min(found, key=lambda name: row["times_us"][name]["median"], default=None)


def ratio(row: Row, peer: str) -> float | None:
    """The peer's time / rnnfast's, its better way against ours: with out= if there is that."""
    name = best(row, peer)
    if name is None:
        return None
    ratios = row["ratios"][name]
    return float(ratios.get("rnnfast-out", ratios["rnnfast"])["median"])


def _arguments(add: Any) -> None:
    add("--cells", nargs="+", choices=("lstm", "gru", "rnn"), default=["lstm", "gru", "rnn"])
    add("--sizes", nargs="+", type=int, metavar="H", help=f"default: {SIZES}")


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    for cell in options.cells:
        for size in options.sizes or (SIZES[:3] if options.quick else SIZES):
            yield measured(cell, size, options.worker, options.budget)


def _lines(row: Row) -> list[str]:
    times = row["times_us"]
    where = [row["threads"], row["cell"], row["H"]]
    lines = [
        f"{report.line(_COLUMNS, where)} {name}: {reason}"
        for name, reason in (row["failed"] | row["absent"]).items()
    ]
    if not times:
        return lines

    def both(name: str | None) -> str:
        return "{median:.2f} ({p99:.1f})".format(**times[name]) if name in times else ""

    ratios = (ratio(row, peer) for peer in PEERS)
    cells = [
        *where,
        f"{times['kernel']['median']:.2f}" if "kernel" in times else "",
        *(both(name) for name in (*_TIMED, *(best(row, p) for p in PEERS))),
        *("" if r is None else f"{r:.2f}" for r in ratios),
        "LOADED" * row["loaded"],
    ]
    return [*lines, report.line(_COLUMNS, cells)]


def _summary(rows: list[Row]) -> list[str]:
    return [
        "\nmicroseconds a call: median (99th percentile), reading the clock included; "
        "ratio: time of the peer / time with out=, or of the plain call where that is missing."
    ]


main = Suite(
    name="latency",
    about=__doc__,
    rows=_rows,
    header=lambda: report.header(_COLUMNS),
    lines=_lines,
    arguments=_arguments,
    summary=_summary,
    budget=3.0,
).main
