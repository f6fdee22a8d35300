"""`backward.vjp`: the gradients of what `backward` returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from differences import derivative
from helpers import (
    Array,
    Case,
    Problem,
    assert_same_bits,
    flatten_state,
    flatten_weights,
    function,
    gradients,
    problem,
    vjp,
)
from tolerance import DIFFERENCES, TORCH, assert_close

import rnnfast
from rnnfast.backends import get
from rnnfast.spec import Spec, all_specs

COTANGENTS = ("dy", "dh_n", "dc_n")


def capable(backend: str) -> str:
    """The backend, or a skip where it has no second derivatives."""
    if not get(backend, Spec("lstm")).twice:
        pytest.skip(f"backend {backend!r} has no second derivatives")
    return backend


@pytest.fixture
def target(target: str) -> str:
    return capable(target)


@pytest.fixture
def backend(backend: str) -> str:
    return capable(backend)


def normal_like(value: Any, rng: np.random.Generator) -> Any:
    """Random arrays in the structure of `value`."""
    if value is None:
        return None
    if isinstance(value, np.ndarray):
        return rng.standard_normal(value.shape)
    parts = [normal_like(part, rng) for part in value]
    return type(value)(*parts) if isinstance(value, rnnfast.Weights) else type(value)(parts)


def second(p: Problem, u: Problem, backend: str, **options: Any) -> dict[str, Array]:
    """The gradients of <u, backward>, by the names of what they are gradients of."""
    _, backward = vjp(p, backend, **options)
    _, double_backward = backward.vjp(p.dy, p.dstate)
    (gx, gweights, gstate), (gdy, gdstate) = double_backward(u.x, u.weights, u.state)
    found = {"dx": gx, "dy": gdy} | flatten_weights(gweights)
    found |= flatten_state(p.spec, gstate, "dh_0", "dc_0")
    return found | flatten_state(p.spec, gdstate, "dh_n", "dc_n")


def directions_of(p: Problem, seed: int = 1) -> Problem:
    """Weights u of the sum <u, backward>, in the structure of p."""
    rng = np.random.default_rng(seed)
    return replace(
        p,
        x=normal_like(p.x, rng),
        weights=normal_like(p.weights, rng),
        h_0=normal_like(p.h_0, rng),
        c_0=normal_like(p.c_0, rng),
    )


def product(u: Problem, found: dict[str, Array]) -> float:
    """<u, backward>, over the inputs that u has."""
    return sum(float((a * found[name]).sum()) for name, a in u.inputs().items())


def check_by_differences(case: Case, backend: str, **options: Any) -> None:
    p = problem(case)
    u = directions_of(p)
    results = second(p, u, backend, **options)
    variables = p.inputs() | {n: getattr(p, n) for n in COTANGENTS if getattr(p, n) is not None}
    rng = np.random.default_rng(2)
    found, wanted = [], []
    for name, array in variables.items():
        direction = rng.standard_normal(array.shape)
        direction /= np.linalg.norm(direction)
        start = array.copy()

        def at(
            step: float, array: Array = array, start: Array = start, d: Array = direction
        ) -> float:
            array[...] = start + step * d
            return product(u, gradients(p, vjp(p, "reference", **options)[1]))

        wanted.append(derivative(at))
        array[...] = start
        found.append(float((results[name] * direction).sum()))
    assert_close({"slopes": np.array(found)}, {"slopes": np.array(wanted)}, 10 * DIFFERENCES)


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("L", [1, 2])
def test_against_differences(spec: Spec, target: str, L: int, D: int, ragged: bool) -> None:
    check_by_differences(Case(spec, T=4, B=3, I=4, H=5, L=L, D=D, ragged=ragged), target)


@pytest.mark.parametrize("sizes", [(12, 9, 17, 33), (3, 20, 8, 65)], ids=str)
def test_larger(spec: Spec, target: str, sizes: tuple[int, int, int, int]) -> None:
    T, B, I, H = sizes  # noqa: E741
    check_by_differences(Case(spec, T=T, B=B, I=I, H=H), target)


@pytest.mark.parametrize("T", [1, 3])
def test_products_of_one_row(spec: Spec, target: str, T: int) -> None:
    """Of one step of one row, of a segment of one, and of a step that only one row has.

    Sizes have whole vectors of every instruction set, and a rest.
    """
    case = Case(spec, T=T, B=1, I=8, H=19)
    check_by_differences(case, target)
    check_by_differences(case, target, checkpoint=2)
    check_by_differences(Case(spec, T=T, B=2, I=8, H=19, L=2, ragged=True), target)


@pytest.mark.parametrize(
    "options",
    [
        {"clip": 2.5},
        {"recurrent_dropout": 0.4, "rng": 3},
        {"zoneout": 0.3, "rng": 3},
        {"dropconnect": 0.3, "rng": 3},
        {"dropout": 0.3, "rng": 3},
        {"save": "recompute"},
        {"checkpoint": 2},
    ],
    ids=str,
)
def test_with_options(spec: Spec, target: str, options: dict[str, Any]) -> None:
    check_by_differences(Case(spec, T=4, B=3, I=4, H=6, L=2), target, **options)


@pytest.mark.parametrize("kwargs", [{"proj_size": 3}, {"peepholes": True}, {"layer_norm": True}])
def test_structures_of_lstm(target: str, kwargs: dict[str, Any]) -> None:
    """The two backends differentiate in two ways: by dual numbers, and by the complex step."""
    weights = rnnfast.init_weights("lstm", 4, 6, 2, True, dtype=np.float64, rng=0, **kwargs)
    p = problem(Case(Spec("lstm"), T=4, B=3, I=4, H=6, L=2, D=2))
    P = kwargs.get("proj_size", 6)
    p = replace(p, weights=weights, h_0=p.h_0[..., :P], dh_n=p.dh_n[..., :P], dy=p.dy[..., : 2 * P])
    u = directions_of(p)
    assert_close(second(p, u, target), second(p, u, "reference"), TORCH)


@pytest.mark.parametrize(
    "spec", [s for s in all_specs() if s.cell != "gated" and s.reset_after], ids=Spec.variants
)
def test_against_torch(spec: Spec, backend: str) -> None:
    """torch's own loop over steps in float64 differentiates twice."""
    torch = pytest.importorskip("torch")
    if spec.nonlinearity == "sigmoid":
        pytest.skip("torch has no sigmoid RNN")
    p = problem(Case(spec, T=6, B=4, I=5, H=9, L=2, D=2))
    u = directions_of(p)
    module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[spec.cell]
    kind = {"nonlinearity": spec.nonlinearity} if spec.cell == "rnn" else {}
    module = module(5, 9, 2, bidirectional=True, dtype=torch.float64, **kind)
    flat = [w for pair in p.weights for w in pair]
    with torch.no_grad():
        for into, w in zip(module.all_weights, flat, strict=True):
            for parameter, value in zip(into, w[:4], strict=True):
                parameter.copy_(torch.from_numpy(value))
    names = ["x", "h_0", "c_0", "dy", "dh_n", "dc_n"]
    leaves = {
        n: torch.tensor(getattr(p, n), requires_grad=True)
        for n in names
        if getattr(p, n) is not None
    }
    has_c = spec.info.has_c
    state = (leaves["h_0"], leaves["c_0"]) if has_c else leaves["h_0"]
    y, state_n = module(leaves["x"], state)
    outputs = [y, *(state_n if has_c else [state_n])]
    parameters = [parameter for layer in module.all_weights for parameter in layer]
    inputs = [leaves[n] for n in ("x", "h_0", "c_0") if n in leaves] + parameters
    cotangents = [leaves[n] for n in COTANGENTS if n in leaves]
    first = torch.autograd.grad(outputs, inputs, cotangents, create_graph=True)
    along = [
        u.x,
        u.h_0,
        *([u.c_0] if has_c else []),
        *(a for q in u.weights for w in q for a in w[:4]),
    ]
    total = sum((g * torch.from_numpy(d)).sum() for g, d in zip(first, along, strict=True))
    wanted = torch.autograd.grad(total, [*inputs, *cotangents])
    keys = ["dx", "dh_0", *(["dc_0"] if has_c else [])]
    keys += list(flatten_weights(p.weights))
    keys += ["dy", "dh_n", *(["dc_n"] if has_c else [])]
    truth = {k: g.numpy() for k, g in zip(keys, wanted, strict=True)}
    assert_close(second(p, u, backend), truth, TORCH)


