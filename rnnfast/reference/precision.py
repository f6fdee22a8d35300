"""Weights of 16 and 8 bits: which float32 numbers they stand for.

The reference rounds w_ih and w_hh and computes with them as with any others. A fast backend may
also round, in the same way, what they are multiplied with (each row of x and of h on its own); the
state, the biases and the sums keep float32.
"""

from __future__ import annotations

import numpy as np

from .common import Array

SMALLEST_ROW = np.float32(1e-36)


def bfloat16(a: Array) -> Array:
    """float32 to the nearest bfloat16 (8 bits of exponent, 7 of fraction), ties to even."""
    bits = a.view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) & ~np.uint32(
        0xFFFF
    )
    return np.where(np.isnan(a), a, nearest.view(np.float32))


def int8(a: Array) -> Array:
    """Each row as scale * q: q from -127 to 127, scale = max |row| / 127 (symmetric, no offset).

    Rows without a number above 1e-36 are zero; rows that are not finite are NaN.
    """
    most = np.abs(a).max(axis=-1, keepdims=True)
    finite = np.isfinite(most)
    used = finite & (most > SMALLEST_ROW)
    factor = np.divide(np.float32(127), most, out=np.zeros_like(most), where=used)
    scale = np.where(finite, most / np.float32(127), np.float32(np.nan))
    return np.asarray(np.rint(np.where(used, a, 0) * factor) * scale)


ROUNDED = {"bfloat16": bfloat16, "int8": int8}
