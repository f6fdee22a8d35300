"""Inference, beside the other libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

from .shapes import ALL

MODE = "forward"
SHAPES = [shape for shape in ALL if shape.kind != "streaming"]


def test_forward(benchmark: BenchmarkFixture, checked: Callable[[], Any]) -> None:
    benchmark(checked)
