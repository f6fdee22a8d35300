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
from ..backends import get
from ..options import spec_of, with_weights
from ..spec import CELLS
from ..weights import Checked
from . import autograd, calls, memory, tapes
from .autograd import Given
from .calls import Call

if tapes.TELLS:
    from ..backends import native as kernels

_SAMPLES = 31  # of each large array


class Held:
    """Arrays that share the memory of some weights, and those weights packed.

    As the arrays keep that memory from being used again, tensors at the same addresses are these
    same weights, whatever their values have become; FSDP alone takes it away between calls.
    """

    def __init__(self, weights: Sequence[Tensor], call: Call) -> None:
        self.call = call
        with memory.place(weights[0]):
            held = [memory.array(w) for w in weights]
            self.structure = call.structure(held)
            # Memory in another layout is copied where it is checked, so in every call.
            apart = all(map(arrays.is_contiguous, held))
            self.weights = Checked(self.structure, CELLS[call.cell]) if apart else self.structure
            self.aliases = [w.detach() for w in weights]
            self._given = Given(self.weights, None, None, call, self.aliases)
            self._on_device = arrays.on_device(held[0])
            # A device reads weights as they are, whatever they have become.
            self._in_place = _in_place(self.weights, call) if self._on_device else None
        self._trainer: Any = None
        self._spec = spec = calls.spec_of_call(call)
        # Arrays of negated views, as the imaginary part of a conjugate is, are copies.
        self._share = not any(w.is_neg() for w in weights)
        plain = all(type(w) in memory.PLAIN for w in weights)
        self._tell = tapes.TELLS and self._share and plain and not self._on_device
        single = self.weights.single if type(self.weights) is Checked else None
        if single and any(a is not None for w in single for a in w[4:]):
            single = None  # a projection takes the long way
        if self._tell and spec is not None and single:
            self._trainer = kernels.trainer(spec, single, list(weights), memory.PLAIN)
        self._addresses = _addresses(weights)
        self._arrays = held
        self._samples: list[NDArray[Any]] | None = None
        # What the values were, as far as `packed` can tell, and those packed once they are seen
        # for the second time. Replaced as one, so that threads never mix two.
        self._last: tuple[Any, rnnfast.Packed | None] = (None, None)
        self._watched: tuple[Any, Any] | None = None  # the short way of those, and while it holds

    def fits(self, weights: Sequence[Tensor], batch_first: bool) -> bool:
        """Whether these tensors still have the memory that is held, for such a layer."""
        if batch_first is not self.call.batch_first or not self._share:
            return False
        return _addresses(weights) == self._addresses

    def run(self, x: Tensor, hx: Any, weights: list[Tensor]) -> tuple[Tensor, Any] | None:
        """y and the state by the packed weights, or None where there is more to be done first."""
        watched = self._watched
        if watched is None or _is_negated(x, hx) or not watched[1].same(weights):
            return None
        swap = self.call.batch_first and x.dim() == 3
        if swap:
            x = x.transpose(0, 1).contiguous()
        done: tuple[Tensor, Any] | None = watched[0](x, hx, None, None)
        if swap and done is not None:
            return done[0].transpose_(0, 1), done[1]
        return done

    def train(
        self, x: Tensor, h_0: Tensor | None, c_0: Tensor | None, weights: list[Tensor]
    ) -> tuple[Tensor, Any] | None:
        """y and the state with gradients, or None where there is more to be done first."""
        trainer, spec = self._trainer, self._spec
        if trainer is None or spec is None or get("auto", spec) is not kernels.BACKEND:
            return None
        call = self.call
        done = calls.run_and_keep_short(x, h_0, c_0, call, lambda *at: trainer.call(weights, *at))
        if done is None:
            return None
        y, h_n, c_n = autograd.recorded(done, x, h_0, c_0, weights, self._given)
        return y, h_n if c_n is None else (h_n, c_n)

    def packed(self, weights: Sequence[Tensor]) -> rnnfast.Packed | None:
        """The weights packed, or None where they are new: those that always change never are.

        A tensor's version counts every change through PyTorch but those through ``.data``.
        Against these, and changes through NumPy, biases and small arrays are compared, and
        samples of others.
        """
        if self._on_device:
            return self._in_place
        values = self._values(weights)
        if values is None:
            return None
        before, packed = self._last
        if values != before:
            self._last, self._watched = (values, None), None
            return None
        if packed is None:
            watch = self._watch(weights)
            packed = rnnfast.pack(self.structure, cell=self.call.cell, **self.call.keywords(False))
            self._last = values, packed
            if watch is not None and packed.shortcut is not None:
                self._watched = packed.shortcut, watch
        return packed

    def _watch(self, weights: Sequence[Tensor]) -> Any:
        """What tells the same as `_values` in one call, or None where it has to be told so."""
        samples = self._samples
        if not self._tell or samples is None or any(s.ndim != 1 for s in samples):
            return None
        return kernels.Watch(list(weights), samples, memory.PLAIN)

    def _values(self, weights: Sequence[Tensor]) -> Any:
        """What tells whether the values of weights have changed, or None where nothing does."""
        if any(map(Tensor.is_inference, weights)):
            return None
        if self._samples is None:
            self._samples = [_sample(a) for a in self._arrays]
        return [*map(_version, weights)], [s.tobytes() for s in self._samples]


def _in_place(weights: Any, call: Call) -> rnnfast.Packed | None:
    """Without a copy, where that is possible."""
    if type(weights) is not Checked:
        return None
    named = spec_of(call.cell, True, call.keywords(False).get("nonlinearity", "tanh"))
    spec = with_weights(named, weights.layers)
    return rnnfast.Packed(spec, get("auto", spec, True), weights.layers, None, named)


def _is_negated(x: Tensor, hx: Any) -> bool:
    """Whether memory holds the negatives of the numbers, as where the imaginary part of a
    conjugate is taken."""
    if hx is None:
        return x.is_neg()
    return x.is_neg() or any(t is not None and t.is_neg() for t in _listed(hx))


def _listed(hx: Any) -> Sequence[Any]:
    return hx if isinstance(hx, (tuple, list)) else (hx,)


_version = attrgetter("_version")


def _addresses(weights: Sequence[Tensor]) -> list[Any]:
    places = [*map(Tensor.data_ptr, weights), *map(Tensor.stride, weights)]
    return places + [w.shape for w in weights]


def _sample(array: NDArray[Any]) -> NDArray[Any]:
    """A view of some numbers of every part of a matrix, or all of a bias and of a small one."""
    flat = array.reshape(-1) if array.flags.c_contiguous else array
    if array.ndim < 2 or flat.ndim > 1 or flat.size <= 1024:
        return flat
    step = flat.size // _SAMPLES
    while math.gcd(step, array.shape[-1]) > 1:  # else it would stay in the same columns
        step -= 1
    return flat[::step]
