"""Peak memory and time of one training step over a long sequence, each in a process of its own.

Memory is what the process uses at most during its first full step, above what it used before,
when its inputs, weights and libraries were there and a short step had warmed everything up.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import rnnfast

from . import report
from .load import Load, is_loaded
from .peers import Torch
from .problem import CELLS, Array, Problem, draw, flat
from .rows import Row
from .shapes import Shape
from .suite import Suite

CASES = (
    ("lstm", Shape("long", 10_000, 4, 256, 256)),
    ("gru", Shape("long", 10_000, 4, 256, 256)),
    ("lstm", Shape("long", 10_000, 4, 256, 256, L=2)),
    ("gru", Shape("long", 10_000, 4, 256, 256, L=2)),
)
_QUICK = [(cell, Shape("long", 500, 4, 64, 64, L=shape.L)) for cell, shape in CASES]
CHUNK = 100  # steps between two states that are kept
WARM_UP = 20  # steps of the short step before
_SAME = 1e-3  # relative difference of the sizes of two gradients
_COLUMNS = {
    "threads": 7,
    "cell": 5,
    "T,B,I,H": 21,
    "way": 24,
    "peak MB": 9,
    "numbers a row and step": 22,
    "seconds": 8,
    "": 8,
}

# Of (problem, x, dy): runs a training step and returns dx and the gradients of the weights.
_Step = Callable[[Array, Array], list[Array]]


def _ours(problem: Problem, **how: Any) -> _Step:
    function = getattr(rnnfast, f"{problem.spec.cell}_vjp")

    def step(x: Array, dy: Array) -> list[Array]:
        _, _, backward = function(x, problem.weights, **how)
        dx, dweights, _ = backward(dy)
        return [dx, *flat(dweights)]

    return step


def _torch(problem: Problem, chunk: int | None = None) -> _Step:
    """The module as it is, or checkpointed by hand over chunks of the sequence."""
    import torch
    from torch.utils.checkpoint import checkpoint

    module, parameters = Torch().module(problem)

    def in_chunks(x: Any) -> Any:
        ys, state = [], None
        for part in x.split(chunk):
            y, state = checkpoint(module, part, state, use_reentrant=False)
            ys.append(y)
        return torch.cat(ys)

    def step(x: Array, dy: Array) -> list[Array]:
        source = torch.from_numpy(x).requires_grad_()
        y = in_chunks(source) if chunk else module(source)[0]
        gradients = torch.autograd.grad(y, [source, *parameters], torch.from_numpy(dy))
        return [gradient.numpy() for gradient in gradients]

    return step


WAYS: dict[str, Callable[[Problem], _Step]] = {
    "rnnfast": lambda problem: _ours(problem),
    "rnnfast save=recompute": lambda problem: _ours(problem, save="recompute"),
    f"rnnfast checkpoint={CHUNK}": lambda problem: _ours(problem, checkpoint=CHUNK),
    "torch": lambda problem: _torch(problem),
    f"torch checkpoint {CHUNK}": lambda problem: _torch(problem, CHUNK),
}


def alone(cell: str, shape: Shape, way: str, budget: float) -> dict[str, Any]:
    """Measure one way; to be called in a new process."""
    problem = draw(CELLS[cell], shape, "training")
    step = WAYS[way](problem)
    step(problem.x[:WARM_UP], problem.dy[:WARM_UP])
    start = _reset_peak()
    began = time.perf_counter()
    gradients = step(problem.x, problem.dy)
    seconds = [time.perf_counter() - began]
    peak = _peak() - start
    sizes = [float(np.sqrt(np.mean(g.astype(np.float64) ** 2))) for g in gradients]
    del gradients
    while sum(seconds) < budget:
        began = time.perf_counter()
        step(problem.x, problem.dy)
        seconds.append(time.perf_counter() - began)
    return {"peak_bytes": peak, "seconds": median(seconds), "steps": len(seconds), "sizes": sizes}


def _reset_peak() -> int:
    """Bytes in use now, from where the peak is counted."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return _peak()  # the highest until now: what the inputs took, nearly


def _peak() -> int:
    try:
        return _status("VmHWM")
    except OSError:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else used * 1024


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    for cell, shape in _QUICK if options.quick else CASES:
        if cell not in options.cells:
            continue
        reference = None
        for way in WAYS:
            load = Load()
            row = _spawn(cell, shape, way, options.budget)
            others = load.others()
            if "sizes" in row:
                reference = reference or row["sizes"]
                if not np.allclose(row["sizes"], reference, rtol=_SAME):
                    row["failed"] = {way: f"gradients of sizes {row['sizes']}, not {reference}"}
                del row["sizes"]
            yield {
                "threads": options.worker,
                "cell": cell,
                "shape": asdict(shape),
                "name": str(shape),
                "way": way,
                "other_cores": others,
                "loaded": is_loaded(others),
                **row,
            }


def _spawn(cell: str, shape: Shape, way: str, budget: float) -> Row:
    arguments = json.dumps([cell, asdict(shape), way, budget])
    code = (
        "import json, sys; from bench import memory; from bench.shapes import Shape; "
        "cell, shape, way, budget = json.loads(sys.argv[1]); "
        "print(json.dumps(memory.alone(cell, Shape(**shape), way, budget)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, arguments],
        cwd=report.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        measured: Row = json.loads(done.stdout)
        return measured
    reason = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    return {"failed": {way: reason}}


def numbers(row: Row) -> float:
    """Numbers (of 4 bytes) at the peak for each row, step, layer and hidden unit."""
    shape = row["shape"]
    units = shape["T"] * shape["B"] * shape["H"] * shape["L"]
    return float(row["peak_bytes"] / (4 * units))


def _arguments(add: Any) -> None:
    add("--cells", nargs="+", choices=("lstm", "gru"), default=["lstm", "gru"])


def _lines(row: Row) -> list[str]:
    where = [row["threads"], row["cell"], row["name"], row["way"]]
    for reason in row.get("failed", {}).values():
        return [f"{report.line(_COLUMNS, where)} {reason}"]
    cells = [
        *where,
        f"{row['peak_bytes'] / 1e6:.1f}",
        f"{numbers(row):.1f} H",
        f"{row['seconds']:.3g}",
        "LOADED" * row["loaded"],
    ]
    return [report.line(_COLUMNS, cells)]


main = Suite(
    name="memory",
    about=__doc__,
    rows=_rows,
    header=lambda: report.header(_COLUMNS),
    lines=_lines,
    arguments=_arguments,
    budget=3.0,
).main
