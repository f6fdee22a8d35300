"""rnnfast.jax under JAX's transformations: against rnnfast, a lax.scan and finite differences."""

from __future__ import annotations

import re
import sys
import threading
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from helpers import (
    BIASES,
    COTANGENTS,
    ROOT,
    STATES,
    Case,
    Problem,
    assert_same_bits,
    command,
    flatten_state,
    flatten_weights,
    problem,
    python,
    run,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import TORCH, allowed, assert_close, truth, well_conditioned

import bench.jax_adapter
import bench.rows
import rnnfast
from bench.problem import DEFAULT_CELLS
from bench.shapes import Shape
from rnnfast.spec import Spec, all_specs

jax = pytest.importorskip("jax")
adapter = pytest.importorskip("rnnfast.jax", exc_type=ImportError)

import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402
from jax_cases import assert_near, in_64_bits, loss_of, ours, scanned  # noqa: E402, F401


def run_jax(p: Problem, call: Callable[..., Any] | None = None, **options: Any) -> dict[str, Any]:
    """Every output and gradient, by name, as from `helpers.run`; of `call`(x, weights, state)."""
    f = call or partial(ours(p.spec), lengths=p.lengths, **options)

    def named(x: Any, weights: Any, state: Any) -> Any:
        y, state_n = f(x, weights, state)
        return {"y": y} | flatten_state(p.spec, state_n, "h_n", "c_n")

    @jax.jit
    def results_and_gradients(x: Any, weights: Any, state: Any) -> Any:
        results, back = jax.vjp(named, x, weights, state)
        wanted = {"y": p.dy, "h_n": p.dh_n, "c_n": p.dc_n}
        cotangents = {
            k: jnp.zeros_like(a) if wanted[k] is None else wanted[k] for k, a in results.items()
        }
        return results, back(cotangents)

    results, (dx, dweights, dstate) = results_and_gradients(p.x, p.weights, p.state)
    dh_0, dc_0 = dstate if isinstance(dstate, tuple) else (dstate, None)
    found = results | {"dx": dx, "dh_0": dh_0, "dc_0": dc_0} | flatten_weights(dweights)
    return {k: np.asarray(a) for k, a in found.items() if a is not None}


@settings(max_examples=10)
@given(st.data())
def test_random_options(data: Any) -> None:
    draw = lambda values: data.draw(st.sampled_from(list(values)))  # noqa: E731
    case = Case(
        draw(all_specs()),
        T=draw((1, 2, 5, 12)),
        B=draw((1, 2, 3, 17)),
        I=draw((1, 4, 16, 33)),
        H=draw((1, 5, 16, 31)),
        L=draw((1, 2, 3)),
        D=draw((1, 2)),
        dtype=draw(("float32", "float64")),
        bias=draw(BIASES),
        state=draw(STATES),
        ragged=draw((False, True)),
        cotangents=draw(COTANGENTS),
    )
    if well_conditioned(case):
        found = run_jax(problem(case), save=draw(("all", "recompute")))
        assert all(a.dtype == case.dtype for a in found.values())
        wanted = truth(case)[0]  # which has gradients of states that are not there, too
        assert_close(found, {name: wanted[name] for name in found}, allowed(case))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ragged", [False, True])
def test_same_bits_as_rnnfast(spec: Spec, dtype: str, ragged: bool) -> None:
    case = Case(spec, T=9, B=6, I=20, H=33, L=2, D=2, dtype=dtype, ragged=ragged)
    p = problem(case)
    wanted = run(p, "native")
    assert_same_bits(run_jax(p), wanted)
    assert_same_bits(run_jax(p, save="recompute"), wanted)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("L", "D"), [(1, 1), (3, 2)])
