"""Weights packed for inference on the torch backend, until the variables change.

A T = 1 call would otherwise spend most of its time on transposing and packing. The other backends
trace their calls, and have no weights to hold on to.
"""

from __future__ import annotations

from typing import Any

import rnnfast

from ..api import Packed
from ..weights import Weights
from . import kernels
from .translation import weights_of


class Packing:
    """The packed weights of one layer, made when the same variables are seen a second time.

    They are the same while each is the same tensor with the same version, which counts every
    change but those through ``.data`` and through NumPy.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[Any, int]] = []
        self._packed: Packed | None = None

    def weights(
        self, cell: str, keras_cell: Any, dtype: str, options: dict[str, Any]
    ) -> Weights | Packed:
        """What `kernels.run` takes: packed where no gradient is wanted."""
        if kernels.BACKEND != "torch":
            return weights_of(cell, keras_cell, dtype)
        import torch

        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return weights_of(cell, keras_cell, dtype)
        variables = (keras_cell.kernel, keras_cell.recurrent_kernel, keras_cell.bias)
        tensors = [v.value for v in variables if v is not None]
        now = [(t, t._version) for t in tensors]
        same = len(now) == len(self._seen) and all(
            a is b and version == before
            for (a, version), (b, before) in zip(now, self._seen, strict=True)
        )
        if not same:
            self._seen, self._packed = now, None
            return weights_of(cell, keras_cell, dtype)
        if self._packed is None:
            weights = weights_of(cell, keras_cell, dtype)
            detached = Weights(*(None if w is None else w.detach() for w in weights))
            self._packed = rnnfast.pack(detached, cell=cell, **options)
        return self._packed
