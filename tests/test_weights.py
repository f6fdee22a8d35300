"""The structures that weights come in, and their random initial values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers import BIASES, Case, assert_same_bits, flatten_weights, problem, run, vjp

import rnnfast
from rnnfast import Weights
from rnnfast.spec import CELLS, Spec

SINGLE: dict[str, Callable[[Weights], Any]] = {
    "Weights": lambda w: w,
    "tuple of 4": lambda w: tuple(w[:4]),
    "tuple of all": tuple,
    "list of Weights": lambda w: [w],
    "list of a tuple": lambda w: [tuple(w[:4])],
}
DEEP: dict[str, Callable[[tuple[Weights, ...], tuple[Weights, ...]], Any]] = {
    "pairs of Weights": lambda a, b: [a, b],
    "pairs of tuples": lambda a, b: [tuple(tuple(w[:4]) for w in pair) for pair in (a, b)],
    "a mixture": lambda a, b: [(a[0], tuple(a[1][:4])), (tuple(b[0]), b[1])],
}


def structure(value: Any) -> Any:
    """The kinds of list and tuple, their lengths, and where None stands."""
    if isinstance(value, list | tuple):
        return type(value), [structure(v) for v in value]
    return None if value is None else (type(value), value.shape)


def in_order(weights: Any) -> list[Any]:
    return list(flatten_weights(weights).values())


def check(p: Any, weights: Any, target: str) -> None:
    """These weights, p's in another structure, give p's results; dweights has their structure."""
    wanted = run(p, target)
    results, backward = vjp(replace(p, weights=weights), target)
    dx, dweights, _ = backward(p.dy, p.dstate)
    assert structure(dweights) == structure(weights)
    assert_same_bits(results | {"dx": dx}, {k: wanted[k] for k in [*results, "dx"]})
    gradients = [a for name, a in wanted.items() if name.startswith("dw")]
    for got, gradient in zip(in_order(dweights), gradients, strict=True):
        np.testing.assert_array_equal(got, gradient)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("form", SINGLE)
def test_one_layer(form: str, bias: str, spec: Spec, target: str) -> None:
    p = problem(Case(spec, bias=bias))
    check(p, SINGLE[form](p.weights[0]), target)


def test_a_tuple_without_biases(spec: Spec, target: str) -> None:
    p = problem(Case(spec, bias="none"))
    check(p, tuple(p.weights[0][:2]), target)


def test_a_tuple_with_one_bias(spec: Spec, target: str) -> None:
    p = problem(Case(spec, bias="ih"))
    check(p, tuple(p.weights[0][:3]), target)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("form", DEEP)
def test_two_layers_of_two_directions(form: str, bias: str, spec: Spec, target: str) -> None:
    p = problem(Case(spec, L=2, D=2, bias=bias))
    check(p, DEEP[form](*p.weights), target)


def test_a_bias_in_one_place_only(spec: Spec, target: str) -> None:
    """Layers and directions need not have the same biases."""
    p = problem(Case(spec, L=2, D=2))
    (a, b), (c, d) = p.weights
    p.weights = [(a._replace(b_ih=None), b), (c._replace(b_hh=None), d._replace(b_ih=None))]
    results = run(p, target)
    zero = {"b_ih": np.zeros_like(a.b_ih), "b_hh": np.zeros_like(a.b_hh)}
    filled = [
        tuple(w._replace(**{k: v for k, v in zero.items() if getattr(w, k) is None}) for w in pair)
        for pair in p.weights
    ]
    wanted = run(replace(p, weights=filled), target)
    for name in results:
        np.testing.assert_allclose(results[name], wanted[name], rtol=1e-10, atol=1e-12)
    assert wanted.keys() - results.keys() == {"dw[0][0].b_ih", "dw[1][0].b_hh", "dw[1][1].b_ih"}


def test_shared_weights(spec: Spec, target: str) -> None:
    """The same arrays in two layers: each layer reports its own part of the gradient."""
    p = problem(Case(spec, I=5, H=5, L=2))
    p.weights = [p.weights[0]] * 2
    copied = replace(p, weights=[p.weights[0], Weights(*map(np.copy, p.weights[0][:4]))])
    assert_same_bits(run(p, target), run(copied, target))


@pytest.fixture(params=CELLS)
def cell(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_initial_shapes(cell: str, bidirectional: bool, bias: bool, dtype: str) -> None:
    weights = rnnfast.init_weights(cell, 4, 5, 3, bidirectional, bias=bias, dtype=dtype, rng=0)
    assert isinstance(weights, list)
    rows, width = 5 * len(CELLS[cell].gates), 10 if bidirectional else 5
    for entry, features in zip(weights, (4, width, width), strict=True):
        pair = entry if bidirectional else (entry,)
        assert len(pair) == 1 + bidirectional
        for w in pair:
            assert isinstance(w, Weights)
            shapes = {"w_ih": (rows, features), "w_hh": (rows, 5)}
            shapes |= {"b_ih": (rows,), "b_hh": (rows,)} if bias else {}
            assert shapes_of(w) == shapes
            assert {a.dtype for a in w if a is not None} == {np.dtype(dtype)}


def shapes_of(w: Weights) -> dict[str, tuple[int, ...]]:
    return {field: a.shape for field, a in w._asdict().items() if a is not None}


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
def test_initial_projection_and_peepholes(bidirectional: bool, layers: int, dtype: str) -> None:
    """As many numbers a layer as torch.nn.LSTM has with proj_size, and three rows of peepholes."""
    weights = rnnfast.init_weights(
        "lstm", 4, 5, layers, bidirectional, 3, dtype=dtype, rng=0, peepholes=True
    )
    width = 6 if bidirectional else 3
    for entry, features in zip(weights, [4, *[width] * (layers - 1)], strict=True):
        for w in entry if bidirectional else (entry,):
            assert shapes_of(w) == {
                "w_ih": (20, features),
                "w_hh": (20, 3),
                "b_ih": (20,),
                "b_hh": (20,),
                "w_hr": (3, 5),
                "w_peep": (3, 5),
            }
            assert all(a.dtype == dtype for a in w if a is not None)
            bound = 1 / np.sqrt(5)
            assert all(0 < np.abs(a).max() <= bound for a in (w.w_hr, w.w_peep))


@pytest.mark.parametrize("kind", ["layer_norm", "batch_norm"])
def test_initial_normalisation(kind: str, cell: str, dtype: str) -> None:
    """Gains of 1, shifts and means of 0, variances of 1; all else as without."""
    (w,) = rnnfast.init_weights(cell, 4, 5, dtype=dtype, rng=0, **{kind: True})
    (plain,) = rnnfast.init_weights(cell, 4, 5, dtype=dtype, rng=0)
    rows = 5 * len(CELLS[cell].gates)
    wanted = {"bn_ih": (rows, 1), "bn_mean": (rows, 0), "bn_var": (rows, 1)}
    if kind == "layer_norm":
        wanted = {"ln_ih": (rows, 1), "ln_hh": (rows, 1)}
        wanted |= {"ln_c": (5, 1), "ln_c_shift": (5, 0)} if cell == "lstm" else {}
    for field, a in w._asdict().items():
        other = getattr(plain, field)
        if field in wanted:
            size, value = wanted[field]
            other = np.full(size, value, dtype)
        assert (a is None) == (other is None)
        if a is not None:
            assert_same_bits({field: a}, {field: other})


def test_initial_distribution(cell: str, dtype: str) -> None:
    """Uniform in +-1/sqrt(H): no number outside, and as many in each tenth."""
    weights = rnnfast.init_weights(cell, 40, 25, 2, True, dtype=dtype, rng=0)
    arrays = in_order(weights)
    values = np.concatenate([a.ravel() for a in arrays])
    assert np.abs(values).max() <= 0.2
    counts, _ = np.histogram(values, bins=10, range=(-0.2, 0.2))
    expected = values.size / 10
    assert np.abs(counts - expected).max() < 6 * np.sqrt(expected)
    assert len({a.tobytes() for a in arrays}) == len(arrays)


def test_initial_seeds(cell: str) -> None:
    def drawn(rng: Any) -> dict[str, Any]:
        return flatten_weights(rnnfast.init_weights(cell, 4, 5, rng=rng))

    assert_same_bits(drawn(1), drawn(1))
    assert_same_bits(drawn(1), drawn(np.random.default_rng(1)))
    assert not np.array_equal(drawn(1)["dw[0].w_ih"], drawn(2)["dw[0].w_ih"])
    assert not np.array_equal(drawn(None)["dw[0].w_ih"], drawn(None)["dw[0].w_ih"])
    generator = np.random.default_rng(1)
    assert not np.array_equal(drawn(generator)["dw[0].w_ih"], drawn(generator)["dw[0].w_ih"])


def test_initial_weights_fit(spec: Spec, dtype: str, target: str) -> None:
    weights = rnnfast.init_weights(spec.cell, 4, 5, 2, True, dtype=dtype, rng=0)
    p = problem(Case(spec, I=4, H=5, L=2, D=2, dtype=dtype))
    check(replace(p, weights=weights), weights, target)


BAD_INIT: list[tuple[dict[str, Any], Any, str]] = [
    ({"cell": "LSTM"}, ValueError, "cell: .*lstm.*'LSTM'"),
    ({"cell": None}, (ValueError, TypeError), "cell: .*None"),
    ({"cell": ["lstm"]}, (ValueError, TypeError), "cell: "),
    ({"input_size": 0}, ValueError, "input_size: .*1.*0"),
    ({"hidden_size": -3}, ValueError, "hidden_size: .*1.*-3"),
    ({"num_layers": 0}, ValueError, "num_layers: .*1.*0"),
    ({"input_size": 2.0}, TypeError, "input_size: .*int.*2.0"),
    ({"hidden_size": "5"}, TypeError, "hidden_size: .*int.*'5'"),
    ({"num_layers": True}, TypeError, "num_layers: .*int.*True"),
    ({"bidirectional": "yes"}, TypeError, "bidirectional: .*bool.*'yes'"),
    ({"bias": 1}, TypeError, "bias: .*bool.*1"),
    ({"proj_size": -1}, ValueError, "proj_size: .*0.*-1"),
    ({"proj_size": 2.0}, TypeError, "proj_size: .*int.*2.0"),
    ({"proj_size": True}, TypeError, "proj_size: .*int.*True"),
    ({"proj_size": 3, "cell": "gru"}, rnnfast.UnsupportedError, "proj_size: gru.*lstm.*3"),
    ({"peepholes": True, "cell": "rnn"}, rnnfast.UnsupportedError, "peepholes: rnn.*lstm"),
    ({"peepholes": 1}, TypeError, "peepholes: .*bool.*1"),
    ({"layer_norm": None}, TypeError, "layer_norm: .*bool.*None"),
    ({"batch_norm": "yes"}, TypeError, "batch_norm: .*bool.*'yes'"),
    (
        {"layer_norm": True, "batch_norm": True},
        rnnfast.UnsupportedError,
        "batch_norm: .*layer_norm",
    ),
    ({"dtype": np.float16}, TypeError, "dtype: .*float32.*float16"),
    ({"dtype": int}, TypeError, "dtype: .*float32.*int64"),
    ({"dtype": "nonsense"}, TypeError, "dtype: .*nonsense"),
    ({"rng": "seed"}, TypeError, "rng: .*'seed'"),
    ({"rng": -1}, ValueError, "rng: .*-1"),
    ({"rng": 1.5}, TypeError, "rng: .*1.5"),
    ({"hidden_size": 2**40}, (MemoryError, ValueError), "."),
]


@pytest.mark.parametrize(
    ("change", "error", "words"), BAD_INIT, ids=lambda v: str(v) if isinstance(v, dict) else ""
)
def test_bad_initialisation(change: dict[str, Any], error: Any, words: str) -> None:
    good: dict[str, Any] = {"cell": "lstm", "input_size": 4, "hidden_size": 5}
    with pytest.raises(error, match=words):
        rnnfast.init_weights(**(good | change))


def test_gradients_are_in_the_kinds_of_tuple_that_went_in() -> None:
    class Pair(NamedTuple):
        forward: Any
        backward: Any

    class Direction(NamedTuple):
        w_ih: Any
        w_hh: Any

    rng = np.random.default_rng(0)
    made = [Direction(rng.normal(size=(4, 3)), rng.normal(size=(4, 4))) for _ in range(2)]
    for weights in ([Pair(*made)], [tuple(made)], made[0], [made[0]]):
        y, _, backward = rnnfast.rnn_vjp(np.ones((2, 1, 3)), weights)
        _, found, _ = backward(np.ones_like(y))
        assert type(found) is type(weights)
        entry = found[0] if isinstance(found, list) else found
        assert type(entry) is type(weights[0] if isinstance(weights, list) else weights)
        for direction in [entry] if isinstance(entry, Direction) else entry:
            assert type(direction) is Direction
            assert direction.w_hh.shape == (4, 4)
