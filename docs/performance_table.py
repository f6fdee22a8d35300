"""The table of ratios in README.md, made from the newest file in bench/results.

python -m docs.performance_table            print it
python -m docs.performance_table --write    put it into README.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BEGIN = "<!-- begin performance table: python -m docs.performance_table --write -->\n"
END = "<!-- end performance table -->\n"


def number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def ratio(rows: list[dict[str, Any]], mode: str, peer: str, ours: str) -> str:
    """The peer's time / rnnfast's with each number of threads; below 1 rnnfast is slower."""
    found = [
        number(rival["ratios"][ours]["median"])
        for row in sorted(rows, key=lambda row: row["threads"])
        for rival in row["rivals"]
        if row["mode"] == mode
        and rival["peer"] in (peer, f"{peer}-loop")
        and ours in rival["ratios"]
    ]
    return " / ".join(found)


def table(result: dict[str, Any]) -> str:
    """Markdown: one line for each cell and shape."""
    header = [
        "cell",
        "T, B, I, H",
        "forward",
        "forward, packed",
        "training",
        "packed / ONNX Runtime",
    ]
    lines = [header, ["---"] * len(header)]
    keys = dict.fromkeys((row["cell"], row["name"]) for row in result["rows"] if row["in_table"])
    for cell, name in keys:
        rows = [row for row in result["rows"] if (row["cell"], row["name"]) == (cell, name)]
        lines.append(
            [
                cell,
                name.replace(",", ", "),
                ratio(rows, "forward", "torch", "rnnfast"),
                ratio(rows, "forward", "torch", "rnnfast-packed"),
                ratio(rows, "training", "torch", "rnnfast"),
                ratio(rows, "forward", "onnxruntime", "rnnfast-packed"),
            ]
        )
    versions = result["versions"]
    caption = (
        f"Time of PyTorch {versions['torch']} (the last column: ONNX Runtime "
        f"{versions['onnxruntime']}) divided by that of rnnfast, with one / two threads, float32, "
        f"medians of interleaved runs; above 1 rnnfast is faster. `gru-before` (reset_after=False) "
        f"and `gated` are compared with loops written by hand in PyTorch. {result['cpu']}, "
        f"{result['cores']} cores, {result['date'][:10]}.\n\n"
    )
    return caption + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="update README.md")
    newest = max((ROOT / "bench" / "results").glob("*-bench.json"))
    made = table(json.loads(newest.read_text(encoding="utf-8")))
    if not parser.parse_args().write:
        print(made, end="")
        return
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    README.write_text(before + BEGIN + made + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
