"""Inference with bfloat16 and int8 weights: speed and error, beside what others have of that."""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import rnnfast
from rnnfast.spec import Spec

from . import report
from .peers import OnnxRuntime, Peer, Rnnfast, Torch, missing
from .problem import CELLS, Array, Mode, Problem, draw, options, truth
from .rows import Row, said, timed
from .shapes import Shape, select
from .suite import Suite
from .table import shape_name
from .timing import Call


class _Packed(Rnnfast):
    """rnnfast with weights packed in a dtype."""

    def __init__(self, dtype: str) -> None:
        self.name, self.dtype = f"rnnfast-{dtype}", dtype

    def weights(self, problem: Problem) -> Any:
        dtype: Any = self.dtype
        spec = problem.spec
        return rnnfast.pack(problem.weights, cell=spec.cell, dtype=dtype, **options(spec))


class _TorchQuantized(Torch):
    """torch.ao's dynamic quantization of the module, which has LSTM and GRU."""

    def __init__(self, dtype: str) -> None:
        self.name = f"torch-{dtype}"
        self._dtype = {"float16": "float16", "int8": "qint8"}[dtype]

    def supports(self, spec: Spec, shape: Shape, mode: Mode) -> bool:
        return spec.cell != "rnn" and super().supports(spec, shape, mode)

    def module(self, problem: Problem) -> tuple[Any, list[Any]]:
        import torch

        module, _ = super().module(problem)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated in favour of a package of its own
            quantize: Any = torch.ao.quantization.quantize_dynamic
            quantized = quantize(
                torch.nn.Sequential(module), {type(module)}, dtype=getattr(torch, self._dtype)
            )
        return quantized[0], []


class _TorchBfloat16(Torch):
    """The module in bfloat16, from and to float32, as rnnfast's calls are."""

    name = "torch-bfloat16"

    def layers(self, problem: Problem) -> tuple[Callable[[Any], Any], list[Any]]:
        import torch

        module = self.module(problem)[0].bfloat16()
        state = self.state(problem, torch.bfloat16)

        def apply(x: Any) -> Any:
            y, state_n = module(x.bfloat16(), state)
            lstm = isinstance(state_n, tuple)
            return y.float(), tuple(s.float() for s in state_n) if lstm else state_n.float()

        return apply, []


class _OnnxQuantized(OnnxRuntime):
    """ONNX Runtime's DynamicQuantizeLSTM with a scale for each row of the weights."""

    name = "onnxruntime-int8"

    def supports(self, spec: Spec, shape: Shape, mode: Mode) -> bool:
        return spec.cell == "lstm" and super().supports(spec, shape, mode)

    def model(self, problem: Problem) -> Any:
        import onnx
        from onnxruntime import quantization  # type: ignore[import-untyped]

        with tempfile.TemporaryDirectory() as folder:
            before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            onnx.save(super().model(problem), before)
            logging.disable(logging.WARNING)  # it recommends a step that changes nothing here
            quantization.quantize_dynamic(
                before,
                after,
                op_types_to_quantize=["LSTM"],
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
            )
            logging.disable(logging.NOTSET)
            return onnx.load(after)


FLOAT32 = "rnnfast-float32"
OURS: tuple[Peer, ...] = tuple(map(_Packed, ("float32", "bfloat16", "int8")))
THEIRS: tuple[Peer, ...] = (
    Torch(),
    _TorchBfloat16(),
    *map(_TorchQuantized, ("float16", "int8")),
    OnnxRuntime(),
    _OnnxQuantized(),
)
_WRONG = 0.3  # a root-mean-square error, relative to y, that no rounding explains
_COLUMNS = {
    "threads": 7,
    "cell": 5,
    "T,B,I,H": 16,
    "weights": 17,
    "ms": 8,
    "float32 / this": 14,
    "max error": 9,
    "rms error": 9,
    "": 8,
}


def errors(y: Array, true: Array) -> dict[str, float]:
    """The largest error, and the root of the mean square, relative to that of the truth."""
    difference = y - true
    rms = np.sqrt(np.mean(difference**2) / np.mean(true**2))
    return {"max": float(np.abs(difference).max()), "rms": float(rms)}


def measured(cell: str, shape: Shape, threads: int, budget: float) -> Row:
    problem = draw(CELLS[cell], shape, "forward")
    true = truth(problem.spec, shape, "forward")["y"]
    calls: dict[str, Call] = {}
    found: dict[str, dict[str, float]] = {}
    failed: dict[str, str] = {}
    absent: dict[str, str] = {}
    for peer in (*OURS, *THEIRS):
        if missing(peer) or not peer.supports(problem.spec, shape, "forward"):
            continue
        try:
            contender = peer.make(problem, threads)
            found[peer.name] = errors(contender.results(contender.run())["y"], true)
            if not found[peer.name]["rms"] < _WRONG:
                raise ArithmeticError(f"rms error {found[peer.name]['rms']:.2g}")
        except rnnfast.UnsupportedError as error:
            absent[peer.name] = str(error)
        except Exception as error:
            failed[peer.name] = said(error)
        else:
            calls[peer.name] = contender.run
    timings, load = timed(calls, budget)
    return {
        "threads": threads,
        "cell": cell,
        "shape": asdict(shape),
        "name": str(shape),
        **load,
        "failed": failed,
        "absent": absent,
        "errors": found,
        "times_ms": {
            name: {**t.milliseconds()._asdict(), "calls": t.calls()} for name, t in timings.items()
        },
        "float32_over": {
            name: timings[FLOAT32].over(t)._asdict()
            for name, t in timings.items()
            if FLOAT32 in timings
        },
    }


def _arguments(add: Any) -> None:
    add("--cells", nargs="+", choices=("lstm", "gru", "rnn"), default=["lstm", "gru", "rnn"])
    add("--shapes", nargs="+", type=shape_name, metavar="SHAPE", help="as the table takes them")


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    for cell in options.cells:
        for shape in select(options.shapes or ["table"]):
            if shape.quick or not options.quick:
                yield measured(cell, shape, options.worker, options.budget)


def _lines(row: Row) -> list[str]:
    where = [row["threads"], row["cell"], row["name"]]
    lines = []
    for name, time in row["times_ms"].items():
        error = row["errors"][name]
        ratio = row["float32_over"].get(name)
        cells = [
            *where,
            name,
            f"{time['median']:.4g}",
            f"{ratio['median']:.2f}" if ratio else "",
            f"{error['max']:.2g}",
            f"{error['rms']:.2g}",
            "LOADED" * row["loaded"],
        ]
        lines.append(report.line(_COLUMNS, cells))
        where = ["", "", ""]
    return lines + [f"  {n}: {why}" for n, why in (row["failed"] | row["absent"]).items()]


main = Suite(
    name="precision",
    about=__doc__,
    rows=_rows,
    header=lambda: report.header(_COLUMNS),
    lines=_lines,
    arguments=_arguments,
    summary=lambda rows: [
        "\nfloat32 / this: time of rnnfast with float32 packed weights / time of this; errors are "
        "those of y against the reference in float64."
    ],
    budget=2.0,
).main
