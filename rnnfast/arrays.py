"""Arrays at the border: what is taken, how it is named in errors, and in what kind it goes back.

NumPy and CuPy arrays pass through. Anything else that speaks DLPack or, on a CUDA device, has
`__cuda_array_interface__` (a torch tensor, a JAX array) is viewed without a copy, as one of the
two, and results are returned as the same kind. NumPy's functions work on both: where one makes an
array from nothing, `like=` tells it of which kind.
"""

from __future__ import annotations

import math
import sys
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import UnsupportedError

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_HALVES = ("float16", "bfloat16")  # NumPy has the second from the package ml_dtypes
_CUPY_OF_BFLOAT16 = 14
_CPU, _CUDA = 1, (2, 13)  # kDLCPU, kDLCUDA and kDLCUDAManaged of the DLPack standard


def describe(value: object) -> str:
    """A short name for an unexpected value."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def is_lazy(*values: Any) -> bool:
    """Whether memory is not all there is to a tensor: a gradient is wanted, or a sign stands apart.

    Of tuples, to any of theirs.
    """
    for value in values:
        if value is None or type(value) is np.ndarray:
            continue
        if type(value) is tuple:
            if is_lazy(*value):
                return True
        elif getattr(value, "requires_grad", False) or _is_negated(value):
            return True
    return False


def _is_negated(value: Any) -> bool:
    """Whether a tensor of PyTorch stands for what its memory has with the sign changed."""
    asked = getattr(value, "is_neg", None)
    return asked is not None and bool(asked())


def _check_memory(name: str, value: Any) -> None:
    """Refuse tensors of PyTorch whose memory DLPack shares and that mean something else by it."""
    if _is_negated(value):
        raise TypeError(
            f"{name}: expected a tensor as it lies in memory, got one whose sign is changed when "
            f"it is read; give its resolve_neg()"
        )
    try:
        empty = value.data_ptr() == 0 and math.prod(value.shape) > 0
    except RuntimeError:
        empty = True
    if empty:
        raise TypeError(f"{name}: {describe(value)} has no memory of its own that could be read")


def take(name: str, value: Any) -> NDArray[Any]:
    """`value` as a NumPy or CuPy array that shares its memory."""
    if type(value) is np.ndarray:
        return value
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(value, cupy.ndarray):
        return _on_current_device(name, value)
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: masked arrays are not supported; fill it, or use lengths")
    if isinstance(value, np.ndarray):
        return value.view(np.ndarray)
    dlpack = hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__")
    if not dlpack and not hasattr(value, "__cuda_array_interface__"):
        raise TypeError(
            f"{name}: expected a NumPy array or another with DLPack, got {describe(value)}"
        )
    if hasattr(value, "is_neg"):
        _check_memory(name, value)
    try:
        place = value.__dlpack_device__()[0] if dlpack else _CUDA[0]
        if place == _CPU:
            return np.from_dlpack(value)
        if place in _CUDA:
            return _on_current_device(name, _cupy_view(name, value, dlpack))
    except ImportError as error:
        raise UnsupportedError(
            f"{name}: {describe(value)} lives on a CUDA device; expected an array in CPU memory, "
            f"as the backend for devices needs CuPy ({error})"
        ) from error
    except UnsupportedError:
        raise
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{name}: {describe(value)} cannot be viewed by NumPy: {error}") from error
    raise UnsupportedError(
        f"{name}: {describe(value)} lives on a device; expected an array in CPU memory or on a "
        f"CUDA device, as there is no backend for others"
    )


def _cupy_view(name: str, value: Any, dlpack: bool) -> Any:
    import cupy

    old = int(cupy.__version__.partition(".")[0]) < _CUPY_OF_BFLOAT16
    if old and "bfloat16" in str(getattr(value, "dtype", "")):  # the oldest crash
        raise UnsupportedError(
            f"{name}: CuPy has bfloat16 from version {_CUPY_OF_BFLOAT16} on, this is "
            f"{cupy.__version__}; expected float16, float32 or float64"
        )
    return cupy.from_dlpack(value) if dlpack else cupy.asarray(value)


def _on_current_device(name: str, value: Any) -> NDArray[Any]:
    current = sys.modules["cupy"].cuda.Device().id
    if value.device.id != current:
        raise UnsupportedError(
            f"{name}: lives on device {value.device.id}, but the current device is {current}; "
            f"no backend copies between devices, expected `with cupy.cuda.Device(...)`"
        )
    found: NDArray[Any] = value
    return found


def on_device(array: Any) -> bool:
    """Whether what `take` returned lives on a CUDA device."""
    return not isinstance(array, np.ndarray)


def check_place(name: str, array: Any, like: Any) -> None:
    """Everything in CPU memory, or everything on the device: nothing is copied between them."""
    if type(array) is type(like):
        return
    if on_device(array) != on_device(like):
        places = ("in CPU memory", "on a CUDA device")
        raise TypeError(
            f"{name}: expected an array {places[on_device(like)]} as x is, "
            f"got one {places[on_device(array)]}"
        )


@cache
def computed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that arrays of this one are computed with: float32 for 16 bits, else itself."""
    return FLOATS[0] if dtype.name in _HALVES else dtype


