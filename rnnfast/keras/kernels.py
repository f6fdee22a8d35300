"""The one call of rnnfast's functions, through the adapter of the backend that Keras runs on."""

from __future__ import annotations

import importlib
from typing import Any

import keras

from ..errors import UnsupportedError
from ..weights import Weights

_ADAPTERS = {
    "torch": "rnnfast.torch",
    "jax": "rnnfast.jax",
    "tensorflow": "rnnfast.keras.tensorflow",
}


def run(
    cell: str,
    x: Any,
    weights: Weights,
    state: list[Any],
    lengths: Any,
    options: dict[str, Any],
) -> tuple[Any, list[Any]]:
    """One layer in one direction: y (B, T, H) and the new states (B, H).

    Tensors of Keras' backend, of one dtype; x (B, T, I), states (B, H), lengths (B,) or None.
    """
    backend = keras.backend.backend()
    if backend not in _ADAPTERS:
        raise UnsupportedError(
            f"Keras' backend: expected one of {', '.join(_ADAPTERS)}, got {backend}"
        )
    function = getattr(importlib.import_module(_ADAPTERS[backend]), cell)
    initial = [keras.ops.expand_dims(s, 0) for s in state]
    y, state_n = function(
        x,
        weights,
        tuple(initial) if cell == "lstm" else initial[0],
        lengths=lengths,
        batch_first=True,
        **options,
    )
    return y, [s[0] for s in (state_n if cell == "lstm" else (state_n,))]
