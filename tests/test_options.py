"""Every option of the cells, alone and with others: each backend gives the reference's numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import (
    BIASES,
    COTANGENTS,
    STATES,
    Case,
    assert_same_bits,
    forward,
    gradients,
    problem,
    run,
    vjp,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from kinks import clear
from option_sets import (
    ACTIVATIONS,
    LAYER_NORMS,
    OPTIONS,
    SPECS,
    compatible,
    each,
    keywords,
    of,
    pairs,
    unless_unsupported,
    with_options,
)
from tolerance import allowed, assert_agrees, assert_close, truth, well_conditioned

from rnnfast import Options, Weights
from rnnfast.spec import Spec


def check(case: Case, target: str) -> None:
    """Training and inference on one case."""
    p = problem(case)
    with unless_unsupported(target):
        assert_agrees(case, run(p, target))
        outputs = forward(p, target)
        wanted = truth(case)[0]
        assert_close(outputs, {name: wanted[name] for name in outputs}, allowed(case))


def middling(spec: Spec, dtype: str = "float64", **sizes: Any) -> Case:
    """Two layers, two directions, rows of different lengths; sizes beside those of tiles."""
    given = {"T": 7, "B": 9, "I": 6, "H": 17, "L": 2, "D": 2, "ragged": True} | sizes
    return Case(spec, **given, dtype=dtype)


def test_every_option_is_tried() -> None:
    """A new option, or a new array of the weights, must come into `option_sets`."""
    cases = [option.change(Case(Spec("lstm"))) for option in OPTIONS.values()]
    tried = {name for case in cases for name, _ in case.keywords} - {"dropout", "nonlinearity"}
    assert tried == set(Options.__annotations__)
    fields = {"w_hr", *(name for case in cases for name in case.fields)}
    assert fields == set(Weights._fields[4:])
    assert all(case != Case(Spec("lstm")) for case in cases)


@each(of)
def test_each_alone(spec: Spec, names: str, dtype: str, target: str) -> None:
    check(clear(with_options(middling(spec, dtype), [names])), target)


def of_either(number: int) -> str:
    """A dtype, for tests whose many cases need not be tried in both."""
    return ("float32", "float64")[number % 2]


@each(of)
def test_one_row(spec: Spec, names: str, target: str) -> None:
    """The shapes of streaming and of inference, where kernels go other ways."""
    sizes = {"T": 9, "B": 1, "I": 5, "H": 33, "L": 1, "D": 1, "ragged": False}
    check(clear(with_options(middling(spec, of_either(len(names)), **sizes), [names])), target)


@each(pairs)
def test_pairs(spec: Spec, names: tuple[str, ...], target: str) -> None:
    number = sum(map(len, names))
    sizes = {"T": 4, "B": 5, "H": 65, "L": 1, "D": 1 + number // 2 % 2}
    case = middling(spec, of_either(number), **sizes)
    check(clear(with_options(case, names)), target)


PLACES = ("gate_activation", "activation", "output_activation", "nonlinearity")


@each(lambda spec: [name for name in PLACES if spec.cell in OPTIONS[name].cells])
@pytest.mark.parametrize("f", ACTIVATIONS, ids=str)
def test_activations_in_every_place(f: Any, spec: Spec, names: str, target: str) -> None:
    """For three steps, in which the state of a GRU with linear gates stays small."""
    number = ACTIVATIONS.index(f) + PLACES.index(names)
    case = middling(spec, of_either(number), T=3, B=5, H=65, L=1, D=1)
    if number // 2 % 2:
        case = keywords(clip=0.9)(case)
    check(clear(keywords(**{names: f})(case)), target)


SIZES = [  # (B, I, H): around vectors of 4 to 16 numbers and tiles of up to 64
    (1, 1, 1),
    (2, 3, 2),
    (3, 15, 16),
    (40, 4, 15),
    (8, 17, 31),
    (16, 8, 32),
    (17, 2, 33),
    (33, 31, 5),
    (5, 33, 63),
    (4, 16, 64),
    (1, 7, 65),
    (7, 64, 97),
]
COMPANIES: tuple[tuple[str, ...], ...] = (  # many options at a time
    ("projection", "peepholes", "layer_norm_c", "zoneout", "recurrent_dropout", "grad_clip"),
    ("peepholes", "input_forget", "gate_activation", "clip", "truncate", "dropconnect"),
    ("projection", "batch_norm", "activation", "output_activation", "variational", "training"),
    ("layer_norm", "nonlinearity", "zoneout", "truncate", "recurrent_dropout", "clip"),
)


@pytest.mark.parametrize("spec", SPECS, ids=Spec.variants)
@pytest.mark.parametrize("company", COMPANIES, ids="+".join)
@pytest.mark.parametrize("sizes", SIZES, ids="B{0[0]}-I{0[1]}-H{0[2]}".format)
def test_sizes_around_every_tile(
    sizes: tuple[int, int, int], company: tuple[str, ...], spec: Spec, target: str
) -> None:
    B, I, H = sizes  # noqa: E741
    names = [name for name in company if spec.cell in OPTIONS[name].cells]
    if LAYER_NORMS & set(names):
        I, H = max(I, 3), max(H, 4)  # noqa: E741  # the norm of w x is that of w where I = 1
    case = middling(
        spec, of_either(B + H + len(names)), T=5, B=B, I=I, H=H, L=1, D=1 + B % 2, ragged=B > 2
    )
    check(clear(with_options(case, names)), target)


@given(data=st.data())
@pytest.mark.parametrize("spec", SPECS, ids=Spec.variants)
def test_anything(spec: Spec, target: str, data: Any) -> None:
    names = data.draw(st.lists(st.sampled_from(of(spec)), unique=True), "options")
    assume(compatible(names))
    case = Case(
        spec,
        T=data.draw(st.integers(1, 12), "T"),
        B=data.draw(st.integers(1, 40), "B"),
        I=data.draw(st.integers(3, 20), "I"),
        H=data.draw(st.integers(4, 40), "H"),
        L=data.draw(st.integers(1, 3), "L"),
        D=data.draw(st.integers(1, 2), "D"),
        dtype=data.draw(st.sampled_from(["float32", "float64"]), "dtype"),
        bias=data.draw(st.sampled_from(BIASES), "bias"),
        state=data.draw(st.sampled_from(STATES), "state"),
        ragged=data.draw(st.booleans(), "ragged"),
        cotangents=data.draw(st.sampled_from(COTANGENTS), "cotangents"),
        seed=data.draw(st.integers(0, 2**32 - 1), "seed"),
    )
    assume(case.T * case.B >= 4)  # a batch to normalise
    case = clear(with_options(case, names))
    assume(well_conditioned(case))
    check(case, target)


@each(of)
def test_backward_twice_is_the_same(spec: Spec, names: str, target: str) -> None:
    """With masks kept for it, and with the results of the call changed in between."""
    p = problem(with_options(middling(spec), [names]))
    with unless_unsupported(target):
        outputs, backward = vjp(p, target)
    first = {name: a.copy() for name, a in gradients(p, backward).items()}
    for array in outputs.values():
        array[...] = np.nan
    assert_same_bits(gradients(p, backward), first)


@each(of)
def test_arguments_are_not_written(spec: Spec, names: str, target: str) -> None:
    """But for running statistics, of which `vjp` gives the call a copy."""
    p = problem(with_options(middling(spec), [names]))
    before = p.map(np.copy)
    with unless_unsupported(target):
        run(p, target)
    assert_same_bits(p.inputs(), before.inputs())


@each(of)
def test_other_ways_to_pass_arguments(spec: Spec, names: str, target: str) -> None:
    """batch_first, unbatched x and strided arrays give what the plain call gives."""
    p = problem(with_options(middling(spec, ragged=False), [names]))
    with unless_unsupported(target):
        wanted = run(p, target)
    turned = replace(p, x=p.x.swapaxes(0, 1), dy=p.dy.swapaxes(0, 1))
    found = run(turned, target, batch_first=True)
    found |= {name: found[name].swapaxes(0, 1) for name in ("y", "dx")}
    assert_same_bits(
        {k: np.ascontiguousarray(v) for k, v in found.items()},
        {k: np.ascontiguousarray(v) for k, v in wanted.items()},
    )
    assert_same_bits(run(p.map(np.asfortranarray), target), wanted)
    row = p.rows(slice(0, 1))
    wanted = run(row, target)
    found = run(p.rows(0), target)
    for name, array in found.items():
        if name in wanted and wanted[name].ndim == array.ndim + 1:
            found[name] = array[:, None]
    assert_same_bits(found, wanted)


@each(of)
def test_torch_tensors(spec: Spec, names: str, target: str) -> None:
    """Every array of the weights may be a tensor; gradients are then tensors as well."""
    torch = pytest.importorskip("torch")
    p = problem(with_options(middling(spec, "float32", L=1), [names]))
    with unless_unsupported(target):
        wanted = run(p, target)
    found = run(p.map(torch.from_numpy), target)
    assert all(isinstance(a, torch.Tensor) for a in found.values())
    assert_same_bits({k: a.numpy() for k, a in found.items()}, wanted)
