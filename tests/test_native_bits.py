"""The native backend's results have the same bits, whatever the threads, the batch and the cuts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from helpers import Case, assert_same_bits, forward, function, problem, run, variant

import rnnfast
from rnnfast.spec import Spec


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Put the number of threads back."""
    before = rnnfast.get_num_threads()
    yield
    rnnfast.set_num_threads(before)


# Sizes at which every way of dividing the work among threads is met.
SHAPES = [(7, 33, 65), (9, 1, 200), (5, 130, 17), (3, 2, 700), (2, 400, 64)]


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


@pytest.mark.parametrize("H", [5, 33, 200])
@pytest.mark.parametrize("D", [1, 2])
def test_the_batch_does_not_matter(H: int, D: int, spec: Spec, dtype: str, isa: str) -> None:
    """A row has the same bits in a batch of any size, at any place in it."""
    whole = problem(Case(spec, T=5, B=37, I=31, H=H, D=D, dtype=dtype))
    wanted = run(whole, "native")
    names = ("x", "h_0", "c_0", "dy", "dh_n", "dc_n")
    for rows in (slice(0, 1), slice(36, 37), slice(3, 20), slice(1, 36)):
        parts = {k: None if (v := getattr(whole, k)) is None else v[:, rows] for k in names}
        found = run(replace(whole, **parts), "native")
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
