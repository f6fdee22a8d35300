"""The one call of rnnfast's functions, through the adapter of the backend that Keras runs on."""

from __future__ import annotations

import importlib
from typing import Any

import keras
import numpy as np

import rnnfast

from ..errors import UnsupportedError
from ..packed import Packed
from ..weights import InOrder, Weights
from .translation import places_of

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
    weights: tuple[Weights, ...] | Packed,
    states: list[list[Any]],
    lengths: Any,
    options: dict[str, Any],
    training: bool,
    at_zero: bool,
) -> tuple[Any, list[list[Any]]]:
    """One layer in one or two directions: y (B, T, D*H) and the new states.

    Tensors of Keras' backend, of one dtype: x (B, T, I), lengths (B,) or None, and for each
    direction one or two states (B, H), all zeros where it starts `at_zero`. With `training` a
    backward pass is likely.
    """
    if isinstance(weights, Packed):
        return _run_packed(cell, x, weights, states, lengths, options, at_zero)
    places = places_of(cell)
    if BACKEND == "tensorflow":
        options = {**options, "keep": training}
    elif BACKEND == "jax":
        options = {**options, "transposed": True}
    elif len(weights) > 1 or not options.keys() <= _OF_PLAIN_CELLS:
        # These are not read as they lie. NumPy would take six times as long as torch.
        weights = tuple(
            Weights(*(None if a is None else a.contiguous() for a in w)) for w in weights
        )
    given: Any = [weights if len(weights) > 1 else weights[0]]
    if places:
        given = InOrder(given, places)
    initial: Any = None
    if not at_zero:
        initial = tuple(
            keras.ops.stack(s) if len(s) > 1 else keras.ops.expand_dims(s[0], 0)
            for s in zip(*states, strict=True)
        )
        initial = initial if cell == "lstm" else initial[0]
    y, state_n = getattr(_adapter, cell)(
        x, given, initial, lengths=lengths, batch_first=True, **options
    )
    found = state_n if cell == "lstm" else (state_n,)
    return y, [[s[d] for s in found] for d in range(len(states))]


_OF_PLAIN_CELLS = {"reset_after", "nonlinearity"}


def _run_packed(
    cell: str,
    x: Any,
    weights: Packed,
    states: list[list[Any]],
    lengths: Any,
    options: dict[str, Any],
    at_zero: bool,
) -> tuple[Any, list[list[Any]]]:
    """`run` on tensors of torch that take no part in autograd.

    The time is the first axis, as rnnfast's shortest way wants it: where B or T is 1, that moves
    nothing in memory.
    """
    from torch import from_numpy

    from ..torch.memory import array

    initial: Any = None
    if not at_zero:
        initial = tuple(
            np.stack([array(a) for a in s]) if len(s) > 1 else array(s[0])[None]
            for s in zip(*states, strict=True)
        )
        initial = initial if cell == "lstm" else initial[0]
    if lengths is not None:
        options = {**options, "lengths": array(lengths)}
    y, state_n = getattr(rnnfast, cell)(array(x).swapaxes(0, 1), weights, initial, **options)
    found = [from_numpy(s) for s in (state_n if cell == "lstm" else (state_n,))]
    return from_numpy(y.swapaxes(0, 1)), [[s[d] for s in found] for d in range(len(states))]


def rng(seed: Any) -> Any:
    """Keras' next seed, a tensor of two integers, as the adapter takes `rng`."""
    if BACKEND == "jax":
        import jax

        return jax.random.wrap_key_data(seed)
    if BACKEND == "torch":
        return int(seed[0]) << 31 ^ int(seed[1])
    return seed
