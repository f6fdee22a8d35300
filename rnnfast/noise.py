"""What is drawn at random in training: masks, made once a call from `rng`, kept as bits.

Every mask is drawn here, above the backends, in the order of the layers and of packed rows, so that
it is the same on every backend, for every number of threads, in the forward and backward pass and
where a pass is made again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import computed
from .options import Noise
from .spec import Masks, Steps
from .weights import Layer

Array = NDArray[Any]

_DRAWN_AT_ONCE = 1 << 20


class Bits:
    """A random matrix of 0 and 1, each 1 with some probability."""

    def __init__(self, rng: np.random.Generator, probability: float, rows: int, width: int) -> None:
        self.width = width
        self.bits = np.empty((rows, (width + 7) // 8), np.uint8)
        # In blocks of rows, which draw the same numbers as one block and need little memory.
        block = max(1, _DRAWN_AT_ONCE // max(1, width))
        for first in range(0, rows, block):
            at = self.bits[first : first + block]
            at[...] = np.packbits(rng.random((len(at), width)) >= 1 - probability, axis=1)

    def rows(self, rows: slice, dtype: np.dtype[Any]) -> Array:
        return np.unpackbits(self.bits[rows], axis=1, count=self.width).astype(dtype)


class Between:
    """Dropout on the inputs of all layers but the first (inverted: what is kept is scaled up)."""

    def __init__(
        self,
        rng: np.random.Generator,
        rate: float,
        variational: bool,
        layers: int,
        steps: Steps,
        width: int,
    ) -> None:
        self.scale = 1 / (1 - rate) if rate < 1 else 0.0
        rows = steps.batch if variational else steps.rows
        self.masks = [Bits(rng, 1 - rate, rows, width) for _ in range(layers - 1)]
        self.variational = variational

    def mask(self, layer: int, first_row: int, steps: Steps, dtype: np.dtype[Any]) -> Array:
        """What multiplies the input of a layer in some steps: 0 or 1 / (1 - rate)."""
        bits = self.masks[layer - 1]
        if not self.variational:
            kept = bits.rows(slice(first_row, first_row + steps.rows), dtype)
        else:
            row = np.concatenate([np.arange(n) for n in steps.sizes()] or [np.arange(0)])
            kept = bits.rows(slice(None), dtype)[row]
        return np.asarray(kept * dtype.type(self.scale))


class OnState:
    """Recurrent dropout and zoneout: the `Masks` of every direction of every layer."""

    def __init__(
        self,
        rng: np.random.Generator | None,
        noise: Noise,
        layers: int,
        directions: int,
        steps: Steps,
        outputs: int,
        hidden: int,
    ) -> None:
        self.noise = noise
        self.directions = directions
        self.outputs, self.hidden = outputs, hidden
        self.recurrent: list[Bits | None] = []
        self.keep_h: list[Bits | None] = []
        self.keep_c: list[Bits | None] = []
        rate = noise.recurrent_dropout
        self.scale = 1 / (1 - rate) if rate < 1 else 0.0
        keeps = noise.training  # else zoneout is its expectation
        for _ in range(layers * directions):
            for drawn, wanted, probability, rows, width in (
                (self.recurrent, rate > 0, 1 - rate, steps.batch, outputs),
                (self.keep_h, keeps and noise.zoneout_h > 0, noise.zoneout_h, steps.rows, outputs),
                (self.keep_c, keeps and noise.zoneout_c > 0, noise.zoneout_c, steps.rows, hidden),
            ):
                drawn.append(Bits(rng, probability, rows, width) if wanted and rng else None)

    def masks(self, layer: int, first_row: int, steps: Steps, dtype: np.dtype[Any]) -> list[Masks]:
        """Those of each direction of a layer, for some steps."""
        found = []
        rows = slice(first_row, first_row + steps.rows)
        for d in range(layer * self.directions, (layer + 1) * self.directions):
            recurrent = self.recurrent[d]
            found.append(
                Masks(
                    None
                    if recurrent is None
                    else recurrent.rows(slice(steps.batch), dtype) * dtype.type(self.scale),
                    self._keep(self.keep_h[d], self.noise.zoneout_h, self.outputs, rows, dtype),
                    self._keep(self.keep_c[d], self.noise.zoneout_c, self.hidden, rows, dtype),
                )
            )
        return found

    def _keep(
        self, bits: Bits | None, rate: float, width: int, rows: slice, dtype: np.dtype[Any]
    ) -> Array | None:
        if rate == 0:
            return None
        if bits is None:  # not in training: the expectation
            return np.full((1, width), rate, dtype)
        return bits.rows(rows, dtype)


class DropConnect:
    """Recurrent weights with elements dropped, for the whole call, and their gradients."""

    def __init__(self, rng: np.random.Generator, rate: float, layers: list[Layer]) -> None:
        scale = 1 / (1 - rate) if rate < 1 else 0.0
        self.masks = []
        for layer in layers:
            for w in layer:
                kept = Bits(rng, 1 - rate, *w.w_hh.shape)
                self.masks.append((kept, computed(w.w_hh.dtype).type(scale)))

    def apply(self, layers: list[Layer]) -> list[Layer]:
        masks = iter(self.masks)
        return [tuple(w._replace(w_hh=_times(w.w_hh, next(masks))) for w in x) for x in layers]

    def backward(self, dweights: list[Any]) -> list[Any]:
        pairs = zip(dweights, self.masks, strict=True)
        return [w._replace(w_hh=_times(w.w_hh, mask)) for w, mask in pairs]


def _times(w_hh: Array, mask: tuple[Bits, Any]) -> Array:
    bits, scale = mask
    wide = computed(w_hh.dtype)
    kept = np.asarray(bits.rows(slice(None), wide), like=w_hh)
    product: Array = w_hh.astype(wide, copy=False) * kept * scale
    return product.astype(w_hh.dtype, copy=False)