def test_one_step_of_one_row(
    spec: Spec, L: int, D: int, state: str, bias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XLA forms the gradients of matrices, but where a cell multiplies something other than h."""
    from rnnfast.jax import stack

    formed = []
    form = stack._with_matrices
    monkeypatch.setattr(stack, "_with_matrices", lambda *a: formed.append(a) or form(*a))
    jax.clear_caches()  # that it is traced here, and not again elsewhere
    p = problem(Case(spec, T=1, B=1, I=20, H=33, L=L, D=D, dtype="float32", state=state, bias=bias))
    found, wanted = run_jax(p), run(p, "native")
    for name, array in found.items():
        np.testing.assert_array_equal(array, wanted[name], name)  # to the sign of zeros
    before = spec.cell == "gru" and not spec.reset_after
    assert bool(formed) is not (before and state in ("both", "h"))
    jax.clear_caches()


@settings(max_examples=12)
@given(st.data())
def test_options_of_the_cells(data: Any) -> None:
    """The same bits as rnnfast, which test_backends_agree.py compares with the reference."""
    draw = lambda *values: data.draw(st.sampled_from(values))  # noqa: E731
    cell = draw("lstm", "lstm", "gru", "rnn", "gated")
    fields: dict[str, Any] = {"layer_norm": draw(False, True)}
    options: dict[str, Any] = {
        "clip": draw(None, 0.7),
        "grad_clip": draw(None, 1e-2),
        "truncate": draw(None, 2),
    }
    if cell == "lstm":
        fields |= {"proj_size": draw(0, 3), "peepholes": draw(False, True)}
        options |= {
            "input_forget": draw(False, True),
            "output_activation": draw("tanh", "softsign"),
        }
    if cell == "gru":
        options["reset_after"] = draw(False, True)
    if cell == "rnn":
        options["nonlinearity"] = draw("tanh", ("leaky_relu", 0.1))
    else:
        options |= {"gate_activation": draw("sigmoid", "hard_sigmoid"), "activation": "softsign"}
    if draw(False, True):
        options |= {"zoneout": 0.3, "training": False}
    dtype, T, B, I, H = draw("float32", "float64"), 5, draw(1, 4), 3, 7  # noqa: E741
    L, D = draw(1, 2), draw(1, 2)
    rng = np.random.default_rng(draw(0, 1, 2))
    weights = rnnfast.init_weights(cell, I, H, L, D == 2, dtype=dtype, rng=rng, **fields)
    P = fields.get("proj_size") or H
    sizes = [P, H] if cell == "lstm" else [P]
    x, dy, *states = (
        rng.standard_normal((*shape, size)).astype(dtype)
        for shape, size in (
            ((T, B), I),
            ((T, B), D * P),
            *(((L * D, B), size) for size in sizes * 2),
        )
    )
    pack = (lambda parts: tuple(parts)) if cell == "lstm" else (lambda parts: parts[0])
    state, dstate = pack(states[: len(sizes)]), pack(states[len(sizes) :])
    options["lengths"] = rng.integers(0, T + 1, B) if draw(False, True) else None
    y, state_n, backward = getattr(rnnfast, f"{cell}_vjp")(x, weights, state, **options)
    found, back = jax.vjp(partial(getattr(adapter, cell), **options), x, weights, state)
    assert_near(found, (y, state_n), 0)
    assert_near(back((dy, dstate)), backward(dy, dstate), 0)


@pytest.mark.parametrize("spec", [Spec("lstm"), Spec("gru")], ids=Spec.variants)
def test_masks_on_the_state(spec: Spec) -> None:
    p = problem(Case(spec, T=5, B=3, I=3, H=4, L=1 + spec.info.has_c, D=2, ragged=True))
    f = partial(ours(spec), lengths=p.lengths)
    random = partial(f, recurrent_dropout=0.4, zoneout=0.3, rng=jax.random.key(5))
    results = random(p.x, p.weights, p.state)
    assert not np.array_equal(results[0], f(p.x, p.weights, p.state)[0])
    assert_near(jax.jit(random)(p.x, p.weights, p.state), results, 0)
    check_grads(random, (p.x, p.weights, p.state), order=1, modes=["rev"], eps=1e-5, rtol=1e-6)
    _, kept = f(p.x, p.weights, p.state, zoneout=1.0, rng=jax.random.key(0))
    assert_near(kept, p.state)
    deaf = jax.tree.map(lambda w: w, p.weights)
    deaf = [tuple(w._replace(w_hh=0 * w.w_hh) for w in layer) for layer in deaf]
    dropped = f(p.x, p.weights, p.state, recurrent_dropout=1.0, rng=jax.random.key(0))
    assert_near(dropped, f(p.x, deaf, p.state))
    rates = np.asarray(random(p.x, p.weights, p.state, training=False)[0])
    assert_near(rates, np.asarray(f(p.x, p.weights, p.state, zoneout=0.3, training=False)[0]), 0)
    keys = jax.random.split(jax.random.key(1), 3)
    every = jax.vmap(lambda k: f(p.x, p.weights, zoneout=0.5, recurrent_dropout=0.5, rng=k)[0])(
        keys
    )
    one = [f(p.x, p.weights, zoneout=0.5, recurrent_dropout=0.5, rng=k)[0] for k in keys]
    assert_near(every, jnp.stack(one))


def test_a_scan(spec: Spec) -> None:
    p = problem(Case(spec, T=8, B=5, I=7, H=17))
    assert_close(run_jax(p), run_jax(p, scanned(p)), TORCH)


def test_finite_differences(spec: Spec) -> None:
    p = problem(Case(spec, T=4, B=3, I=3, H=4, L=2, D=2, ragged=True))
    f = partial(ours(spec), lengths=p.lengths)
    arguments = (p.x, p.weights, p.state)
    check_grads(jax.jit(f), arguments, order=1, modes=["rev"], eps=1e-5, rtol=1e-6)


CELLS = [Spec("lstm"), Spec("gru")]


@pytest.mark.parametrize("spec", CELLS, ids=Spec.variants)
class TestVmap:
    def inputs(self, spec: Spec, **sizes: Any) -> tuple[Problem, Any, Any]:
        p = problem(Case(spec, T=5, B=4, I=3, H=6, L=2, **sizes))
        rng = np.random.default_rng(0)
        return p, rng.standard_normal((3, *p.x.shape)), rng.integers(0, 6, (3, 4))

    def test_over_batches(self, spec: Spec) -> None:
        p, xs, lengths = self.inputs(spec, D=2)
        f = ours(spec)
        every = jax.vmap(lambda x, n: f(x, p.weights, p.state, lengths=n))(xs, lengths)
        one = [f(x, p.weights, p.state, lengths=n) for x, n in zip(xs, lengths, strict=True)]
        assert_near(every, jax.tree.map(lambda *a: jnp.stack(a), *one))

    def test_over_rows(self, spec: Spec) -> None:
        """Unbatched calls under vmap are one call of the kernels, and so are their gradients."""
        p, *_ = self.inputs(spec)
        f = ours(spec)
        rows = jax.vmap(lambda x, s: f(x, p.weights, s), in_axes=(1, 1), out_axes=1)
        assert_near(rows(p.x, p.state), f(p.x, p.weights, p.state))

        def total(call: Callable[..., Any], weights: Any, x: Any, state: Any) -> Any:
            return sum(jnp.sin(a).sum() for a in jax.tree.leaves(call(x, weights, state)))

        def mapped(x: Any, weights: Any, state: Any) -> Any:
            return jax.vmap(lambda x, s: f(x, weights, s), in_axes=(1, 1), out_axes=1)(x, state)

        got = jax.jit(jax.grad(partial(total, mapped), argnums=(0, 1, 2)))
        wanted = jax.grad(partial(total, f), argnums=(0, 1, 2))
        assert_near(got(p.weights, p.x, p.state), wanted(p.weights, p.x, p.state))
        text = got.lower(p.weights, p.x, p.state).as_text()
        assert text.count("@rnnfast_forward") == text.count("@rnnfast_backward") == 1
        assert "stablehlo.while" not in text

    def test_gradients_of_each_row(self, spec: Spec) -> None:
        p, xs, lengths = self.inputs(spec)
        gradient = jax.grad(loss_of(p), argnums=(0, 1))
        every = jax.jit(jax.vmap(gradient, in_axes=(None, 0, None, 0)))
        one = [gradient(p.weights, x, p.state, n) for x, n in zip(xs, lengths, strict=True)]
        got = every(p.weights, xs, p.state, lengths)
        assert_near(got, jax.tree.map(lambda *a: jnp.stack(a), *one))

    def test_over_weights(self, spec: Spec) -> None:
        p, *_ = self.inputs(spec)
        many = jax.tree.map(lambda a: jnp.stack([a, a / 2, -a]), p.weights)
        loss = loss_of(p)
        every = jax.grad(lambda many: jax.vmap(loss, in_axes=(0, None))(many, p.x).sum())(many)
        for k in range(3):
            alone = jax.grad(loss)(jax.tree.map(lambda a, k=k: a[k], many), p.x)
            assert_near(jax.tree.map(lambda a, k=k: a[k], every), alone)

    def test_of_none(self, spec: Spec) -> None:
        """vmap over an axis of zero."""
        p = problem(Case(spec, 4, 2, 3, 5))
        f = getattr(rnnfast.jax, spec.cell)
        y = jax.vmap(lambda x: f(x, p.weights, **p.keywords)[0])(jnp.zeros((0, 4, 2, 3)))
        assert y.shape == (0, 4, 2, 5)

    def test_of_vmap(self, spec: Spec) -> None:
        p, xs, _ = self.inputs(spec)
        f = ours(spec)
        call = lambda x: f(x, p.weights)[0]  # noqa: E731
        both = jax.vmap(jax.vmap(call, in_axes=1, out_axes=1))(xs)
        assert_near(both, jnp.stack([call(x) for x in xs]))


@pytest.mark.parametrize("spec", CELLS, ids=Spec.variants)
def test_checkpoint_and_scan(spec: Spec) -> None:
    """Segments of a long sequence in a scan, each made again in the backward pass."""
    p = problem(Case(spec, T=12, B=3, I=4, H=5, L=2))
    f = ours(spec)
    whole = jax.grad(lambda w: jnp.sin(f(p.x, w, p.state)[0]).sum())
    assert_near(
        jax.grad(jax.checkpoint(lambda w: jnp.sin(f(p.x, w, p.state)[0]).sum()))(p.weights),
        whole(p.weights),
    )

    def in_segments(w: Any) -> Any:
        @jax.checkpoint
        def segment(state: Any, x: Any) -> Any:
            y, state = f(x, w, state)
            return state, jnp.sin(y).sum()

        return jax.lax.scan(segment, p.state, p.x.reshape(4, 3, 3, 4))[1].sum()

    assert_near(jax.jit(jax.grad(in_segments))(p.weights), whole(p.weights))


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, rnnfast, rnnfast.jax
from jax.sharding import Mesh, PartitionSpec as P
assert jax.device_count() == 2
rng = np.random.default_rng(0)
weights = rnnfast.init_weights("lstm", 5, 7, num_layers=2, bidirectional=True, rng=rng)
x = rng.standard_normal((6, 8, 5), np.float32)
lengths = rng.integers(0, 7, 8)
mesh = Mesh(jax.devices(), ("data",))
specs = (P(), P(None, "data"), P("data"))

def loss(weights, x, lengths):
    y, (h_n, c_n) = rnnfast.jax.lstm(x, weights, lengths=lengths)
    return (jnp.sin(y).sum() + jnp.cos(h_n).sum() + (c_n * h_n).sum()) / 8

wanted = jax.value_and_grad(loss)(weights, x, lengths)

def check(got):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(b).max())

def total(weights, x, lengths):
    return jax.lax.psum(loss(weights, x, lengths), "data")

def each(weights, x, lengths):  # the gradients of replicated weights are summed by JAX
    value, gradients = jax.value_and_grad(loss)(weights, x, lengths)
    return jax.lax.psum(value, "data"), gradients

def by_hand(weights, x, lengths):
    return jax.lax.psum(jax.value_and_grad(loss)(weights, x, lengths), "data")

for checked in (True, False):
    sharded = jax.shard_map(total, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=checked)
    check(jax.jit(jax.value_and_grad(sharded))(weights, x, lengths))
    inside = each if checked else by_hand
    sharded = jax.shard_map(
        inside, mesh=mesh, in_specs=specs, out_specs=(P(), P()), check_vma=checked
    )
    check(jax.jit(sharded)(weights, x, lengths))
mapped = jax.vmap(loss, in_axes=(None, 1, 0))
alone = jax.shard_map(
    lambda w, x, n: jax.lax.psum(mapped(w, x[:, :, None], n[:, None]).sum(), "data"),
    mesh=mesh, in_specs=specs, out_specs=P(),
)
check(jax.jit(jax.value_and_grad(alone))(weights, x, lengths))
print("equal")
"""


def test_two_devices_equal_one() -> None:
    found = python(
        SHARDED, XLA_FLAGS="--xla_force_host_platform_device_count=2", RNNFAST_NUM_THREADS="1"
    )
    assert found.stdout == "equal\n", found.stderr


def test_traced_lengths() -> None:
    p = problem(Case(Spec("lstm"), T=6, B=4, ragged=True))
    call = jax.jit(lambda x, n: ours(p.spec)(x, p.weights, lengths=n)[0])
    for kind in (np.int8, np.uint16, np.int32, np.int64):
        wanted, _ = rnnfast.lstm(p.x, p.weights, lengths=p.lengths)
        assert np.array_equal(call(p.x, p.lengths.astype(kind)), wanted)
    for wrong in (-1, 7, 2**32 + 1):
        lengths = p.lengths.copy()
        lengths[1] = wrong
        with pytest.raises(
            Exception, match=f"lengths: expected values from 0 to T = 6, got {wrong}"
        ):
            jax.block_until_ready(call(p.x, lengths))


@pytest.mark.parametrize("spec", CELLS, ids=Spec.variants)
def test_layouts(spec: Spec) -> None:
    p = problem(Case(spec, L=2, D=2))
    f = ours(spec)
    y, state_n = f(p.x, p.weights, p.state)
    turned, same = f(p.x.swapaxes(0, 1), p.weights, p.state, batch_first=True)
    assert_near((turned.swapaxes(0, 1), same), (y, state_n), 0)
    row = p.rows(1)
    assert_near(f(row.x, row.weights, row.state), jax.tree.map(lambda a: a[:, 1], (y, state_n)))
    single = problem(replace(Case(spec), bias="ih"))
    w = single.weights[0]
    assert_near(f(single.x, w), f(single.x, [w]), 0)
    assert_near(f(single.x, tuple(w)[:3]), f(single.x, [w]), 0)
    empty = p.rows(slice(0, 0))
    gradients = jax.grad(loss_of(p))(empty.weights, empty.x, empty.state)
    assert all(not np.asarray(a).any() for a in jax.tree.leaves(gradients))


@pytest.mark.parametrize("sizes", [(5, 16), (4, 5)], ids=str)
def test_transposed_weights(spec: Spec, sizes: tuple[int, int]) -> None:
    """Of kernels as Keras has them: the same numbers, read and written where they lie."""
    I, H = sizes  # noqa: E741
    p = problem(Case(spec, T=3, B=2, I=I, H=H, L=2, D=2, dtype="float32"))
    turned = jax.tree.map(lambda w: jnp.asarray(w.T) if w.ndim == 2 else w, p.weights)
    for save in ("all", "recompute"):

        def of_kernels(kernels: Any, x: Any, transposed: bool, save: str = save) -> Any:
            weights = jax.tree.map(lambda w: w.T, kernels)
            return loss_of(p, transposed=transposed, save=save)(weights, x, p.state)

        call, other = (
            jax.jit(jax.value_and_grad(partial(of_kernels, transposed=t), argnums=(0, 1)))
            for t in (True, False)
        )
        assert_near(call(turned, p.x), other(turned, p.x), 0)
        for f, copies in ((call, False), (other, True)):
            text = f.lower(turned, p.x).compile().as_text()
            moved = re.findall(r"(?:transpose|copy)[.\w]* = f32\[\d+,\d+\]", text)
            assert bool(moved) == copies, moved
    with pytest.raises(TypeError, match="transposed"):
        ours(spec)(p.x, p.weights, transposed=1)


def test_dropout() -> None:
    """Seen through a second layer that hands on what it reads."""
    size, rate = 64, 0.25
    p = problem(Case(Spec("rnn", nonlinearity="relu"), T=20, B=10, I=8, H=size))
    hands_on = rnnfast.Weights(np.eye(size), np.zeros((size, size)))
    weights = [*p.weights, hands_on]
    first, h_n = adapter.rnn(p.x, p.weights, nonlinearity="relu")
    call = jax.jit(
        lambda key, **o: adapter.rnn(p.x, weights, nonlinearity="relu", dropout=rate, rng=key, **o),
        static_argnames="variational",
    )
    y, state_n = call(jax.random.key(1))
    kept = np.asarray(y != 0)[np.asarray(first) > 0]
    assert abs(kept.mean() - (1 - rate)) < 5 * (rate * (1 - rate) / kept.size) ** 0.5
    np.testing.assert_allclose(y, np.where(y != 0, first / (1 - rate), 0), rtol=1e-12)
    assert np.array_equal(state_n[0], h_n[0])
    assert np.array_equal(y, call(jax.random.key(1))[0])
    assert np.array_equal(y, call(jax.random.PRNGKey(1))[0])
    assert not np.array_equal(y, call(jax.random.key(2))[0])
    again, _ = call(jax.random.key(1), variational=True)
    dropped = np.asarray((again == 0) & (first > 0)).any(axis=0)
    assert dropped.any()
    assert not np.asarray(again)[:, dropped].any()
    quiet, _ = adapter.rnn(p.x, weights, nonlinearity="relu", dropout=rate, training=False)
    np.testing.assert_allclose(quiet, first, rtol=1e-12)


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"dropconnect": 0.5}, {"dropout": 1.0}])
def test_gradients_with_dropout(options: Any) -> None:
    p = problem(Case(Spec("lstm"), T=3, B=2, I=3, H=4, L=3))
    f = partial(adapter.lstm, rng=jax.random.key(3), **options)
    assert not np.array_equal(f(p.x, p.weights)[0], adapter.lstm(p.x, p.weights)[0])
    arguments = (p.x, p.weights, p.state)
    check_grads(jax.jit(f), arguments, order=1, modes=["rev"], eps=1e-5, rtol=1e-6)


