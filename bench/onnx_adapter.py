"""The two ways through rnnfast.onnx beside ONNX Runtime, and what they cost.

A model has one node, whose weights are initialisers: all pack them before the timed calls, which
are those of users: `rnnfast.onnx.Backend.prepare(model).run(feeds)`, onnx's evaluator with our
operators, `evaluator.run(None, feeds)`, and ONNX Runtime's `session.run(None, feeds)` or, where
that is faster, one with bound inputs and outputs. Beside them: rnnfast's own packed call, and the
evaluator on a model of one Identity, which is what it costs without us.
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
    "way": 9,
    "us": 8,
    "session us": 10,
    "ratio (quartiles)": 20,
    "bound us": 8,
    "ratio (quartiles) ": 20,
    "packed us": 9,
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


class _Way(peers.Peer):
    """A way through rnnfast.onnx."""

    needs = ("onnx",)
    prepacked = True

    def supports(self, spec: Spec, shape: Shape, mode: Mode) -> bool:
        return mode == "forward" and spec.cell != "gated"


class _Evaluator(_Way):
    """onnx's ReferenceEvaluator with our operators."""

    name = "evaluator"

    def make(self, problem: Problem, threads: int) -> peers.Contender:
        from onnx.reference import ReferenceEvaluator

        from rnnfast.onnx import OPS

        rnnfast.set_num_threads(threads)
        evaluator = ReferenceEvaluator(peers.onnx_model(problem), new_ops=OPS)
        return peers.Contender(
            partial(evaluator.run, None, _feeds(problem)), partial(_results, problem)
        )


class _Backend(_Way):
    """Our backend of onnx.backend.base."""

    name = "backend"

    def make(self, problem: Problem, threads: int) -> peers.Contender:
        from rnnfast.onnx import Backend

        rnnfast.set_num_threads(threads)
        prepared = Backend.prepare(peers.onnx_model(problem))
        return peers.Contender(partial(prepared.run, _feeds(problem)), partial(_results, problem))


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


_CONTENDERS = (_Backend(), _Evaluator(), peers.RnnfastPacked(), peers.OnnxRuntime(), _Session())
_WAYS = ("backend", "evaluator")
_RUNTIME = ("session", "onnxruntime")


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
    timings, load = timed(calls if any(way in calls for way in _WAYS) else {}, budget)
    return {
        "threads": threads,
        "cell": cell,
        "shape": asdict(shape),
        "name": str(shape),
        **load,
        "failed": failed,
        "times_ms": {k: t.milliseconds()._asdict() for k, t in timings.items()},
        "ratios": {
            way: {k: timings[k].over(timings[way])._asdict() for k in _RUNTIME if k in timings}
            for way in _WAYS
            if way in timings
        },
    }


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
    times = {name: f"{t['median'] * 1e3:.1f}" for name, t in row["times_ms"].items()}
    for way, ratios in row["ratios"].items():
        above = row["times_ms"][way]["median"] - _packed(row)
        cells = [*where, way, times[way]]
        for name in _RUNTIME:
            found = ratios.get(name)
            spread = "{median:.3g} ({q1:.3g}-{q3:.3g})".format(**found) if found else ""
            cells += [times.get(name, ""), spread]
        cells += [times.get("rnnfast-packed", ""), f"{above * 1e3:.1f}", times.get("empty", "")]
        lines.append(report.line(_COLUMNS, [*cells, "LOADED" * row["loaded"]]))
    return lines


def _packed(row: Row) -> float:
    return float(row["times_ms"].get("rnnfast-packed", {"median": float("nan")})["median"])


def _summary(rows: list[Row]) -> list[str]:
    lines = [""]
    for way in _WAYS:
        for name in _RUNTIME:
            found = [
                row["ratios"][way][name]["median"]
                for row in rows
                if name in row["ratios"].get(way, {})
            ]
            if found:
                lines.append(
                    f"{name} / {way}: geometric mean of {len(found)} ratios "
                    f"{geometric_mean(found):.2f}, the least {min(found):.2f}"
                )
    return [
        *lines,
        "ratio: time of ONNX Runtime, by session.run or (onnxruntime) with everything bound, over "
        "that of rnnfast.onnx. above: what the way takes beside rnnfast's packed call. empty: the "
        "evaluator alone.",
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