def test_first_results_are_those_of_backward(spec: Spec, target: str) -> None:
    p = problem(Case(spec, T=4, B=3, I=5, H=17, L=2, D=2, ragged=True))
    _, backward = vjp(p, target)
    dx, dweights, dstate = backward.vjp(p.dy, p.dstate)[0]
    found = {"dx": dx} | flatten_state(spec, dstate, "dh_0", "dc_0") | flatten_weights(dweights)
    assert_same_bits(found, gradients(p, backward))


@pytest.mark.parametrize("checkpoint", [None, 2])
def test_the_state_may_change_before(checkpoint: int | None, spec: Spec, target: str) -> None:
    p = problem(Case(spec, T=4, B=3, I=5, H=7))
    u = directions_of(p)
    results = []
    for change in (False, True):
        given = p.map(np.copy).state
        _, _, backward = function(spec, vjp=True)(
            p.x, p.weights, given, backend=target, checkpoint=checkpoint
        )
        if change:
            for a in given if isinstance(given, tuple) else (given,):
                a[...] = 9
        _, double_backward = backward.vjp(p.dy, p.dstate)
        (gx, gweights, gstate), _ = double_backward(u.x, u.weights, u.state)
        of_state = flatten_state(spec, gstate, "dh_0", "dc_0")
        results.append({"gx": gx} | of_state | flatten_weights(gweights))
    assert_same_bits(*results)


