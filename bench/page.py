"""Write a page of docs and its pictures from the newest results of every subject."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from . import page_adapters, pictures, report, targets
from .latency import PEERS, ratio
from .limits import Limits, at_limit, bounds
from .memory import numbers
from .parts import Parts
from .problem import CELLS
from .problem import draw as draw_problem
from .products import MAKERS
from .rows import Row
from .shapes import Shape

LABELS = (
    *("limits", "bench", "scaling", "latency", "products", "precision", "memory"),
    *page_adapters.SECTIONS,
)
NAME = "performance"
_TORCH = ("torch", "torch-loop")
_OURS = {"forward": "rnnfast-packed", "training": "rnnfast"}  # the time that limits are held to

Document = dict[str, Any]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m bench page", description=__doc__)
    parser.add_argument("--results", type=Path, default=report.RESULTS, metavar="FOLDER")
    parser.add_argument("--docs", type=Path, default=report.ROOT / "docs", metavar="FOLDER")
    parser.add_argument("--processor", default="", metavar="PART", help="of the name")
    parser.add_argument(
        "--name", default=NAME, help="of the page, its folder of pictures and its NAME_notes.md"
    )
    options = parser.parse_args(argv)
    found = {
        label: report.newest(label, options.results, lambda cpu: options.processor in cpu)
        for label in LABELS
    }
    documents = {label: document for label, document in found.items() if document}
    if not documents:
        print(f"page: no results in {options.results}; run: python -m bench", file=sys.stderr)
        return 1
    if "limits" in documents:  # newer, perhaps, than those that the others were saved with
        for document in documents.values():
            document["limits"] = documents["limits"]["rows"]
    drawn = draw(documents, options.docs / options.name)
    notes = options.docs / f"{options.name}_notes.md"
    written = notes.read_text(encoding="utf-8") if notes.exists() else ""
    text = page(documents, drawn, written, options.name)
    path = options.docs / f"{options.name}.md"
    path.write_text(text, encoding="utf-8")
    print(f"wrote {path}")
    return 0


def draw(documents: dict[str, Document], folder: Path) -> list[str]:
    """Draw what there are documents for; the names of the pictures."""
    sources = {
        "limits": [pictures.limits],
        "bench": [pictures.ratios, pictures.roofline],
        "scaling": [pictures.scaling],
        "latency": [pictures.latency],
        "memory": [pictures.memory],
    }
    names = []
    for label, functions in sources.items():
        for function in functions if label in documents else []:
            for name, figure in function(documents[label]).items():
                pictures.save(figure, folder, name)
                names.append(name)
    return names


def page(documents: dict[str, Document], drawn: Iterable[str], notes: str, name: str = NAME) -> str:
    """The whole text. A section whose subject was not measured says so."""
    drawn = list(drawn)
    parts = [
        f"<!-- Made by python -m bench page. The notes come from {name}_notes.md. -->",
        "# Performance",
        "How fast rnnfast is beside PyTorch, ONNX Runtime and what the machine can do. float32 "
        "everywhere; all results are checked against the NumPy reference in float64 before "
        "they are timed, and competitors are timed in turns. How to read the numbers, and the "
        "pitfalls, is in [bench/README.md](../bench/README.md). Everything here is made by "
        "`python -m bench everything`.",
        "## What was measured, where and when",
        _sources(documents),
    ]
    beside = partial(_ratios, _parts_of(documents))
    sections: list[tuple[str, str, Callable[[Document], str], tuple[str, ...]]] = [
        ("Limits of the machine", "limits", _limits, ("limits",)),
        ("Beside PyTorch and ONNX Runtime", "bench", beside, ("ratios",)),
        ("Against the limits", "bench", _roofline, ("roofline",)),
        ("Rows of different lengths", "bench", _ragged, ()),
        ("Growth", "scaling", _scaling, ("scaling-",)),
        ("Latency of one step", "latency", _latency, ("latency",)),
        ("Matrix products of training", "products", _products, ()),
        ("bfloat16 and int8 weights", "precision", _precision, ()),
        ("Memory of training", "memory", _memory, ("memory",)),
        *(
            (section.title, label, partial(page_adapters.write, label), ())
            for label, section in page_adapters.SECTIONS.items()
        ),
    ]
    for title, label, write, wanted in sections:
        parts.append(f"## {title}")
        if label not in documents:
            parts.append("Not measured yet.")
            continue
        for picture in drawn:
            if wanted and picture.startswith(wanted):
                parts.append(f"![{picture}]({name}/{picture}.svg)")
        parts.append(write(documents[label]))
        if write is beside and notes:
            parts += [f"<!-- begin {name}_notes.md -->", notes.strip(), "<!-- end of notes -->"]
    return "\n\n".join(parts) + "\n"


def _table(header: list[str], lines: Iterable[Iterable[object]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _sources(documents: dict[str, Document]) -> str:
    newest = max(documents.values(), key=lambda document: str(document["date"]))
    versions = ", ".join(f"{name} {v}" for name, v in newest["versions"].items() if v)
    lines = [
        (
            "table" if label == "bench" else label,
            document["date"].replace("T", " ")[:16],
            f"{document['cpu']}, {document['cores']} cores",
            f"`{(document['commit'] or '')[:10]}`" + " with changes" * _dirty(document),
            sum(row.get("loaded", False) for row in document["rows"]),
            len(document["rows"]),
        )
        for label, document in documents.items()
    ]
    header = ["subject", "date (UTC)", "machine", "commit", "loaded rows", "rows"]
    return (
        f"{_table(header, lines)}\n\n{versions}. A loaded row was timed while other processes used "
        f"more than 5 % of the cores; † marks it below."
    )


def _dirty(document: Document) -> bool:
    return str(document["commit"]).endswith("-dirty")


_SHOWN = (32 << 10, 512 << 10, 4 << 20, 32 << 20, 128 << 20)  # working sets


def _limits(document: Document) -> str:
    limits = Limits(document["rows"])
    header = [
        "threads",
        "FMA peak, GF/s",
        "matrix unit",
        *(f"GB/s from {report.size(s)}" for s in _SHOWN),
    ]
    lines = [
        (
            row["threads"],
            row["fma_gflops"],
            row.get("matrix_gflops") or "",
            *(f"{limits.bandwidth(row['threads'], size) / 1e9:.0f}" for size in _SHOWN),
            row["barrier_ns"] or "",
            ", ".join(f"{ns:.2f}" for ns in row.get("function_ns", {}).values()),
        )
        for row in document["rows"]
    ]
    return (
        "The best of several trials of a C++ program: multiply-adds from registers, the same that "
        "a matrix unit (AMX) makes of bfloat16 (six products of parts of the numbers for one, from "
        "the second-level cache, as eight tiles do not hold what a product reads), and reading a "
        "working set again and again, of which each thread has its own part. A barrier is one of "
        "spinning threads. sigmoid and tanh are rnnfast's own, for each number of a long "
        f"array, on one thread.\n\n{_table([*header, 'barrier, ns', 'sigmoid, tanh, ns'], lines)}"
    )


def _parts_of(documents: dict[str, Document]) -> Parts | None:
    if "limits" not in documents or "products" not in documents:
        return None
    return Parts(Limits(documents["limits"]["rows"]), documents["products"]["rows"])


def _ratios(parts: Parts | None, document: Document) -> str:
    rows = document["rows"]
    kept = dict.fromkeys((row["cell"], row["name"]) for row in rows)
    limits = Limits(document["limits"])
    lines = []
    for cell, name in kept:
        some = sorted(
            (row for row in rows if (row["cell"], row["name"]) == (cell, name)),
            key=lambda row: row["threads"],
        )
        shape = Shape(**some[0]["shape"])
        lines.append(
            (
                cell,
                name.replace(",", ", "),
                targets.kind(shape),
                _cells(limits, some, "forward", _TORCH, "rnnfast"),
                _cells(limits, some, "forward", _TORCH, "rnnfast-packed"),
                _cells(limits, some, "training", _TORCH, "rnnfast"),
                _asked(some),
                _cells(limits, some, "forward", ("onnxruntime",), "rnnfast-packed"),
                *(_shares(limits, some, mode, 0) for mode in _OURS),
                *(_shares(limits, some, mode, 1) if shape.B == 1 else "" for mode in _OURS),
            )
        )
    header = [
        "cell",
        "T, B, I, H",
        "class",
        "forward",
        "forward, packed",
        "training",
        "targets",
        "packed / ONNX Runtime",
        "peak: packed",
        "training",
        "bandwidth: packed",
        "training",
    ]
    return (
        f"{_means(limits, parts, rows)}\n\nTime of PyTorch divided by that of rnnfast, with "
        f"{' / '.join(map(str, sorted({row['threads'] for row in rows})))} threads; above 1 "
        "rnnfast is faster. `gru-before` and `gated` are compared with loops written by hand in "
        "PyTorch, which has no such module. **Bold** misses its target: that of forward is held to "
        "the plain call, which packs its weights as PyTorch does, and that of a stream (T = 1) to "
        "packed weights. ONNX Runtime packs at load; it should never be ahead. On the right: the "
        "share of the machine's multiply-adds that rnnfast reaches (of its matrix unit's, where "
        "there is one and B >= 16) and, for B = 1, of its bandwidth where the weights live; more "
        "than 100 % means that they were read from a nearer "
        f"cache than their size suggests.\n\n{_table(header, lines)}\n\n"
        + _missed(limits, parts, rows)
    )


def _cells(limits: Limits, rows: list[Row], mode: str, peers: tuple[str, ...], ours: str) -> str:
    """The ratio with each number of threads."""
    found = []
    for row in rows:
        for rival in row["rivals"]:
            if row["mode"] == mode and rival["peer"] in peers and rival["ratios"]:
                text = _number(rival["ratios"][ours]["median"])
                missed = targets.counts(row, rival) == ours and _is_missed(row, rival)
                found.append((f"**{text}**" if missed else text) + _marks(limits, row))
    return " / ".join(found)


def _marks(limits: Limits, row: Row) -> str:
    return "†" * row["loaded"] + "‡" * limits.are_apart(row) + "§" * _on_one_core(row)


def _on_one_core(row: Row) -> bool:
    return bool(row.get("one_core", 0) > 0.25)


def _is_missed(row: Row, rival: dict[str, Any]) -> bool:
    reached = targets.reached(row, rival)
    return reached is not None and reached[1] is not None and reached[0] < reached[1]


def _asked(rows: list[Row]) -> str:
    """The targets of forward and training."""
    asked = {row["mode"]: targets.target(row, "torch") for row in rows}
    return "; ".join(f"{value:.3g}" for mode in _OURS if (value := asked.get(mode)) is not None)


def _shares(limits: Limits, rows: list[Row], mode: str, bound: int) -> str:
    """With each number of threads, the share of one of the two limits that is reached."""
    found = []
    for row in rows:
        if row["mode"] == mode and row["times_ms"] and row["threads"] in limits.threads():
            seconds = row["times_ms"][_OURS[mode]]["median"] / 1e3
            found.append(_percent(bounds(limits, row)[bound] / seconds))
    return " / ".join(found)


def _bounds_of(
    limits: Limits, parts: Parts | None, row: Row, rival: dict[str, Any]
) -> tuple[float, float | None]:
    """The ratio to a rival at the limit, and that of the parts, where they were measured."""
    seconds = row["times_ms"][rival["peer"]]["median"] / 1e3
    together = None if parts is None else parts.seconds(row, rival)
    return at_limit(limits, row, rival), None if together is None else seconds / together


def _means(limits: Limits, parts: Parts | None, rows: list[Row]) -> str:
    """Geometric means over the table, like with like, and what they would be at the bounds."""
    lines = []
    for peer, asked in (("torch", targets.TORCH_MEAN), ("onnxruntime", None)):
        for threads in sorted({row["threads"] for row in rows}):
            least = asked.get(threads, 1) if asked else targets.ONNXRUNTIME_MEAN
            by_mode: dict[str, list[float]] = {}
            bounds_of: list[tuple[float, float | None]] = []
            for row in rows:
                for rival in row["rivals"]:
                    found = targets.reached(row, rival)
                    if (row["threads"], rival["peer"]) != (threads, peer) or not row["in_table"]:
                        continue
                    if found:
                        by_mode.setdefault(row["mode"], []).append(found[0])
                    if found and threads in limits.threads():
                        bounds_of.append(_bounds_of(limits, parts, row, rival))
            everything = [value for values in by_mode.values() for value in values]
            if everything:
                mean = geometric_mean(everything)
                modes = (by_mode.get(mode) for mode in _OURS)
                cells = (_number(geometric_mean(m)) if m else "" for m in modes)
                text = _number(mean) if mean >= least else f"**{_number(mean)}**"
                slower = f"{sum(value < 1 for value in everything)} of {len(everything)}"
                of_each = zip(*bounds_of, strict=True) if bounds_of else ((), ())
                at_bounds = (_mean_of(values) for values in of_each)
                lines.append((peer, threads, *cells, text, least, slower, *at_bounds))
    header = ["peer", "threads", "forward", "training", "both", "target", "rnnfast slower"]
    header += ["at the limit", "parts"]
    about = (
        "Geometric means over the nine shapes of the table, and at the right what they would be "
        "of a program at the limits, and at the parts, that the list of misses below explains:"
    )
    return f"{about}\n\n{_table(header, lines)}"


def _mean_of(values: Sequence[float | None]) -> str:
    """The geometric mean, where all are there."""
    there = [value for value in values if value is not None]
    return _number(geometric_mean(there)) if there and len(there) == len(values) else ""


# What the list of misses says of one, in the order in which it asks.
_WHY = {
    "machine": "does not come with the machine: its limit is below the target",
    "parts": "does not come with the parts: their sum, each as it was measured alone, is below",
    "spread": "lies within the quartiles of the ratio",
    "open": "is not explained by these",
}


def _missed(limits: Limits, parts: Parts | None, rows: list[Row]) -> str:
    """Every miss and what it comes from, the worst first."""
    asked = apart = 0
    found: dict[str, list[tuple[float, tuple[Any, ...]]]] = {why: [] for why in _WHY}
    for row in rows:
        for rival in row["rivals"]:
            reached = targets.reached(row, rival)
            if reached is None or reached[1] is None:
                continue
            asked += 1
            ratio, least = reached
            if ratio >= least or row["threads"] not in limits.threads():
                continue
            most, of_parts = _bounds_of(limits, parts, row, rival)
            spread = rival["ratios"][targets.counts(row, rival)]
            if most < least:
                why = "machine"
            elif of_parts is not None and of_parts < least:
                why = "parts"
            elif spread["q3"] >= least:
                why = "spread"
            else:
                why = "open"
            apart += why == "open" and limits.are_apart(row)
            where = (row["cell"], row["name"].replace(",", ", "), row["threads"], row["mode"])
            text = f"{_number(ratio)} ({_number(spread['q1'])}-{_number(spread['q3'])})"
            numbers = (
                text + _marks(limits, row),
                f"{least:.3g}",
                _number(most),
                _percent(ratio / most),
                "" if of_parts is None else _number(of_parts),
            )
            found[why].append((ratio / least, (*where, rival["peer"], *numbers)))
    missed = sum(map(len, found.values()))
    text = [f"{asked - missed} of {asked} targets are met."]
    if missed:
        text[0] += (
            ' "At the limit" is the ratio of a program whose products come one after the other, '
            "each at the peak of its arithmetic or at the bandwidth of the cache that holds the "
            "weights, then the cell's functions at their measured rate, and which does nothing "
            "else in between; one row of one layer is divided among threads that meet at each "
            "step, or not at all; "
            "of a single step it is the time in which the same threads read as many numbers as "
            "there are weights and do nothing else, called from Python in turns with it. "
            '"Share" is how much of that limit rnnfast reaches. "Parts" is the ratio of a program '
            "whose parts each take what was measured of that part alone: a product of all steps as "
            "long as in the fastest of the three libraries (Matrix products of training), those of "
            "the steps of many rows at the rate of the fastest product of all, a step "
            "of one row no less than one of 16 units, where next to nothing is multiplied, three "
            "meetings of the threads a step that they divide, and a call from Python. "
        )
        text[0] += _apart(limits, rows, f"{apart} of the {len(found['open'])}")
        text[0] += _together(rows)
        counts = [f"of {len(found[why])} the target {words}" for why, words in _WHY.items()]
        text.append(f"Of the {missed} misses, {'; '.join(counts)}.")
    header = ["cell", "T, B, I, H", "threads", "mode", "peer", "ratio (quartiles)", "target"]
    header += ["at the limit", "share", "parts"]
    for why in reversed(_WHY):
        if found[why]:
            worst_first = [cells for _, cells in sorted(found[why], key=lambda one: one[0])]
            summary = f"<summary>{len(worst_first)} whose target {_WHY[why]}</summary>"
            text.append(f"<details>{summary}\n\n{_table(header, worst_first)}\n\n</details>")
    return "\n\n".join(text)


def _apart(limits: Limits, rows: list[Row], misses: str) -> str:
    apart = [row for row in rows if limits.are_apart(row)]
    if not apart:
        return ""
    ns = median([row["meeting_ns"] for row in apart])
    return (
        f"‡ marks {len(apart)} of {sum(row['threads'] > 1 for row in rows)} rows of several "
        f"threads that were timed while these took {ns:.0f} ns to meet (the median): the host of "
        "a virtual machine may have put its processors where they share no cache. "
        f"{misses} misses that are not explained below are of such rows. "
    )


def _together(rows: list[Row]) -> str:
    count = sum(map(_on_one_core, rows))
    if not count:
        return ""
    return f"§ marks {count} that were timed while their threads had one core between them. "


def _ragged(document: Document) -> str:
    """Batches of rows of different lengths, beside torch's two ways and our own padded time."""
    rows = document["rows"]
    padded = {
        (row["cell"], row["name"], row["mode"], row["threads"]): row["times_ms"]
        for row in rows
        if row["times_ms"]
    }
    lines = []
    for row in rows:
        shape = Shape(**row["shape"])
        if not shape.ragged or not row["times_ms"]:
            continue
        over = {r["peer"]: r["ratios"]["rnnfast"]["median"] for r in row["rivals"] if r["ratios"]}
        lengths = draw_problem(CELLS[row["cell"]], shape, row["mode"]).lengths
        assert lengths is not None
        share = float(lengths.mean() / shape.T)
        full = padded.get((row["cell"], str(replace(shape, ragged=False)), *_how(row)))
        cost = row["times_ms"]["rnnfast"]["median"] / full["rnnfast"]["median"] if full else None
        text = "" if cost is None else f"{cost:.2f}"
        lines.append(
            (
                row["cell"],
                str(shape).replace(",", ", ").removesuffix(" ragged"),
                *_how(row),
                *(_number(over[p]) if p in over else "" for p in ("torch", "torch-packed")),
                f"{share:.2f}",
                f"**{text}**" if cost and cost > share * targets.RAGGED_COST else text,
            )
        )
    header = ["cell", "T, B, I, H", "mode", "threads", "torch padded / rnnfast"]
    header += ["torch packed / rnnfast", "steps there", "time / padded time"]
    return (
        "Rows of random lengths, half of T on average. **Bold** costs more than 1.15 times its "
        f"share of the steps of the padded batch.\n\n{_table(header, lines)}"
    )


