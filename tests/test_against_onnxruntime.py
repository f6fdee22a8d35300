"""Every usable backend's forward pass against ONNX Runtime, in float32.

ONNX orders the gates i o f c (LSTM) and z r h (GRU), and its LSTM and RNN are those of rnnfast.
With linear_before_reset=0 its GRU is the one that torch does not have.

Of ONNX Runtime 1.32: without values its Affine, ScaledTanh and ThresholdedRelu take 0 for alpha and
beta, so that values are always given; it clips the arguments of gates and candidates, but not c on
its way to h.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import Array, Case, Problem, forward, problem, without_empty_rows
from kinks import clear
from option_sets import each, keywords, unless_unsupported, with_options
from tolerance import allowed, assert_close

from rnnfast import Weights
from rnnfast.spec import ACTIVATIONS, Spec, all_specs

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

# For each gate of ONNX, in its order, the place of that gate in rnnfast's.
ORDER = {"lstm": [0, 3, 1, 2], "gru": [1, 0, 2], "rnn": [0]}
IN_ONNX = [s for s in all_specs() if s.cell in ORDER]


def reordered(spec: Spec, a: Array) -> Array:
    return np.concatenate([np.split(a, len(ORDER[spec.cell]))[k] for k in ORDER[spec.cell]])


NAMES = {
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "relu": "Relu",
    "affine": "Affine",
    "leaky_relu": "LeakyRelu",
    "thresholded_relu": "ThresholdedRelu",
    "scaled_tanh": "ScaledTanh",
    "hard_sigmoid": "HardSigmoid",
    "elu": "Elu",
    "softsign": "Softsign",
    "softplus": "Softplus",
}
HAVE_ALPHA = {"affine", "leaky_relu", "thresholded_relu", "scaled_tanh", "hard_sigmoid", "elu"}
HAVE_BETA = {"affine", "scaled_tanh", "hard_sigmoid"}
PLACES = {
    "lstm": (("gate_activation", "sigmoid"), ("activation", "tanh"), ("output_activation", "tanh")),
    "gru": (("gate_activation", "sigmoid"), ("activation", "tanh")),
    "rnn": (("nonlinearity", ""),),
}


def attributes(p: Problem, direction_count: int) -> dict[str, Any]:
    spec = p.spec
    found: dict[str, Any] = {"direction": "bidirectional" if direction_count == 2 else "forward"}
    if spec.cell == "gru":
        found["linear_before_reset"] = int(spec.reset_after)
    functions, alphas, betas = [], [], []
    for place, own in PLACES[spec.cell]:
        value = p.keywords.get(place, own or spec.nonlinearity)
        name, *numbers = value if isinstance(value, tuple) else (value,)
        standard = ACTIVATIONS[name]
        alpha, beta = (*numbers, *(standard.alpha, standard.beta)[len(numbers) :])
        functions.append(NAMES[name])
        alphas += [alpha] if name in HAVE_ALPHA else []
        betas += [beta] if name in HAVE_BETA else []
    found["activations"] = functions * direction_count
    if alphas:
        found["activation_alpha"] = [float(a) for a in alphas] * direction_count
    if betas:
        found["activation_beta"] = [float(b) for b in betas] * direction_count
    if "clip" in p.keywords:
        found["clip"] = p.keywords["clip"]
    if p.keywords.get("input_forget"):
        found["input_forget"] = 1
    return found


def run_onnx(p: Problem) -> dict[str, Array]:
    """y, h_n and perhaps c_n of one layer."""
    entry = p.weights[0]
    layer = [entry] if isinstance(entry, Weights) else list(entry)
    w_ih, w_hh, b_ih, b_hh = (
        np.stack([reordered(p.spec, w[field]) for w in layer]) for field in range(4)
    )
    feeds = {
        "X": p.x,
        "W": w_ih,
        "R": w_hh,
        "B": np.concatenate([b_ih, b_hh], axis=1),
        "sequence_lens": None if p.lengths is None else p.lengths.astype(np.int32),
        "initial_h": p.h_0,
    }
    if p.spec.info.has_c:
        feeds["initial_c"] = p.c_0
    if layer[0].w_peep is not None:  # ONNX's are those of i, o and f
        feeds["P"] = np.stack([w.w_peep[[0, 2, 1]].ravel() for w in layer])
    states = ["h_n", "c_n"][: 1 + p.spec.info.has_c]
    node = onnx.helper.make_node(
        p.spec.cell.upper(),
        [name if value is not None else "" for name, value in feeds.items()],
        ["y", *states],
        hidden_size=w_hh.shape[-1],
        **attributes(p, len(layer)),
    )
    feeds = {name: value for name, value in feeds.items() if value is not None}
    graph = onnx.helper.make_graph(
        [node],
        "one layer",
        [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
            for name, value in feeds.items()
        ],
        [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            for name in ("y", *states)
        ],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    y, *state_n = session.run(None, feeds)
    steps, directions, batch, hidden = y.shape
    y = y.transpose(0, 2, 1, 3).reshape(steps, batch, directions * hidden)
    return {"y": y} | dict(zip(states, state_n, strict=True))


@pytest.mark.parametrize("spec", IN_ONNX, ids=Spec.variants)
@pytest.mark.parametrize("direction_count", [1, 2])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "lengths"])
def test_forward(spec: Spec, direction_count: int, ragged: bool, target: str) -> None:
    case = Case(spec, T=7, B=5, I=6, H=17, D=direction_count, dtype="float32", ragged=ragged)
    p = without_empty_rows(problem(case))
    # Both sides round: twice what one may be off.
    assert_close(forward(p, target), run_onnx(p), 2 * allowed(case))


# Every function in every place, with numbers of its own; and what only ONNX has, in company.
IN_EVERY_PLACE = [
    *NAMES,
    ("affine", 0.7, 0.1),
    ("leaky_relu", 0.4),
    ("thresholded_relu", 0.3),
    ("scaled_tanh", 1.2, 0.6),
    ("hard_sigmoid", 0.4, 0.3),
    ("elu", 0.6),
]
TOGETHER: list[dict[str, Any]] = [
    {"clip": 0.5},
    {"clip": 0.5, "gate_activation": ("hard_sigmoid", 0.3, 0.6), "activation": "softsign"},
    {"gate_activation": ("affine", 0.2, 0.5), "activation": ("scaled_tanh", 0.9, 1.1)},
    {"input_forget": True},
    {"input_forget": True, "clip": 0.5, "output_activation": ("elu", 0.7)},
    {"output_activation": "softsign", "activation": ("leaky_relu", 0.2)},
    {"clip": 0.8, "nonlinearity": ("elu", 0.5)},
]


PLAIN = [s for s in IN_ONNX if s.nonlinearity == "tanh"]
each_cell = pytest.mark.parametrize("spec", PLAIN, ids=Spec.variants)


def agree(case: Case, target: str) -> None:
    case = clear(case)
    p = without_empty_rows(problem(case))
    with unless_unsupported(target):
        found = forward(p, target)
    # ONNX Runtime's own functions are good to a few 1e-7.
    assert_close(found, run_onnx(p), 2 * allowed(case) + 1e-6)


def one_layer(spec: Spec, direction_count: int, ragged: bool, **options: Any) -> Case:
    case = Case(spec, T=7, B=5, I=6, H=17, D=direction_count, dtype="float32", ragged=ragged)
    return keywords(**options)(case)


@each_cell
@pytest.mark.parametrize("f", IN_EVERY_PLACE, ids=str)
def test_activations(f: Any, spec: Spec, target: str) -> None:
    """For three steps, in which the state of a GRU with linear gates stays small."""
    for place, _ in PLACES[spec.cell]:
        agree(replace(one_layer(spec, 1, False, **{place: f}), T=3), target)


def have(spec: Spec) -> list[tuple[bool, dict[str, Any]]]:
    """Peepholes or not, and other options: what a cell has of them."""
    if spec.cell not in ORDER:
        return []
    own = {"clip", *(place for place, _ in PLACES[spec.cell])}
    own |= {"input_forget"} if spec.cell == "lstm" else set()
    peepholes = (False, True) if spec.cell == "lstm" else (False,)
    return [(p, options) for p in peepholes for options in TOGETHER if options.keys() <= own]


@each(have)
@pytest.mark.parametrize("direction_count", [1, 2])
def test_options(
    direction_count: int, spec: Spec, names: tuple[bool, dict[str, Any]], target: str
) -> None:
    """Rows of different lengths in two directions, of one length in one."""
    peepholes, options = names
    case = one_layer(spec, direction_count, direction_count == 2, **options)
    agree(with_options(case, ["peepholes"]) if peepholes else case, target)
