"""Weights packed for inference, and whether they are still those of the module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

import rnnfast

from . import calls
from .calls import Call

_SAMPLES = 97  # of each large array


class Packing:
    """The packed form of some weights, made when they are seen for the second time.

    Weights are the same if every tensor has the memory and the version that it had. The version
    counts every change through PyTorch but those through ``.data`` and through NumPy; against
    these, small arrays are compared, and a sample of the others. So a change that neither leaves
    a version nor touches a bias or a sampled number goes unseen.
    """

    def __init__(self, weights: Sequence[Tensor], call: Call) -> None:
        self._call = call
        self._versions = _versions(weights)
        self._arrays = [calls.array(w) for w in weights]  # they keep the memory from being reused
        self._samples = [_sample(a) for a in self._arrays]
        self._sampled = [s.tobytes() for s in self._samples]
        self._packed: rnnfast.Packed | None = None

    def holds(self, weights: Sequence[Tensor], call: Call) -> bool:
        """Whether these are the weights that were given, unchanged."""
        return (
            call == self._call
            and _versions(weights) == self._versions
            and [s.tobytes() for s in self._samples] == self._sampled
        )

    def packed(self) -> rnnfast.Packed:
        if self._packed is None:
            call = self._call
            structure = call.structure(self._arrays)
            self._packed = rnnfast.pack(structure, cell=call.cell, **call.keywords(False))
        return self._packed


def _versions(weights: Sequence[Tensor]) -> list[Any]:
    return [(w.data_ptr(), w._version, w.stride()) for w in weights]


def _sample(array: NDArray[Any]) -> NDArray[Any]:
    """A view of some numbers of every part of an array, or of all where they are few."""
    flat = array.reshape(-1) if array.flags.c_contiguous else array
    if flat.ndim > 1 or flat.size <= 1024:
        return flat
    step = flat.size // _SAMPLES
    while np.gcd(step, array.shape[-1]) > 1:  # else it would stay in the same columns
        step -= 1
    return flat[::step]
