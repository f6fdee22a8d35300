"""rnnfast.onnx beside ONNX Runtime, under onnx's own tests, and its errors."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Array, command, python
from hypothesis import given
from hypothesis import strategies as st

import rnnfast

onnx = pytest.importorskip("onnx", reason="rnnfast.onnx needs onnx")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is the oracle of rnnfast.onnx")

from onnx import helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402
from onnx_models import GATES, INPUTS, OUTPUTS, WEIGHTS, Node, by_runtime, draw  # noqa: E402
from tolerance import assert_close  # noqa: E402

from rnnfast.onnx import OPS, Attributes, Backend, weights  # noqa: E402

OPERATORS = tuple(GATES)
STATES = ("initial_h", "initial_c")
DIRECTIONS = ("forward", "reverse", "bidirectional")
PLACES = {"LSTM": 3, "GRU": 2, "RNN": 1}
PARAMETERS = {
    "Sigmoid": 0,
    "Tanh": 0,
    "Relu": 0,
    "Affine": 2,
    "LeakyRelu": 1,
    "ThresholdedRelu": 1,
    "ScaledTanh": 2,
    "HardSigmoid": 2,
    "Elu": 1,
    "Softsign": 0,
    "Softplus": 0,
}


def evaluated(node: Node, **how: Any) -> dict[str, Array]:
    """By onnx's evaluator with our operators and by our backend, two runs each.

    The evaluator has packed weights at the second, the backend at both.
    """
    model = node.model(**how)
    evaluator, prepared = ReferenceEvaluator(model, new_ops=OPS), Backend.prepare(model)
    feeds = node.feeds if how.get("constants", True) else node.arrays
    names = evaluator.output_names
    first, *others = (
        dict(zip(names, found, strict=True))
        for found in (
            evaluator.run(None, feeds),
            evaluator.run(None, feeds),
            prepared.run(feeds),
            prepared.run(list(feeds.values())),
        )
    )
    for other in others:
        for name, a in first.items():
            assert a.tobytes() == other[name].tobytes(), name
    return first


def allowed(node: Node) -> float:
    """What two float32 results may differ by, each off by its roundings.

    They add up like sqrt(K) eps in a sum of K terms, and from step to step; the factor is for what
    cancels. The float64 run of `test_double` and swapped gates, which are off by thousands of
    times as much (`test_it_would_show`), tell that it is neither too little nor too much.
    """
    steps, _, features = node.arrays["X"].shape
    hidden = node.arrays["R"].shape[2]
    return float(np.finfo(np.float32).eps * 16 * (features + hidden + steps) ** 0.5)


def assert_like_runtime(node: Node) -> None:
    """ONNX Runtime's tanh and sigmoid are off by half an eps of 1, however small their value."""
    wanted = node.by_runtime()
    smallest = min((top for a in wanted.values() if (top := abs(a).max()) > 0), default=1)
    own = 4 * np.finfo(np.float32).eps / smallest
    assert_close(evaluated(node), wanted, allowed(node) + own)


# onnx's own tests


def onnx_node_tests() -> dict[str, Any]:
    from onnx.backend.test import BackendTest

    with warnings.catch_warnings():  # its cases of other operators overflow on purpose
        warnings.simplefilter("ignore")
        cases = (
            BackendTest(Backend, __name__).include(r"test_(simple_)?(rnn|gru|lstm).*_cpu$").tests
        )
    return {
        name: case
        for name in dir(cases)
        if re.match(r"test_(simple_)?(rnn|gru|lstm)_.*_cpu$", name)
        and not getattr(case := getattr(cases, name), "__unittest_skip__", False)
    }


ONNX_TESTS = onnx_node_tests()


@pytest.mark.parametrize("name", ONNX_TESTS)
def test_of_onnx(name: str) -> None:
    ONNX_TESTS[name](None)


def test_there_are_tests_of_onnx() -> None:
    for operator in OPERATORS:
        assert sum(f"_{operator.lower()}_" in name for name in ONNX_TESTS) >= 3, operator


