"""The table of README.md that tells which backend has which cell, made from the registry.

python -m docs.support_table            print it
python -m docs.support_table --write    put it into README.md

A backend that cannot be used on this machine keeps the column that README.md has for it, so that
each column is written, and checked by tests/test_readme.py, where its backend runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import rnnfast
from rnnfast.backends import NAMES, supporting
from rnnfast.spec import all_specs

README = Path(__file__).parents[1] / "README.md"
BEGIN = "<!-- begin support table: python -m docs.support_table --write -->\n"
END = "<!-- end support table -->\n"


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
    rows = [["cell", *names], ["---"] * (1 + len(names))]
    for spec in all_specs():
        label = f"`{spec.variants()}`"
        usable = supporting(spec)
        rows.append([label])
        for name in names:
            known = ("no", "yes")[name in usable]
            rows[-1].append(known if status[name] is None else kept.get((label, name), "?"))
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
