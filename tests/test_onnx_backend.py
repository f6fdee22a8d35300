"""rnnfast.onnx.Backend on whole graphs: what is done when a model is prepared, and the rest."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from helpers import Array
from hypothesis import given
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx", reason="rnnfast.onnx needs onnx")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is the oracle of rnnfast.onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402
from onnx_models import GATES, OUTPUTS, by_runtime, draw  # noqa: E402
from tolerance import assert_close  # noqa: E402

from rnnfast.onnx import OPS, Backend  # noqa: E402
from rnnfast.onnx.backend import Rep  # noqa: E402

# Of sums of some dozens of numbers of order 1, in a few layers.
ALLOWED = 200 * float(np.finfo(np.float32).eps)


def model_of(
    nodes: list[Any],
    inputs: dict[str, Array],
    outputs: dict[str, int],
    constants: dict[str, Array],
) -> Any:
    """A model; outputs with the number of their axes."""
    kind = TensorProto.FLOAT

    def info(name: str, a: Array) -> Any:
        return helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape
        )

    graph = helper.make_graph(
        nodes,
        "graph",
        [info(name, a) for name, a in inputs.items()],
        [helper.make_tensor_value_info(name, kind, [None] * n) for name, n in outputs.items()],
        [numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def only_planned(rep: Rep) -> Rep:
    """It, with an evaluator that cannot be run."""

    def run(*_: Any, **__: Any) -> Any:
        raise AssertionError("the evaluator was run")

    rep.evaluator.run = run
    return rep


def assert_like_runtime(model: Any, feeds: dict[str, Array]) -> Rep:
    rep = only_planned(Backend.prepare(model))
    wanted = by_runtime(model, feeds)
    for inputs in (feeds, list(feeds.values()), feeds):
        assert_close(dict(zip(wanted, rep.run(inputs), strict=True)), wanted, ALLOWED)
    return rep


def recurrent(
    place: int, operator: str, x: str, features: int, hidden: int, both: bool, how: str
) -> tuple[list[Any], dict[str, Array], int]:
    """Nodes that read x (T, B, I) and make y<place> (T, B, D*H); their constants; D*H.

    `how` tells where the weights are: initialisers, made of such, or made of the graph's x.
    """
    directions = 1 + both
    drawn = draw(
        operator,
        I=features,
        H=hidden,
        direction="bidirectional" if both else "forward",
        given=("B",),
        seed=place,
    )
    constants = {f"{k}{place}": a for k, a in drawn.arrays.items() if k in ("W", "R", "B")}
    nodes = []
    if how == "made":
        constants[f"Wt{place}"] = constants.pop(f"W{place}").transpose(0, 2, 1).copy()
        nodes.append(helper.make_node("Transpose", [f"Wt{place}"], [f"W{place}"], perm=[0, 2, 1]))
    if how == "computed":
        constants[f"zero{place}"] = np.zeros(1, np.float32)
        constants[f"R_{place}"] = constants.pop(f"R{place}")
        nodes += [
            helper.make_node("ReduceMax", ["x"], [f"top{place}"], keepdims=0),
            helper.make_node("Mul", [f"top{place}", f"zero{place}"], [f"nothing{place}"]),
            helper.make_node("Add", [f"R_{place}", f"nothing{place}"], [f"R{place}"]),
        ]
    constants[f"to{place}"] = np.array([0, 0, -1])
    inputs = [x, *(f"{k}{place}" for k in "WRB")]
    nodes += [
        helper.make_node(operator, inputs, [f"Y{place}"], **drawn.attributes),
        helper.make_node("Transpose", [f"Y{place}"], [f"Z{place}"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", [f"Z{place}", f"to{place}"], [f"y{place}"]),
    ]
    return nodes, constants, directions * hidden


@given(
    layers=st.lists(
        st.tuples(
            st.sampled_from(tuple(GATES)),
            st.integers(1, 9),
            st.booleans(),
            st.sampled_from(("given", "made", "computed")),
        ),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 100),
)
def test_several_layers(layers: list[tuple[str, int, bool, str]], seed: int) -> None:
    """One on top of the other, with other nodes between them."""
    x = np.random.default_rng(seed).standard_normal((5, 3, 4)).astype(np.float32)
    nodes: list[Any] = []
    constants: dict[str, Array] = {}
    at, width = "x", 4
    for place, (operator, hidden, both, how) in enumerate(layers):
        more, given_constants, width = recurrent(place, operator, at, width, hidden, both, how)
        nodes += [*more, helper.make_node("Tanh", [f"y{place}"], [f"t{place}"])]
        constants |= given_constants
        at = f"t{place}"
    model = model_of(nodes, {"x": x}, {at: 3, "y0": 3}, constants)
    assert_like_runtime(model, {"x": x})


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("state", [False, True])
def test_weights_are_packed_when_prepared(
    operator: str, state: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the form of their tensors: nothing of them is left for a run to do."""
    inputs = ("initial_h", "initial_c") if state else ()
    node = draw(operator, given=("B", *inputs))
    model = node.model()
    for tensor in model.graph.initializer:  # as numbers, not bytes
        a = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.FLOAT, a.shape, a.ravel()))
    rep = only_planned(Backend.prepare(model))
    monkeypatch.setattr("rnnfast.onnx.layer.pack", None)
    monkeypatch.setattr("rnnfast.onnx.layer.convert", None)
    got = dict(zip(OUTPUTS[operator], rep.run(node.feeds), strict=True))
    assert_close(got, node.by_runtime(), ALLOWED)