def _how(row: Row) -> tuple[str, int]:
    return row["mode"], row["threads"]


def _roofline(document: Document) -> str:
    return (
        "Every row of the table. Reading a working set of the size that is written at its left end "
        "allows what lies below a slanted line, arithmetic what lies below the level one. Circles "
        "are forward with packed weights, triangles training."
    )


def _scaling(document: Document) -> str:
    return (
        "Time against T, B and H; the broken lines are what the machine allows: multiply-adds at "
        "their peak, and reading the recurrent weights once a step at the bandwidth that a working "
        "set of their size has. Reading forwards and backwards in turns may beat the second just "
        "past the size of a cache."
    )


def _latency(document: Document) -> str:
    lines = []
    for row in document["rows"]:
        times = row["times_us"]
        if not times:
            continue
        kernel = times["kernel"]["median"] if "kernel" in times else None
        cells: list[str] = []
        for name in ("rnnfast-out", "rnnfast"):
            if name in times:
                median, p99 = times[name]["median"], times[name]["p99"]
                above = "" if kernel is None else f"{median - kernel:+.2f}"
                cells += [f"{median:.2f} ({p99:.1f})", above]
            else:
                cells += ["", ""]
        ratios = (ratio(row, peer) for peer in PEERS)
        lines.append(
            (
                row["cell"],
                row["H"],
                row["threads"],
                "" if kernel is None else f"{kernel:.2f}",
                *cells,
                *("" if found is None else _number(found) for found in ratios),
                "†" * row["loaded"],
            )
        )
    header = ["cell", "H = I", "threads", "kernel, us", "`out=`, us (99 %)", "above kernel"]
    header += ["plain call, us (99 %)", "above kernel", *(f"{p} / ours" for p in PEERS), ""]
    return (
        "T = 1, B = 1, weights packed, the state carried from call to call: microseconds of a call "
        "from Python with everything, median and in brackets the 99th percentile. The kernel is "
        "the compiled function called directly. Ratios are to the call with `out=`, which "
        "allocates nothing. ONNX Runtime is the faster of a plain run and of bound memory; the "
        "loop for Numba is plain, with fastmath, on one thread. The target is within 5 us, and "
        f"within twice, of the kernel.\n\n{_table(header, lines)}"
    )


