"""Problems of functions with kinks that keep clear of them.

At a kink the slope jumps (and thresholded_relu itself), so that two backends whose roundings
differ may rightly give gradients that do too, and differences across it give neither slope. The
reference tells how close a problem comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from helpers import Array, Case, forward, problem

from rnnfast.reference import loop
from rnnfast.spec import Activation

ROUNDING = 1e-5  # farther than float32 rounds the numbers of a problem, whose size is about 1
DIFFERENCING = 2e-3  # farther than finite differences of `FINE` steps move them


def kinks(f: Activation, clip: float | None) -> list[float]:
    """Where f, of arguments limited to [-clip, clip], has no derivative of every order."""
    found = {
        "relu": [0.0],
        "leaky_relu": [0.0],
        "elu": [0.0],
        "softsign": [0.0],
        "thresholded_relu": [f.alpha],
    }.get(f.name, [])
    if f.name == "hard_sigmoid":
        found = [-f.beta / f.alpha, (1 - f.beta) / f.alpha]
    return found if clip is None else [k for k in found if abs(k) < clip] + [-clip, clip]


@contextmanager
def watched(seen: list[float]) -> Iterator[None]:
    """Note how close the arguments of the reference's activations come to a kink."""
    modules = list(loop.CELLS.values())
    original: Any = modules[0].activate

    def activate(f: Activation, clip: float | None, a: Array) -> Array:
        for kink in kinks(f, clip):
            distance = np.abs(a - kink)  # 0 where zeros were multiplied, which do not round
            seen.append(float(distance[distance > 0].min(initial=np.inf)))
        found: Array = original(f, clip, a)
        return found

    for module in modules:
        module.activate = activate  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in modules:
            module.activate = original  # type: ignore[attr-defined]


@lru_cache(maxsize=1000)
def clear(case: Case, margin: float = ROUNDING) -> Case:
    """The case with the first seed at which no argument comes closer to a kink than `margin`."""
    for seed in range(case.seed, case.seed + 1000):
        found = replace(case, seed=seed)
        seen: list[float] = []
        with watched(seen):
            forward(problem(found).astype(np.float64))
        if min(seen, default=np.inf) > margin:
            return found
    raise AssertionError(f"{case}: every seed comes close to a kink")
