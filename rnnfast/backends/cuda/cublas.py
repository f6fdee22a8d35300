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


@cache
def _library(version: int) -> Any:
    """The one that CuPy has loaded."""
    library = ctypes.CDLL(f"libcublas.so.{version // 10000}")
    library.cublasSetStream_v2.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    library.cublasSetWorkspace_v2.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    library.cublasGemmEx.argtypes = (
        ctypes.c_void_p,
        *[ctypes.c_int] * 5,
        ctypes.c_void_p,
        *(*_MATRIX, *_MATRIX, ctypes.c_void_p, *_MATRIX, ctypes.c_int, ctypes.c_int),
    )
    return library


class Handle:
    """Used by one thread at a time."""

    def __init__(self) -> None:
        self._handle: int = cublas.create()
        self._library = _library(cublas.getVersion(self._handle))
        self._bound: tuple[int, int, int] | None = None  # it takes time

    def bind(self, stream: int, workspace: int, size: int) -> None:
        """Put products on a stream, with memory of so many bytes for what they do between.

        With memory of its own cuBLAS promises the same bits for one stream at a time alone, and
        takes memory of another kind while a stream is captured. Setting the stream drops it.
        """
        if self._bound == (stream, workspace, size):
            return
        self._bound = None
        _check(self._library.cublasSetStream_v2(self._handle, stream))
        _check(self._library.cublasSetWorkspace_v2(self._handle, workspace, size))
        self._bound = stream, workspace, size

    def gemm(self, *arguments: Any) -> None:
        """cublasGemmEx; `arguments` are those after the handle, but the algorithm."""
        _check(self._library.cublasGemmEx(self._handle, *arguments, _ALGORITHM))


def _check(status: int) -> None:
    if status != 0:
        raise RuntimeError(f"cuBLAS reports status {status}")
