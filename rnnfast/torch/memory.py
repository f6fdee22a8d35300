"""The memory of tensors as the arrays that rnnfast takes, and back: NumPy's on the CPU, CuPy's on a
CUDA device.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from .. import arrays
from ..errors import UnsupportedError
from . import tapes

PLAIN = (Tensor, torch.nn.Parameter)  # subclasses may mean something else by their memory


def array(tensor: Tensor) -> NDArray[Any]:
    """The memory of a tensor."""
    if not tensor.is_cpu:
        with _on_device(tensor):
            return arrays.take("tensor", tensor.detach().resolve_neg())
    if tensor.dtype is torch.bfloat16:
        raise TypeError(
            "expected tensors of float32 or float64, got torch.bfloat16; keep the module in "
            "float32: under torch.autocast its inputs are cast"
        )
    if tapes.TELLS and type(tensor) in PLAIN and not tensor.is_neg():
        # Of a tensor of its own, because through .data this one may be given other memory.
        found: NDArray[Any] | None = tapes.native.array_of(Tensor, tensor.detach())
        if found is not None:
            return found
    return tensor.numpy(force=True)


def as_tensor(a: Any) -> Tensor:
    """A tensor on the memory of an array, within the `place` of its call."""
    return torch.from_numpy(a) if isinstance(a, np.ndarray) else from_dlpack(a)


def place(tensor: Tensor) -> AbstractContextManager[None]:
    """In which the current device and stream of CuPy are those that PyTorch has for a tensor."""
    return _ANYWHERE if tensor.is_cpu else _on_device(tensor)


_ANYWHERE = nullcontext()


@contextmanager
def _on_device(tensor: Tensor) -> Iterator[None]:
    if not tensor.is_cuda:
        raise UnsupportedError(
            f"expected tensors on the CPU or on a CUDA device, got one on {tensor.device}, for "
            f"which there is no backend; move the module and its inputs with .cpu()"
        )
    try:
        import cupy
    except ImportError as error:
        raise UnsupportedError(
            f"expected tensors on the CPU, got one on {tensor.device}: the backend for devices "
            f"needs CuPy ({error}); install it, or move the module and its inputs with .cpu()"
        ) from error
    device = tensor.device.index
    with cupy.cuda.Device(device):
        before = cupy.cuda.get_current_stream()
        _stream(cupy, torch.cuda.current_stream(device).cuda_stream, device).use()
        try:
            yield
        finally:
            before.use()  # at the end of a `with stream`, CuPy forgets what `use()` had set before


@lru_cache
def _stream(cupy: Any, pointer: int, device: int) -> Any:
    """CuPy's name for a stream; PyTorch never destroys its own."""
    with warnings.catch_warnings():
        # Since CuPy 14, which asks for an object that streams of older PyTorch are not.
        warnings.simplefilter("ignore", DeprecationWarning)
        return cupy.cuda.ExternalStream(pointer, device)
