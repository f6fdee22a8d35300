"""Which engine runs a layer: RNNFAST_CUDA_ENGINE, or else the table in choice.json.

An entry of the table is for a cell in a dtype with up to so many hidden units; the one with the
fewest units that are enough counts. It says up to how many rows of the batch each of the engines
that run all steps in one launch is taken, where it fits: first that of clusters, then that of the
grid. `measured` names the device, or is null.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("choice.json")
ENGINES = ("alternating", "cluster", "grid")


class Rows(NamedTuple):
    """Up to how many an engine is taken; 0 for none."""

    cluster: int
    grid: int


def forced() -> str | None:
    """The engine that RNNFAST_CUDA_ENGINE asks for."""
    engine = os.environ.get("RNNFAST_CUDA_ENGINE", "")
    if engine and engine not in ENGINES:
        raise ValueError(
            f"RNNFAST_CUDA_ENGINE: expected {', '.join(map(repr, ENGINES))}, got {engine!r}"
        )
    return engine or None


@cache
def rows(cell: str, dtype: str, hidden: int) -> Rows:
    """What the table says."""
    enough = [entry for entry in _table().get((cell, dtype), ()) if entry[0] >= hidden]
    return min(enough)[1] if enough else Rows(0, 0)


@cache
def _table() -> dict[tuple[str, str], list[tuple[int, Rows]]]:
    found: dict[tuple[str, str], list[tuple[int, Rows]]] = {}
    for entry in json.loads(TABLE.read_text(encoding="utf-8"))["most_rows"]:
        of_cell = found.setdefault((entry["cell"], entry["dtype"]), [])
        of_cell.append((entry["units"], Rows(entry["cluster"], entry["grid"])))
    return found
