"""rnnfast.jax differentiated twice, and in forward mode: a lax.scan, rnnfast, and differences."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import option_sets
import pytest
from helpers import Case, Problem, problem, vjp
from tolerance import TORCH

import rnnfast
from rnnfast.spec import Spec
from rnnfast.weights import InOrder

jax = pytest.importorskip("jax")
pytest.importorskip("rnnfast.jax", exc_type=ImportError)

import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402
from jax_cases import assert_near, in_64_bits, loss_of, ours, scanned  # noqa: E402, F401

EPS = float(np.finfo(np.float32).eps)
LSTM, GRU = Spec("lstm"), Spec("gru")
RANDOM = ("recurrent_dropout", "zoneout", "dropconnect", "dropout", "variational")


def inputs_of(p: Problem) -> tuple[Any, Any, Any]:
    return p.x, p.weights, p.state


def scalar_of(call: Callable[..., Any]) -> Callable[..., Any]:
    """A function of x, weights and state whose Hessian has every part."""

    def scalar(x: Any, weights: Any, state: Any) -> Any:
        return sum(
            (jnp.sin(a) * jnp.cos(jnp.arange(a.size, dtype=a.dtype).reshape(a.shape))).sum()
            for a in jax.tree.leaves(call(x, weights, state))
        )

    return scalar


def random_like(tree: Any, seed: int = 5) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(a.dtype), tree)


def products(scalar: Callable[..., Any], arguments: Any, u: Any) -> dict[str, Any]:
    """J u, and H u in the three ways that JAX has."""
    gradient = jax.grad(scalar, argnums=(0, 1, 2))

    def dot(a: Any, b: Any) -> Any:
        return sum(jax.tree.leaves(jax.tree.map(lambda s, t: (s * t).sum(), a, b)))

    def along(*arguments: Any) -> Any:
        return jax.jvp(scalar, arguments, u)[1]

    return {
        "slope": jax.jvp(scalar, arguments, u),
        "forward over reverse": jax.jvp(gradient, arguments, u)[1],
        "reverse over reverse": jax.grad(lambda *a: dot(gradient(*a), u), argnums=(0, 1, 2))(
            *arguments
        ),
        "reverse over forward": jax.grad(along, argnums=(0, 1, 2))(*arguments),
    }


def test_against_a_scan(spec: Spec) -> None:
    p = problem(Case(spec, T=6, B=5, I=7, H=9))
    u = random_like(inputs_of(p))
    got, wanted = (
        jax.jit(partial(products, scalar_of(f)))(inputs_of(p), u) for f in (ours(spec), scanned(p))
    )
    assert_near(got, wanted, TORCH)


@pytest.mark.parametrize(("D", "transposed"), [(1, True), (2, False)])
def test_gates_in_another_order(D: int, transposed: bool, spec: Spec) -> None:
    """As Keras hands them over, in every derivative."""
    p = problem(Case(spec, T=3, B=2, I=3, H=5, L=2, D=D))
    count = len(spec.info.gates)
    places = (*range(1, count), 0)

    def moved(a: Any) -> Any:
        gates = jnp.split(a, count)
        return jnp.concatenate([gates[places.index(k)] for k in range(count)])

    def reordered(x: Any, weights: Any, state: Any) -> Any:
        theirs = InOrder(jax.tree.map(moved, weights), places)
        return ours(spec)(x, theirs, state, transposed=transposed)

    u = random_like(inputs_of(p))
    got, wanted = (
        jax.jit(partial(products, scalar_of(f)))(inputs_of(p), u) for f in (reordered, ours(spec))
    )
    assert_near(got, wanted)


def check_by_differences(scalar: Callable[..., Any], arguments: Any) -> None:
    """Forward mode of the scalar; forward and reverse mode of its gradient."""
    check_grads(jax.jit(scalar), arguments, order=1, modes=["fwd"], eps=1e-5, rtol=1e-6)
    gradient = jax.jit(jax.grad(scalar, argnums=(0, 1, 2)))
    check_grads(gradient, arguments, order=1, modes=["fwd", "rev"], eps=1e-5, rtol=1e-6)


def test_against_differences(spec: Spec) -> None:
    """Of a stack in both directions of rows with lengths, where a scan is no help."""
    p = problem(Case(spec, T=4, B=3, I=3, H=4, L=2, D=2, ragged=True))
    check_by_differences(scalar_of(partial(ours(spec), lengths=p.lengths)), inputs_of(p))


@pytest.mark.parametrize("spec", [LSTM, GRU], ids=Spec.variants)
def test_order_2(spec: Spec) -> None:
    p = problem(Case(spec, T=3, B=2, I=2, H=3, L=2))
    f = jax.jit(lambda x, w: ours(spec)(x, w)[0])
    check_grads(f, (p.x, p.weights), order=2, modes=["rev"], eps=1e-4, rtol=1e-6)


OPTIONS = [
    (spec, name)
    for spec in option_sets.SPECS
    for name in option_sets.of(spec)
    if name not in {*RANDOM, *option_sets.NOT_A_DERIVATIVE, *option_sets.BATCH_NORMS}
]


@pytest.mark.parametrize(
    ("spec", "name"), OPTIONS, ids=lambda v: v if isinstance(v, str) else v.variants()
)
def test_options_against_rnnfast(spec: Spec, name: str) -> None:
    """`Backward.vjp`, which test_second_derivatives.py compares with differences."""
    case = Case(spec, T=4, B=3, I=4, H=6, D=2, ragged=True)
    p = problem(option_sets.with_options(case, [name]))
    options = dict(p.keywords) | {"lengths": p.lengths}
    u = random_like(inputs_of(p))
    _, backward = vjp(p, "native")
    wanted = backward.vjp(p.dy, p.dstate)[1](*u)

    def gradients(arguments: Any, cotangents: Any) -> Any:
        return jax.vjp(partial(ours(spec), **options), *arguments)[1](cotangents)

    got = jax.vjp(gradients, inputs_of(p), (p.dy, p.dstate))[1](u)
    assert_near(got, wanted, TORCH)


@pytest.mark.parametrize("name", RANDOM)
def test_random_options(name: str) -> None:
    layers = 1 + name.startswith(("dropout", "variational"))
    case = Case(LSTM, T=3, B=2, I=2, H=3, L=layers, D=2, ragged=True)
    keywords = dict(option_sets.OPTIONS[name].change(case).keywords)
    p = problem(case)
    f = partial(ours(LSTM), lengths=p.lengths, rng=jax.random.key(3), **keywords)
    check_by_differences(scalar_of(f), inputs_of(p))


def test_missing_parts() -> None:
    """No state, no bias, no rows, and derivatives of some arguments alone."""
    p = problem(Case(LSTM, T=3, B=2, I=3, H=4, L=2, bias="none", state="none"))

    def loss(w: Any, x: Any) -> Any:
        return jnp.sin(ours(LSTM)(x, w)[0]).sum()

    gradient = jax.jit(jax.grad(loss))
    check_grads(gradient, (p.weights, p.x), order=1, modes=["fwd", "rev"], eps=1e-5, rtol=1e-6)
    of_x = partial(loss, p.weights)
    hessian = jax.jit(jax.hessian(of_x))(p.x)
    assert hessian.shape == p.x.shape * 2
    assert_near(hessian, jax.jit(jax.jacrev(jax.jacrev(of_x)))(p.x), TORCH)
    empty = p.rows(slice(0, 0))
    nothing = jax.jvp(gradient, (p.weights, empty.x), (p.weights, empty.x))
    assert not any(np.asarray(a).any() for a in jax.tree.leaves(nothing))


@pytest.mark.parametrize("spec", [LSTM, GRU], ids=Spec.variants)
def test_float32_is_rounded_float64(spec: Spec) -> None:
    p = problem(Case(spec, T=6, B=3, I=8, H=16, L=2))
    single = jax.tree.map(np.float32, inputs_of(p))
    double = jax.tree.map(np.float64, single)
    scalar = scalar_of(ours(spec))
    u = random_like(single)
    got = jax.jit(partial(products, scalar))(single, u)
    wanted = jax.jit(partial(products, scalar))(double, jax.tree.map(np.float64, u))
    assert all(a.dtype == np.float32 for a in jax.tree.leaves(got))
    assert_near(got, wanted, 200 * EPS)  # the first derivatives are single: sums of hundreds


@pytest.mark.parametrize("spec", [LSTM, GRU], ids=Spec.variants)
def test_other_transformations(spec: Spec) -> None:
    p = problem(Case(spec, T=6, B=4, I=3, H=5, L=2))
    scalar = scalar_of(ours(spec))
    gradient = jax.grad(scalar, argnums=(0, 1, 2))
    us = [random_like(inputs_of(p), seed) for seed in range(3)]

    def product(u: Any) -> Any:
        return jax.jvp(gradient, inputs_of(p), u)[1]

    one = jax.tree.map(lambda *a: jnp.stack(a), *map(product, us))
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *us)
    assert_near(jax.jit(jax.vmap(product))(stacked), one)
    _, linear = jax.linearize(gradient, *inputs_of(p))
    assert_near(linear(*us[0]), product(us[0]))

    def in_segments(w: Any) -> Any:
        @jax.checkpoint
        def segment(state: Any, x: Any) -> Any:
            y, state = ours(spec)(x, w, state)
            return state, jnp.sin(y).sum()

        return jax.lax.scan(segment, p.state, p.x.reshape(3, 2, 4, 3))[1].sum()

    def whole(w: Any) -> Any:
        return jnp.sin(ours(spec)(p.x, w, p.state)[0]).sum()

    along = us[0][1]
    for second in (
        lambda f: jax.jvp(jax.grad(f), (p.weights,), (along,))[1],
        lambda f: jax.vjp(jax.grad(f), p.weights)[1](along)[0],
    ):
        assert_near(jax.jit(partial(second, in_segments))(), second(whole), TORCH)

    def of_rows(w: Any) -> Any:
        return jax.vmap(lambda x, s: jnp.sin(ours(spec)(x, w, s)[0]).sum(), (1, 1))(p.x, p.state)

    total = jax.grad(lambda w: of_rows(w).sum())
    assert_near(
        jax.jvp(total, (p.weights,), (along,))[1],
        jax.jvp(jax.grad(whole), (p.weights,), (along,))[1],
        TORCH,
    )


def test_forward_mode_saves_nothing_else() -> None:
    """Values along the way are those of the call without derivatives."""
    p = problem(Case(LSTM, T=4, B=3, L=2, dtype="float32"))
    u = random_like(p.x)
    f = jax.jit(lambda x: ours(LSTM)(x, p.weights, p.state))
    value, _ = jax.jvp(f, (p.x,), (u,))
    assert_near(value, f(p.x), 0)


@pytest.mark.parametrize("option", ["grad_clip", "truncate"])
def test_options_without(option: str) -> None:
    p = problem(Case(GRU, dtype="float32"))
    f = partial(ours(GRU), **{option: 2})
    gradient = jax.grad(lambda x: jnp.sin(f(x, p.weights)[0]).sum())
    assert np.asarray(gradient(p.x)).any()
    for call in (
        lambda: jax.jvp(lambda x: f(x, p.weights)[0], (p.x,), (p.x,)),
        lambda: jax.jvp(gradient, (p.x,), (p.x,)),
        lambda: jax.grad(lambda x: jnp.sin(gradient(x)).sum())(p.x),
        lambda: jax.jit(jax.hessian(lambda x: f(x, p.weights)[0].sum()))(p.x),
    ):
        with pytest.raises(rnnfast.UnsupportedError, match=f"{option}: .* neither second ones nor"):
            call()


def test_what_there_is_not() -> None:
    p = problem(Case(GRU))
    f = lambda x: jnp.sin(ours(GRU)(x, p.weights)[0]).sum()  # noqa: E731
    second = jax.grad(lambda x: jnp.sin(jax.grad(f)(x)).sum())
    for call in (
        lambda: jax.grad(lambda x: second(x).sum())(p.x),
        lambda: jax.jvp(second, (p.x,), (p.x,)),
        lambda: jax.jit(jax.grad(lambda x: second(x).sum()))(p.x),
    ):
        with pytest.raises(rnnfast.UnsupportedError, match="differentiated three times"):
            call()
    slope = lambda x: jax.jvp(f, (x,), (p.x,))[1]  # noqa: E731
    for call in (
        lambda: jax.jvp(slope, (p.x,), (p.x,)),
        lambda: jax.jit(lambda x: jax.jvp(slope, (x,), (x,)))(p.x),
        lambda: jax.jacfwd(jax.jacfwd(f))(p.x),
    ):
        with pytest.raises(rnnfast.UnsupportedError, match="no forward mode over forward mode"):
            call()
