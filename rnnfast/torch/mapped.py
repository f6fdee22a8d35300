"""torch.func.vmap: calls that are mapped over an axis, as calls without it.

Where the weights are those of all, the axis joins the batch. There is a call for each element where
the weights are mapped themselves, as in an ensemble, where rows have something in common, be it
masks or statistics of the batch, and for gradients, of which each element has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..spec import Steps
from . import tapes

Found = tuple[tuple["Tensor | None", ...], tuple["int | None", ...]]  # results and their axes


def run(
    function: Callable[..., Any], size: int, in_dims: Sequence[Any], inputs: Sequence[Any]
) -> Found:
    """y, h_n, c_n, and a tape that holds nothing, of mapped x, h_0, c_0, lengths, seed, ...

    `function` takes the same inputs without the mapped axis.
    """
    no_tape = tapes.blank()
    in_dims = _axes(in_dims)
    x, h_0, c_0, lengths, seed, call, *weights = inputs
    together = seed is None and "bn_mean" not in call.fields and not isinstance(lengths, Steps)
    if not together or any(d is not None for d in in_dims[6:]):
        results, axes = each(function, size, in_dims, inputs)
        return (*results, no_tape), (*axes, None)
    batch_first = call.batch_first and x.dim() - (in_dims[0] is not None) == 3
    at = 0 if batch_first else 1  # of the axis of the batch, also where it is new
    fold = _Fold(size)
    y, h_n, c_n = function(
        fold.into(x, in_dims[0], at, 3),
        fold.into(h_0, in_dims[1], 1, 3),
        fold.into(c_0, in_dims[2], 1, 3),
        None if lengths is None else fold.into(lengths, in_dims[3], 0, 1),
        None,
        call._replace(batch_first=batch_first),
        *weights,
    )
    if x.dim() - (in_dims[0] is not None) == 3:
        y, h_n, c_n = fold.out(y, at), fold.out(h_n, 1), fold.out(c_n, 1)
    return (y, h_n, c_n, no_tape), (at, 1, None if c_n is None else 1, None)


def gradients(
    function: Callable[..., Any], size: int, in_dims: Sequence[Any], inputs: Sequence[Any]
) -> Found:
    """Those of each element, of mapped tape, dy, dh_n, dc_n, x, h_0, c_0, ..."""
    in_dims = _axes(in_dims)
    if any(d is not None for d in in_dims[4:]):  # the tape is not of these
        inputs = (tapes.blank(), *inputs[1:])
        in_dims = (None, *in_dims[1:])
    return each(function, size, in_dims, inputs)


def each(
    function: Callable[..., Any], size: int, in_dims: Sequence[Any], inputs: Sequence[Any]
) -> Found:
    """A call for each element, and the results in a new first axis."""
    given = list(zip(inputs, _axes(in_dims), strict=True))
    calls = [function(*(a if d is None else a.select(d, k) for a, d in given)) for k in range(size)]
    parts = zip(*calls, strict=True)
    results = [None if part[0] is None else torch.stack(part) for part in parts]
    return tuple(results), tuple(None if r is None else 0 for r in results)


def _axes(in_dims: Sequence[Any]) -> list[int | None]:
    """Those of tensors; named tuples have one None for each of their fields."""
    return [d if isinstance(d, int) else None for d in in_dims]


class _Fold:
    """Arrays with the mapped axis as a part of the batch: first element, then row."""

    def __init__(self, size: int) -> None:
        self.size = size

    def into(self, a: Tensor | None, mapped: int | None, at: int, dims: int) -> Tensor | None:
        if a is None:
            return None
        if mapped is None:
            a = a.unsqueeze(at).expand(*a.shape[:at], self.size, *a.shape[at:])
        else:
            a = a.movedim(mapped, at)
        return a if a.dim() == dims else a.flatten(at, at + 1)

    def out(self, a: Any, at: int) -> Any:
        if a is None:
            return None
        return a.reshape(*a.shape[:at], self.size, a.shape[at] // self.size, *a.shape[at + 1 :])
