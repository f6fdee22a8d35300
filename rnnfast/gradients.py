"""What is done to gradients between `backward` and the step of an optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import arrays, checks

_SMALL = 1e-6  # PyTorch's: added to the norm before it divides


def clip_grad_norm(
    gradients: Any, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> float:
    """Scale gradients in place so that their common norm is at most `max_norm`.

    All arrays are taken as one long vector g. Each is multiplied by
    min(1, max_norm / (norm(g) + 1e-6)), as `torch.nn.utils.clip_grad_norm_` does (Pascanu et al.
    2013, "On the difficulty of training recurrent neural networks", algorithm 1). The norm is
    taken in float64 and scaled, so that neither large float32 numbers nor small ones are lost.

    Parameters
    ----------
    gradients : array, Weights, list, tuple or dict, nested in any way; None is skipped
        What `backward` returned, or any structure with it. float32 and float64 (on a device 16
        bits too), NumPy's or any that DLPack shares and that can be written (a PyTorch tensor; not
        a JAX array). They are changed. An array that occurs twice counts once. Of arrays on a
        device, whose norm is waited for, the current CuPy stream is used.
    max_norm : float
        The largest norm allowed, at least 0. With inf nothing changes: the norm is measured.
    norm_type : float
        p of the p-norm (sum |g|^p)^(1/p), above 0; inf for the largest absolute value.
    error_if_nonfinite : bool
        Whether a norm that is NaN or infinite is an error. If not, gradients become NaN where
        the norm is NaN, and zero where it is infinite (NaN where they are infinite themselves).

    Returns
    -------
    float
        The norm before clipping; 0 where there are no gradients.

    Raises
    ------
    ValueError
        For a max_norm or norm_type out of range, an array that cannot be written, or, with
        `error_if_nonfinite`, a norm that is not finite. Nothing has been changed then.
    TypeError
        For anything that is not a float32 or float64 array or a structure of them.

    Examples
    --------
    >>> y, _, backward = rnnfast.lstm_vjp(x, weights)
    >>> dx, dweights, _ = backward(dy)
    >>> norm = rnnfast.clip_grad_norm(dweights, max_norm=1.0)
    """
    limit = _number("max_norm", max_norm)
    power = _number("norm_type", norm_type)
    if not limit >= 0:
        raise ValueError(f"max_norm: expected at least 0, got {max_norm}")
    if not power > 0:
        raise ValueError(f"norm_type: expected more than 0, got {norm_type}")
    strict = checks.flag("error_if_nonfinite", error_if_nonfinite)
    found = {id(leaf): _written(name, leaf) for name, leaf in _leaves("gradients", gradients)}
    with np.errstate(under="ignore"):
        norm = _norm(list(found.values()), power)
    if strict and not math.isfinite(norm):
        raise ValueError(f"gradients: expected a finite norm (p = {power:g}), got {norm}")
    scale = 1.0 if limit == math.inf else limit / (norm + _SMALL)
    if not scale >= 1:  # so that NaN spreads
        with np.errstate(invalid="ignore", under="ignore"):
            for g in found.values():
                if isinstance(g, np.ndarray):
                    np.multiply(g, scale, out=g, dtype=np.float64, casting="same_kind")
                else:
                    g[...] = g.astype(np.float64) * scale
    return norm


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every array of a structure, under a name like gradients[1].w_ih."""
    if value is None:
        return
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(f"{name}[{key!r}]", part)
    elif isinstance(value, list | tuple):
        fields = getattr(value, "_fields", None)
        for k, part in enumerate(value):
            yield from _leaves(f"{name}.{fields[k]}" if fields else f"{name}[{k}]", part)
    else:
        yield name, value


def _written(name: str, value: Any) -> NDArray[Any]:
    array = arrays.floating(name, value)
    if not arrays.is_writeable(array):
        raise ValueError(
            f"{name}: expected an array that can be written, got {arrays.describe(value)} "
            f"that is read-only"
        )
    return array


def _norm(found: list[NDArray[Any]], power: float) -> float:
    """The p-norm of all numbers together; those of each array are summed pairwise."""
    # np.max, unlike Python's, lets NaN through.
    largest = float(np.max([float(np.abs(g).max()) for g in found if g.size > 0], initial=0))
    if largest == 0 or power == math.inf or not math.isfinite(largest):
        return largest
    total = 0.0
    for g in found:
        part = np.abs(g.astype(np.float64))
        part /= largest
        total += float((part**power).sum())  # each at most 1
    with np.errstate(over="ignore"):
        return float(largest * np.float64(total) ** (1 / power))


def _number(name: str, value: Any) -> float:
    if not checks.is_real(value):
        raise TypeError(f"{name}: expected a float, got {arrays.describe(value)}")
    try:
        return float(value)
    except OverflowError:  # of an integer
        return math.inf if value > 0 else -math.inf
