"""The products of cuBLAS, by ctypes: CuPy refuses to call it while a stream is captured."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from cupy_backends.cuda.libs import cublas

COMPUTE_32F, COMPUTE_64F = cublas.CUBLAS_COMPUTE_32F, cublas.CUBLAS_COMPUTE_64F
COMPUTE_32F_FAST_TF32 = cublas.CUBLAS_COMPUTE_32F_FAST_TF32
_ALGORITHM = cublas.CUBLAS_GEMM_DEFAULT
_MATRIX: Any = (ctypes.c_void_p, ctypes.c_int, ctypes.c_int)  # where, type, leading dimension
_streams: dict[int, int] = {}  # of handles that were used: setting one takes time
create = cublas.create


@cache
def _library() -> Any:
    """The one that CuPy has loaded."""
    version = cublas.getVersion(create())
    library = ctypes.CDLL(f"libcublas.so.{version // 10000}")
    library.cublasSetStream_v2.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    library.cublasGemmEx.argtypes = (
        ctypes.c_void_p,
        *[ctypes.c_int] * 5,
        ctypes.c_void_p,
        *(*_MATRIX, *_MATRIX, ctypes.c_void_p, *_MATRIX, ctypes.c_int, ctypes.c_int),
    )
    return library


def gemm(stream: int, handle: int, *arguments: Any) -> None:
    """cublasGemmEx on a stream; `arguments` are those after the handle, but for the algorithm."""
    if _streams.get(handle) != stream:
        _streams.pop(handle, None)
        _check(_library().cublasSetStream_v2(handle, stream))
        _streams[handle] = stream
    _check(_library().cublasGemmEx(handle, *arguments, _ALGORITHM))


def _check(status: int) -> None:
    if status != 0:
        raise RuntimeError(f"cuBLAS reports status {status}")
