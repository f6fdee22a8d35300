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
from .latency import PEERS, best
from .limits import MATRIX_ROWS, Limits, bounds, traffic, work
from .rows import Row
from .targets import reached

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


def logarithmic(axis: Any, base: int = 10, subs: tuple[float, ...] = (1.0,)) -> None:
    """Powers of the base and their multiples by `subs`, written as numbers."""
    getattr(axis.axes, f"set_{axis.axis_name}scale")("log", base=base)
    axis.set_major_locator(LogLocator(base, subs, numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


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
                label=f"{color}, {_threads(count)}",
            )
        if strong and count in limits.threads():
            for k, (style, what) in enumerate((("--", "arithmetic"), (":", "reading the weights"))):
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


@_styled
def limits(document: dict[str, Any]) -> dict[str, Figure]:
    figure, axes = panels(1, 1, 4.5, 2.6)
    ax = axes[0, 0]
    for row, alpha in zip(document["rows"], (0.5, 1), strict=False):
        sizes, rates = zip(*row["read"], strict=True)
        ax.plot(sizes, rates, color=_COLORS["rnnfast"], alpha=alpha, label=_threads(row["threads"]))
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(LogLocator(16, numticks=8))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda size, _: report.size(size)))
    ax.set_ylim(0)
    ax.set_xlabel("bytes read again and again, by all threads together")
    ax.set_ylabel("GB/s")
    ax.legend()
    return {"limits": figure}


_BARS = (
    ("PyTorch / rnnfast, forward", "forward", ("torch", "torch-loop")),
    ("ONNX Runtime / rnnfast, packed", "forward", ("onnxruntime",)),
    ("PyTorch / rnnfast, training", "training", ("torch", "torch-loop")),
)


@_styled
def ratios(document: dict[str, Any]) -> dict[str, Figure]:
    """Bars for each shape of the table: dark with the most threads; a short line is the target."""
    rows = [row for row in document["rows"] if row["in_table"]]
    if not rows:
        return {}
    cells, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("cell", "name"))
    threads = sorted({row["threads"] for row in rows})
    figure, axes = panels(len(cells), len(_BARS), 3.1, 1.7, sharex="col", sharey=True)
    for line, cell in zip(axes, cells, strict=True):
        for ax, (title, mode, peers) in zip(line, _BARS, strict=True):
            for row in rows:
                if (row["cell"], row["mode"]) == (cell, mode):
                    for rival in row["rivals"]:
                        if rival["peer"] in peers and rival["ratios"]:
                            at = (names.index(row["name"]), threads.index(row["threads"]))
                            _bar(ax, row, rival, at, len(threads))
            ax.axvline(1, color="#222222", linewidth=0.8)
            logarithmic(ax.xaxis, subs=(1, 2, 5))
            ax.set_title(title if cell == cells[0] else "")
            ax.set_yticks(range(len(names)), names)
            ax.grid(visible=False, axis="y")
        line[0].set_ylim(len(names) - 0.4, -0.6)
        line[0].set_ylabel(cell)
    return {"ratios": figure}


def _bar(ax: Axes, row: Row, rival: dict[str, Any], at: tuple[int, int], count: int) -> None:
    shape, thread = at
    height = 0.8 / count
    middle = shape + (thread - (count - 1) / 2) * height
    found = reached(row, rival)
    assert found is not None
    ratio, asked = found
    strong = thread == count - 1
    color = _COLORS["rnnfast" if ratio >= 1 else "torch"]
    ax.barh(middle, ratio - 1, height, left=1, color=color, alpha=1 if strong else 0.5)
    if strong and asked and asked != 1:
        ax.plot([asked] * 2, [shape - 0.4, shape + 0.4], color="#222222", linewidth=1)


_CELL_COLORS = ("#1f6fb4", "#e4682a", "#c9a227", "#4a9b4a", "#8c5ba8")
_WORKING_SETS = (256 << 10, 4 << 20, 128 << 20)  # of the slanted lines of the roofline


