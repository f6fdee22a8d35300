"""python -m bench torch: one small run from end to end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")

from helpers import command


def test_a_quick_run(tmp_path: Path) -> None:
    path = tmp_path / "torch.json"
    options = "--quick --cells lstm gru --shapes 3,2,4,5 --threads 1 --budget 0.01"
    found = command(
        [sys.executable, "-m", "bench", "torch", *options.split(), "--json", str(path)], 120
    )
    assert found.returncode == 0, found.stderr
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert [(row["cell"], row["mode"]) for row in rows] == [
        (cell, mode) for cell in ("lstm", "gru") for mode in ("forward", "training")
    ]
    assert not any(row["failed"] for row in rows)
    for row in rows:
        assert set(row["times_ms"]) == {"rnnfast.torch", "torch", "arrays"}
        assert row["ratio"]["median"] > 0
    assert "geometric mean of 2 ratios" in found.stdout
