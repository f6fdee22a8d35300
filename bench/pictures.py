"""The pictures of docs/performance.md, drawn from the documents in bench/results."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from . import report
from .limits import Limits, flops, recurrent_bytes, traffic
from .problem import CELLS
from .rows import Row
from .shapes import Shape

FOLDER = report.ROOT / "docs" / "performance"
_COLORS = {"rnnfast": "#1f6fb4", "torch": "#e4682a", "onnxruntime": "#4a9b4a", "numba": "#8c5ba8"}
_STYLE: Any = {
    "font.size": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "rnnfast",  # the same picture from the same numbers
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.markersize": 3,
    "legend.frameon": False,
}


_styled = matplotlib.rc_context(_STYLE)  # as a decorator: rcParams as they were, afterwards


@_styled
def save(figure: Figure, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    print(f"drew {path}")


def panels(rows: int, columns: int, width: float, height: float, **how: Any) -> tuple[Figure, Any]:
    """A figure and its axes (rows, columns); width and height in inches are those of a panel."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **how)


def logarithmic(axis: Any, base: int = 10) -> None:
    """Powers of the base, written as numbers."""
    getattr(axis.axes, f"set_{axis.axis_name}scale")("log", base=base)
    axis.set_major_locator(LogLocator(base, numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def shape_of(row: Row) -> Shape:
    return Shape(**row["shape"])


def gates_of(row: Row) -> int:
    return len(CELLS[row["cell"]].info.gates)


def bounds(limits: Limits, row: Row) -> tuple[float, float]:
    """Seconds that the row takes at least: for its arithmetic, and to read its weights."""
    gates, shape, threads = gates_of(row), shape_of(row), row["threads"]
    rate = limits.bandwidth(threads, recurrent_bytes(gates, shape))
    mode = row["mode"]
    return flops(gates, shape, mode) / limits.flops(threads), traffic(gates, shape, mode) / rate


_Way = tuple[str, str, str]  # title, mode, rnnfast's name in the row
_WAYS: tuple[_Way, ...] = (
    ("forward", "forward", "rnnfast"),
    ("forward, packed weights", "forward", "rnnfast-packed"),
    ("training", "training", "rnnfast"),
)


@_styled
def scaling(document: dict[str, Any]) -> dict[str, Figure]:
    """One figure for each cell: a column for each sweep, a row for each way of calling."""
    limits = Limits(document["limits"])
    figures = {}
    for cell in dict.fromkeys(row["cell"] for row in document["rows"]):
        rows = [row for row in document["rows"] if row["cell"] == cell and row["times_ms"]]
        sweeps = list(dict.fromkeys(row["shape"]["kind"] for row in rows))
        figure, axes = panels(len(_WAYS), len(sweeps), 2.7, 2.1, sharex="col")
        for line, way in zip(axes, _WAYS, strict=True):
            for ax, sweep in zip(line, sweeps, strict=True):
                chosen = [r for r in rows if r["shape"]["kind"] == sweep and r["mode"] == way[1]]
                _curves(ax, chosen, way[2], sweep[0], limits)
            line[0].set_ylabel(f"{way[0]}\nms")
        for ax, sweep in zip(axes[0], sweeps, strict=True):
            ax.set_title(_fixed(rows, sweep))
        for ax, sweep in zip(axes[-1], sweeps, strict=True):
            ax.set_xlabel(f"{sweep[0]}, and I = H" if sweep[0] == "H" else sweep[0])
        _legend(figure, axes.flat)
        figures[f"scaling-{cell}"] = figure
    return figures


def _fixed(rows: list[Row], sweep: str) -> str:
    """What does not change in a sweep, as T = 50, B = 1."""
    shapes = [row["shape"] for row in rows if row["shape"]["kind"] == sweep]
    kept = (letter for letter in "TBH" if letter != sweep[0])
    return ", ".join(f"{letter} = {shapes[0][letter]}" for letter in kept)


def _curves(ax: Axes, rows: list[Row], ours: str, letter: str, limits: Limits) -> None:
    threads = sorted({row["threads"] for row in rows})
    for count in threads:
        some = [row for row in rows if row["threads"] == count]
        sizes = [row["shape"][letter] for row in some]
        strong = count == threads[-1]
        for name, color in ((ours, "rnnfast"), ("torch", "torch")):
            points = [
                (s, r["times_ms"][name]["median"])
                for s, r in zip(sizes, some, strict=True)
                if name in r["times_ms"]
            ]
            ax.plot(
                *zip(*points, strict=True),
                color=_COLORS[color],
                marker="o",
                linewidth=1.4 if strong else 0.8,
                alpha=1 if strong else 0.5,
                label=f"{color}, {count} threads" if count > 1 else f"{color}, 1 thread",
            )
        if strong and count in limits.threads():
            for k, (style, what) in enumerate((("--", "FMA peak"), (":", "reading the weights"))):
                least = [bounds(limits, row)[k] * 1e3 for row in some]
                ax.plot(
                    sizes,
                    least,
                    style,
                    color="#555555",
                    linewidth=1,
                    label=f"limit of {count} threads: {what}",
                )
    logarithmic(ax.xaxis, 10 if letter == "T" else 4)
    logarithmic(ax.yaxis)


def _legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend under the figure with every label once."""
    found: dict[str, Any] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=4)
