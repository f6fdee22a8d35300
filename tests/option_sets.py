"""Every option of the cells, switched on: what the tests of options vary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple

import pytest
from helpers import Case

from rnnfast import UnsupportedError
from rnnfast.spec import CELLS, Spec, all_specs

ALL = tuple(CELLS)
COMPLETE = {"native", "reference", "cuda"}  # backends that have every option

# One spec for every cell and form; further functions of the RNN are an option.
SPECS = [s for s in all_specs() if s.nonlinearity == "tanh"]


class Option(NamedTuple):
    cells: tuple[str, ...]
    change: Callable[[Case], Case]


def keywords(**more: Any) -> Callable[[Case], Case]:
    return lambda case: replace(case, keywords=tuple({**dict(case.keywords), **more}.items()))


def arrays(*names: str) -> Callable[[Case], Case]:
    return lambda case: replace(case, fields=tuple(dict.fromkeys((*case.fields, *names))))


def projection(case: Case) -> Case:
    return replace(case, P=max(1, 2 * case.H // 3))


OPTIONS = {
    "projection": Option(("lstm",), projection),
    "peepholes": Option(("lstm",), arrays("w_peep")),
    "layer_norm": Option(ALL, arrays("ln_ih", "ln_hh")),
    "layer_norm_c": Option(("lstm",), arrays("ln_ih", "ln_hh", "ln_c", "ln_c_shift")),
    "batch_norm": Option(ALL, arrays("bn_ih", "bn_mean", "bn_var")),
    "gate_activation": Option(("lstm", "gru", "gated"), keywords(gate_activation="hard_sigmoid")),
    "activation": Option(("lstm", "gru", "gated"), keywords(activation=("scaled_tanh", 1.3, 0.7))),
    "output_activation": Option(("lstm",), keywords(output_activation="softsign")),
    "nonlinearity": Option(("rnn",), keywords(nonlinearity=("elu", 0.7))),
    "clip": Option(ALL, keywords(clip=0.7)),
    "input_forget": Option(("lstm",), keywords(input_forget=True)),
    "grad_clip": Option(ALL, keywords(grad_clip=0.1)),
    "truncate": Option(ALL, keywords(truncate=2)),
    "recurrent_dropout": Option(ALL, keywords(recurrent_dropout=0.3)),
    "zoneout": Option(ALL, keywords(zoneout=(0.3, 0.2))),
    "dropconnect": Option(ALL, keywords(dropconnect=0.3)),
    "dropout": Option(ALL, keywords(dropout=0.3)),
    "variational": Option(ALL, keywords(dropout=0.3, variational=True)),
    "bn_momentum": Option(
        ALL, lambda c: keywords(bn_momentum=0.4)(arrays("bn_ih", "bn_mean", "bn_var")(c))
    ),
    "training": Option(ALL, keywords(training=False)),
}
NOT_A_DERIVATIVE = ("grad_clip", "truncate")  # their gradients are not those of the outputs
LAYER_NORMS = {"layer_norm", "layer_norm_c"}
BATCH_NORMS = {"batch_norm", "bn_momentum"}

# What meets in one equation.
INTERACTING: tuple[tuple[str, ...], ...] = (
    ("projection", "peepholes"),
    ("projection", "zoneout"),
    ("projection", "recurrent_dropout", "dropconnect"),
    ("projection", "layer_norm_c"),
    ("projection", "batch_norm", "variational"),
    ("peepholes", "layer_norm_c"),
    ("peepholes", "input_forget"),
    ("peepholes", "clip"),
    ("peepholes", "grad_clip", "truncate"),
    ("input_forget", "clip", "gate_activation"),
    ("input_forget", "grad_clip", "peepholes"),
    ("layer_norm", "clip"),
    ("layer_norm", "recurrent_dropout"),
    ("layer_norm", "zoneout", "truncate"),
    ("layer_norm_c", "output_activation", "clip"),
    ("layer_norm_c", "peepholes", "zoneout", "grad_clip"),
    ("batch_norm", "clip", "dropout"),
    ("batch_norm", "training"),
    ("recurrent_dropout", "zoneout"),
    ("recurrent_dropout", "dropconnect", "training"),
    ("zoneout", "truncate", "grad_clip"),
    ("zoneout", "training"),
    ("nonlinearity", "clip", "grad_clip"),
    ("activation", "grad_clip", "truncate"),
)

# Every activation, with parameters of its own and with others, as ONNX writes them.
ACTIVATIONS: tuple[Any, ...] = (
    "sigmoid",
    "tanh",
    "relu",
    "linear",
    "affine",
    ("affine", 0.7, 0.1),
    ("affine", -0.5, 0.2),
    "leaky_relu",
    ("leaky_relu", 0.4),
    ("thresholded_relu", 0.3),
    "scaled_tanh",
    ("scaled_tanh", 1.2, 0.6),
    ("scaled_tanh", -0.8, 1.1),
    "hard_sigmoid",
    ("hard_sigmoid", 0.4, 0.3),
    "elu",
    ("elu", 0.6),
    "softsign",
    "softplus",
)


def of(spec: Spec) -> list[str]:
    """The options that a cell has."""
    return [name for name, option in OPTIONS.items() if spec.cell in option.cells]


def compatible(names: Iterable[str]) -> bool:
    """Whether they may be given together, on whatever backend."""
    chosen = set(names)
    return not (chosen & LAYER_NORMS and chosen & BATCH_NORMS)


def with_options(case: Case, names: Iterable[str]) -> Case:
    for name in names:
        case = OPTIONS[name].change(case)
    return case


def pairs(spec: Spec) -> list[tuple[str, ...]]:
    return [pair for pair in combinations(of(spec), 2) if compatible(pair)]


@contextmanager
def unless_unsupported(target: str) -> Iterator[None]:
    """Skip the test where the backend says that it lacks the cell with these options."""
    try:
        yield
    except UnsupportedError as error:
        if target in COMPLETE:
            raise
        pytest.skip(str(error))


def each(choose: Callable[[Spec], Iterable[Any]]) -> Any:
    """Parameters `spec` and `names` of a test: what `choose` gives for every cell."""
    rows = [(spec, names) for spec in SPECS for names in choose(spec)]
    labels = [
        f"{spec.variants()}-{names if isinstance(names, str) else '+'.join(map(str, names))}"
        for spec, names in rows
    ]
    return pytest.mark.parametrize(("spec", "names"), rows, ids=labels)
