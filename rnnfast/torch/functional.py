"""lstm, gru, rnn and gated on tensors, with gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

import rnnfast

from .. import arrays, checks
from ..spec import CELLS
from ..weights import InOrder, Weights, is_entry, parse
from . import autograd, calls, memory, ops
from .autograd import Given
from .calls import Call, Results

_RANDOM = ("recurrent_dropout", "zoneout", "dropconnect")


def lstm(
    x: Tensor,
    weights: Any,
    state: tuple[Tensor | None, Tensor | None] | None = None,
    *,
    lengths: Any = None,
    batch_first: bool = False,
    dropout: float = 0.0,
    rng: torch.Generator | int | None = None,
    **options: Any,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`rnnfast.lstm` on tensors: it takes part in autograd and in torch.compile.

    Parameters
    ----------
    x : Tensor (T, B, I), (B, T, I) with batch_first, or (T, I) unbatched; float32 or float64
        On the CPU or, with CuPy, on a CUDA device, which has float16 and bfloat16 too.
    weights : Weights, tuple of tensors, list with one entry per layer, or Packed
        As `rnnfast.lstm` takes them, of tensors. `rnnfast.Packed` is for inference.
    state : (h_0, c_0) or None
        Each a Tensor (L*D, B, H), without B if x is unbatched, or None for zeros.
    lengths : integer Tensor, array or sequence (B,), or None
        The number of valid steps of each row, in any order.
    batch_first, dropout
        As `rnnfast.lstm` takes them.
    rng : torch.Generator, int or None
        Source or seed of all that is drawn; None is PyTorch's own generator.
    **options
        Every other keyword of `rnnfast.lstm_vjp` but `out`: ``backend``, ``save``, and those of
        `rnnfast.Options`.

    Returns
    -------
    y : Tensor (T, B, D*H), or as x is laid out
    (h_n, c_n) : Tensors (L*D, B, H), without B if x is unbatched

    Raises
    ------
    ValueError, TypeError, UnsupportedError
        As `rnnfast.lstm` does, and UnsupportedError for tensors on another device.
    """
    h_0, c_0 = _pair(state)
    y, h_n, c_n = _call("lstm", x, weights, h_0, c_0, lengths, batch_first, dropout, rng, options)
    assert c_n is not None
    return y, (h_n, c_n)


