"""The weights of a module as rnnfast takes them, kept between calls while they are the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

import rnnfast

from . import calls
from .calls import Call

_SAMPLES = 97  # of each large array


class Held:
    """Arrays that share the memory of some weights, and those weights packed.

    As the arrays keep that memory from being used again, tensors at the same addresses are these
    same weights, whatever their values have become.
    """

    def __init__(self, weights: Sequence[Tensor], call: Call) -> None:
        self.call = call
        arrays = [calls.array(w) for w in weights]
        self.structure = call.structure(arrays)
        self._addresses = _addresses(weights)
        self._arrays = arrays
        self._samples: list[NDArray[Any]] | None = None
        # What the values were, as far as `packed` can tell, and those packed once they are seen
        # for the second time. Replaced as one, so that threads never mix two.
        self._last: tuple[Any, rnnfast.Packed | None] = (None, None)

    def fits(self, weights: Sequence[Tensor]) -> bool:
        """Whether these tensors still have the memory that is held."""
        return _addresses(weights) == self._addresses

    def packed(self, weights: Sequence[Tensor]) -> rnnfast.Packed | None:
        """The weights packed, or None where they are new: those that always change never are.

        A tensor's version counts every change through PyTorch but those through ``.data``.
        Against these, and changes through NumPy, small arrays are compared, and samples of
        others.
        """
        if self._samples is None:
            self._samples = [_sample(a) for a in self._arrays]
        values = [w._version for w in weights], [s.tobytes() for s in self._samples]
        before, packed = self._last
        if values != before:
            self._last = values, None
            return None
        if packed is None:
            packed = rnnfast.pack(self.structure, cell=self.call.cell, **self.call.keywords(False))
            self._last = values, packed
        return packed


def _addresses(weights: Sequence[Tensor]) -> list[Any]:
    return [(w.data_ptr(), w.stride()) for w in weights]


def _sample(array: NDArray[Any]) -> NDArray[Any]:
    """A view of some numbers of every part of an array, or of all where they are few."""
    flat = array.reshape(-1) if array.flags.c_contiguous else array
    if flat.ndim > 1 or flat.size <= 1024:
        return flat
    step = flat.size // _SAMPLES
    while math.gcd(step, array.shape[-1]) > 1:  # else it would stay in the same columns
        step -= 1
    return flat[::step]
