"""One step of one row, where the call itself costs as much as the kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

from .shapes import ALL

MODE = "forward"
SHAPES = [shape for shape in ALL if shape.kind == "streaming"]


def test_streaming(benchmark: BenchmarkFixture, checked: Callable[[], Any]) -> None:
    benchmark(checked)
