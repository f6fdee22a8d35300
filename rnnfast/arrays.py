"""Arrays at the border: what is taken, how it is named in errors, and in what kind it goes back.

NumPy arrays pass through. Anything else that speaks DLPack and lives on the CPU (a torch tensor,
a JAX array) is viewed without a copy, and results are returned as the same kind.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import UnsupportedError

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_CPU = 1  # kDLCPU of the DLPack standard


def describe(value: object) -> str:
    """A short name for an unexpected value."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def take(name: str, value: Any) -> NDArray[Any]:
    """`value` as a NumPy array that shares its memory."""
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: masked arrays are not supported; fill it, or use lengths")
    if isinstance(value, np.ndarray):
        return value.view(np.ndarray)
    if not hasattr(value, "__dlpack__") or not hasattr(value, "__dlpack_device__"):
        raise TypeError(
            f"{name}: expected a NumPy array or another with DLPack, got {describe(value)}"
        )
    try:
        if value.__dlpack_device__()[0] == _CPU:
            return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{name}: {describe(value)} cannot be viewed by NumPy: {error}") from error
    raise UnsupportedError(
        f"{name}: {describe(value)} lives on a device; expected an array in CPU memory, "
        f"as no backend for devices is there yet"
    )


def dtype(name: str, value: Any) -> np.dtype[Any]:
    """The floating dtype that `value` names."""
    try:
        kind: np.dtype[Any] = np.dtype(value)
    except TypeError:
        raise TypeError(f"{name}: expected float32 or float64, got {value!r}") from None
    check_dtype(name, kind)
    return kind


def check_dtype(name: str, dtype: np.dtype[Any], like: np.dtype[Any] | None = None) -> None:
    if dtype not in FLOATS:
        raise TypeError(f"{name}: expected dtype float32 or float64, got {dtype}")
    if like is not None and dtype != like:
        raise TypeError(f"{name}: expected dtype {like} as the other arrays have, got {dtype}")


def floating(name: str, value: Any, like: np.dtype[Any] | None = None) -> NDArray[Any]:
    """`value` as a NumPy array of float32 or float64, of the dtype `like` if there is one."""
    array = take(name, value)
    if array.dtype != like or like not in FLOATS:
        check_dtype(name, array.dtype, like)
    return array


def contiguous(array: NDArray[Any]) -> NDArray[Any]:
    """`array` itself where it is C-contiguous and aligned, else a copy that is."""
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else np.array(array, order="C")


def give(array: NDArray[Any], like: Any) -> Any:
    """`array` as the kind of array that `like` is, without a copy where the kind takes strides."""
    if isinstance(like, np.ndarray):
        return array
    if hasattr(like, "__array_namespace__"):
        return like.__array_namespace__().from_dlpack(contiguous(array))
    return sys.modules[type(like).__module__.partition(".")[0]].from_dlpack(array)
