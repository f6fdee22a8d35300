"""The weights of a module as rnnfast takes them, kept between calls while they are the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

import rnnfast

from .. import arrays
from ..spec import CELLS
from ..weights import Checked
from . import calls
from .calls import Call, Results

_SAMPLES = 31  # of each large array


class Held:
    """Arrays that share the memory of some weights, and those weights packed.

    As the arrays keep that memory from being used again, tensors at the same addresses are these
    same weights, whatever their values have become.
    """

    def __init__(self, weights: Sequence[Tensor], call: Call) -> None:
        self.call = call
        held = [calls.array(w) for w in weights]
        self.structure = call.structure(held)
        # Memory in another layout is copied where it is checked, so in every call.
        apart = all(map(arrays.is_contiguous, held))
        self.weights = Checked(self.structure, CELLS[call.cell]) if apart else self.structure
        self._addresses = _addresses(weights)
        self._arrays = held
        self._dtype = weights[0].dtype
        self._samples: list[NDArray[Any]] | None = None
        # What the values were, as far as `packed` can tell, and those packed once they are seen
        # for the second time. Replaced as one, so that threads never mix two.
        self._last: tuple[Any, rnnfast.Packed | None] = (None, None)

    def fits(self, weights: Sequence[Tensor]) -> bool:
        """Whether these tensors still have the memory that is held."""
        return _addresses(weights) == self._addresses

    def run(
        self, x: Tensor, h_0: Tensor | None, c_0: Tensor | None, weights: Sequence[Tensor]
    ) -> Results | None:
        """y, h_n and c_n by the packed weights, or None where there is more to be done first."""
        values, packed = self._last
        if packed is None or packed.shortcut is None or values != self._values(weights):
            return None
        for tensor in (x, h_0, c_0):
            if tensor is not None and (tensor.dtype is not self._dtype or not tensor.is_cpu):
                return None
        swap = self.call.batch_first and x.dim() == 3
        if swap:
            x = x.transpose(0, 1).contiguous()
        initial = calls.state(self.call, h_0, c_0)
        done = packed.shortcut(calls.array(x), initial, None, None)
        if done is None:
            return None
        y, h_n, c_n = calls.results(self.call, *done)
        return y.transpose(0, 1) if swap else y, h_n, c_n

    def packed(self, weights: Sequence[Tensor]) -> rnnfast.Packed | None:
        """The weights packed, or None where they are new: those that always change never are.

        A tensor's version counts every change through PyTorch but those through ``.data``.
        Against these, and changes through NumPy, small arrays are compared, and samples of
        others.
        """
        values = self._values(weights)
        if values is None:
            return None
        before, packed = self._last
        if values != before:
            self._last = values, None
            return None
        if packed is None:
            packed = rnnfast.pack(self.structure, cell=self.call.cell, **self.call.keywords(False))
            self._last = values, packed
        return packed

    def _values(self, weights: Sequence[Tensor]) -> Any:
        """What tells whether the values of weights have changed, or None where nothing does."""
        if weights[0].is_inference():
            return None
        if self._samples is None:
            self._samples = [_sample(a) for a in self._arrays]
        return [*map(_version, weights)], [s.tobytes() for s in self._samples]


_version = attrgetter("_version")


def _addresses(weights: Sequence[Tensor]) -> list[Any]:
    return [*map(Tensor.data_ptr, weights), *map(Tensor.stride, weights)]


def _sample(array: NDArray[Any]) -> NDArray[Any]:
    """A view of some numbers of every part of an array, or of all where they are few."""
    flat = array.reshape(-1) if array.flags.c_contiguous else array
    if flat.ndim > 1 or flat.size <= 1024:
        return flat
    step = flat.size // _SAMPLES
    while math.gcd(step, array.shape[-1]) > 1:  # else it would stay in the same columns
        step -= 1
    return flat[::step]
