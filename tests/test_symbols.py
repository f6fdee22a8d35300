"""The linker must not be able to mix code of two instruction sets.

A weak symbol, such as an inline function or a template has, is kept once for the whole module: it
could be the AVX-512 copy, on which an older processor dies.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OBJECTS = sorted((ROOT / "build").glob("**/kernels_*.dir/**/*.o"))


@pytest.mark.skipif(not OBJECTS, reason="no object files: the package was not built in this tree")
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: "-".join(path.parts[-4:]))
def test_no_weak_symbols(path: Path) -> None:
    listing = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout
    kinds = {line: line[17:18] for line in listing.splitlines()}
    assert set("TDR") & set(kinds.values())  # it defines something, and was read right
    assert not [line for line, kind in kinds.items() if kind in "WVu"]


@pytest.mark.skipif(not OBJECTS, reason="no object files: the package was not built in this tree")
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: "-".join(path.parts[-4:]))
def test_no_code_runs_at_load_time(path: Path) -> None:
    listing = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
    assert "_GLOBAL__sub_I" not in listing
