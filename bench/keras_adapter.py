"""The layers of rnnfast.keras beside Keras' own, on each of Keras' backends, as a table of ratios.

What is timed is what a user of Keras calls: `predict_on_batch` and `train_on_batch` of a compiled
model that is one layer, with a loss and an optimizer whose learning rate is zero.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from statistics import geometric_mean
from typing import Any

import numpy as np

import rnnfast

from . import report, shapes
from .problem import CELLS, draw, tolerance
from .rows import Row, said, timed
from .shapes import Shape
from .suite import Suite
from .table import shape_name

BACKENDS = ("torch", "jax", "tensorflow")
LAYERS = {"lstm": "LSTM", "gru": "GRU", "rnn": "SimpleRNN"}
MODES = ("predict", "train")
OURS, THEIRS = "rnnfast.keras", "keras"
_COLUMNS = {
    "threads": 7,
    "backend": 10,
    "mode": 8,
    "cell": 5,
    "T,B,I,H": 24,
    "keras ms": 10,
    "rnnfast.keras ms": 16,
    "ratio (quartiles)": 20,
    "": 20,
}


def measured(cell: str, shape: Shape, mode: str, threads: int, budget: float) -> Row:
    """Time both layers, in a process whose Keras runs on the backend that is wanted."""
    failed: dict[str, str] = {}
    calls: dict[str, Callable[[], Any]] = {}
    try:
        calls = _calls(cell, shape, mode)
    except Exception as error:
        failed[OURS] = said(error)
    timings, load = timed(calls, budget)
    return {
        "threads": threads,
        "backend": os.environ["KERAS_BACKEND"],
        "mode": mode,
        "cell": cell,
        "shape": dataclasses.asdict(shape),
        "name": str(shape),
        **load,
        "failed": failed,
        "times_ms": {key: t.milliseconds()._asdict() for key, t in timings.items()},
        "ratio": timings[THEIRS].over(timings[OURS])._asdict() if timings else None,
    }


def _calls(cell: str, shape: Shape, mode: str) -> dict[str, Callable[[], Any]]:
    """The calls to time, whose results have been found to agree."""
    import keras

    import rnnfast.keras

    problem = draw(CELLS[cell], shape, "forward")
    x, target = (np.ascontiguousarray(a.swapaxes(0, 1)) for a in (problem.x, problem.dy))
    [arrays] = rnnfast.convert(problem.weights, cell=cell, source="torch", target="keras")
    calls, results = {}, {}
    for name, layers in ((OURS, rnnfast.keras), (THEIRS, keras.layers)):
        layer = getattr(layers, LAYERS[cell])(shape.H, return_sequences=True)
        model = keras.Sequential([keras.Input(x.shape[1:]), layer])
        model.compile(optimizer=keras.optimizers.SGD(0.0), loss="mse")
        layer.set_weights(arrays)
        results[name] = [model.predict_on_batch(x), np.asarray(model.train_on_batch(x, target))]
        train = partial(model.train_on_batch, x, target)
        calls[name] = train if mode == "train" else partial(model.predict_on_batch, x)
    for got, wanted in zip(results[OURS], results[THEIRS], strict=True):
        error = float(np.abs(got - wanted).max() / np.abs(wanted).max())
        if not error <= 2 * tolerance(shape):
            raise ArithmeticError(f"results differ by {error:.2g}")
    return calls


def _arguments(add: Any) -> None:
    add("--backends", nargs="+", choices=BACKENDS, default=_installed())
    add("--cells", nargs="+", choices=tuple(LAYERS), default=tuple(LAYERS))
    add("--shapes", nargs="+", type=shape_name, metavar="SHAPE", help="as of python -m bench table")
    add("--modes", nargs="+", choices=MODES, default=MODES)


def _installed() -> tuple[str, ...]:
    if importlib.util.find_spec("keras") is None:
        return ()
    return tuple(name for name in BACKENDS if importlib.util.find_spec(name) is not None)


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    """Keras' backend is fixed when Keras is imported: a process for each."""
    if [os.environ.get("KERAS_BACKEND")] != list(options.backends):
        for backend in options.backends:
            yield from _elsewhere(backend)
        return
    if hasattr(os, "sched_setaffinity"):  # the pools of XLA and TensorFlow take their size there
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.worker])
    rnnfast.set_num_threads(options.worker)
    for cell in options.cells:
        for shape in shapes.select(options.shapes or ["quick" if options.quick else "table"]):
            if shape.ragged or shape.D > 1 or shape.L > 1:
                continue
            for mode in options.modes:
                yield measured(cell, shape, mode, options.worker, options.budget)


def _elsewhere(backend: str) -> Iterator[Row]:
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "ABSL_MIN_LOG_LEVEL": "3"}
    with subprocess.Popen(
        [sys.executable, "-m", "bench", *sys.argv[1:], "--backends", backend],
        cwd=report.ROOT,
        env={**os.environ, "KERAS_BACKEND": backend, **quiet},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise RuntimeError(f"the process for {backend} ended with {process.returncode}")


def _header() -> list[str]:
    missing = [] if _installed() else ["nothing to measure: Keras or its backends are missing"]
    return [*missing, *report.header(_COLUMNS)]


def _lines(row: Row) -> list[str]:
    where = [row["threads"], row["backend"], row["mode"], row["cell"], row["name"]]
    if row["ratio"] is None:
        return [f"{report.line(_COLUMNS, where)} FAILED: {row['failed'][OURS]}"]
    times = [f"{row['times_ms'][key]['median']:.4g}" for key in (THEIRS, OURS)]
    ratio = row["ratio"]
    notes = ["SLOWER"] * (ratio["median"] < 1) + ["LOADED"] * row["loaded"]
    cells = [*times, "{median:.3g} ({q1:.3g}-{q3:.3g})".format(**ratio), " ".join(notes)]
    return [report.line(_COLUMNS, [*where, *cells])]


def _summary(rows: list[Row]) -> list[str]:
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        if row["ratio"]:
            key = (row["backend"], row["threads"], row["mode"])
            groups.setdefault(key, []).append(row["ratio"]["median"])
    return [
        "",
        *(
            f"{backend}, {threads} threads, {mode}: geometric mean of {len(found)} ratios "
            f"{geometric_mean(found):.3g}, the least {min(found):.3g}"
            for (backend, threads, mode), found in groups.items()
        ),
        "ratio: time of Keras' layer / time of rnnfast's; above 1 rnnfast.keras is faster.",
    ]


main = Suite(
    name="keras",
    about=__doc__,
    rows=_rows,
    header=_header,
    lines=_lines,
    arguments=_arguments,
    summary=_summary,
    budget=6.0,
).main
