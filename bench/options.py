"""What options of the cells cost, beside the plain cell, and beside PyTorch where it has them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

import rnnfast

from . import report
from .rows import Row, said, timed
from .shapes import Shape, select
from .suite import Suite
from .table import shape_name
from .timing import Call

# name -> (arguments of init_weights, keyword arguments of the call, cells)
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "plain": ({}, {}, ("lstm", "gru", "rnn")),
    "projection H/2": ({"proj_size": 2}, {}, ("lstm",)),
    "peepholes": ({"peepholes": True}, {}, ("lstm",)),
    "layer norm": ({"layer_norm": True}, {}, ("lstm", "gru", "rnn")),
    "batch norm": ({"batch_norm": True}, {}, ("lstm", "gru", "rnn")),
    "clip": ({}, {"clip": 50.0}, ("lstm", "gru", "rnn")),
    "hard sigmoid": ({}, {"gate_activation": "hard_sigmoid"}, ("lstm", "gru")),
    "grad_clip": ({}, {"grad_clip": 1.0}, ("lstm", "gru", "rnn")),
    "recurrent dropout": ({}, {"recurrent_dropout": 0.1, "rng": 0}, ("lstm", "gru", "rnn")),
    "zoneout": ({}, {"zoneout": 0.1, "rng": 0}, ("lstm", "gru", "rnn")),
    "dropconnect": ({}, {"dropconnect": 0.1, "rng": 0}, ("lstm", "gru", "rnn")),
}
_COLUMNS = {
    "threads": 7,
    "mode": 8,
    "cell": 5,
    "T,B,I,H": 16,
    "option": 18,
    "ms": 8,
    "this / plain": 12,
    "torch / this": 12,
    "": 8,
}


def _calls(cell: str, shape: Shape, mode: str) -> dict[str, Call]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((shape.T, shape.B, shape.I)).astype(np.float32)
    calls: dict[str, Call] = {}
    for name, (structure, options, cells) in OPTIONS.items():
        if cell not in cells:
            continue
        arguments = {k: shape.H // v if k == "proj_size" else v for k, v in structure.items()}
        weights = rnnfast.init_weights(cell, shape.I, shape.H, rng=0, **arguments)
        width = arguments.get("proj_size", shape.H)
        calls[name] = _call(
            cell, x, weights, np.ones((*x.shape[:2], width), x.dtype), options, mode
        )
    return calls


def _call(cell: str, x: Any, weights: Any, dy: Any, options: dict[str, Any], mode: str) -> Call:
    forward: Callable[..., Any] = getattr(rnnfast, cell)
    vjp: Callable[..., Any] = getattr(rnnfast, cell + "_vjp")
    if mode == "forward":
        return lambda: forward(x, weights, **options)
    return lambda: vjp(x, weights, **options)[-1](dy)


def _torch(cell: str, shape: Shape, mode: str, threads: int) -> dict[str, Call]:
    """PyTorch's module, and that with a projection."""
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(threads)
    kinds = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
    made: dict[str, Any] = {"torch plain": kinds[cell](shape.I, shape.H)}
    if cell == "lstm":
        made["torch projection H/2"] = kinds[cell](shape.I, shape.H, proj_size=shape.H // 2)
    x = torch.randn(shape.T, shape.B, shape.I)

    def call(module: Any) -> Call:
        def forward() -> None:
            with torch.no_grad():
                module(x)

        def train() -> None:
            module(x)[0].sum().backward()

        return forward if mode == "forward" else train

    return {name: call(module) for name, module in made.items()}


def measured(cell: str, shape: Shape, mode: str, threads: int, budget: float) -> Row:
    failed: dict[str, str] = {}
    calls = _calls(cell, shape, mode) | _torch(cell, shape, mode, threads)
    for name in list(calls):
        try:
            calls[name]()
        except Exception as error:
            failed[name] = said(error)
            del calls[name]
    timings, load = timed(calls, budget)
    ours = [name for name in timings if not name.startswith("torch")]
    return {
        "threads": threads,
        "mode": mode,
        "cell": cell,
        "shape": asdict(shape),
        "name": str(shape),
        **load,
        "failed": failed,
        "times_ms": {name: t.milliseconds()._asdict() for name, t in timings.items()},
        "over_plain": {n: timings[n].over(timings["plain"])._asdict() for n in ours},
        "torch_over": {
            n: timings[f"torch {n}"].over(timings[n])._asdict()
            for n in ours
            if f"torch {n}" in timings
        },
    }


def _arguments(add: Any) -> None:
    add("--cells", nargs="+", choices=("lstm", "gru", "rnn"), default=["lstm", "gru", "rnn"])
    add("--shapes", nargs="+", type=shape_name, metavar="SHAPE", help="as the table takes them")


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    for cell in options.cells:
        for shape in select(options.shapes or ["100,1,64,64", "100,1,256,256", "100,32,256,256"]):
            if shape.quick or not options.quick:
                for mode in ("forward", "training"):
                    yield measured(cell, shape, mode, options.worker, options.budget)


def _lines(row: Row) -> list[str]:
    where = [row["threads"], row["mode"], row["cell"], row["name"]]
    lines = []
    for name, ratio in row["over_plain"].items():
        torch = row["torch_over"].get(name)
        cells = [
            *where,
            name,
            f"{row['times_ms'][name]['median']:.4g}",
            f"{ratio['median']:.2f}",
            f"{torch['median']:.2f}" if torch else "",
            "LOADED" * row["loaded"],
        ]
        lines.append(report.line(_COLUMNS, cells))
        where = ["", "", "", ""]
    return lines + [f"  {n}: {why}" for n, why in row["failed"].items()]


main = Suite(
    name="options",
    about=__doc__,
    rows=_rows,
    header=lambda: report.header(_COLUMNS),
    lines=_lines,
    arguments=_arguments,
    summary=lambda rows: [
        "\nthis / plain: time with the option / time of the plain cell; torch / this: time of "
        "PyTorch's module with the same option / time of rnnfast."
    ],
    budget=1.0,
).main
