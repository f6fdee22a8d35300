"""The backend numba beside native and torch.nn, and what its first calls cost."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from . import peers, report, shapes
from .problem import CELLS, MODES, Mode, draw
from .rows import Row, checked, timed
from .shapes import Shape
from .suite import Suite
from .table import shape_name

NAMES = ("lstm", "gru", "gru-before", "rnn", "gated")
OURS, NATIVE, TORCH = "numba", "native", "torch"
_COLUMNS = {
    "threads": 7,
    "mode": 8,
    "cell": 10,
    "T,B,I,H": 24,
    "numba ms": 10,
    "native ms": 10,
    "torch ms": 10,
    "numba / native": 15,
    "torch / numba": 14,
    "": 20,
}
_FIRST = """
import json, sys, time
import numpy as np
found = {}
def lap(name, since):
    found[name] = time.perf_counter() - since
begin = time.perf_counter()
import rnnfast
lap("import rnnfast", begin)
begin = time.perf_counter()
import numba
lap("import numba", begin)
begin = time.perf_counter()
rnnfast.pack(rnnfast.init_weights("rnn", 1, 1, rng=0), cell="rnn", backend="numba")
lap("import backend", begin)
weights, x = rnnfast.init_weights("lstm", 16, 32, rng=0), np.ones((5, 2, 16), np.float32)
begin = time.perf_counter()
rnnfast.lstm(x, weights, backend="numba")
lap("first forward", begin)
begin = time.perf_counter()
y, _, backward = rnnfast.lstm_vjp(x, weights, backend="numba")
backward(y)
lap("first training", begin)
print(json.dumps(found))
"""


def first_calls() -> list[Row]:
    """Seconds in two fresh processes, of which the second finds what the first compiled."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for cache in ("empty", "filled"):
            done = subprocess.run(
                [sys.executable, "-c", _FIRST],
                cwd=report.ROOT,
                env={**os.environ, "NUMBA_CACHE_DIR": folder},
                capture_output=True,
                text=True,
                check=True,
            )
            rows.append({"cache": cache, "seconds": json.loads(done.stdout)})
    return rows


def measured(name: str, shape: Shape, mode: Mode, threads: int, budget: float) -> Row:
    problem = draw(CELLS[name], shape, mode)
    packed = shape.T == 1 and mode == "forward"
    contenders: dict[str, peers.Peer] = {}
    for backend in (OURS, NATIVE):
        own = peers.RnnfastPacked() if packed else peers.Rnnfast()
        own.backend = backend
        contenders[backend] = own
    contenders[TORCH] = peers.Torch()
    calls, failed = {}, {}
    for key, peer in contenders.items():
        if not peer.supports(problem.spec, shape, mode) or peers.missing(peer):
            continue
        outcome = checked(peer, problem, threads)
        if isinstance(outcome, str):
            failed[key] = outcome
        else:
            calls[key] = outcome
    timings, load = timed({} if OURS in failed else calls, budget)
    ratios = {}
    if NATIVE in timings:
        ratios["numba / native"] = timings[OURS].over(timings[NATIVE])._asdict()
    if TORCH in timings:
        ratios["torch / numba"] = timings[TORCH].over(timings[OURS])._asdict()
    return {
        "threads": threads,
        "mode": mode,
        "cell": name,
        "shape": dataclasses.asdict(shape),
        "name": str(shape),
        **load,
        "failed": failed,
        "times_ms": {key: t.milliseconds()._asdict() for key, t in timings.items()},
        "ratios": ratios,
    }


def _arguments(add: Any) -> None:
    add("--cells", nargs="+", choices=NAMES, default=["lstm", "gru", "rnn"])
    add("--shapes", nargs="+", type=shape_name, metavar="SHAPE", help="as of python -m bench table")
    add("--modes", nargs="+", choices=MODES, default=MODES)


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    if importlib.util.find_spec("numba") is None:
        return
    if options.worker == options.threads[0]:
        yield from first_calls()
    for name in options.cells:
        for shape in shapes.select(options.shapes or ["quick" if options.quick else "table"]):
            for mode in options.modes:
                if not shape.ragged:
                    yield measured(name, shape, mode, options.worker, options.budget)


def _header() -> list[str]:
    found = importlib.util.find_spec("numba") is not None
    missing = ["nothing to measure: numba is not installed"]
    return [*([] if found else missing), *report.header(_COLUMNS)]


def _lines(row: Row) -> list[str]:
    if "cache" in row:
        seconds = ", ".join(f"{name} {s:.2f} s" for name, s in row["seconds"].items())
        return [f"cache {row['cache']}: {seconds}"]
    where = [row["threads"], row["mode"], row["cell"], row["name"]]
    lines = [
        f"{report.line(_COLUMNS, where)} {name} FAILED: {reason}"
        for name, reason in row["failed"].items()
    ]
    times = row["times_ms"]
    if OURS not in times:
        return lines
    cells = [f"{times[k]['median']:.4g}" if k in times else "" for k in (OURS, NATIVE, TORCH)]
    ratios = [row["ratios"].get(name) for name in ("numba / native", "torch / numba")]
    cells += ["" if r is None else f"{r['median']:.3g}" for r in ratios]
    return [*lines, report.line(_COLUMNS, [*where, *cells, "LOADED" * row["loaded"]])]


def _summary(rows: list[Row]) -> list[str]:
    return ["\nFirst calls are those of a fresh process; one step of one row has packed weights."]


main = Suite(
    name="numba",
    about=__doc__,
    rows=_rows,
    header=_header,
    lines=_lines,
    arguments=_arguments,
    summary=_summary,
    budget=2.0,
).main