def test_errors_of_a_trace() -> None:
    p = problem(Case(Spec("lstm"), L=2))
    f = jax.jit(adapter.lstm, static_argnames=("dropout", "clip", "save", "batch_first"))
    for error, message, call in (
        (ValueError, "x: expected 4 features", lambda: f(p.x[..., :3], p.weights)),
        (ValueError, "h_0: expected shape", lambda: f(p.x, p.weights, (p.x, p.c_0))),
        (ValueError, r"weights\[1\].w_ih", lambda: f(p.x, [p.weights[0]] * 2)),
        (ValueError, "lengths: expected shape", lambda: f(p.x, p.weights, lengths=np.ones(9, int))),
        (ValueError, "dropout", lambda: f(p.x, p.weights, dropout=2.0)),
        (ValueError, "save", lambda: f(p.x, p.weights, save="nothing")),
        (TypeError, "rng: expected a JAX PRNG key", lambda: f(p.x, p.weights, dropout=0.5)),
        (TypeError, "rng", lambda: adapter.lstm(p.x, p.weights, dropout=0.5, rng=3)),
        (TypeError, "dtype float64", lambda: f(p.x, jax.tree.map(np.float32, p.weights))),
        (TypeError, "dtype", lambda: f(p.x.astype(jnp.bfloat16), p.weights)),
        (TypeError, "lengths", lambda: f(p.x, p.weights, lengths=np.ones(3))),
        (TypeError, "packed", lambda: adapter.lstm(p.x, rnnfast.pack(p.weights, cell="lstm"))),
        (TypeError, "state", lambda: f(p.x, p.weights, p.h_0)),
        (TypeError, "unknown", lambda: adapter.lstm(p.x, p.weights, unknown=1)),
        (ValueError, "lengths: .* 0 to T", lambda: adapter.lstm(p.x, p.weights, lengths=[9, 1, 1])),
    ):
        with pytest.raises(error, match=message):
            call()


