"""Checks of plain arguments that several functions share.

Types stand in tuples, not in unions, which torch.compile of PyTorch 2.4 and 2.8 cannot trace.
"""

from __future__ import annotations

import math
import sys
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
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise TypeError(f"{name}: expected a bool, got {describe(value)}")


def integer(name: str, value: Any, least: int) -> int:
    if not is_integer(value):
        raise TypeError(f"{name}: expected an int, got {describe(value)}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    return int(value)


def steps(name: str, value: Any) -> int | None:
    """A number of steps, or None."""
    if value is None:
        return None
    if not is_integer(value):
        raise TypeError(f"{name}: expected an int or None, got {describe(value)}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1 step, got {value}")
    return min(int(value), sys.maxsize)  # a sequence has no more


def real(name: str, value: Any) -> float:
    """A finite number."""
    if not is_real(value):
        raise TypeError(f"{name}: expected a float, got {describe(value)}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")
    return float(value)


def probability(name: str, value: Any) -> float:
    if type(value) is float and 0 <= value <= 1:
        return value
    if not is_real(value):
        raise TypeError(f"{name}: expected a float, got {describe(value)}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a probability from 0 to 1, got {value}")
    return float(value)


def saved(save: object) -> str:
    if not isinstance(save, str) or save not in ("all", "recompute"):
        raise ValueError(f"save: expected 'all' or 'recompute', got {save!r}")
    return save


def generator(rng: Any) -> np.random.Generator:
    if rng is None or isinstance(rng, np.random.Generator):
        return np.random.default_rng(rng)
    if is_integer(rng):
        if rng < 0:
            raise ValueError(f"rng: expected a seed of at least 0, got {rng}")
        return np.random.default_rng(int(rng))
    raise TypeError(f"rng: expected a numpy Generator, an int or None, got {describe(rng)}")


def is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_real(value: object) -> bool:
    return is_integer(value) or isinstance(value, (float, np.floating))
