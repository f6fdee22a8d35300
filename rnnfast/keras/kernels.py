"""The one call of rnnfast's functions, through the adapter of the backend that Keras runs on."""

from __future__ import annotations

import importlib
from typing import Any

import keras

from ..api import Packed
from ..errors import UnsupportedError
from ..weights import Weights

BACKEND = keras.backend.backend()
_ADAPTERS = {
    "torch": "rnnfast.torch",
    "jax": "rnnfast.jax",
    "tensorflow": "rnnfast.keras.tensorflow",
}

if BACKEND not in _ADAPTERS:
    raise UnsupportedError(f"Keras' backend: expected one of {', '.join(_ADAPTERS)}, got {BACKEND}")
_adapter = importlib.import_module(_ADAPTERS[BACKEND])


def run(
    cell: str,
    x: Any,
    weights: Weights | Packed,
    state: list[Any],
    lengths: Any,
    options: dict[str, Any],
) -> tuple[Any, list[Any]]:
    """One layer in one direction: y (B, T, H) and the new states (B, H).

    Tensors of Keras' backend, of one dtype; x (B, T, I), states (B, H), lengths (B,) or None.
    """
    if BACKEND == "torch" and isinstance(weights, Weights):
        # NumPy would take six times as long as torch to transpose a kernel.
        weights = Weights(*(None if w is None else w.contiguous() for w in weights))
    if BACKEND == "jax":
        options = options | {"transposed": True}  # Keras' kernels, where they lie
    initial = [keras.ops.expand_dims(s, 0) for s in state]
    y, state_n = getattr(_adapter, cell)(
        x,
        weights,
        tuple(initial) if cell == "lstm" else initial[0],
        lengths=lengths,
        batch_first=True,
        **options,
    )
    return y, [s[0] for s in (state_n if cell == "lstm" else (state_n,))]


def rng(seed: Any) -> Any:
    """Keras' next seed, a tensor of two integers, as the adapter takes `rng`."""
    if BACKEND == "jax":
        import jax

        return jax.random.wrap_key_data(seed)
    if BACKEND == "torch":
        return int(seed[0]) << 31 ^ int(seed[1])
    return seed