def _products(document: Document) -> str:
    limits = Limits(document["limits"])
    lines = []
    for row in document["rows"]:
        rates = {name: rate["median"] for name, rate in row["gflops"].items()}
        share = None
        if "rnnfast" in rates and row["threads"] in limits.threads():
            share = rates["rnnfast"] * 1e9 / limits.flops(row["threads"])
        found = [f"{rates[name]:.0f}" if name in rates else "" for name in MAKERS]
        mark = "†" * row["loaded"]
        lines.append((row["use"], row["name"], row["threads"], *found, _percent(share), mark))
    header = ["product", "M, N, K", "threads", *MAKERS, "rnnfast, of FMA peak", ""]
    return (
        "GF/s, packing included; `tn` is a transposed times b, `nn` a times b. rnnfast-matrix is "
        "how layers multiply float32 batches of 16 rows and more where there is AMX. NumPy's is "
        f"its own OpenBLAS, torch's is MKL.\n\n{_table(header, lines)}"
    )


def _precision(document: Document) -> str:
    lines = []
    for row in document["rows"]:
        over = {name: ratio["median"] for name, ratio in row["float32_over"].items()}
        asked = targets.PRECISION.get(targets.kind(Shape(**row["shape"])), {})

        def faster(peer: str, dtype: str, over: Any = over, asked: Any = asked) -> str:
            ours = f"rnnfast-{dtype}"
            if peer not in over or ours not in over:
                return ""
            text = _number(over[ours] / over[peer])
            missed = peer == "torch" and over[ours] / over[peer] < asked.get(dtype, 0)
            return f"**{text}**" if missed else text

        found = ((name, row["errors"].get(name)) for name in _INEXACT)
        errors = (f"{e['rms']:.1e} ({e['max']:.1e})" if e else "" for _, e in found)
        lines.append(
            (
                row["cell"],
                row["name"].replace(",", ", "),
                f"{row['threads']}" + "†" * row["loaded"],
                *(faster("torch", dtype) for dtype in ("float32", "bfloat16", "int8")),
                faster("torch-float16", "bfloat16"),
                *(faster(peer, "int8") for peer in ("torch-int8", "onnxruntime-int8")),
                *errors,
            )
        )
    header = ["cell", "T, B, I, H", "threads"]
    header += [f"torch / {dtype}" for dtype in ("float32", "bfloat16", "int8")]
    header += ["torch float16 / bfloat16", "torch int8 / int8", "ONNX int8 / int8"]
    header += [f"error of {name}" for name in _INEXACT]
    return (
        "Forward with weights packed by rnnfast in float32, bfloat16 and int8: time of the other / "
        "time of rnnfast. Errors of y are against the reference in float64: root of the mean "
        "square relative to that of y and, in brackets, the largest. The others' int8 and float16 "
        "are PyTorch's dynamic quantization, which has no RNN, and ONNX Runtime's, which has "
        f"LSTM alone.\n\n{_table(header, lines)}"
    )


_INEXACT = ("rnnfast-bfloat16", "rnnfast-int8", "torch-float16", "torch-int8", "onnxruntime-int8")


def _memory(document: Document) -> str:
    lines = [
        (
            row["cell"],
            row["name"].replace(",", ", "),
            row["threads"],
            row["way"],
            f"{row['peak_bytes'] / 1e6:.0f}",
            f"{numbers(row):.1f} H",
            f"{row['seconds']:.3g}" + "†" * row["loaded"],
        )
        for row in document["rows"]
        if "peak_bytes" in row
    ]
    header = ["cell", "T, B, I, H", "threads", "way", "peak MB", "numbers a row, step and layer"]
    return (
        "One training step: what the process uses at most above what it used when inputs and "
        "weights were there. y and the gradient of x alone are H + I numbers a row and step.\n\n"
        f"{_table([*header, 'seconds'], lines)}"
    )