def test_no_silent_cast() -> None:
    p = problem(Case(Spec("lstm")))
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(TypeError, match="jax_enable_x64"):
            adapter.lstm(p.x, p.weights)
    finally:
        jax.config.update("jax_enable_x64", True)


def test_without_handlers() -> None:
    code = "import rnnfast._native as n; del n.ffi_handlers; import rnnfast.jax"
    found = python(code)
    assert "ImportError: rnnfast was installed without its handlers" in found.stderr
    assert "RNNFAST_JAX=ON pip install" in found.stderr
    code = "import rnnfast._native as n; n.ffi_version = (0, 999); import rnnfast.jax"
    assert (
        "ImportError: rnnfast's handlers for JAX were compiled for version" in python(code).stderr
    )


def test_imported_only_when_asked_for() -> None:
    found = python("import sys, rnnfast; print('jax' in sys.modules)")
    assert found.stdout == "False\n", found.stderr


def test_threads_of_python() -> None:
    p = problem(Case(Spec("lstm"), T=20, B=8, I=16, H=32, L=2, dtype="float32"))
    gradient = jax.jit(jax.grad(loss_of(p)))
    wanted = gradient(p.weights, p.x)
    wrong = []

    def work() -> None:
        for _ in range(20):
            got = gradient(p.weights, p.x)
            pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
            wrong.extend(None for a, b in pairs if not np.array_equal(a, b))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
