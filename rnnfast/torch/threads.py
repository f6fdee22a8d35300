"""The threads that rnnfast shares with PyTorch."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from .tapes import native

_FUNCTIONS = (  # see csrc/openmp.hpp
    "GOMP_parallel",
    "omp_get_thread_num",
    "omp_get_num_threads",
    "omp_get_max_threads",
    "omp_in_parallel",
)


def share() -> None:
    """Let the native backend work on the threads of PyTorch's OpenMP, where it has those.

    Two sets of threads would wait for each other's cores: OpenMP's spin for some milliseconds
    after each of PyTorch's operators.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if native is None or not library.exists():
        return
    loaded = ctypes.CDLL(str(library))  # is there already; its symbols are those of its OpenMP
    if all(hasattr(loaded, name) for name in _FUNCTIONS):
        found = [ctypes.cast(getattr(loaded, name), ctypes.c_void_p).value for name in _FUNCTIONS]
        native.use_openmp(*[at or 0 for at in found])
