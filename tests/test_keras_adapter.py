"""rnnfast.keras on each backend of Keras, each in a process of its own: tests/keras_cases.py.

A backend that is not installed is skipped, or fails if RNNFAST_REQUIRE_KERAS names it.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest
from helpers import command, python

BACKENDS = ("torch", "jax", "tensorflow")
# Most of the time on jax is XLA's for Keras' loops: half of it with this.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


@pytest.mark.parametrize("backend", BACKENDS)
def test_cases(backend: str) -> None:
    require(backend)
    run = [sys.executable, "-m", "pytest", "tests/keras_cases.py", "-q", "-p", "no:cacheprovider"]
    how = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "XLA_FLAGS": QUICK}
    alone = dict.fromkeys(("OMP_NUM_THREADS", "RNNFAST_NUM_THREADS"), "1")  # problems are small
    done = command(run, timeout=900, **how, **alone)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_keras_is_imported_only_with_the_adapter() -> None:
    require("torch")
    done = python("import sys, rnnfast; assert 'keras' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_a_backend_without_kernels_is_refused() -> None:
    require("torch")
    done = python("import rnnfast.keras", KERAS_BACKEND="numpy")
    assert "Keras' backend: expected one of torch, jax, tensorflow, got numpy" in done.stderr


def require(backend: str) -> None:
    reason = missing(backend)
    if reason and backend in os.environ.get("RNNFAST_REQUIRE_KERAS", "").split(","):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


def missing(backend: str) -> str | None:
    for module in ("keras", backend):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    if backend == "jax":
        done = python("import rnnfast.jax")
        if done.returncode:
            return f"rnnfast.jax cannot be imported: {done.stderr.splitlines()[-1]}"
    return None
