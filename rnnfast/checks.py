"""Checks of plain arguments that several functions share."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import describe
from .spec import CELLS, Cell


def cell(name: object) -> Cell:
    """The cell of that name."""
    if not isinstance(name, str) or name not in CELLS:
        raise ValueError(f"cell: expected one of {', '.join(CELLS)}, got {name!r}")
    return CELLS[name]


def flag(name: str, value: object) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise TypeError(f"{name}: expected a bool, got {describe(value)}")


def generator(rng: Any) -> np.random.Generator:
    if rng is None or isinstance(rng, np.random.Generator):
        return np.random.default_rng(rng)
    if isinstance(rng, int | np.integer) and not isinstance(rng, bool):
        if rng < 0:
            raise ValueError(f"rng: expected a seed of at least 0, got {rng}")
        return np.random.default_rng(int(rng))
    raise TypeError(f"rng: expected a numpy Generator, an int or None, got {describe(rng)}")


def dropout(rate: Any) -> float:
    if type(rate) is float and 0 <= rate <= 1:
        return rate
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.floating | np.integer):
        raise TypeError(f"dropout: expected a float, got {describe(rate)}")
    if not 0 <= rate <= 1:
        raise ValueError(f"dropout: expected a probability from 0 to 1, got {rate}")
    return float(rate)