# ONNX Runtime


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("sizes", [(1, 1, 3, 16), (9, 5, 33, 17), (20, 8, 64, 130)], ids=str)
def test_like_runtime(operator: str, direction: str, ragged: bool, sizes: tuple[int, ...]) -> None:
    extra = ("sequence_lens",) if ragged else ()
    inputs = ("B", "initial_h", "initial_c", *extra)
    assert_like_runtime(draw(operator, *sizes, direction=direction, given=inputs))


@st.composite
def nodes(pick: Any) -> Node:
    """Any operator with any combination of attributes and optional inputs."""
    operator = pick(st.sampled_from(OPERATORS))
    direction = pick(st.sampled_from(DIRECTIONS))
    optional = [k for k in INPUTS[operator] if k not in ("X", "W", "R")]
    attributes: dict[str, Any] = {}
    if operator == "GRU":
        attributes["linear_before_reset"] = pick(st.integers(0, 1))
    if operator == "LSTM":
        attributes["input_forget"] = pick(st.integers(0, 1))
    if pick(st.booleans()):
        attributes["clip"] = pick(st.sampled_from([0.25, 0.5, 2.0]))
    if pick(st.booleans()):
        count = PLACES[operator] * (1 + (direction == "bidirectional"))
        names = pick(st.lists(st.sampled_from(list(PARAMETERS)), min_size=count, max_size=count))
        if pick(st.booleans()):
            names = names[: PLACES[operator]] * (count // PLACES[operator])
        attributes |= with_parameters(names, pick(st.integers(0, 1000)))
        attributes["positive"] = True
    return draw(
        operator,
        *(pick(st.integers(1, n)) for n in (6, 4, 5, 20)),
        direction=direction,
        given=tuple(k for k in optional if pick(st.booleans())),
        seed=pick(st.integers(0, 1000)),
        **attributes,
    )


def with_parameters(names: list[str], seed: int = 0) -> dict[str, Any]:
    """The attributes for these activations, with values of alpha and beta for all that take one."""
    rng = np.random.default_rng(seed)
    alphas = [float(rng.uniform(0.1, 0.9)) for name in names if PARAMETERS[name] > 0]
    betas = [float(rng.uniform(0.1, 0.9)) for name in names if PARAMETERS[name] > 1]
    found: dict[str, Any] = {"activations": names}
    if alphas:
        found["activation_alpha"] = alphas
    if betas:
        found["activation_beta"] = betas
    return found


@given(node=nodes())
def test_any_attributes(node: Node) -> None:
    assert_like_runtime(node)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", PARAMETERS)
def test_activations_in_every_place(operator: str, name: str) -> None:
    usual = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
    for place in range(PLACES[operator]):
        names = [*usual[operator]]
        names[place] = name
        assert_like_runtime(draw(operator, T=4, positive=True, **with_parameters(names)))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", ["LeakyRelu", "HardSigmoid", "Elu"])
def test_defaults_of_alpha_and_beta(operator: str, name: str) -> None:
    """Those in which ONNX Runtime agrees with the operators so called."""
    count = PLACES[operator]
    assert_like_runtime(draw(operator, T=4, positive=True, activations=[name] * count))
    assert_like_runtime(
        draw(operator, T=4, positive=True, activations=[name] * count, activation_alpha=[0.4])
    )


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_different_activations_in_two_directions(operator: str, ragged: bool) -> None:
    names = ["Sigmoid", "Tanh", "Tanh"][-PLACES[operator] :]
    other = ["HardSigmoid", "Softsign", "Relu"][: PLACES[operator]]
    inputs = ("B", "initial_h", "initial_c", *["sequence_lens"] * ragged)
    node = draw(
        operator,
        B=4,
        direction="bidirectional",
        given=inputs,
        positive=True,
        **with_parameters(names + other),
    )
    assert_like_runtime(node)
    layer = weights(node.model())
    assert [p.reverse for p in layer.passes] == [False, True]
    with pytest.raises(ValueError, match="different activations"):
        _ = layer.weights
    for name in ("initial_h", "initial_c") if operator == "LSTM" else ("initial_h",):
        more = Node(
            operator, {**node.arrays, name: np.tile(node.arrays[name], (2, 1, 1))}, node.attributes
        )
        with pytest.raises(ValueError, match=rf"{name[-1]}_0: expected shape \(2, B, H\), got \(4"):
            Backend.run_node(more.proto(), more.arrays)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_clip(operator: str, direction: str) -> None:
    inputs = ("B", "initial_h", "initial_c", "P", "sequence_lens")
    node = draw(operator, B=5, direction=direction, given=inputs, clip=0.3)
    assert_like_runtime(node)
    loose = Node(node.operator, node.arrays, {**node.attributes, "clip": 1e30})
    with pytest.raises(AssertionError):
        assert_close(evaluated(loose), node.by_runtime(), allowed(node))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("clip", [{}, {"clip": 0.4}], ids=["", "clip"])
def test_input_forget(direction: str, clip: dict[str, float]) -> None:
    inputs = ("B", *STATES, "P", "sequence_lens")
    node = draw("LSTM", B=5, direction=direction, given=inputs, input_forget=1, **clip)
    assert_like_runtime(node)
    without = Node("LSTM", node.arrays, {**node.attributes, "input_forget": 0})
    with pytest.raises(AssertionError):
        assert_close(evaluated(without), node.by_runtime(), 100 * allowed(node))


@pytest.mark.parametrize("operator", OPERATORS)
def test_it_would_show(operator: str) -> None:
    """Two gates or peepholes swapped, a bias left out: far above what is allowed."""
    node = draw(operator, given=("B", "initial_h", "initial_c", "P"))
    wanted = evaluated(node)
    for name in WEIGHTS:
        if name not in node.arrays:
            continue
        changed = dict(node.arrays)
        if operator == "RNN":
            changed[name] = changed[name] * np.float32(1.01)
        else:
            changed[name] = np.roll(changed[name], 5, axis=1)
        got = evaluated(Node(operator, changed, node.attributes))
        with pytest.raises(AssertionError):
            assert_close(got, wanted, 100 * allowed(node))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_double(operator: str, direction: str) -> None:
    """ONNX Runtime has no float64: float32 is near it, and far from float64's own accuracy."""
    node = draw(operator, direction=direction, given=("B", "initial_h", "sequence_lens"))
    exact = evaluated(node.astype(np.float64))
    assert all(a.dtype == np.float64 for a in exact.values())
    assert_close(evaluated(node), exact, allowed(node))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_rows_of_length_zero(operator: str, direction: str) -> None:
    """They keep their state, which ONNX Runtime replaces by zeros; the others are alike."""
    node = draw(operator, B=4, direction=direction, given=(*STATES, "B", "sequence_lens"))
    node.arrays["sequence_lens"] = np.array([3, 0, 7, 0], np.int32)
    got, wanted = evaluated(node), node.by_runtime()
    for name, initial in (("Y_h", "initial_h"), ("Y_c", "initial_c")):
        if name in got:
            np.testing.assert_array_equal(got[name][:, [1, 3]], node.arrays[initial][:, [1, 3]])
            assert not wanted[name][:, [1, 3]].any()
            wanted[name][:, [1, 3]] = got[name][:, [1, 3]]
    assert_close(got, wanted, allowed(node))
    assert not got["Y"][:, :, [1, 3]].any()
    assert not got["Y"][3:, :, 0].any()


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_layout(operator: str, direction: str, ragged: bool) -> None:
    """ONNX Runtime has layout 0 alone; layout 1 is the same with the batch first."""
    inputs = ("B", "initial_h", "initial_c", *["sequence_lens"] * ragged)
    node = draw(operator, B=4, direction=direction, given=inputs)
    got, wanted = evaluated(node.batch_first()), node.by_runtime()
    wanted["Y"] = wanted["Y"].transpose(2, 0, 1, 3)
    wanted |= {k: a.swapaxes(0, 1) for k, a in wanted.items() if k != "Y"}
    assert_close(got, wanted, allowed(node))


@pytest.mark.parametrize("operator", OPERATORS)
def test_opset_7_and_weights_as_inputs(operator: str) -> None:
    node = draw(operator)
    assert_close(evaluated(node, opset=7), node.by_runtime(), allowed(node))
    assert_close(evaluated(node, constants=False), node.by_runtime(), allowed(node))


@pytest.mark.parametrize("operator", OPERATORS)
def test_some_outputs(operator: str) -> None:
    """What is asked for, and nothing else, also under the name of what is left out."""
    everything = draw(operator)
    wanted = evaluated(everything)
    for kept in range(1, 2 ** len(OUTPUTS[operator])):
        outputs = [k if kept >> j & 1 else "" for j, k in enumerate(OUTPUTS[operator])]
        while not outputs[-1]:
            outputs.pop()
        node = Node(operator, everything.arrays, everything.attributes, tuple(outputs))
        got = evaluated(node)
        assert list(got) == [k for k in outputs if k]
        for name, a in got.items():
            np.testing.assert_array_equal(a, wanted[name])


def test_a_state_that_is_left_out_does_not_reach_the_next_node() -> None:
    """Of a Y without a name, which onnx's evaluator would keep as the "" that means nothing."""
    first, second = draw("GRU", T=4), draw("GRU", T=4, I=5, given=(), seed=1)
    nodes = [
        helper.make_node("GRU", ["X", "W", "R"], ["", "h"], hidden_size=5),
        helper.make_node("GRU", ["X", "W", "R", "", "", ""], ["Y"], hidden_size=5),
    ]
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("X", kind, first.arrays["X"].shape)],
        [helper.make_tensor_value_info("Y", kind, [None] * 4)],
        [numpy_helper.from_array(first.arrays[k], k) for k in ("W", "R")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = {"X": first.arrays["X"]}
    [got] = Backend.run_model(model, x)
    assert_close({"Y": got}, by_runtime(model, x), allowed(second))


def in_a_function(node: Node, **declared: Any) -> onnx.FunctionProto:
    """A function of one node, whose direction is the function's attribute "way"."""
    body = node.proto()
    for a in body.attribute:
        if a.name == "direction":
            a.ClearField("s")
            a.ref_attr_name = "way"
    inputs = [name for name in body.input if name]
    opset = helper.make_opsetid("", 17)
    return helper.make_function("own", "Layer", inputs, body.output, [body], [opset], **declared)


def that_calls(function: onnx.FunctionProto, node: Node, **attributes: Any) -> onnx.ModelProto:
    """The model of a node with a call of the function in the node's place."""
    model = node.model(opset=17)
    del model.graph.node[:]
    call = helper.make_node("Layer", function.input, function.output, domain="own", **attributes)
    model.graph.node.append(call)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


def test_attributes_of_a_function() -> None:
    """In a model's own function an attribute may be one of the function's caller."""
    node = draw("LSTM", direction="reverse")
    function = in_a_function(node, attributes=["way"])
    for way in ("reverse", "forward"):
        alike = Node("LSTM", node.arrays, {**node.attributes, "direction": way})
        evaluator = ReferenceEvaluator(function, new_ops=OPS)
        found = evaluator.run(None, node.arrays, attributes={"way": way})
        got = dict(zip(evaluator.output_names, found, strict=True))
        assert_close(got, alike.by_runtime(), allowed(node))
    # onnx's evaluator has its own operators inside of a model's functions; the backend has not.
    model = that_calls(function, alike, way=way)
    rep = Backend.prepare(model)
    assert "rnnfast" in type(rep.evaluator.rt_nodes_[0]).__module__
    got = dict(zip(evaluator.output_names, rep.run(node.feeds), strict=True))
    assert_close(got, alike.by_runtime(), allowed(node))
    y, _ = weights(model)(node.arrays["X"], tuple(node.arrays[k] for k in STATES))
    assert_close({"Y": y[:, None]}, {"Y": got["Y"]}, allowed(node))


def test_defaults_of_a_function() -> None:
    """A call of a model's function may leave out an attribute that has a default there."""
    node = draw("GRU", direction="reverse")
    default = helper.make_attribute("way", "reverse")
    model = that_calls(in_a_function(node, attribute_protos=[default]), node)
    before = model.SerializeToString(deterministic=True)
    rep = Backend.prepare(model)
    got = dict(zip(rep.evaluator.output_names, rep.run(node.feeds), strict=True))
    assert_close(got, node.by_runtime(), allowed(node))
    assert weights(model).passes[0].reverse
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_no_rows(direction: str) -> None:
    """ONNX Runtime 1.32 ends the process."""
    node = draw("GRU", direction=direction)
    arrays = {**node.arrays, "X": node.arrays["X"][:, :0]}
    for name in ("initial_h", "sequence_lens"):
        if arrays.get(name) is not None:
            arrays[name] = arrays[name][..., :0, :] if name == "initial_h" else arrays[name][:0]
    rep = Backend.prepare(Node("GRU", arrays, node.attributes).model())
    y, h = rep.run({name: arrays[name] for name in rep.evaluator.input_names})[:2]
    directions = 1 + (direction == "bidirectional")
    assert y.shape == (len(arrays["X"]), directions, 0, node.attributes["hidden_size"])
    assert h.shape == (directions, 0, node.attributes["hidden_size"])


# Weights that change


def test_weights_that_change_are_not_kept() -> None:
    """Only an initialiser is packed once: an input may be written to between two runs."""
    node = draw("LSTM")
    evaluator = ReferenceEvaluator(node.model(constants=False), new_ops=OPS)
    feeds = {k: a.copy() for k, a in node.arrays.items()}
    before = evaluator.run(["Y"], feeds)[0].copy()
    feeds["W"] *= 2
    after = evaluator.run(["Y"], feeds)[0]
    assert np.abs(after - before).max() > 0.01
    feeds["W"].flags.writeable = False
    assert (evaluator.run(["Y"], feeds)[0] == after).all()
    feeds["W"].flags.writeable = True
    feeds["W"] /= 2
    assert (evaluator.run(["Y"], feeds)[0] == before).all()


def test_an_initializer_that_is_fed() -> None:
    """In place of the one that was packed at the run before, and only for this run."""
    node, other = draw("LSTM"), draw("LSTM", seed=1)
    evaluator = ReferenceEvaluator(node.model(), new_ops=OPS)
    before = evaluator.run(["Y"], node.feeds)[0]
    fed = evaluator.run(["Y"], {**node.feeds, "W": other.arrays["W"]})[0]
    alike = Node("LSTM", {**node.arrays, "W": other.arrays["W"]}, node.attributes)
    assert_close({"Y": fed}, {"Y": alike.by_runtime()["Y"]}, allowed(node))
    np.testing.assert_array_equal(evaluator.run(["Y"], node.feeds)[0], before)


# The backend


def test_backend() -> None:
    node = draw("LSTM")
    wanted = list(evaluated(node).values())
    rep = Backend.prepare(node.model())
    for inputs in (list(node.feeds.values()), node.feeds):
        for got, a in zip(rep.run(inputs), wanted, strict=True):
            np.testing.assert_array_equal(got, a)
    for got, a in zip(Backend.run_model(node.model(), node.feeds), wanted, strict=True):
        np.testing.assert_array_equal(got, a)
    for inputs in (list(node.arrays.values()), node.arrays):
        for got, a in zip(Backend.run_node(node.proto(), inputs), wanted, strict=True):
            np.testing.assert_array_equal(got, a)
    without = Node("LSTM", node.arrays, node.attributes, ("", "Y_h"))
    nothing, h = Backend.run_node(without.proto(), node.arrays, opset_version=14)
    assert nothing is None
    np.testing.assert_array_equal(h, wanted[1])
    assert Backend.supports_device("CPU")
    assert Backend.is_compatible(node.model())
    assert not Backend.supports_device("CUDA:0")
    with pytest.raises(rnnfast.UnsupportedError, match="device: expected 'CPU'"):
        Backend.prepare(node.model(), device="CUDA")
    with pytest.raises(ValueError, match="inputs: expected 3"):
        rep.run([node.arrays["X"]])


# Weights out of models


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layout", [0, 1])
def test_weights(operator: str, direction: str, layout: int, tmp_path: Path) -> None:
    """The layer does what the node does, from any form of the model; its parts do so too."""
    node = draw(operator, B=4, direction=direction, given=(*STATES, "B", "sequence_lens"))
    wanted = evaluated(node)
    node = node.batch_first() if layout else node
    path = tmp_path / "model.onnx"
    model = node.model()
    onnx.save(model, path)
    states = [node.arrays[k] for k in ("initial_h", "initial_c") if k in node.arrays]
    if layout:
        states = [s.swapaxes(0, 1) for s in states]
    state = tuple(states) if len(states) > 1 else states[0]
    x, lengths = node.arrays["X"], node.arrays["sequence_lens"]
    for source in (path, str(path), path.read_bytes(), model):
        for which in (0, "it", model.graph.node[0]):
            layer = weights(source, which)
            y, state_n = layer(x, state, lengths=lengths)
            assert layer.cell == operator.lower()
    y = y.swapaxes(0, 1) if layout else y
    hidden = node.arrays["R"].shape[2]
    y = y.reshape(*y.shape[:2], -1, hidden).swapaxes(1, 2)
    found = state_n if isinstance(state_n, tuple) else (state_n,)
    got = dict(zip(OUTPUTS[operator], (y, *found), strict=True))
    assert_close(got, wanted, allowed(node))
    packed = layer.pack()(x, state, lengths=lengths)[0]
    assert_close({"y": packed}, {"y": layer(x, state, lengths=lengths)[0]}, allowed(node))
    if direction == "reverse":
        with pytest.raises(ValueError, match="reverse direction alone"):
            _ = layer.options
        return
    function = getattr(rnnfast, layer.cell)
    same, _ = function(x, layer.weights, state, lengths=lengths, **layer.options)
    np.testing.assert_array_equal(same, layer(x, state, lengths=lengths)[0])


def test_weights_that_the_model_computes() -> None:
    """From constants by other nodes, as exporters leave them, and a constant initial state."""
    node = draw("LSTM", given=("B", "initial_h", "initial_c"))
    model = node.model()
    parts = np.split(node.arrays["W"], 4, axis=1)
    del model.graph.initializer[0]
    made = [
        helper.make_node("Constant", [], [f"w{k}"], value=numpy_helper.from_array(part))
        for k, part in enumerate(parts)
    ]
    made.append(helper.make_node("Concat", [f"w{k}" for k in range(4)], ["W"], axis=1))
    old = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*made, *old])
    model.graph.initializer.extend(
        numpy_helper.from_array(node.arrays[k], k) for k in ("initial_h", "initial_c")
    )
    inputs = [i for i in model.graph.input if i.name == "X"]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    layer = weights(model)
    y, (h_n, c_n) = layer(node.arrays["X"])
    wanted = by_runtime(model, {"X": node.arrays["X"]})
    assert_close({"Y": y[:, None], "Y_h": h_n, "Y_c": c_n}, wanted, allowed(node))
    assert layer.state[0].shape == (1, 3, 5)