class TestFlax:
    SIZES: Any = {"num_layers": 2, "bidirectional": True}  # noqa: RUF012
    VARIANT: Any = {"GRU": {"reset_after": False}, "RNN": {"nonlinearity": "relu"}}  # noqa: RUF012

    def wanted(self, cell: str, found: dict[str, Any], x: Any) -> Any:
        """By rnnfast, from the parameters by name."""
        weights = [
            tuple(
                rnnfast.Weights(
                    *(
                        np.asarray(found[f"{name}_l{k}{end}"])
                        for name in rnnfast.Weights._fields[:4]
                    )
                )
                for end in ("", "_reverse")
            )
            for k in range(2)
        ]
        f = getattr(rnnfast, cell.lower())
        return f(np.asarray(x), weights, **self.VARIANT.get(cell, {}))

    def test_linen(self, cell: str) -> None:
        pytest.importorskip("flax")
        from rnnfast.jax import linen

        x = jax.random.normal(jax.random.key(0), (6, 3, 4), "float32")
        make = partial(getattr(linen, cell), 5, **self.SIZES, **self.VARIANT.get(cell, {}))
        layer = make()
        variables = layer.init(jax.random.key(1), x)
        found = variables["params"]
        assert max(float(abs(a).max()) for a in found.values()) <= 5**-0.5
        assert_near(jax.jit(layer.apply)(variables, x), self.wanted(cell, found, x), 0)
        layer = make(dropout=0.5)
        random = layer.apply(variables, x, rngs={"dropout": jax.random.key(2)})
        assert not np.array_equal(random[0], layer.apply(variables, x, deterministic=True)[0])
        gradient = jax.jit(jax.grad(lambda v: make().apply(v, x)[0].sum()))(variables)
        assert all(np.asarray(a).any() for a in jax.tree.leaves(gradient))

    def test_nnx(self, cell: str) -> None:
        pytest.importorskip("flax")
        from flax import nnx

        from rnnfast.jax import nnx as layers

        x = jax.random.normal(jax.random.key(0), (6, 3, 4), "float32")
        variant = self.VARIANT.get(cell, {})
        make = partial(getattr(layers, cell), 4, 5, **self.SIZES, **variant)
        layer = make(dropout=0.5, rngs=nnx.Rngs(0))
        random, _ = layer(x, rngs=nnx.Rngs(dropout=1))
        with pytest.raises(ValueError, match="rngs"):
            layer(x)
        layer.eval()
        found = {k: v for k, v in vars(layer).items() if isinstance(v, nnx.Param)}
        assert_near(layer(x), self.wanted(cell, {k: v[...] for k, v in found.items()}, x), 0)
        assert not np.array_equal(random, layer(x)[0])
        if hasattr(nnx, "view"):  # since Flax 0.12
            drops = nnx.view(layer, deterministic=False)
            assert np.array_equal(random, drops(x, rngs=nnx.Rngs(dropout=1))[0])
            assert np.array_equal(nnx.view(drops, deterministic=True)(x)[0], layer(x)[0])
        gradient = nnx.jit(nnx.grad(lambda layer: layer(x)[0].sum()))(layer)
        assert all(np.asarray(a).any() for a in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dropout": -1.0}, "dropout: .*-1"),
        ({"dropout": 7.0, "num_layers": 1}, "dropout: .*7"),
        ({"hidden_size": 0}, "hidden_size: .*0"),
        ({"num_layers": 0}, "num_layers: .*0"),
    ],
    ids=str,
)
def test_bad_layers_of_flax(change: dict[str, Any], words: str) -> None:
    pytest.importorskip("flax")
    from flax import nnx

    from rnnfast.jax import linen
    from rnnfast.jax import nnx as layers

    given = {"hidden_size": 4, "num_layers": 2, **change}
    with pytest.raises(ValueError, match=words):
        layers.LSTM(3, **given, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=words):
        linen.LSTM(**given).init(jax.random.key(0), jnp.ones((5, 2, 3)))


