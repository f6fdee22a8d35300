"""rnnfast on CuPy arrays beside torch.nn.LSTM, GRU and RNN (cuDNN), timed by events of the device.

Float32 without TF32, float16 and bfloat16. Both libraries work on the null stream, in turns, in
shuffled order. Results are compared with those in float64 of the same numbers (of the NumPy
reference, or of the native backend) before anything is timed: all of them for small shapes, else y
and dx of the first rows, which do not depend on the others.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import rnnfast

from . import report
from .problem import (
    CELLS,
    MODES,
    Array,
    Mode,
    Problem,
    draw,
    flat,
    named,
    options,
    tolerance,
    truth,
)
from .shapes import Shape
from .timing import Spread

STEPS, ROWS, UNITS = (1, 100, 1000), (1, 8, 64, 256), (64, 128, 256, 512, 1024, 2048)
QUICK = [Shape("quick", T, B, H, H) for T in (1, 20) for B in (1, 8) for H in (64, 128)]
_CHECKED_ROWS = 2  # of a large shape
_LARGE = 2e9  # multiply-adds in one forward pass
_BLOCK = 0.02  # seconds that the launches of a block take, about
DTYPES = ("float32", "float16", "bfloat16")
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# Of 16 bits, the relative error that a result may have, in eps: half of one is that of rounding it.
# cuDNN rounds the state at each step, too.
_NARROW_ERROR = 8
_COLUMNS = {
    "dtype": 9,
    "mode": 8,
    "cell": 5,
    "T,B,I,H": 18,
    "torch ms": 10,
    "rnnfast ms": 10,
    "ratio": 7,
    "": 8,
}

Call = Callable[[], Any]


class Side(NamedTuple):
    """One library at work on one problem."""

    run: Call
    results: Callable[[Any], dict[str, Array]]  # of what `run` returned, in CPU memory


def in_dtype(problem: Problem, dtype: str) -> Problem:
    """The problem with its numbers rounded to this dtype; bfloat16 is that of ml_dtypes."""
    if dtype == "bfloat16":
        import ml_dtypes  # noqa: F401  NumPy then knows the name

    weights = [
        rnnfast.Weights(*(None if a is None else a.astype(dtype) for a in w))
        for w in problem.weights
    ]
    states = problem.states and tuple(s.astype(dtype) for s in problem.states)
    x, dy = problem.x.astype(dtype), problem.dy.astype(dtype)
    return replace(problem, x=x, dy=dy, weights=weights, states=states)


def ours(problem: Problem) -> Side:
    import cupy

    function = getattr(rnnfast, problem.spec.cell + "_vjp" * (problem.mode == "training"))
    x, dy = cupy.asarray(problem.x), cupy.asarray(problem.dy)
    weights = [
        rnnfast.Weights(*(None if a is None else cupy.asarray(a) for a in w))
        for w in problem.weights
    ]
    states = problem.states and tuple(map(cupy.asarray, problem.states))
    state = states[0] if states and len(states) == 1 else states
    how = options(problem.spec)
    if problem.mode == "forward":  # prepared once, as torch's modules lay out theirs
        packed = rnnfast.pack(weights, cell=problem.spec.cell, **how)

    def run() -> Any:
        if problem.mode == "forward":
            return function(x, packed, state, **how)
        y, state_n, backward = function(x, weights, state, **how)
        return y, state_n, backward(dy)

    def results(got: Any) -> dict[str, Array]:
        y, state_n, *gradients = got
        found = [gradients[0][0], *flat(gradients[0][1])] if gradients else []
        states_n = state_n if isinstance(state_n, tuple) else (state_n,)
        y, *rest = (_wide(a.get()) for a in (y, *states_n, *found))
        return named(y, tuple(rest[: len(states_n)]), rest[len(states_n) :])

    return Side(run, results)


def _wide(a: Array) -> Array:
    """16 bits as float32."""
    return a.astype(np.float32) if a.dtype.itemsize == 2 else a


def cudnn(problem: Problem) -> Side:
    import torch

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    spec, shape = problem.spec, problem.shape
    how = {"nonlinearity": spec.nonlinearity} if spec.cell == "rnn" else {}
    dtype = getattr(torch, problem.x.dtype.name)

    def there(a: Array) -> Any:
        return torch.from_numpy(_wide(a)).to("cuda", dtype)

    module = getattr(torch.nn, spec.cell.upper())(shape.I, shape.H, **how).to("cuda", dtype)
    module.train(problem.mode == "training")  # cuDNN's forward pass of training keeps more
    parameters = list(module.parameters())
    with torch.no_grad():
        for parameter, array in zip(parameters, flat(problem.weights), strict=True):
            parameter.copy_(there(array))
    x, dy = there(problem.x), there(problem.dy)
    states = [there(s) for s in problem.states or ()]
    state = tuple(states) if len(states) > 1 else states[0] if states else None
    inputs = [t.requires_grad_() for t in (x, *parameters)] if problem.mode == "training" else []

    def run() -> Any:
        if problem.mode == "forward":
            with torch.no_grad():
                return module(x, state)
        y, state_n = module(x, state)
        return y, state_n, *torch.autograd.grad(y, inputs, dy)

    def results(got: Any) -> dict[str, Array]:
        y, state_n, *gradients = got
        states_n = state_n if isinstance(state_n, tuple) else (state_n,)
        on_host = [t.detach().float().cpu().numpy() for t in (y, *states_n, *gradients)]
        count = len(states_n)
        return named(on_host[0], tuple(on_host[1 : 1 + count]), on_host[1 + count :])

    return Side(run, results)


def wrong(problem: Problem, got: dict[str, Array]) -> dict[str, float]:
    """The errors of the results that are further off than rounding explains."""
    shape, wanted = problem.shape, _truth(problem)
    rows = wanted["y"].shape[1]
    found = {}
    for name, true in wanted.items():
        if rows < shape.B and name not in ("y", "dx"):
            continue
        array = got[name][:, :rows] if rows < shape.B else got[name]
        scale = np.abs(true).max(initial=np.finfo(np.float64).tiny)
        error = float(np.abs(array - true).max() / scale) if array.shape == true.shape else np.inf
        if not error <= _allowed(problem):
            found[name] = error
    return found


def _allowed(problem: Problem) -> float:
    dtype = problem.x.dtype.name
    return tolerance(problem.shape) if dtype == "float32" else _NARROW_ERROR * EPS[dtype]


def _truth(problem: Problem) -> dict[str, Array]:
    """Of all rows of a small problem, else of the first."""
    shape = problem.shape
    gates = len(problem.spec.info.gates)
    small = shape.T * shape.B * gates * shape.H * (shape.I + shape.H) < _LARGE
    if small and problem.x.dtype == np.float32:
        return truth(problem.spec, shape, problem.mode)
    rows = slice(None) if small else slice(min(shape.B, _CHECKED_ROWS))

    def double(a: Array) -> Array:
        return a.astype(np.float64)

    weights = [rnnfast.Weights(*map(double, w[:4])) for w in problem.weights]
    states = problem.states and tuple(double(s[:, rows]) for s in problem.states)
    part = replace(problem, states=states)
    how = {**options(problem.spec), "backend": "native"}
    x, dy = double(problem.x[:, rows]), double(problem.dy[:, rows])
    function = getattr(rnnfast, problem.spec.cell + "_vjp")
    y, state_n, backward = function(x, weights, part.state, **how)
    if problem.mode == "forward":
        return named(y, state_n) if small else {"y": y}
    dx, dweights, _ = backward(dy)
    return named(y, state_n, [dx, *flat(dweights)]) if small else {"y": y, "dx": dx}


def milliseconds(run: Call, repeats: int) -> float:
    """Of a call, between two events of the device."""
    import cupy

    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    run()
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(start, end)) / repeats


def timed(calls: dict[str, Call], budget: float) -> dict[str, list[float]]:
    """Milliseconds of each round, for about `budget` seconds and at least three rounds."""
    end = time.perf_counter() + budget
    repeats = {}
    for name, call in calls.items():
        for _ in range(12):  # graphs are captured where pointers come again
            call()
        repeats[name] = max(1, min(1000, round(_BLOCK * 1e3 / milliseconds(call, 3))))
    found: dict[str, list[float]] = {name: [] for name in calls}
    order, rng = list(calls), random.Random(0)
    while time.perf_counter() < end or len(found[order[0]]) < 3:
        rng.shuffle(order)
        for name in order:
            found[name].append(milliseconds(calls[name], repeats[name]))
    return found


def measured(cell: str, dtype: str, shape: Shape, mode: Mode, budget: float) -> dict[str, Any]:
    problem = in_dtype(draw(CELLS[cell], shape, mode), dtype)
    row: dict[str, Any] = {"cell": cell, "dtype": dtype, "mode": mode}
    row |= {"shape": asdict(shape), "name": str(shape)}
    sides = {"rnnfast": ours(problem), "torch": cudnn(problem)}
    row["failed"] = {}
    for name, side in sides.items():
        errors = wrong(problem, side.results(side.run()))
        if errors:
            row["failed"][name] = errors
    times = timed({k: s.run for k, s in sides.items() if k not in row["failed"]}, budget)
    row["times_ms"] = {name: Spread.of(values)._asdict() for name, values in times.items()}
    if len(times) == 2:
        ratios = np.divide(times["torch"], times["rnnfast"])
        row["ratio"] = Spread.of(ratios)._asdict()
    return row


def _one_call(of: tuple[str, str, Shape, Mode]) -> None:
    cell, dtype, shape, mode = of
    ours(in_dtype(draw(CELLS[cell], shape, mode), dtype)).run()


def in_processes(one_call: Callable[[Any], None], of: list[Any], processes: int) -> None:
    """Each call once, in so many processes: CuPy keeps on disk what is compiled for them.

    Kernels for all steps are compiled for the sizes of a layer, in some tenths of a second each.
    """
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for _ in pool.map(one_call, of):
            pass


def _device_name() -> str:
    import cupy

    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"]
    return str(name.decode())


def device() -> dict[str, Any]:
    """What the numbers are of."""
    import cupy
    import torch

    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return {
        "device": _device_name(),
        "multiprocessors": properties["multiProcessorCount"],
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "runtime": cupy.cuda.runtime.runtimeGetVersion(),
        "cupy": cupy.__version__,
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
    }


def _line(row: dict[str, Any]) -> str:
    times = row["times_ms"]
    shown = [f"{times[k]['median']:.4g}" if k in times else "" for k in ("torch", "rnnfast")]
    ratio = f"{row['ratio']['median']:.2f}" if "ratio" in row else ""
    note = f"FAILED {row['failed']}" if row["failed"] else ""
    return report.line(
        _COLUMNS, [row[k] for k in ("dtype", "mode", "cell", "name")] + [*shown, ratio, note]
    )


def _shapes(given: argparse.Namespace) -> Iterator[Shape]:
    if given.quick:
        yield from QUICK
        return
    for T, B, H in itertools.product(given.steps, given.rows, given.units):
        yield Shape("gpu", T, B, H, H)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m bench gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cells", nargs="+", choices=("lstm", "gru", "rnn"), default=None)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS, metavar="T")
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, metavar="B")
    parser.add_argument("--units", nargs="+", type=int, default=UNITS, metavar="H")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds for a row")
    parser.add_argument("--quick", action="store_true", help="a few small shapes")
    parser.add_argument(
        "--processes", type=int, default=1, help="that compile all kernels first, if more than 1"
    )
    parser.add_argument("--json", type=Path, help="where the rows go")
    parser.add_argument(
        "--choose", action="store_true", help="measure rnnfast's own three engines for choice.json"
    )
    given = parser.parse_args(argv)
    reason = rnnfast.backends()["cuda"]
    if reason is not None:
        print(f"no GPU is measured: {reason}")
        return 1
    folder = Path(tempfile.gettempdir()) if given.quick else report.RESULTS
    path = given.json or report.default_path("gpu", folder)
    if given.choose:
        from . import engines

        sizes = engines.Sizes(given.units, given.rows)
        engines.choose(path, sizes, given.budget, _device_name(), given.processes)
        return 0
    rows: list[dict[str, Any]] = []
    of_rows = list(
        itertools.product(
            given.cells or ("lstm", "gru", "rnn"), given.dtypes, _shapes(given), given.modes
        )
    )
    if given.processes > 1:
        in_processes(_one_call, of_rows, given.processes)
    print(*report.header(_COLUMNS), sep="\n", flush=True)
    for cell, dtype, shape, mode in of_rows:
        rows.append(measured(cell, dtype, shape, mode, given.budget))
        print(_line(rows[-1]), flush=True)
        document = {**report.document(rows, {"argv": argv}), "gpu": device()}
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"saved in {path}")
    return int(any(row["failed"] for row in rows))
