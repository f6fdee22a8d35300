"""mypy, ruff and clang-format find nothing to say, where they are installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from helpers import command

TOOLS = {
    "types": ["mypy"],
    "rules": ["ruff", "check"],
    "layout": ["ruff", "format", "--check"],
}


@pytest.mark.parametrize("purpose", TOOLS)
def test_tool_is_content(purpose: str) -> None:
    tool = TOOLS[purpose]
    if importlib.util.find_spec(tool[0]) is None:
        pytest.skip(f"{tool[0]} is not installed")
    found = command([sys.executable, "-m", *tool], timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr


def test_layout_of_the_kernels() -> None:
    tool = Path(sys.executable).with_name("clang-format")
    if not tool.exists():
        pytest.skip("clang-format is not installed")
    files = sorted(map(str, (Path(__file__).parents[1] / "csrc").rglob("*.?pp")))
    assert files
    found = command([str(tool), "--dry-run", "--Werror", *files], timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr
