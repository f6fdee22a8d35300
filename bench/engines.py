"""The engines of the backend "cuda" beside each other: `python -m bench gpu --choose`.

Makes the table rnnfast/backends/cuda/choice.json: for each cell, dtype and number of units, up to
how many rows of the batch each engine that runs all steps in one launch is faster than those that
come after it, forward and backward together. Their results are compared before anything is timed.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import rnnfast
from rnnfast.spec import CELLS, Spec

from . import gpu
from .problem import Problem, draw, tolerance
from .shapes import Shape

ENGINES = ("cluster", "grid", "alternating")  # in the order in which they are asked
DTYPES = ("float32", "float64", "float16", "bfloat16")
STEPS = 100


class Sizes(NamedTuple):
    units: Sequence[int]
    rows: Sequence[int]


@contextmanager
def engine(name: str) -> Iterator[None]:
    before = os.environ.get("RNNFAST_CUDA_ENGINE")
    os.environ["RNNFAST_CUDA_ENGINE"] = name
    try:
        yield
    finally:
        del os.environ["RNNFAST_CUDA_ENGINE"]
        if before is not None:
            os.environ["RNNFAST_CUDA_ENGINE"] = before


def calls(problem: Problem) -> dict[str, gpu.Call]:
    """One of each engine that has the layer; the last one has every layer."""
    side = gpu.ours(problem)

    def with_engine(name: str) -> gpu.Call:
        def call() -> Any:
            with engine(name):
                return side.run()

        return call

    made: dict[str, gpu.Call] = {}
    results = {}
    for name in ENGINES:
        try:
            results[name] = side.results(with_engine(name)())
        except rnnfast.UnsupportedError:
            continue
        made[name] = with_engine(name)
    dtype = problem.x.dtype.name
    allowed = 2 * tolerance(problem.shape) * gpu.EPS[dtype] / gpu.EPS["float32"]
    if problem.x.dtype.itemsize == 2:
        allowed = 4 * gpu.EPS[dtype]  # each rounds its results by half an eps
    for name, found in results.items():
        for what, wanted in results[ENGINES[-1]].items():
            error = np.abs(found[what] - wanted).max() / np.abs(wanted).max()
            if not error <= allowed:
                raise AssertionError(f"{problem.shape}: {what} of {name} is off by {error:.2g}")
    return made


def measured(cell: str, dtype: str, sizes: Sizes, budget: float) -> Iterator[dict[str, Any]]:
    """Entries of the table for a cell in a dtype."""
    for units in sizes.units:
        most = dict.fromkeys(ENGINES[:-1], 0)
        for rows in sorted(sizes.rows):
            problem = draw(Spec(cell), Shape("choose", STEPS, rows, units, units), "training")
            times = gpu.timed(calls(gpu.in_dtype(problem, dtype)), budget)
            medians = {name: float(np.median(found)) for name, found in times.items()}
            shown = ", ".join(f"{name} {median:.4g} ms" for name, median in medians.items())
            print(f"{cell} {dtype} H={units} B={rows}: {shown}", flush=True)
            names = list(medians)
            for k, name in enumerate(names[:-1]):
                before = [r for r in sizes.rows if r < rows]
                if medians[name] <= min(medians[n] for n in names[k:]) and most[name] == max(
                    before, default=0
                ):
                    most[name] = rows
        yield {"cell": cell, "dtype": dtype, "units": units, **most, "measured": True}


def _one_call(of: tuple[str, str, Shape]) -> None:
    cell, dtype, shape = of
    side = gpu.ours(gpu.in_dtype(draw(Spec(cell), shape, "training"), dtype))
    for name in ENGINES:
        with engine(name), suppress(rnnfast.UnsupportedError):
            side.run()


def choose(path: Path, sizes: Sizes, budget: float, device: str, processes: int = 1) -> None:
    """Measures the table and writes it; first so many processes compile what it needs."""
    if processes > 1:
        shapes = [Shape("choose", STEPS, b, h, h) for h in sizes.units for b in sizes.rows]
        gpu.in_processes(_one_call, list(itertools.product(CELLS, DTYPES, shapes)), processes)
    entries: list[dict[str, Any]] = []
    for cell, dtype in itertools.product(CELLS, DTYPES):
        entries += measured(cell, dtype, sizes, budget)
        table = {
            "measured": device,
            "note": f"By `python -m bench gpu --choose`, {STEPS} steps, forward and backward.",
            "most_rows": entries,
        }
        path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(f"saved in {path}; the table in use is rnnfast/backends/cuda/choice.json")
