"""The layers of rnnfast.torch beside those of torch.nn, and what the adapter adds to a call."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from collections.abc import Iterator
from statistics import geometric_mean
from typing import Any

import rnnfast

from . import peers, report, shapes
from .problem import CELLS, MODES, Mode, Problem, draw
from .rows import Row, checked, timed
from .shapes import Shape
from .suite import Suite
from .table import shape_name

NAMES = ("lstm", "gru", "rnn", "rnn-relu")
OURS, THEIRS, ARRAYS = "rnnfast.torch", "torch", "arrays"
_COLUMNS = {
    "threads": 7,
    "mode": 8,
    "cell": 8,
    "T,B,I,H": 24,
    "torch.nn ms": 11,
    "rnnfast.torch ms": 16,
    "ratio (quartiles)": 20,
    "added us": 8,
    "": 20,
}


class Adapter(peers.Torch):
    """The layers of torch.nn that `peers.Torch` makes, swapped by `replace_`."""

    name = OURS

    def make(self, problem: Problem, threads: int) -> peers.Contender:
        rnnfast.set_num_threads(threads)
        return super().make(problem, threads)

    def module(self, problem: Problem) -> tuple[Any, list[Any]]:
        import rnnfast.torch

        module, parameters = super().module(problem)
        swapped = rnnfast.torch.replace_(module)
        assert swapped == 1
        return module, parameters


def measured(name: str, shape: Shape, mode: Mode, threads: int, budget: float) -> Row:
    """Time the adapter, torch.nn, and rnnfast on arrays, with weights packed for inference."""
    problem = draw(CELLS[name], shape, mode)
    arrays = peers.RnnfastPacked() if mode == "forward" else peers.Rnnfast()
    calls, failed = {}, {}
    for key, peer in ((OURS, Adapter()), (THEIRS, peers.Torch()), (ARRAYS, arrays)):
        outcome = checked(peer, problem, threads)
        if isinstance(outcome, str):
            failed[key] = outcome
        else:
            calls[key] = outcome
    timings, load = timed({} if failed else calls, budget)
    return {
        "threads": threads,
        "mode": mode,
        "cell": name,
        "shape": dataclasses.asdict(shape),
        "name": str(shape),
        **load,
        "failed": failed,
        "times_ms": {key: t.milliseconds()._asdict() for key, t in timings.items()},
        "ratio": timings[THEIRS].over(timings[OURS])._asdict() if timings else None,
    }


def added(row: Row) -> float:
    """Microseconds of a call through the adapter beyond those of the same call on arrays."""
    times = row["times_ms"]
    return float(1e3 * (times[OURS]["median"] - times[ARRAYS]["median"]))


def _arguments(add: Any) -> None:
    add("--cells", nargs="+", choices=NAMES, default=NAMES[:3])
    add("--shapes", nargs="+", type=shape_name, metavar="SHAPE", help="as of python -m bench table")
    add("--modes", nargs="+", choices=MODES, default=MODES)


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    if importlib.util.find_spec("torch") is None:
        return
    for name in options.cells:
        for shape in shapes.select(options.shapes or ["quick" if options.quick else "table"]):
            for mode in options.modes:
                if not shape.ragged:
                    yield measured(name, shape, mode, options.worker, options.budget)


def _header() -> list[str]:
    missing = ["nothing to measure: torch is not installed"]
    found = importlib.util.find_spec("torch") is not None
    return [*([] if found else missing), *report.header(_COLUMNS)]


def _lines(row: Row) -> list[str]:
    where = [row["threads"], row["mode"], row["cell"], row["name"]]
    lines = [
        f"{report.line(_COLUMNS, where)} {name} FAILED: {reason}"
        for name, reason in row["failed"].items()
    ]
    if row["ratio"] is None:
        return lines
    times = [f"{row['times_ms'][key]['median']:.4g}" for key in (THEIRS, OURS)]
    ratio = row["ratio"]
    notes = ["SLOWER"] * (ratio["median"] < 1) + ["LOADED"] * row["loaded"]
    cells = [*times, "{median:.3g} ({q1:.3g}-{q3:.3g})".format(**ratio), f"{added(row):.1f}"]
    return [*lines, report.line(_COLUMNS, [*where, *cells, " ".join(notes)])]


def _summary(rows: list[Row]) -> list[str]:
    lines = [""]
    for threads, mode in sorted({(row["threads"], row["mode"]) for row in rows}):
        found = [
            row["ratio"]["median"]
            for row in rows
            if (row["threads"], row["mode"]) == (threads, mode) and row["ratio"]
        ]
        if found:
            lines.append(
                f"{threads} threads, {mode}: geometric mean of {len(found)} ratios "
                f"{geometric_mean(found):.3g}, the least {min(found):.3g}"
            )
    return [
        *lines,
        "ratio: time of torch.nn / time of rnnfast.torch. added: what a call takes beyond "
        "rnnfast on arrays, whose weights are packed for inference; means something where calls "
        "are short.",
    ]


main = Suite(
    name="torch",
    about=__doc__,
    rows=_rows,
    header=_header,
    lines=_lines,
    arguments=_arguments,
    summary=_summary,
    budget=6.0,
    label="torch",
).main
