"""What the tests of rnnfast.jax share. Import after jax and rnnfast.jax have been found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Problem, function

import rnnfast.jax as adapter
from rnnfast.spec import Spec


@pytest.fixture(autouse=True, scope="module")
def in_64_bits() -> Iterator[None]:
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def ours(spec: Spec) -> Callable[..., Any]:
    """The function of rnnfast.jax, with the options of the variant filled in."""
    return partial(getattr(adapter, spec.cell), **function(spec).keywords)  # type: ignore[attr-defined]


def scanned(p: Problem) -> Callable[..., Any]:
    """One layer, forwards, as people write it in JAX."""
    sigmoid, tanh = jax.nn.sigmoid, jnp.tanh
    rnn = {"tanh": tanh, "relu": jax.nn.relu, "sigmoid": sigmoid}[p.spec.nonlinearity]

    def step(w: Any, state: Any, x: Any) -> Any:
        h, c = state
        a, r = x @ w.w_ih.T + w.b_ih, h @ w.w_hh.T + w.b_hh
        if p.spec.cell == "lstm":
            i, f, g, o = jnp.split(a + r, 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * tanh(g)
            h = sigmoid(o) * tanh(c)
        elif p.spec.cell == "gated":
            i, f, g = (sigmoid(part) for part in jnp.split(a + r, 3, axis=1))
            h = f * h + i * g
        elif p.spec.cell == "gru":
            (ar, az, an), (rr, rz, rn) = jnp.split(a, 3, axis=1), jnp.split(r, 3, axis=1)
            reset, update = sigmoid(ar + rr), sigmoid(az + rz)
            if p.spec.reset_after:
                n = tanh(an + reset * rn)
            else:
                size = h.shape[1]
                n = tanh(an + (reset * h) @ w.w_hh[2 * size :].T + w.b_hh[2 * size :])
            h = (1 - update) * n + update * h
        else:
            h = rnn(a + r)
        return (h, c), h

    def call(x: Any, weights: Any, state: Any) -> Any:
        h, c = state if p.spec.info.has_c else (state, state)
        (h, c), y = jax.lax.scan(partial(step, weights[0]), (h[0], c[0]), x)
        return y, (h[None], c[None]) if p.spec.info.has_c else h[None]

    return call


def loss_of(p: Problem, **options: Any) -> Callable[..., Any]:
    """A scalar of every output, whose gradients all differ."""
    f = ours(p.spec)

    def loss(weights: Any, x: Any, state: Any = None, lengths: Any = None) -> Any:
        y, state_n = f(x, weights, state, lengths=lengths, **options)
        return sum(
            (a * jnp.cos(jnp.arange(a.size).reshape(a.shape))).sum()
            for a in jax.tree.leaves((y, state_n))
        )

    return loss


def assert_near(got: Any, wanted: Any, rtol: float = 1e-12) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * float(np.abs(b).max(initial=1e-300)))
