"""Rows as a table for people (it is Markdown too) and as JSON for programs."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import rnnfast

from .rows import Row

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
PLAIN, PACKED = "rnnfast", "rnnfast-packed"
_PACKAGES = (
    "numpy",
    "torch",
    "onnx",
    "onnxruntime",
    "jax",
    "flax",
    "keras",
    "tensorflow-cpu",
    "numba",
)

_ROW = {
    "threads": 7,
    "mode": 8,
    "cell": 11,
    "T,B,I,H": 24,
    "class": 13,
    "peer": 12,
    "peer ms": 9,
    "rnnfast ms": 10,
    "ratio (quartiles)": 20,
    "packed ms": 9,
    "ratio (quartiles) ": 20,
    "": 13,
}
_MEAN = {
    "threads": 7,
    "mode": 8,
    "peer": 12,
    "rows": 14,
    "rnnfast": 7,
    "packed": 7,
    "slower": 6,
    "loaded": 6,
}


def row_header() -> list[str]:
    return header(_ROW)


def row_lines(row: Row) -> list[str]:
    """One line for each peer, and one for each result that is wrong."""
    where = [row["threads"], row["mode"], row["cell"], row["name"], row["shape"]["kind"]]
    lines = []
    for name, reason in row["failed"].items():
        lines.append(f"{line(_ROW, [*where, name])} FAILED: {reason}")
    for rival in row["rivals"]:
        if rival["ratios"]:
            lines.append(line(_ROW, [*where, *_comparison(row, rival)]))
    if not row["rivals"] and row["times_ms"]:
        times = [_ms(row, PLAIN), "", _ms(row, PACKED), ""]
        lines.append(line(_ROW, [*where, "none", "", *times, "LOADED" * row["loaded"]]))
    return lines


def _comparison(row: Row, rival: dict[str, Any]) -> list[str]:
    cells = [rival["peer"], _ms(row, rival["peer"])]
    for name in (PLAIN, PACKED):
        ratio = rival["ratios"].get(name)
        spread = "{median:.3g} ({q1:.3g}-{q3:.3g})".format(**ratio) if ratio else ""
        cells += [_ms(row, name), spread]
    return [*cells, " ".join(["SLOWER"] * (_ratio(rival) < 1) + ["LOADED"] * row["loaded"])]


def _ratio(rival: dict[str, Any]) -> float:
    """The ratio that counts: prepacked against prepacked, else plain against plain."""
    return float(rival["ratios"][rival["against"]]["median"])


def _ms(row: Row, name: str) -> str:
    if name not in row["times_ms"]:
        return ""
    median = row["times_ms"][name]["median"]
    digits = min(4, max(0, 2 - math.floor(math.log10(median))))
    return f"{median:.{digits}f}"


def means(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Geometric means of the ratios for each peer, mode and number of threads."""
    groups: dict[tuple[Any, ...], list[tuple[Row, dict[str, Any]]]] = {}
    for row in rows:
        for rival in row["rivals"]:
            for kind in ("table", "all") if row["in_table"] else ("all",):
                key = (row["threads"], row["mode"], rival["peer"], kind)
                if rival["ratios"]:
                    groups.setdefault(key, []).append((row, rival))
    return [
        {
            **dict(zip(("threads", "mode", "peer", "rows"), key, strict=True)),
            "count": len(pairs),
            "slower": sum(_ratio(rival) < 1 for _, rival in pairs),
            "loaded": sum(row["loaded"] for row, _ in pairs),
            "ratios": {
                name: geometric_mean(rival["ratios"][name]["median"] for _, rival in pairs)
                for name in pairs[0][1]["ratios"]
            },
        }
        for key, pairs in sorted(groups.items())
    ]


def mean_lines(rows: Iterable[Row]) -> list[str]:
    lines = header(_MEAN)
    for mean in means(rows):
        ratios = (mean["ratios"].get(name) for name in (PLAIN, PACKED))
        cells = [mean["threads"], mean["mode"], mean["peer"], f"{mean['rows']} ({mean['count']})"]
        cells += ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        lines.append(line(_MEAN, [*cells, mean["slower"], mean["loaded"]]))
    return lines


def header(columns: dict[str, int]) -> list[str]:
    rule = "|".join("-" * (width + 2) for width in columns.values())
    return [line(columns, list(columns)), f"|{rule}|"]


def line(columns: dict[str, int], cells: Sequence[object]) -> str:
    padded = itertools.zip_longest(map(str, cells), columns.values(), fillvalue="")
    return "| " + " | ".join(f"{cell:<{width}}" for cell, width in padded) + " |"


def size(count: float) -> str:
    """Bytes, for people."""
    units = ("B", "KiB", "MiB", "GiB")
    power = min(int(math.log2(max(count, 1)) / 10), len(units) - 1)
    return f"{count / 1024**power:.4g} {units[power]}"


def newest(
    label: str, folder: Path = RESULTS, fits: Callable[[str], bool] | None = None
) -> dict[str, Any] | None:
    """The document that was saved last under this label, if there is one.

    `fits` says of the name of a processor whether its documents count.
    """
    for path in sorted(folder.glob(f"*-{label}.json"), reverse=True):
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if fits is None or fits(document["cpu"]):
            return document
    return None


def limits(folder: Path = RESULTS) -> list[Row]:
    """The rows of `python -m bench limits` that were saved last on a processor of this name."""
    saved = newest("limits", folder, cpu().__eq__)
    return saved["rows"] if saved else []


def document(rows: list[Row], arguments: dict[str, Any]) -> dict[str, Any]:
    """Everything that one must know to judge the numbers, and the numbers."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "arguments": arguments,
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "commit": _commit(),
        "versions": _versions(),
        "config": _config(),
        "limits": limits(),
        "rows": rows,
    }


def write(document: dict[str, Any], path: Path) -> None:
    """Whole or not at all."""
    text = json.dumps(document, indent=1) + "\n"
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def default_path(label: str, folder: Path) -> Path:
    return folder / f"{datetime.now(timezone.utc):%Y-%m-%d-%H%M%S}-{label}.json"


def cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of this checkout, with -dirty where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() or None
    return None


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "rnnfast": rnnfast.__version__,
    }
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _config() -> str:
    """What rnnfast.show_config prints: instruction set, threads, backends."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        rnnfast.show_config()
    return text.getvalue()