def test_missing_arguments_are_zeros(spec: Spec, target: str) -> None:
    p = problem(Case(spec, T=4, B=3, I=5, H=7, L=2, D=2))
    u = directions_of(p)
    some = replace(u, x=np.zeros_like(u.x), weights=u.map(np.zeros_like).weights)
    _, backward = vjp(p, target)
    _, double_backward = backward.vjp(p.dy, p.dstate)
    got = double_backward(None, None, u.state)
    wanted = double_backward(some.x, some.weights, some.state)
    assert_close({"dx": got[0][0], "dy": got[1][0]}, {"dx": wanted[0][0], "dy": wanted[1][0]}, 0)
    zero = double_backward()
    assert not zero[0][0].any()
    assert not zero[1][0].any()


def test_layouts(spec: Spec, backend: str) -> None:
    """batch_first and unbatched arguments come back as they are laid out."""
    p = problem(Case(spec, T=4, B=3, I=5, H=7))
    u = directions_of(p)
    wanted = second(p, u, backend)
    call: Callable[..., Any] = function(spec, vjp=True)
    _, _, backward = call(p.x.swapaxes(0, 1), p.weights, p.state, batch_first=True, backend=backend)
    _, double_backward = backward.vjp(p.dy.swapaxes(0, 1), p.dstate)
    (gx, _, _), (gdy, _) = double_backward(u.x.swapaxes(0, 1), u.weights, u.state)
    assert_same_bits(
        {"dx": gx.swapaxes(0, 1).copy(), "dy": gdy.swapaxes(0, 1).copy()},
        {"dx": wanted["dx"], "dy": wanted["dy"]},
    )
    one, along = p.rows(1), u.rows(1)
    wanted = second(p.rows(slice(1, 2)), u.rows(slice(1, 2)), backend)
    assert_close({"dx": second(one, along, backend)["dx"]}, {"dx": wanted["dx"][:, 0]}, TORCH)


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_threads_do_not_matter(spec: Spec, isa: str, threads: int) -> None:
    p = problem(Case(spec, T=5, B=33, I=24, H=65, D=2, ragged=True))
    u = directions_of(p)
    before = rnnfast.get_num_threads()
    try:
        found = []
        for n in (1, threads):
            rnnfast.set_num_threads(n)
            found.append(second(p, u, "native"))
    finally:
        rnnfast.set_num_threads(before)
    assert_same_bits(*found)