def test_what_depends_on_constants_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx.reference.ops.op_transpose import Transpose

    x = draw("LSTM").arrays["X"]
    nodes, constants, _ = recurrent(0, "LSTM", "x", 4, 5, False, "made")
    # What no output needs is not even there: it would fail.
    nodes.append(helper.make_node("Reshape", ["y0", "bad"], ["never"]))
    constants["bad"] = np.array([7, 7, 7, 7])
    model = model_of(nodes, {"x": x}, {"y0": 3}, constants)
    rep = only_planned(Backend.prepare(model))
    calls = itertools.count()
    run = Transpose._run

    def counted(self: Any, *args: Any, **how: Any) -> Any:
        next(calls)
        return run(self, *args, **how)

    monkeypatch.setattr(Transpose, "_run", counted)
    del nodes[-1]
    wanted = by_runtime(model_of(nodes, {"x": x}, {"y0": 3}, constants), {"x": x})
    assert_close({"y0": rep.run([x])[0]}, wanted, ALLOWED)
    assert next(calls) == 1  # of Y, and none of W


def test_constants_cannot_be_changed_by_who_gets_them() -> None:
    x = np.ones(3, np.float32)
    nodes = [
        helper.make_node("Neg", ["a"], ["negative"]),
        helper.make_node("Add", ["x", "negative"], ["y"]),
    ]
    model = model_of(nodes, {"x": x}, {"negative": 1, "y": 1}, {"a": x})
    rep = only_planned(Backend.prepare(model))
    negative, y = rep.run([x])
    assert not negative.flags.writeable
    y += 1
    np.testing.assert_array_equal(rep.run([x])[1], np.zeros(3))


def test_random_nodes_are_run_every_time() -> None:
    x = np.ones(3, np.float32)
    nodes = [
        helper.make_node("RandomNormal", [], ["r"], shape=[3]),
        helper.make_node("RandomNormalLike", ["a"], ["like"]),
        helper.make_node("Sum", ["x", "r", "like"], ["y"]),
    ]
    rep = Backend.prepare(model_of(nodes, {"x": x}, {"y": 1, "like": 1}, {"a": x}))
    first, second = rep.run([x]), rep.run([x])
    for a, b in zip(first, second, strict=True):
        assert not (a == b).any()


