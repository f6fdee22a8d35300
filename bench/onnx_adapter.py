"""rnnfast.onnx in onnx's evaluator beside ONNX Runtime, and what the way through it costs.

A model has one node, whose weights are initialisers: both pack them before the timed calls. The
evaluator's call is a user's, `evaluator.run(None, feeds)`; ONNX Runtime's is the faster of
`session.run(None, feeds)` and one with bound inputs and outputs. Beside them: rnnfast's own packed
call, and the evaluator on a model of one Identity, which is what it costs without us.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from statistics import geometric_mean
from typing import Any

import numpy as np

import rnnfast
from rnnfast.spec import Spec

from . import peers, report, shapes
from .problem import CELLS, Array, Mode, Problem, draw, named
from .rows import Row, checked, timed
from .shapes import Shape
from .suite import Suite
from .table import shape_name

_ONNX_CELLS = ("lstm", "gru", "gru-before", "rnn")
_COLUMNS = {
    "threads": 7,
    "cell": 10,
    "T,B,I,H": 18,
    "onnxruntime us": 14,
    "evaluator us": 12,
    "ratio (quartiles)": 20,
    "rnnfast us": 10,
    "above us": 8,
    "empty us": 8,
    "": 8,
}


def _feeds(problem: Problem) -> dict[str, Array]:
    """Inputs of `peers.onnx_model`."""
    return {"x": problem.x, **dict(zip("hc", problem.states or (), strict=False))}


def _results(problem: Problem, got: Any) -> dict[str, Array]:
    y, *states = got
    steps, directions, batch, hidden = y.shape
    return named(y.transpose(0, 2, 1, 3).reshape(steps, batch, directions * hidden), tuple(states))


class _Evaluator(peers.Peer):
    """onnx's ReferenceEvaluator with our operators."""

    name = "evaluator"
    needs = ("onnx",)
    prepacked = True

    def supports(self, spec: Spec, shape: Shape, mode: Mode) -> bool:
        return mode == "forward" and spec.cell != "gated"

    def make(self, problem: Problem, threads: int) -> peers.Contender:
        from onnx.reference import ReferenceEvaluator

        from rnnfast.onnx import OPS

        rnnfast.set_num_threads(threads)
        evaluator = ReferenceEvaluator(peers.onnx_model(problem), new_ops=OPS)
        return peers.Contender(
            partial(evaluator.run, None, _feeds(problem)), partial(_results, problem)
        )


class _Session(peers.OnnxRuntime):
    """ONNX Runtime as most call it."""

    name = "session"

    def make(self, problem: Problem, threads: int) -> peers.Contender:
        import onnxruntime  # type: ignore[import-untyped]

        how = onnxruntime.SessionOptions()
        how.intra_op_num_threads, how.inter_op_num_threads = threads, 1
        session = onnxruntime.InferenceSession(
            peers.onnx_model(problem).SerializeToString(), how, providers=["CPUExecutionProvider"]
        )
        return peers.Contender(
            partial(session.run, None, _feeds(problem)), partial(_results, problem)
        )


def _empty() -> Any:
    """A call of the evaluator in which nothing is computed."""
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "nothing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    evaluator = ReferenceEvaluator(helper.make_model(graph))
    return partial(evaluator.run, None, {"x": np.zeros(1, np.float32)})


_CONTENDERS = (_Evaluator(), peers.RnnfastPacked(), peers.OnnxRuntime(), _Session())
_RUNTIME = ("onnxruntime", "session")


def measured(cell: str, shape: Shape, threads: int, budget: float) -> Row:
    problem = draw(CELLS[cell], shape, "forward")
    calls, failed = {}, {}
    for peer in _CONTENDERS:
        outcome = checked(peer, problem, threads)
        if isinstance(outcome, str):
            failed[peer.name] = outcome
        else:
            calls[peer.name] = outcome
    if "evaluator" in calls:
        calls["empty"] = _empty()
    timings, load = timed(calls if "evaluator" in calls else {}, budget)
    return {
        "threads": threads,
        "cell": cell,
        "shape": asdict(shape),
        "name": str(shape),
        **load,
        "failed": failed,
        "times_ms": {k: t.milliseconds()._asdict() for k, t in timings.items()},
        "ratios": {
            k: timings[k].over(timings["evaluator"])._asdict() for k in _RUNTIME if k in timings
        },
    }


def _best(row: Row) -> str | None:
    """The faster way of calling ONNX Runtime."""
    return min(row["ratios"], key=lambda name: row["ratios"][name]["median"], default=None)


def _arguments(add: Any) -> None:
    add("--cells", nargs="+", choices=_ONNX_CELLS, default=_ONNX_CELLS)
    add("--shapes", nargs="+", type=shape_name, metavar="SHAPE", help="as `table` takes them")


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    chosen = shapes.select(options.shapes or ["quick" if options.quick else "table"])
    for cell in options.cells:
        for shape in chosen:
            if shape.L == 1 and not shape.ragged:
                yield measured(cell, shape, options.worker, options.budget)


def _lines(row: Row) -> list[str]:
    where = [row["threads"], row["cell"], row["name"]]
    lines = [
        f"{report.line(_COLUMNS, where)} {name} FAILED: {reason}"
        for name, reason in row["failed"].items()
    ]
    times = {name: t["median"] * 1e3 for name, t in row["times_ms"].items()}
    if not times:
        return lines
    best = _best(row)
    spread = "{median:.3g} ({q1:.3g}-{q3:.3g})".format(**row["ratios"][best]) if best else ""
    own = times.get("rnnfast-packed")
    cells = [
        *where,
        f"{times[best]:.1f}" if best else "",
        f"{times['evaluator']:.1f}",
        spread,
        "" if own is None else f"{own:.1f}",
        "" if own is None else f"{times['evaluator'] - own:.1f}",
        f"{times['empty']:.1f}",
        "LOADED" * row["loaded"],
    ]
    return [*lines, report.line(_COLUMNS, cells)]


def _summary(rows: list[Row]) -> list[str]:
    found = [row["ratios"][name]["median"] for row in rows if (name := _best(row))]
    mean = f"geometric mean of {len(found)} ratios: {geometric_mean(found):.2f}" if found else ""
    return [
        "",
        mean,
        "ratio: time of ONNX Runtime / time of the evaluator with rnnfast.onnx.OPS. above: what "
        "evaluator and adapter take beside rnnfast's packed call. empty: the evaluator alone.",
    ]


main = Suite(
    name="onnx",
    about=__doc__,
    rows=_rows,
    header=lambda: report.header(_COLUMNS),
    lines=_lines,
    arguments=_arguments,
    summary=_summary,
    budget=4.0,
).main
