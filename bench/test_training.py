"""A forward pass and all gradients, beside the other libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

from .shapes import ALL

MODE = "training"
SHAPES = [shape for shape in ALL if shape.kind != "streaming"]


def test_training(benchmark: BenchmarkFixture, checked: Callable[[], Any]) -> None:
    benchmark(checked)
