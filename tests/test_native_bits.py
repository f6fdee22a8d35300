"""The native backend's results have the same bits, whatever the threads, the batch and the cuts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import Case, assert_same_bits, forward, function, problem, python, run, variant

import rnnfast
from rnnfast.spec import Spec

pytestmark = pytest.mark.usefixtures("same_threads")

# Sizes at which every way of dividing the work among threads is met.
SHAPES = [(7, 33, 65), (30, 1, 256), (25, 130, 17), (3, 2, 700), (40, 64, 64)]


@pytest.mark.parametrize(("T", "B", "H"), SHAPES)
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_threads_do_not_matter(
    T: int, B: int, H: int, D: int, ragged: bool, spec: Spec, dtype: str, isa: str
) -> None:
    p = problem(Case(spec, T=T, B=B, I=48, H=H, D=D, dtype=dtype, ragged=ragged))
    found = []
    for threads in (1, 2, 3, 4, 7):
        rnnfast.set_num_threads(threads)
        assert rnnfast.get_num_threads() == threads
        found.append(run(p, "native"))
    for other in found[1:]:
        assert_same_bits(other, found[0])


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads cannot be counted")
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_threads_are_used(sizes: tuple[int, int, int], dtype: str) -> None:
    """The problems above are large enough: without this, that test could not fail."""
    T, B, H = sizes
    code = f"""
import os
import numpy as np
import rnnfast
weights = rnnfast.init_weights("rnn", 48, {H}, dtype="{dtype}", rng=0)
before = len(os.listdir("/proc/self/task"))
rnnfast.set_num_threads(4)
y, _, backward = rnnfast.rnn_vjp(np.ones(({T}, {B}, 48), "{dtype}"), weights, backend="native")
backward(y)
print(len(os.listdir("/proc/self/task")) - before)
"""
    found = python(code)
    assert int(found.stdout) > 0, found.stderr


@pytest.mark.parametrize("H", [5, 33, 200])
@pytest.mark.parametrize("D", [1, 2])
def test_the_batch_does_not_matter(H: int, D: int, spec: Spec, dtype: str, isa: str) -> None:
    """A row has the same bits in a batch of any size, at any place in it."""
    whole = problem(Case(spec, T=5, B=37, I=31, H=H, D=D, dtype=dtype))
    wanted = run(whole, "native")
    for rows in (slice(0, 1), slice(36, 37), slice(3, 20), slice(1, 36)):
        found = run(whole.rows(rows), "native")
        rowwise = {k: v for k, v in found.items() if not k.startswith("dw")}
        assert_same_bits(rowwise, {k: wanted[k][:, rows] for k in rowwise})


@pytest.mark.parametrize("B", [1, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_steps_may_be_taken_one_by_one(
    B: int, packed: bool, spec: Spec, dtype: str, isa: str
) -> None:
    """Single steps, chained by the state, give the bits of the whole sequence."""
    p = problem(Case(spec, T=9, B=B, I=31, H=33, L=2, dtype=dtype))
    wanted = forward(p, "native")
    weights = rnnfast.pack(p.weights, **variant(spec), backend="native") if packed else p.weights
    state, outputs = p.state, []
    for t in range(9):
        y, state = function(spec)(p.x[t : t + 1], weights, state, backend="native")
        outputs.append(y)
    last = dict(zip(("h_n", "c_n"), state if spec.info.has_c else (state,), strict=False))
    assert_same_bits({"y": np.concatenate(outputs), **last}, wanted)


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_a_sequence_may_be_cut(cut: int, spec: Spec, dtype: str, isa: str) -> None:
    p = problem(Case(spec, T=9, B=3, I=31, H=33, L=2, dtype=dtype))
    wanted = forward(p, "native")
    first = forward(replace(p, x=p.x[:cut]), "native")
    rest = replace(p, x=p.x[cut:], h_0=first["h_n"], c_0=first.get("c_n"))
    second = forward(rest, "native")
    y = np.concatenate([first["y"], second["y"]])
    assert_same_bits({**second, "y": y}, wanted)


def test_training_gives_the_bits_of_inference(spec: Spec, dtype: str, isa: str) -> None:
    p = problem(Case(spec, T=6, B=9, I=31, H=33, L=2, D=2, dtype=dtype))
    outputs = forward(p, "native")
    trained = run(p, "native")
    assert_same_bits(outputs, {name: trained[name] for name in outputs})


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("sizes", [(100, 1, 33, 3), (60, 3, 48, 2), (200, 1, 20, 4)])
def test_layers_that_chase_one_another(
    sizes: tuple[int, int, int, int], ragged: bool, spec: Spec, isa: str
) -> None:
    """A wavefront gives what one layer after the other gives."""
    T, B, H, L = sizes
    p = problem(Case(spec, T=T, B=B, I=7, H=H, L=L, ragged=ragged, dtype="float32"))
    rnnfast.set_num_threads(1)
    wanted = run(p, "native")
    for threads in (2, 3):
        rnnfast.set_num_threads(threads)
        for _ in range(2):  # the first calls may find the workers asleep
            assert_same_bits(run(p, "native"), wanted)
        assert_same_bits(run(p, "native", save="recompute"), wanted)
