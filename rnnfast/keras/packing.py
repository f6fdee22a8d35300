"""The weights of a call, packed for inference on the torch backend until the variables change.

A T = 1 call would otherwise spend most of its time on transposing and packing. The other backends
trace their calls, and have no weights to hold on to.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import rnnfast

from ..packed import Packed
from ..weights import Weights
from . import kernels
from .translation import in_our_order, weights_of


class Packing:
    """The packed weights of one layer or a pair, made when the same variables come a second time
    for the same options.

    They are the same while each is the same tensor with the same version, which counts every
    change but those through ``.data`` and through NumPy.
    """

    def __init__(self) -> None:
        # What came last, and that packed once it has come twice. Replaced as one, so that threads
        # never mix two.
        self._last: tuple[_Seen | None, Packed | None] = (None, None)

    def weights(
        self, cell: str, keras_cells: list[Any], dtype: str, options: dict[str, Any]
    ) -> tuple[Weights, ...] | Packed:
        """What `kernels.run` takes: packed where no gradient is wanted."""
        if kernels.BACKEND != "torch":
            return _as_they_lie(keras_cells, dtype)
        import torch

        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return _as_they_lie(keras_cells, dtype)
        variables = [v for c in keras_cells for v in (c.kernel, c.recurrent_kernel, c.bias)]
        tensors = [v.value for v in variables if v is not None]
        if any(t.is_inference() for t in tensors):  # which have no versions
            return _as_they_lie(keras_cells, dtype)
        now = _Seen(tensors, [t._version for t in tensors], dtype, dict(options))
        seen, packed = self._last
        if seen is None or not now.is_same(seen):
            self._last = now, None
            return _as_they_lie(keras_cells, dtype)
        if packed is None:
            weights = tuple(
                Weights(*(None if a is None else a.detach() for a in in_our_order(cell, w)))
                for w in _as_they_lie(keras_cells, dtype)
            )
            layer = weights if len(weights) > 1 else weights[0]
            packed = rnnfast.pack([layer], cell=cell, **options)
            self._last = now, packed
        return packed


class _Seen(NamedTuple):
    tensors: list[Any]
    versions: list[int]
    dtype: str
    options: dict[str, Any]

    def is_same(self, other: _Seen) -> bool:
        if self[1:] != other[1:] or len(self.tensors) != len(other.tensors):
            return False
        return all(a is b for a, b in zip(self.tensors, other.tensors, strict=True))


def _as_they_lie(keras_cells: list[Any], dtype: str) -> tuple[Weights, ...]:
    return tuple(weights_of(keras_cell, dtype) for keras_cell in keras_cells)
