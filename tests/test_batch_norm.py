"""Batch normalisation of the input projection: which rows count, and the running statistics.

`test_options_against_torch` has its numbers and gradients beside torch.nn.functional.batch_norm.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from differences import FINE, in_random_directions
from helpers import (
    Array,
    Case,
    Problem,
    assert_same_bits,
    forward,
    function,
    gradients,
    problem,
    run,
)
from option_sets import OPTIONS, SPECS, unless_unsupported, with_options
from tolerance import DIFFERENCES, TORCH, assert_close

import rnnfast
from rnnfast import Weights
from rnnfast.spec import Spec

EPS = 1e-5


@pytest.fixture(params=SPECS, ids=Spec.variants)
def cell(request: pytest.FixtureRequest) -> Spec:
    found: Spec = request.param
    return found


def case_of(spec: Spec, **sizes: Any) -> Case:
    given = {"T": 6, "B": 7, "I": 4, "H": 9, "L": 2, "D": 2, "ragged": True} | sizes
    return with_options(Case(spec, **given), ["batch_norm"])


def valid_rows(p: Problem) -> Array:
    """(N, I): the rows of x before each sequence's end."""
    steps = np.arange(len(p.x))[:, None]
    found: Array = (
        p.x[steps < p.lengths] if p.lengths is not None else p.x.reshape(-1, p.x.shape[2])
    )
    return found


def directions(p: Problem) -> list[Weights]:
    return [w for pair in p.weights for w in pair]


@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("vjp", [False, True], ids=["forward", "vjp"])
def test_running_statistics(momentum: float, vjp: bool, cell: Spec, target: str) -> None:
    """They move towards the batch's mean and unbiased variance, in place."""
    p = problem(case_of(cell, L=1))
    before = [(w.bn_mean.copy(), w.bn_var.copy()) for w in directions(p)]
    with unless_unsupported(target):
        function(cell, vjp)(
            p.x, p.weights, p.state, lengths=p.lengths, bn_momentum=momentum, backend=target
        )
    for w, (mean, variance) in zip(directions(p), before, strict=True):
        z = valid_rows(p) @ w.w_ih.T
        wanted = mean + momentum * (z.mean(axis=0) - mean)
        assert_close({"mean": w.bn_mean}, {"mean": wanted}, TORCH)
        wanted = variance + momentum * (z.var(axis=0, ddof=1) - variance)
        assert_close({"variance": w.bn_var}, {"variance": wanted}, TORCH)


def test_statistics_of_strided_arrays(cell: Spec, target: str) -> None:
    """Views of a larger array are written, not copies of them."""
    p = problem(case_of(cell, L=1, D=1))
    wanted = forward(p, target)
    (w,) = p.weights
    mean, variance = (np.repeat(a, 2)[::2] for a in (w.bn_mean, w.bn_var))
    weights = [w._replace(bn_mean=mean, bn_var=variance)]
    function(cell)(p.x, weights, p.state, lengths=p.lengths, backend=target)
    assert_same_bits(
        {"mean": mean.copy(), "variance": variance.copy()},
        {"mean": wanted["new[0].bn_mean"], "variance": wanted["new[0].bn_var"]},
    )


def test_backward_leaves_statistics_alone(cell: Spec, target: str) -> None:
    """However often it is called; and a call without training too, whose arrays are read-only."""
    p = problem(case_of(cell))
    _, _, backward = function(cell, vjp=True)(
        p.x, p.weights, p.state, lengths=p.lengths, backend=target
    )
    kept = [(w.bn_mean.copy(), w.bn_var.copy()) for w in directions(p)]
    first = {name: a.copy() for name, a in gradients(p, backward).items()}
    assert_same_bits(gradients(p, backward), first)
    for w in directions(p):
        w.bn_mean.setflags(write=False)
        w.bn_var.setflags(write=False)
    function(cell)(p.x, p.weights, p.state, training=False, backend=target)
    for w, (mean, variance) in zip(directions(p), kept, strict=True):
        assert_same_bits({"m": w.bn_mean, "v": w.bn_var}, {"m": mean, "v": variance})


def test_backward_has_the_statistics_of_its_call(cell: Spec, target: str) -> None:
    """Where one without training is followed by one that moves them."""
    p = problem(case_of(cell))
    vjp = function(cell, vjp=True)
    _, _, backward = vjp(p.x, p.weights, p.state, lengths=p.lengths, training=False, backend=target)
    first = {name: a.copy() for name, a in gradients(p, backward).items()}
    vjp(p.x, p.weights, p.state, lengths=p.lengths, backend=target)
    assert_same_bits(gradients(p, backward), first)


def test_padding_does_not_count(cell: Spec, target: str) -> None:
    p = problem(case_of(cell))
    wanted = run(p, target)
    for b, n in enumerate(p.lengths):
        p.x[n:, b] = p.dy[n:, b] = np.nan
    assert_same_bits(run(p, target), wanted)