@pytest.mark.parametrize(
    ("options", "x", "slope"),
    [
        ({"nonlinearity": "relu"}, 0.0, 0.0),
        ({"nonlinearity": "softplus"}, 0.0, 0.5),
        ({"nonlinearity": "leaky_relu"}, 0.0, 1.0),
        ({"nonlinearity": "elu"}, 0.0, 1.0),
        ({"nonlinearity": "thresholded_relu"}, 1.0, 0.0),
        ({"nonlinearity": ("hard_sigmoid", 1.0, 0.0)}, 0.0, 0.0),
        ({"nonlinearity": ("hard_sigmoid", 1.0, 0.0)}, 1.0, 0.0),
        ({"clip": 1.0}, 1.0, 0.0),
        ({"clip": 1.0}, -1.0, 0.0),
    ],
    ids=str,
)
def test_at_a_kink(options: dict[str, Any], x: float, slope: float, target: str) -> None:
    """The way back is linear in dy, so its gradient is by the slope that it takes."""
    one = np.ones((1, 1, 1))
    weights = rnnfast.Weights(np.ones((1, 1)), np.zeros((1, 1)))
    run: Any = rnnfast.rnn_vjp
    _, _, backward = run(np.full((1, 1, 1), x), weights, backend=target, **options)
    (dx, _, _), double_backward = backward.vjp(one)
    # Along x alone, and along x and the weights at once.
    for ddx, ddw in ((1.0, None), (2.0, -1.0 / x if x else -1.0)):
        directions = None if ddw is None else rnnfast.Weights(np.full((1, 1), ddw), None)
        _, (gdy, _) = double_backward(np.full((1, 1, 1), ddx), directions)
        along = ddx + (ddw or 0) * x
        wanted = {"dx": np.array(slope), "gdy": np.array(slope * along)}
        assert_close({"dx": dx[0, 0, 0], "gdy": gdy[0, 0, 0]}, wanted, TORCH)


def test_what_there_is_not(backend: str) -> None:
    weights = rnnfast.init_weights("lstm", 3, 4, dtype=np.float64, rng=0)
    x = np.ones((4, 2, 3))
    for option in ("truncate", "grad_clip"):
        _, _, backward = rnnfast.lstm_vjp(x, weights, backend=backend, **{option: 2})
        with pytest.raises(rnnfast.UnsupportedError, match=f"{option}: .*second derivatives"):
            backward.vjp()
    single = rnnfast.init_weights("lstm", 3, 4, rng=0)
    _, _, backward = rnnfast.lstm_vjp(x.astype(np.float32), single, backend=backend)
    with pytest.raises(rnnfast.UnsupportedError, match="float64, got float32"):
        backward.vjp()
    normed = rnnfast.init_weights("lstm", 3, 4, dtype=np.float64, rng=0, batch_norm=True)
    _, _, backward = rnnfast.lstm_vjp(x, normed, backend=backend)
    with pytest.raises(rnnfast.UnsupportedError, match="bn_ih"):
        backward.vjp()


def test_bad_tangents_are_named(backend: str) -> None:
    weights = rnnfast.init_weights("gru", 3, 4, 2, dtype=np.float64, rng=0)
    _, _, backward = rnnfast.gru_vjp(np.ones((4, 2, 3)), weights, backend=backend)
    _, double_backward = backward.vjp(np.ones((4, 2, 4)))
    with pytest.raises(ValueError, match=r"ddx: expected shape \(4, 2, 3\)"):
        double_backward(np.ones((4, 2, 4)))
    with pytest.raises(ValueError, match="ddweights: expected the structure"):
        double_backward(None, weights[:1])
    with pytest.raises(ValueError, match=r"ddweights\[1\].b_hh: expected shape"):
        double_backward(None, [weights[0], weights[1]._replace(b_hh=np.ones(3))])
    with pytest.raises(ValueError, match=r"ddh_0: expected shape"):
        double_backward(None, None, np.ones((2, 2, 5)))