@_styled
def roofline(document: dict[str, Any]) -> dict[str, Figure]:
    """What each row of the table reaches, and what arithmetic and reading weights allow."""
    limits = Limits(document["limits"])
    rows = [row for row in document["rows"] if row["in_table"] and row["times_ms"]]
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    threads = [count for count in limits.threads() if any(r["threads"] == count for r in rows)]
    if not threads:
        return {}
    figure, axes = panels(1, len(threads), 4.2, 3.2, sharey=True)
    for ax, count in zip(axes[0], threads, strict=True):
        peak = limits.flops(count, MATRIX_ROWS) / 1e9
        ends = (0.3, 200)
        for size in _WORKING_SETS:
            rate = limits.bandwidth(count, size) / 1e9
            ax.plot([ends[0], peak / rate], [ends[0] * rate, peak], color="#555555", linewidth=0.8)
            ax.annotate(f" {report.size(size)}", (ends[0], ends[0] * rate), fontsize=6, va="bottom")
        ax.plot([ends[0], ends[1]], [peak, peak], color="#222222", linewidth=0.8)
        for row in rows:
            if row["threads"] == count:
                ours = "rnnfast-packed" if row["mode"] == "forward" else "rnnfast"
                seconds = row["times_ms"][ours]["median"] / 1e3
                ax.plot(
                    work(row) / traffic(row),
                    work(row) / seconds / 1e9,
                    "o" if row["mode"] == "forward" else "^",
                    color=_CELL_COLORS[cells.index(row["cell"]) % len(_CELL_COLORS)],
                    markersize=4,
                    label=f"{row['cell']}, {row['mode']}",
                )
        logarithmic(ax.xaxis)
        logarithmic(ax.yaxis)
        ax.set_title(_threads(count))
        ax.set_xlabel("operations for each byte of weights read")
    axes[0, 0].set_ylabel("GF/s")
    _legend(figure, axes.flat)
    return {"roofline": figure}


_STREAMS = (
    ("kernel", "the kernel alone", "#555555", ":"),
    ("rnnfast-out", "rnnfast, out=", _COLORS["rnnfast"], "-"),
    ("rnnfast", "rnnfast, plain call", _COLORS["rnnfast"], "--"),
)


@_styled
def latency(document: dict[str, Any]) -> dict[str, Figure]:
    rows = [row for row in document["rows"] if row["times_us"]]
    if not rows:
        return {}
    cells, threads = (list(dict.fromkeys(r[key] for r in rows)) for key in ("cell", "threads"))
    figure, axes = panels(len(threads), len(cells), 2.9, 2.3, sharex=True, sharey="row")
    for line, count in zip(axes, threads, strict=True):
        for ax, cell in zip(line, cells, strict=True):
            some = [row for row in rows if (row["cell"], row["threads"]) == (cell, count)]
            for name, label, color, style in _STREAMS:
                _stream(ax, [(r["H"], r["times_us"].get(name)) for r in some], label, color, style)
            for peer in PEERS:
                times = [(r["H"], r["times_us"].get(best(r, peer))) for r in some]
                _stream(ax, times, peer, _COLORS[peer], "-")
            logarithmic(ax.xaxis, 4)
            logarithmic(ax.yaxis)
            ax.set_title(f"{cell}, {_threads(count)}")
        line[0].set_ylabel("microseconds a step")
    for ax in axes[-1]:
        ax.set_xlabel("H = I")
    _legend(figure, axes.flat)
    return {"latency": figure}


def _stream(ax: Axes, times: list[tuple[int, Any]], label: str, color: str, style: str) -> None:
    points = [(size, time["median"]) for size, time in times if time]
    if points:
        ax.plot(*zip(*points, strict=True), style, color=color, marker="o", label=label)


@_styled
def memory(document: dict[str, Any]) -> dict[str, Figure]:
    """With the most threads that were measured."""
    most = max((row["threads"] for row in document["rows"]), default=0)
    rows = [r for r in document["rows"] if r["threads"] == most and "peak_bytes" in r]
    figure, axes = panels(1, 2, 4.2, max(1.5, 0.17 * len(rows) + 0.8), sharey=True)
    labels = [f"{row['cell']} {row['name']}: {row['way']}" for row in rows]
    colors = [_COLORS[row["way"].split()[0]] for row in rows]
    for ax, values, title in (
        (axes[0, 0], [row["peak_bytes"] / 1e6 for row in rows], "peak memory, MB"),
        (axes[0, 1], [row["seconds"] for row in rows], "seconds a training step"),
    ):
        ax.barh(range(len(rows)), values, color=colors)
        ax.set_title(title)
        ax.grid(visible=False, axis="y")
    axes[0, 0].set_yticks(range(len(rows)), labels)
    axes[0, 0].set_ylim(len(rows) - 0.4, -0.6)
    return {"memory": figure}


def _threads(count: int) -> str:
    return f"{count} threads" if count > 1 else "1 thread"