def dtype(name: str, value: Any) -> np.dtype[Any]:
    """The floating dtype that `value` names."""
    try:
        kind: np.dtype[Any] = np.dtype(value)
    except TypeError:
        raise TypeError(f"{name}: expected float32 or float64, got {value!r}") from None
    check_dtype(name, kind)
    return kind


def check_dtype(
    name: str, dtype: np.dtype[Any], like: np.dtype[Any] | None = None, device: bool = False
) -> None:
    """A dtype that there is a backend for, and the one of the other arrays if there are any.

    `device` tells whether the array lives on one.
    """
    if dtype == like:
        return
    if dtype not in FLOATS and not (device and dtype.name in _HALVES):
        expected = "float16, bfloat16, float32 or float64" if device else "float32 or float64"
        hint = ""
        if dtype.name in _HALVES:
            hint = "; backend 'cuda' takes float16 and bfloat16, in arrays on a CUDA device"
        raise TypeError(f"{name}: expected dtype {expected}, got {dtype}{hint}")
    if like is not None:
        raise TypeError(f"{name}: expected dtype {like} as the other arrays have, got {dtype}")


def floating(name: str, value: Any, like: np.dtype[Any] | None = None) -> NDArray[Any]:
    """`value` as an array of float32 or float64, of the dtype `like` if there is one.

    On a device it may have 16 bits.
    """
    array = take(name, value)
    if array.dtype != like:
        check_dtype(name, array.dtype, like, on_device(array))
    return array


def contiguous(array: NDArray[Any]) -> NDArray[Any]:
    """`array` itself where it is C-contiguous and aligned, else a copy that is."""
    return array if is_contiguous(array) else array.copy(order="C")


def is_contiguous(array: NDArray[Any]) -> bool:
    flags = array.flags
    return bool(flags.c_contiguous and getattr(flags, "aligned", True))


def is_writeable(array: NDArray[Any]) -> bool:
    return bool(getattr(array.flags, "writeable", True))  # CuPy arrays always are


def empty(shape: tuple[int, ...], dtype: np.dtype[Any], like: Any) -> NDArray[Any]:
    """A new array of the kind of `like`: what ``np.empty(like=)`` does, sooner."""
    make = np.empty if isinstance(like, np.ndarray) else sys.modules["cupy"].empty
    made: NDArray[Any] = make(shape, dtype)
    return made


def give(array: NDArray[Any], like: Any) -> Any:
    """`array` as the kind of array that `like` is, without a copy where the kind takes strides."""
    if isinstance(like, np.ndarray) or type(array) is type(like):
        return array
    if hasattr(like, "__array_namespace__"):
        return like.__array_namespace__().from_dlpack(contiguous(array))
    package = sys.modules[type(like).__module__.partition(".")[0]]
    return package.from_dlpack(array) if hasattr(package, "from_dlpack") else array
