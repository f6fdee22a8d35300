"""Time against T, B, H (I = H) and threads, beside PyTorch, with the machine's limits."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import report
from .rows import Row, row
from .shapes import Shape
from .suite import Suite

_HIDDEN = (16, 32, 64, 128, 256, 512, 1024, 2048)


def _sweep(kind: str, sizes: list[tuple[int, int, int]]) -> list[Shape]:
    return [Shape(kind, T, B, H, H) for T, B, H in sizes]


# One of T, B and H grows, the others stay; the name is that of the growing one, then its company.
SWEEPS = {
    kind: _sweep(kind, sizes)
    for kind, sizes in {
        "T; B=1": [(T, 1, 256) for T in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)],
        "B": [(50, B, 256) for B in (1, 2, 4, 8, 16, 32, 64, 128, 256)],
        "H; B=1": [(50, 1, H) for H in _HIDDEN],
        "H; B=32": [(20, 32, H) for H in _HIDDEN],
    }.items()
}
CELLS = ("lstm", "gru", "rnn")


def _arguments(add: Any) -> None:
    add("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    add("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    add(
        "--pictures",
        type=Path,
        metavar="FOLDER",
        help="for the curves; default: docs/performance; with --quick or --json, beside the JSON",
    )


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    for cell in options.cells:
        for name in options.sweeps:
            for shape in SWEEPS[name]:
                if shape.quick or not options.quick:
                    for mode in ("forward", "training"):
                        yield row(cell, shape, mode, options.worker, ["torch"], options.budget)


def _finish(options: argparse.Namespace, document: dict[str, Any], path: Path) -> None:
    from . import pictures  # needs matplotlib, which the other subjects do not

    beside = path.parent if options.json or options.quick else pictures.FOLDER
    for name, figure in pictures.scaling(document).items():
        pictures.save(figure, options.pictures or beside, name)


main = Suite(
    name="scaling",
    about=__doc__,
    rows=_rows,
    header=report.row_header,
    lines=report.row_lines,
    arguments=_arguments,
    finish=_finish,
).main