def graph_of(name: str, nodes: list[Any], made: str) -> Any:
    """The body of a branch; it gives (T, B, H)."""
    info = helper.make_tensor_value_info(made, TensorProto.FLOAT, [None] * 3)
    return helper.make_graph(nodes, name, [], [info])


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("yes", [False, True])
def test_branches(operator: str, yes: bool) -> None:
    """A body goes the evaluator's way, with our operators; what is around it does not."""
    x = draw("LSTM").arrays["X"]
    nodes, constants, _ = recurrent(1, "GRU", "x", 4, 5, False, "made")
    inside, more, _ = recurrent(0, operator, "x", 4, 5, False, "given")
    double = helper.make_node("Add", ["e", "e"], ["double"])
    nodes += [
        helper.make_node("Exp", ["y1"], ["e"]),  # which only a branch reads
        helper.make_node(
            "If",
            ["yes"],
            ["z"],
            then_branch=graph_of("a", inside, "y0"),
            else_branch=graph_of("b", [double], "double"),
        ),
        helper.make_node("Neg", ["z"], ["y"]),
    ]
    feeds = {"x": x, "yes": np.array(yes)}
    assert_like_runtime(model_of(nodes, feeds, {"y": 3}, constants | more), feeds)


def test_a_loop() -> None:
    """x goes through the same layer three times."""
    x = draw("GRU", I=5).arrays["X"]
    inner, constants, _ = recurrent(0, "GRU", "before", 5, 5, False, "given")
    kind = TensorProto.FLOAT
    body = helper.make_graph(
        [*inner, helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("k", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", kind, [None] * 3),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y0", kind, [None] * 3),
        ],
    )
    constants |= {"times": np.array(3), "true": np.array(True)}
    loop = helper.make_node("Loop", ["times", "true", "x"], ["y"], body=body)
    assert_like_runtime(model_of([loop], {"x": x}, {"y": 3}, constants), {"x": x})


def test_an_initializer_that_is_fed_goes_the_evaluators_way() -> None:
    node, other = draw("LSTM"), draw("LSTM", seed=1)
    model = node.model()
    w = node.arrays["W"]
    model.graph.input.append(helper.make_tensor_value_info("W", TensorProto.FLOAT, w.shape))
    rep = Backend.prepare(model)
    before = rep.run(node.feeds)
    fed = {**node.feeds, "W": other.arrays["W"]}
    got = dict(zip(OUTPUTS["LSTM"], rep.run(fed), strict=True))
    assert_close(got, by_runtime(model, fed), ALLOWED)
    for inputs in (node.feeds, list(node.feeds.values())):
        for a, b in zip(rep.run(inputs), before, strict=True):
            np.testing.assert_array_equal(a, b)


def test_arguments_of_the_evaluator() -> None:
    """Those of `prepare` and of `run` are for its own loop over the nodes."""
    node = draw("GRU")
    model = node.model()
    everything = Backend.prepare(model).run(node.feeds, intermediate=True)
    assert set(everything) >= {"Y", "W"}
    assert Backend.prepare(model, verbose=0).evaluator.verbose == 0


def test_a_bad_node_is_refused_when_prepared() -> None:
    node = draw("LSTM")
    node.arrays["B"] = node.arrays["B"][:, :5]
    with pytest.raises(ValueError, match=r"weights\.B: expected shape"):
        Backend.prepare(node.model())
    node = draw("LSTM")
    with pytest.raises(ValueError, match=r"X: expected shape \(T, B, I\), .* got \(3, 4\)"):
        Backend.prepare(node.model()).run({**node.feeds, "X": node.arrays["X"][0]})


def test_an_evaluator_gives_the_same() -> None:
    nodes, constants, width = recurrent(0, "LSTM", "x", 4, 5, True, "made")
    more, others, _ = recurrent(1, "RNN", "y0", width, 3, False, "computed")
    x = draw("LSTM").arrays["X"]
    model = model_of([*nodes, *more], {"x": x}, {"y1": 3}, constants | others)
    [wanted] = ReferenceEvaluator(model, new_ops=OPS).run(None, {"x": x})
    np.testing.assert_array_equal(Backend.prepare(model).run([x])[0], wanted)
