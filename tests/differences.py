"""Gradients by central differences of the forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from helpers import Array, Problem, forward

STEP = 1e-3
FINE = 1e-4  # for norms, whose higher derivatives are large, and to stay off kinks


def derivative(f: Callable[[float], float], step: float = STEP) -> float:
    """f'(0) by the five-point stencil, whose error is of order step**4."""
    near, far = f(step) - f(-step), f(2 * step) - f(-2 * step)
    return (8 * near - far) / (12 * step)


def loss(p: Problem, **options: Any) -> float:
    """<dy, y> + <dh_n, h_n> + <dc_n, c_n>: the scalar whose gradients `backward` returns."""
    results = forward(p, **options)
    pairs = ((p.dy, "y"), (p.dh_n, "h_n"), (p.dc_n, "c_n"))
    return sum(float((d * results[name]).sum()) for d, name in pairs if d is not None)


def along(p: Problem, array: Array, direction: Array, step: float = STEP, **options: Any) -> float:
    """The derivative of the loss when `array`, one of p's, moves in a direction."""
    start = array.copy()

    def at(distance: float) -> float:
        array[...] = start + distance * direction
        return loss(p, **options)

    try:
        return derivative(at, step)
    finally:
        array[...] = start


def element_by_element(p: Problem, step: float = STEP) -> dict[str, Array]:
    """The gradient of every input of p."""
    found = {}
    for name, array in p.inputs().items():
        units = np.eye(array.size).reshape(-1, *array.shape)
        slopes = [along(p, array, unit, step) for unit in units]
        found[name] = np.array(slopes).reshape(array.shape)
    return found


def in_random_directions(
    p: Problem, results: dict[str, Array], step: float = STEP, **options: Any
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Derivatives along one random direction of each input: from `results`, by differences."""
    rng = np.random.default_rng(0)
    products, slopes = [], []
    for name, array in p.inputs().items():
        direction = rng.standard_normal(array.shape)
        direction /= np.linalg.norm(direction)
        products.append(float((results[name] * direction).sum()))
        slopes.append(along(p, array, direction, step, **options))
    return {"slopes": np.array(products)}, {"slopes": np.array(slopes)}
