"""The table of README.md that tells which backend has which cell and option, from the registry.

python -m docs.support_table            print it
python -m docs.support_table --write    put it into README.md

A backend that cannot be used on this machine keeps the column that README.md has for it, so that
each column is written, and checked by tests/test_readme.py, where its backend runs.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import rnnfast
from rnnfast.backends import NAMES, get, supporting
from rnnfast.options import WHOSE
from rnnfast.spec import ACTIVATIONS, CELLS, Spec, all_specs

README = Path(__file__).parents[1] / "README.md"
BEGIN = "<!-- begin support table: python -m docs.support_table --write -->\n"
END = "<!-- end support table -->\n"


# What makes a Spec with each option, and the words for it.
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "projection": ("projection `w_hr`", {"projection": True}),
    "peepholes": ("peepholes `w_peep`", {"peepholes": True}),
    "layer_norm": ("layer normalisation `ln_*`", {"layer_norm": True}),
    "gate_activation": ("`gate_activation`", {"gate_activation": ACTIVATIONS["relu"]}),
    "activation": ("`activation`", {"activation": ACTIVATIONS["softsign"]}),
    "output_activation": ("`output_activation`", {"output_activation": ACTIVATIONS["relu"]}),
    "clip": ("`clip`", {"clip": 1.0}),
    "input_forget": ("`input_forget`", {"input_forget": True}),
    "grad_clip": ("`grad_clip`", {"grad_clip": 1.0}),
    "truncate": ("`truncate`", {"truncate": 2}),
    "recurrent_dropout": ("`recurrent_dropout`", {"recurrent_dropout": True}),
    "zoneout": ("`zoneout`", {"zoneout": True}),
}

_WHOSE = {**WHOSE, "projection": ("lstm",), "peepholes": ("lstm",)}


def cells_with(option: str, backend: str) -> str:
    """The cells that have an option on a backend."""
    chosen = OPTIONS[option][1]
    possible = [cell for cell in CELLS if cell in _WHOSE.get(option, tuple(CELLS))]
    found = [cell for cell in possible if backend in supporting(replace(Spec(cell), **chosen))]
    return "yes" if found == list(CELLS) else ", ".join(found) or "no"


def cells(line: str) -> list[str]:
    """The cells of one line of a Markdown table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def table(old: str) -> str:
    """The table as Markdown, with what `old` says of backends that cannot be used here."""
    lines = old.splitlines()
    header = cells(lines[0]) if lines else []
    kept = {
        (row[0], name): value
        for row in map(cells, lines[2:])
        for name, value in zip(header, row, strict=True)
    }
    status = rnnfast.backends()
    names = [name for name in NAMES if status[name] is None or name in header]
    rows = [["cell or option", *names], ["---"] * (1 + len(names))]
    for spec in all_specs():
        label = f"`{spec.variants()}`"
        usable = supporting(spec)
        rows.append([label])
        for name in names:
            known = ("no", "yes")[name in usable]
            rows[-1].append(known if status[name] is None else kept.get((label, name), "?"))
    for option, (label, _) in OPTIONS.items():
        rows.append([label])
        for name in names:
            known = kept.get((label, name), "?")
            rows[-1].append(cells_with(option, name) if status[name] is None else known)
    label = "second derivatives, float64"
    rows.append([label])
    for name in names:
        known = kept.get((label, name), "?")
        if status[name] is None:
            known = ("no", "yes")[get(name, Spec("lstm")).twice]
        rows[-1].append(known)
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def update(readme: str) -> str:
    """The text of README.md with its table made anew."""
    before, rest = readme.split(BEGIN)
    old, after = rest.split(END)
    return before + BEGIN + table(old) + END + after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="update README.md")
    write = parser.parse_args().write
    readme = README.read_text(encoding="utf-8")
    updated = update(readme)
    if write:
        README.write_text(updated, encoding="utf-8")
    else:
        print(updated.split(BEGIN)[1].split(END)[0], end="")


if __name__ == "__main__":
    main()