def gru(
    x: Tensor,
    weights: Any,
    h_0: Tensor | None = None,
    *,
    lengths: Any = None,
    batch_first: bool = False,
    dropout: float = 0.0,
    rng: torch.Generator | int | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """`rnnfast.gru` on tensors; see `rnnfast.torch.lstm`. Options: also ``reset_after``."""
    y, h_n, _ = _call("gru", x, weights, h_0, None, lengths, batch_first, dropout, rng, options)
    return y, h_n


def rnn(
    x: Tensor,
    weights: Any,
    h_0: Tensor | None = None,
    *,
    lengths: Any = None,
    batch_first: bool = False,
    dropout: float = 0.0,
    rng: torch.Generator | int | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """`rnnfast.rnn` on tensors; see `rnnfast.torch.lstm`. Options: also ``nonlinearity``."""
    y, h_n, _ = _call("rnn", x, weights, h_0, None, lengths, batch_first, dropout, rng, options)
    return y, h_n


def gated(
    x: Tensor,
    weights: Any,
    h_0: Tensor | None = None,
    *,
    lengths: Any = None,
    batch_first: bool = False,
    dropout: float = 0.0,
    rng: torch.Generator | int | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """`rnnfast.gated` on tensors; see `rnnfast.torch.lstm`."""
    y, h_n, _ = _call("gated", x, weights, h_0, None, lengths, batch_first, dropout, rng, options)
    return y, h_n


def _call(
    cell: str,
    x: Tensor,
    weights: Any,
    h_0: Tensor | None,
    c_0: Tensor | None,
    lengths: Any,
    batch_first: bool,
    dropout: float,
    rng: torch.Generator | int | None,
    options: dict[str, Any],
) -> Results:
    if "out" in options:
        raise rnnfast.UnsupportedError("out: tensors are returned; rnnfast.lstm takes out=")
    for name, value in (("x", x), ("h_0", h_0), ("c_0", c_0)):
        if not isinstance(value, Tensor) and (value is not None or name == "x"):
            raise TypeError(f"{name}: expected a torch.Tensor, got {arrays.describe(value)}")
    ends = lengths
    if lengths is not None and not isinstance(lengths, Tensor):
        ends = torch.as_tensor(lengths, device="cpu")
    checks.probability("dropout", dropout)
    if options:  # a call without gradients does not read these two
        checks.saved(options.get("save", "all"))
        checks.steps("checkpoint", options.get("checkpoint"))
    random = dropout != 0 or (options and any(options.get(name) for name in _RANDOM))
    seed = _seed(rng, bool(random))
    chosen = repr({k: _literal(k, v) for k, v in options.items()}) if options else "{}"
    if isinstance(weights, rnnfast.Packed):
        if autograd.needs_gradients(x, h_0, c_0):
            raise TypeError(
                "weights: packed weights are for inference; expected the weights themselves"
            )
        if not autograd.is_plain(x):
            raise rnnfast.UnsupportedError(
                "weights: packed weights where a call is compiled, recorded or transformed; "
                "expected the weights themselves"
            )
        call = Call(cell, "", 1, batch_first, dropout, chosen)
        return calls.run(x, h_0, c_0, weights, ends, seed, call)
    places = ""
    if type(weights) is InOrder:
        weights, places = weights.weights, " ".join(map(str, weights.places))
    entries, directions = _entries(weights, cell)
    flat = [v for entry in entries for v in entry if v is not None]
    fields = ",".join([_fields(entry) for entry in entries])
    call = Call(cell, fields, directions, batch_first, dropout, chosen, places)
    if not autograd.is_plain(x):
        return ops.general(x, h_0, c_0, flat, ends, seed, call)
    structure = call.structure([memory.array(w) for w in flat])
    if autograd.needs_gradients(x, h_0, c_0, *flat):
        aliases = [w.detach() for w in flat]
        return autograd.train(x, h_0, c_0, flat, Given(structure, ends, seed, call, aliases))
    return calls.run(x, h_0, c_0, structure, ends, seed, call)


def _literal(name: str, value: Any) -> Any:
    """An option as what can be written and read again: operators take strings."""
    if value is None:
        return None
    if isinstance(value, str):
        return value if type(value) is str else str.__str__(value)  # not NumPy's
    if isinstance(value, tuple):
        return tuple([_literal(name, v) for v in value])
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        if not math.isfinite(value):
            raise ValueError(f"{name}: expected a finite number, got {value}")
        return float(value)
    raise TypeError(
        f"{name}: expected a number, a bool, a str, None or a tuple of them, "
        f"got {arrays.describe(value)}"
    )


def _fields(entry: tuple[Any, ...]) -> str:
    """The names of the fields that are given."""
    named = zip(Weights._fields, entry, strict=False)
    return " ".join([name for name, value in named if value is not None])


def _entries(weights: Any, cell: str) -> tuple[list[Any], int]:
    """Every direction of every layer, and how many a layer has.

    Of any structure that `rnnfast.lstm` takes.
    """
    layers = weights if isinstance(weights, list) else [weights]
    entries: list[Any] = []
    counts: set[int] = set()
    for layer in layers:
        found = [layer] if is_entry(layer) else layer
        counts.add(len(found) if isinstance(found, (list, tuple)) else 0)
        if counts != {1} and counts != {2}:
            break
        entries += found
    else:
        if entries and all(_is_right(entry) for entry in entries):
            return entries, counts.pop()
    parse(_as_arrays(weights), CELLS[cell], None)
    raise TypeError("weights: expected tensors in the structure that rnnfast.lstm takes")


def _is_right(entry: Any) -> bool:
    return (
        is_entry(entry)
        and 2 <= len(entry) <= len(Weights._fields)
        and all(v is None or isinstance(v, Tensor) for v in entry)
        and isinstance(entry[0], Tensor)
        and isinstance(entry[1], Tensor)
    )


def _as_arrays(value: Any) -> Any:
    """The structure with tensors as NumPy arrays, for rnnfast's own check of it."""
    if isinstance(value, Weights):
        return Weights(*map(_as_arrays, value))
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(map(_as_arrays, value))
    return memory.array(value) if isinstance(value, Tensor) else value


def _seed(rng: Any, random: bool) -> Tensor | None:
    if rng is None:
        return torch.randint(2**62, (), device="cpu") if random else None
    if isinstance(rng, torch.Generator):
        return torch.randint(2**62, (), generator=rng, device=rng.device) if random else None
    if checks.is_integer(rng):
        if not 0 <= rng < 2**63:
            raise ValueError(f"rng: expected a seed from 0 to 2**63 - 1, got {rng}")
        return torch.tensor(int(rng), device="cpu") if random else None
    raise TypeError(f"rng: expected a torch.Generator, an int or None, got {arrays.describe(rng)}")


def _pair(state: Any) -> tuple[Any, Any]:
    if state is None:
        return None, None
    if isinstance(state, (tuple, list)) and len(state) == 2:
        return state[0], state[1]
    raise TypeError(f"state: expected a pair (h_0, c_0), got {arrays.describe(state)}")
