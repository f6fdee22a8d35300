"""Dropout between layers: which numbers it zeroes, where its masks come from, its gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from differences import in_random_directions
from helpers import DTYPES, Case, assert_same_bits, forward, problem, run
from tolerance import DIFFERENCES, TORCH, assert_close

import rnnfast
from rnnfast import Weights
from rnnfast.spec import Spec


def deep(spec: Spec, dtype: str = "float64", **sizes: Any) -> Case:
    return Case(spec, **({"T": 5, "B": 4, "I": 3, "H": 17, "L": 3, "D": 2} | sizes), dtype=dtype)


def test_same_seed_same_results(spec: Spec, dtype: str, target: str) -> None:
    p = problem(deep(spec, dtype))
    wanted = run(p, target, dropout=0.5, rng=7)
    assert_same_bits(run(p, target, dropout=0.5, rng=7), wanted)
    assert_same_bits(run(p, target, dropout=0.5, rng=np.int64(7)), wanted)
    assert_same_bits(run(p, target, dropout=0.5, rng=np.random.default_rng(7)), wanted)
    assert_same_bits(forward(p, target, dropout=0.5, rng=7), {k: wanted[k] for k in forward(p)})
    assert not np.array_equal(run(p, target, dropout=0.5, rng=8)["y"], wanted["y"])


def test_a_generator_moves_on(target: str) -> None:
    p = problem(deep(Spec("lstm")))
    rng = np.random.default_rng(7)
    first, second = (forward(p, target, dropout=0.5, rng=rng)["y"] for _ in range(2))
    assert not np.array_equal(first, second)


def test_without_rng_every_call_differs(target: str) -> None:
    p = problem(deep(Spec("lstm")))
    first, second = (forward(p, target, dropout=0.5)["y"] for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_same_masks_on_every_backend(ragged: bool, spec: Spec, target: str) -> None:
    p = problem(deep(spec, ragged=ragged))
    wanted = run(p, "reference", dropout=0.3, rng=1)
    assert_close(run(p, target, dropout=0.3, rng=1), wanted, TORCH)


def test_no_dropout_leaves_rng_alone(spec: Spec, target: str) -> None:
    p = problem(deep(spec))
    rng = np.random.default_rng(7)
    before = rng.bit_generator.state
    assert_same_bits(run(p, target, dropout=0, rng=rng), run(p, target))
    assert rng.bit_generator.state == before


def test_one_layer_is_never_dropped(spec: Spec, target: str) -> None:
    """Dropout acts between layers; the outputs of the last one stay."""
    p = problem(deep(spec, L=1))
    assert_same_bits(run(p, target, dropout=0.9, rng=0), run(p, target))


def test_dropping_everything(spec: Spec, target: str) -> None:
    """With dropout 1 the last layer sees zeros; its own output is not dropped."""
    p = problem(deep(spec, L=2, cotangents="y"))
    found = run(p, target, dropout=1.0, rng=0)
    last = replace(p, x=np.zeros((*p.x.shape[:2], 34)), weights=p.weights[1:], h_0=p.h_0[2:])
    if spec.info.has_c:
        last.c_0 = p.c_0[2:]
    np.testing.assert_array_equal(found["y"], forward(last, target)["y"])
    assert not found["dx"].any()


def identity(features: int, dtype: str) -> Weights:
    """A relu layer that hands positive inputs on unchanged."""
    return Weights(np.eye(features, dtype=dtype), np.zeros((features, features), dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.75])
def test_masks(rate: float, dtype: str, target: str) -> None:
    """Each number of each step is dropped by itself, and the others are scaled up."""
    features, steps = 40, 500
    x = np.ones((steps, 2, features), dtype)
    weights = [identity(features, dtype)] * 2
    y, _ = rnnfast.rnn(x, weights, nonlinearity="relu", dropout=rate, rng=0, backend=target)
    dropped = y == 0
    np.testing.assert_array_equal(y[~dropped], np.asarray(1 / (1 - rate), dtype))
    for axes in ((0, 1, 2), (0,), (1, 2)):
        share = dropped.mean(axis=axes)
        count = dropped.size / share.size
        assert np.abs(share - rate).max() < 6 * np.sqrt(rate * (1 - rate) / count)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_gradients(directions: int, ragged: bool, spec: Spec, target: str) -> None:
    """By central differences, the seed held fixed: the backward pass uses the forward's masks."""
    p = problem(deep(spec, D=directions, ragged=ragged))
    options: dict[str, Any] = {"backend": target, "dropout": 0.4, "rng": 3}
    assert_close(*in_random_directions(p, run(p, **options), **options), DIFFERENCES)
