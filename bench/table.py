"""rnnfast beside PyTorch and ONNX Runtime, as a table of ratios."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from . import peers, report, shapes
from .problem import CELLS, DEFAULT_CELLS, MODES
from .rows import Row, row
from .suite import Suite


def _arguments(add: Any) -> None:
    add("--cells", nargs="+", choices=CELLS, default=DEFAULT_CELLS)
    add(
        "--shapes",
        nargs="+",
        type=shape_name,
        metavar="SHAPE",
        help="table, extra, all, quick, a class, an index, or T,B,I,H",
    )
    add("--modes", nargs="+", choices=MODES, default=MODES)
    add("--peers", nargs="+", choices=peers.FAMILIES, default=peers.FAMILIES)


def shape_name(name: str) -> str:
    """The name, where `shapes.select` takes it."""
    try:
        shapes.select([name])
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    names = options.shapes or ["quick" if options.quick else "table"]
    for cell in options.cells:
        for shape in shapes.select(names):
            for mode in options.modes:
                yield row(cell, shape, mode, options.worker, options.peers, options.budget)


def _header() -> list[str]:
    left_out = [
        f"{peer.name}: left out, because {module} is not installed"
        for peer in peers.THEIRS
        for module in peers.missing(peer)
    ]
    return left_out + report.row_header()


def _summary(rows: list[Row]) -> list[str]:
    ratio = (
        "ratio: time of the peer / time of rnnfast; above 1 rnnfast is faster. float32, medians."
    )
    return ["", *report.mean_lines(rows), "", ratio]


_LISTING = [f"  {k:>2}  {shape.kind:<14}{shape}" for k, shape in enumerate(shapes.ALL)]

main = Suite(
    name="table",
    about=__doc__,
    rows=_rows,
    header=_header,
    lines=report.row_lines,
    arguments=_arguments,
    summary=_summary,
    more=lambda rows: {"means": report.means(rows)},
    budget=8.0,
    label="bench",
    epilog="shapes by index, class and T,B,I,H:\n" + "\n".join(_LISTING),
).main
