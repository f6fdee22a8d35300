"""Which engine runs a layer: RNNFAST_CUDA_ENGINE, or else the table in choice.json.

An entry of the table says up to how many rows of the batch the persistent engine is taken, for a
cell in a dtype with up to so many hidden units; the entry with the fewest units that are enough
counts. `measured` names the device, or is null.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("choice.json")
ENGINES = ("alternating", "persistent")


def forced() -> str | None:
    """The engine that RNNFAST_CUDA_ENGINE asks for."""
    engine = os.environ.get("RNNFAST_CUDA_ENGINE", "")
    if engine and engine not in ENGINES:
        raise ValueError(
            f"RNNFAST_CUDA_ENGINE: expected 'alternating' or 'persistent', got {engine!r}"
        )
    return engine or None


def most_rows(cell: str, dtype: str, hidden: int) -> int:
    """Up to how many rows the table has the persistent engine for; 0 for none."""
    enough = [entry for entry in _table().get((cell, dtype), ()) if entry[0] >= hidden]
    return min(enough)[1] if enough else 0


@cache
def _table() -> dict[tuple[str, str], list[tuple[int, int]]]:
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for entry in json.loads(TABLE.read_text(encoding="utf-8"))["most_rows"]:
        of_cell = found.setdefault((entry["cell"], entry["dtype"]), [])
        of_cell.append((entry["units"], entry["rows"]))
    return found
