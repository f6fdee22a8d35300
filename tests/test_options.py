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


def one_number(dtype: str, a: Any, **keywords: Any) -> Any:
    """A batch of numbers a that a layer of one unit takes for its arguments, and one gradient."""
    p = problem(Case(Spec("rnn"), T=1, B=len(a), I=1, H=1, state="none", dtype=dtype))
    one = np.ones((1, 1), dtype)
    return replace(
        p,
        x=np.asarray(a, dtype).reshape(1, -1, 1),
        weights=[Weights(one, 0 * one)],
        dy=np.ones((1, len(a), 1), dtype),
        dh_n=None,
        keywords=keywords,
    )


@pytest.mark.parametrize("f", ["softplus", "elu", ("elu", 0.1)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_digits_of_arguments_below_zero(f: Any, dtype: str, target: str) -> None:
    """Where exp(a) - 1 and 1 - exp(-y) would lose them."""
    eps = np.finfo(dtype).eps
    p = one_number(dtype, -np.geomspace(eps / 100, 16, 300))
    p.spec = replace(p.spec, nonlinearity=f)
    with unless_unsupported(target):
        got = run(p, target)
    a = p.x.ravel().astype(np.float64)
    if f == "softplus":
        y, slope = np.log1p(np.exp(a)), 1 / (1 + np.exp(-a))
    else:
        alpha = 1 if f == "elu" else np.dtype(dtype).type(f[1])
        y, slope = alpha * np.expm1(a), alpha * np.exp(a)
    assert (np.abs(got["y"].ravel() - y) / np.abs(y)).max() <= 8 * eps
    size = slope if f == "softplus" else slope[0]  # elu's slope is taken from y
    assert (np.abs(got["dx"].ravel() - slope) / size).max() <= 8 * eps


def test_arguments_at_the_bounds_of_clip(target: str) -> None:
    p = one_number("float64", [-0.75, -0.5, -0.25, 0.25, 0.5, 0.75], clip=0.5)
    with unless_unsupported(target):
        dx = run(p, target)["dx"].ravel()
    slope = 1 - np.tanh(0.25) ** 2
    np.testing.assert_allclose(dx, [0, 0, slope, slope, 0, 0], rtol=1e-14)


def test_infinite_gradients_of_a_flat_part(target: str) -> None:
    """Nothing goes back through it, with options as without."""
    for f, at in (("relu", -1.0), ("hard_sigmoid", 9.0), ("thresholded_relu", 0.5)):
        p = one_number("float64", [at], grad_clip=1.0)
        p.spec = replace(p.spec, nonlinearity=f)
        p.dy[...] = np.inf
        with unless_unsupported(target):
            assert run(p, target)["dx"] == 0


def test_infinite_numbers_and_zoneout(target: str) -> None:
    """Those that are not zoned out are what the step made."""
    p = one_number("float64", [np.inf] * 8, zoneout=0.5, rng=0)
    p.spec = replace(p.spec, nonlinearity="relu")
    with unless_unsupported(target):
        got = forward(p, target)["y"]
    wanted = forward(p)["y"]
    assert np.isinf(wanted).any()
    np.testing.assert_array_equal(got, wanted)