def test_evaluation_is_an_affine_input(cell: Spec, target: str) -> None:
    """With running statistics, the layer is a plain one with scaled w_ih and shifted b_ih."""
    p = replace(problem(case_of(cell)), keywords={"training": False})
    plain = []
    for pair in p.weights:
        scales = [w.bn_ih / np.sqrt(w.bn_var + EPS) for w in pair]
        plain.append(
            tuple(
                Weights(s[:, None] * w.w_ih, w.w_hh, w.b_ih - s * w.bn_mean, w.b_hh)
                for w, s in zip(pair, scales, strict=True)
            )
        )
    wanted = run(replace(p, weights=plain), target)
    found = run(p, target)
    same = {k for k in wanted if not k.endswith(("w_ih", "b_ih"))}
    assert_close({k: found[k] for k in same}, {k: wanted[k] for k in same}, TORCH)


def test_size_of_inputs_does_not_matter_in_training(cell: Spec, target: str) -> None:
    """Scaled and shifted inputs of the first layer are normalised away, but for eps."""
    p = problem(case_of(cell, L=1))
    large = replace(p, x=1000 * p.x)
    shifted = replace(p, x=1000 * p.x + np.arange(4.0))
    wanted = forward(large, target)["y"]
    np.testing.assert_allclose(forward(shifted, target)["y"], wanted, atol=1e-9)
    np.testing.assert_allclose(forward(replace(p, x=2000 * p.x), target)["y"], wanted, atol=1e-6)


def test_dx_of_a_batch_sums_to_nothing(cell: Spec, target: str) -> None:
    """A common shift of all rows does nothing, so that its gradient vanishes."""
    p = problem(case_of(cell, L=1))
    dx = run(p, target)["dx"]
    assert np.abs(dx.sum(axis=(0, 1))).max() < TORCH * np.abs(dx).max() * dx.size


@pytest.mark.parametrize("lengths", [None, [0] * 7, [0, 0, 1, 0, 0, 0, 0]], ids=str)
def test_few_rows(lengths: Any, cell: Spec, target: str) -> None:
    """None, or a single one, whose unbiased variance would be 0 / 0: finite, no warning."""
    p = problem(case_of(cell, ragged=False))
    p = p.rows(slice(0, 0)) if lengths is None else replace(p, lengths=np.array(lengths))
    found = run(p, target)
    assert all(np.isfinite(a).all() for a in found.values())


@pytest.mark.parametrize("others", [(), ("zoneout",), ("projection", "peepholes")], ids=str)
def test_gradients_beside_differences(others: tuple[str, ...], cell: Spec, target: str) -> None:
    if not all(cell.cell in OPTIONS[name].cells for name in others):
        pytest.skip(f"{cell.cell} has no {' or '.join(others)}")
    p = problem(with_options(case_of(cell, T=4, B=3, H=4), others))
    found = run(p, target)
    assert_close(*in_random_directions(p, found, FINE, backend=target), DIFFERENCES)


def test_init_weights_normalise(target: str) -> None:
    """As they are drawn: z of every unit has mean 0 and variance 1 before the bias."""
    (w,) = rnnfast.init_weights("rnn", 4, 9, dtype=np.float64, rng=0, batch_norm=True, bias=False)
    w = w._replace(w_hh=np.zeros((9, 9)))
    x = np.random.default_rng(0).normal(3, 5, (6, 7, 4))
    y, _ = rnnfast.rnn(x, w, nonlinearity="linear", backend=target)
    np.testing.assert_allclose(y.mean(axis=(0, 1)), 0, atol=1e-12)
    np.testing.assert_allclose(y.var(axis=(0, 1)), 1, rtol=1e-3)


def test_torch_tensors(cell: Spec, target: str) -> None:
    """Running statistics of tensors are written through DLPack, as `out` is."""
    torch = pytest.importorskip("torch")
    p = problem(case_of(cell, L=1, D=1))
    wanted = forward(p, target)
    (w,) = p.weights
    tensors = Weights(*(None if a is None else torch.from_numpy(a.copy()) for a in w))
    state = tuple(torch.from_numpy(s.copy()) for s in (p.h_0, p.c_0) if s is not None)
    y, _ = function(cell)(
        torch.from_numpy(p.x),
        [tensors],
        state if cell.info.has_c else state[0],
        lengths=p.lengths,
        backend=target,
    )
    assert isinstance(y, torch.Tensor)
    np.testing.assert_array_equal(y.numpy(), wanted["y"])
    np.testing.assert_array_equal(tensors.bn_mean.numpy(), wanted["new[0].bn_mean"])
    np.testing.assert_array_equal(tensors.bn_var.numpy(), wanted["new[0].bn_var"])