def test_tuples_of_others() -> None:
    """A NamedTuple as other libraries have for the state, or for weights."""
    p = problem(Case(Spec("lstm"), dtype="float32"))
    state = namedtuple("state", "hidden cell")(*p.state)
    weights = namedtuple("weights", "w_ih w_hh b_ih b_hh")(*p.weights[0][:4])
    wanted = rnnfast.jax.lstm(p.x, p.weights, p.state)[0]
    assert np.array_equal(rnnfast.jax.lstm(p.x, weights, state)[0], wanted)


def test_the_page() -> None:
    """Every example of docs/jax.md runs, one after the other, on two devices."""
    pytest.importorskip("flax")
    text = (ROOT / "docs" / "jax.md").read_text(encoding="utf-8")
    code = "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    code += "\nprint(jax.device_count())"
    found = python(code, XLA_FLAGS="--xla_force_host_platform_device_count=2")
    assert found.stdout == "2\n", found.stderr


def test_example() -> None:
    found = command([sys.executable, "-m", "examples.jax_training", "--steps", "450"])
    assert found.returncode == 0, found.stderr
    assert float(found.stdout.split()[-1]) < 0.05  # 0.167 is what a constant has


@pytest.mark.parametrize("mode", ["forward", "training"])
@pytest.mark.parametrize("cell", DEFAULT_CELLS)
def test_benchmark(cell: str, mode: Any) -> None:
    threads = rnnfast.get_num_threads()
    try:
        row = bench.rows.row(
            cell,
            Shape("", 3, 2, 4, 5, L=2),
            mode,
            1,
            ["lax.scan"],
            0.0,
            (bench.jax_adapter.OURS, bench.jax_adapter.THEIRS),
        )
    finally:
        rnnfast.set_num_threads(threads)
    assert not row["failed"]
    assert row["times_ms"].keys() == {"rnnfast", "lax.scan"}