@pytest.mark.parametrize("layout", [0, 1])
def test_a_constant_state(layout: int) -> None:
    """It is what a call without a state begins with, in either layout."""
    node = draw("GRU", direction="bidirectional")
    wanted, h_0 = evaluated(node), node.arrays["initial_h"]
    node = node.batch_first() if layout else node
    model = node.model()
    model.graph.initializer.append(numpy_helper.from_array(node.arrays["initial_h"], "initial_h"))
    layer = weights(model)
    np.testing.assert_array_equal(layer.state, h_0)
    _, h_n = layer(node.arrays["X"])
    assert_close({"Y_h": h_n}, {"Y_h": wanted["Y_h"]}, allowed(node))


def test_gradients_through_weights_of_a_model() -> None:
    """What comes out of a model goes on into training."""
    node = draw("GRU", direction="bidirectional", dtype=np.float64)
    layer = weights(node.model())
    y, _, backward = rnnfast.gru_vjp(node.arrays["X"], layer.weights, **layer.options)
    _, dweights, _ = backward(np.ones_like(y))
    assert dweights[0][1].w_hh.shape == (15, 5)


def test_torch_kinds() -> None:
    """A layer takes what rnnfast takes, and returns the same kind."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for direction in DIRECTIONS:
        node = draw("LSTM", direction=direction)
        layer = weights(node.model())
        x = node.arrays["X"]
        y, (h_n, _) = layer(torch.from_numpy(x))
        assert isinstance(y, torch.Tensor)
        assert isinstance(h_n, torch.Tensor)
        np.testing.assert_array_equal(y.numpy(), layer(x)[0])


# Errors


@pytest.mark.parametrize(
    ("operator", "attributes", "message"),
    [
        ("LSTM", {"direction": "both"}, "direction: expected one of forward, reverse"),
        ("LSTM", {"clip": 0.0}, "clip: expected a number above 0"),
        ("GRU", {"linear_before_reset": 2}, "linear_before_reset: expected 0 or 1"),
        ("LSTM", {"activations": ["Tanh"]}, "activations: expected 3 names"),
        ("RNN", {"activations": ["Tanh"] * 2}, "activations: expected 1 names"),
        ("RNN", {"activations": ["Gelu"]}, "activations: expected names of sigmoid"),
        ("RNN", {"activation_alpha": [1.0]}, "activation_alpha: expected a value for each"),
        (
            "LSTM",
            {"activations": ["Elu"] * 3, "activation_alpha": [1.0] * 4},
            "at most 3 for Elu, Elu, Elu, got 4",
        ),
    ],
)
def test_bad_attributes(operator: str, attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Attributes.of(operator, attributes)


def test_attributes_of_old_opsets() -> None:
    with pytest.raises(rnnfast.UnsupportedError, match="output_sequence"):
        Attributes.of("LSTM", {"output_sequence": 1})


def test_bad_arrays() -> None:
    node = draw("LSTM")
    wrong: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"hidden_size": 6}, {}, "R: expected H = 6"),
        ({"direction": "bidirectional"}, {}, "R: expected shape (D, G*H, H) with D = 2"),
        ({}, {"B": node.arrays["B"][:, :5]}, "weights.B: expected shape"),
        ({}, {"P": node.arrays["B"]}, "weights.P: expected shape (1, 15)"),
        ({}, {"X": node.arrays["X"][..., :2]}, "x: expected 4 features"),
        ({"direction": "reverse"}, {"sequence_lens": np.int32([1, 2])}, "lengths: expected shape"),
        ({"direction": "reverse"}, {"sequence_lens": np.int32([1, 2, 9])}, "lengths: expected val"),
    ]
    for attributes, arrays, message in wrong:
        bad = Node("LSTM", {**node.arrays, **arrays}, {**node.attributes, **attributes})
        with pytest.raises(ValueError, match=re.escape(message)):
            Backend.run_node(bad.proto(), bad.arrays)


def test_bad_models() -> None:
    model = draw("LSTM").model()
    with pytest.raises(ValueError, match=r"node: expected the name of one .* LSTM 'it'; got 'no'"):
        weights(model, "no")
    with pytest.raises(ValueError, match=r"node: expected a place .* got 1"):
        weights(model, 1)
    with pytest.raises(TypeError, match="node: expected a name, an int or"):
        weights(model, 1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model: expected a path, bytes or"):
        weights(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="node: expected an operator of LSTM, GRU, RNN, got Add"):
        weights(model, helper.make_node("Add", ["a", "b"], ["c"]))
    with pytest.raises(ValueError, match=r"W: expected a constant of the model, .*got 'W'"):
        weights(draw("LSTM").model(constants=False))


def test_not_imported_by_rnnfast() -> None:
    done = python("import rnnfast, sys; assert 'onnx' not in sys.modules")
    assert done.returncode == 0, done.stderr


# The example and the benchmark


def test_example(tmp_path: Path) -> None:
    own = command([sys.executable, "-m", "examples.onnx_model"])
    assert own.returncode == 0, own.stderr
    assert "one with random weights is made from seed 0" in own.stdout
    difference = re.search(r"largest difference to ONNX Runtime: (\S+)", own.stdout)
    assert difference is not None
    assert float(difference[1]) < 1e-5
    onnx.save(draw("RNN", direction="bidirectional").model(), tmp_path / "a.onnx")
    given = command(
        [sys.executable, "-m", "examples.onnx_model", str(tmp_path / "a.onnx"), "--node", "it"]
    )
    assert given.returncode == 0, given.stderr
    assert "rnn: x (50, 8, 4) to y (50, 8, 10)" in given.stdout


def test_benchmark(tmp_path: Path) -> None:
    path = tmp_path / "onnx.json"
    words = "--threads 1 --budget 0.01 --shapes 1,1,3,4 --cells lstm gru-before --json"
    done = command([sys.executable, "-m", "bench", "onnx", *words.split(), str(path)], timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert [row["cell"] for row in rows] == ["lstm", "gru-before"]
    for row in rows:
        assert row["ratios"].keys() == {"backend", "evaluator"}
        assert all(r.keys() == {"onnxruntime", "session"} for r in row["ratios"].values())
        assert row["times_ms"].keys() >= {"rnnfast-packed", "empty"}
