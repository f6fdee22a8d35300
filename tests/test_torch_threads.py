"""The threads that rnnfast shares with PyTorch."""

from __future__ import annotations

import sys

import pytest

torch = pytest.importorskip("torch")

from helpers import python

from rnnfast.torch.tapes import native

pytestmark = [
    pytest.mark.skipif(native is None, reason="there is no native backend"),
    pytest.mark.skipif(sys.platform != "linux", reason="PyTorch's wheels for Linux have OpenMP"),
]

BEGIN = """
import os, numpy as np, torch, rnnfast
from rnnfast import _native
weights = rnnfast.init_weights("lstm", input_size=64, hidden_size=64, rng=0, dtype=np.float32)
x = np.random.default_rng(0).standard_normal((50, 16, 64), np.float32)

def results(threads):
    rnnfast.set_num_threads(threads)
    y, state, backward = rnnfast.lstm_vjp(x, weights)
    dx, dweights, dstate = backward(y)
    return [a.tobytes() for a in (y, *state, dx, *dweights[0][:4], *dstate)]

torch.set_num_threads(2)
alone, own = results(1), results(2)
assert not _native.openmp_has(2)
import rnnfast.torch
"""

SCRIPTS = {
    "the same bits": """
assert _native.openmp_has(2) and not _native.openmp_has(3)
for _ in range(3):
    torch.ones(300, 300) @ torch.ones(300, 300)
    assert alone == own == results(2) == results(3)
""",
    "PyTorch on one thread": """
torch.set_num_threads(1)
assert not _native.openmp_has(2)
assert results(2) == alone
""",
    "PyTorch on more threads": """
torch.set_num_threads(4)
assert _native.openmp_has(4)
assert results(2) == results(3) == alone
""",
    "a child of fork": """
assert results(2) == alone and _native.openmp_has(2)
child = os.fork()
if child == 0:
    os._exit(int(_native.openmp_has(2) or results(2) != alone))
assert os.waitpid(child, 0)[1] == 0
assert results(2) == alone and _native.openmp_has(2)
""",
    "a child that shares first": """
from rnnfast.torch import threads
child = os.fork()
if child == 0:
    threads.share()
    os._exit(int(_native.openmp_has(2) or results(2) != alone))
assert os.waitpid(child, 0)[1] == 0
""",
    "several callers": """
import concurrent.futures
rnnfast.set_num_threads(2)
with concurrent.futures.ThreadPoolExecutor(3) as callers:
    for found in callers.map(lambda _: results(2), range(30)):
        assert found == alone
""",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_shared_threads(script: str) -> None:
    found = python(BEGIN + SCRIPTS[script])
    assert found.returncode == 0, found.stderr


def test_a_limit_that_openmp_does_not_tell() -> None:
    """It has two threads by its count, and gives one: rnnfast goes back to its own."""
    found = python(
        BEGIN + "assert _native.openmp_has(2)\nassert results(2) == alone == results(2)\n"
        "assert not _native.openmp_has(2)",
        OMP_THREAD_LIMIT="1",
    )
    assert found.returncode == 0, found.stderr


def test_inside_a_region_of_openmp() -> None:
    """A call from within works on threads of rnnfast's own."""
    script = """
import ctypes, pathlib
library = ctypes.CDLL(str(pathlib.Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
seen = []

@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def body(_):
    seen.append(_native.openmp_has(2))
    seen.append(results(2) != alone)

library.GOMP_parallel(body, None, 2, 0)
assert seen == 4 * [False], seen
assert _native.openmp_has(2)
"""
    found = python(BEGIN + script)
    assert found.returncode == 0, found.stderr
