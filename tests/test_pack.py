"""Packed weights give what the weights themselves give, and are a copy of them."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import Case, Problem, assert_same_bits, forward, function, problem, variant

import rnnfast
from rnnfast import Packed
from rnnfast.spec import Spec


def pack(p: Problem, backend: str, **options: Any) -> Packed:
    return rnnfast.pack(p.weights, backend=backend, **{**variant(p.spec), **options})


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("bias", ["both", "none", "hh"])
def test_packed_is_unpacked(
    layers: int, directions: int, bias: str, spec: Spec, dtype: str, target: str
) -> None:
    case = Case(spec, T=4, B=5, I=3, H=33, L=layers, D=directions, bias=bias, dtype=dtype)
    p = problem(case)
    packed = pack(p, target)
    for part in (p, replace(p, lengths=np.array([3, 0, 4, 4, 1]))):
        assert_same_bits(forward(part, target, weights=packed), forward(part, target))
    single = replace(p, x=p.x[:1, :1], h_0=None, c_0=None)
    assert_same_bits(forward(single, "auto", weights=packed), forward(single, target))


@pytest.mark.usefixtures("same_threads")
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize(("T", "B", "H"), [(30, 1, 256), (25, 33, 40)])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_threads_do_not_matter_with_fewer_bits(
    precision: str, T: int, B: int, H: int, ragged: bool, spec: Spec
) -> None:
    p = problem(Case(spec, T=T, B=B, I=48, H=H, D=2, dtype="float32", ragged=ragged))
    packed = pack(p, "native", dtype=precision)
    found = []
    for threads in (1, 2, 3, 5):
        rnnfast.set_num_threads(threads)
        found.append(forward(p, "native", weights=packed))
    for other in found[1:]:
        assert_same_bits(other, found[0])


def test_options_of_a_call(spec: Spec, target: str) -> None:
    """Whatever else a call takes, it takes with packed weights."""
    p = problem(Case(spec, T=4, B=4, I=3, H=17, L=2, D=2))
    packed = pack(p, target)
    for options in ({"batch_first": True}, {"dropout": 0.5, "rng": 3}):
        wanted = forward(p, target, **options)
        assert_same_bits(forward(p, target, weights=packed, **options), wanted)
    out = np.empty((4, 4, 34))
    assert forward(p, target, weights=packed, out=out)["y"] is out


def test_packed_is_a_copy(spec: Spec, dtype: str, target: str) -> None:
    p = problem(Case(spec, T=4, B=5, I=3, H=33, dtype=dtype))
    wanted = forward(p, target)
    packed = pack(p, target)
    for array in p.weights[0][:4]:
        array[...] = np.nan
    assert_same_bits(forward(p, target, weights=packed), wanted)


def test_another_dtype(spec: Spec, dtype: str, target: str) -> None:
    """Weights are converted where that is asked for, and not otherwise."""
    p = problem(Case(spec, dtype="float64"))
    packed = pack(p, target, dtype=dtype)
    converted = p.astype(dtype)
    assert_same_bits(forward(converted, target, weights=packed), forward(converted, target))


def test_not_for_training(spec: Spec, target: str) -> None:
    p = problem(Case(spec))
    with pytest.raises(TypeError, match=r"weights: packed weights are for inference"):
        function(spec, vjp=True)(p.x, pack(p, target), p.state)


def test_options_of_other_cells_do_not_matter(spec: Spec, target: str) -> None:
    p = problem(Case(spec))
    others: dict[str, Any] = {}
    if not spec.info.has_reset_after:
        others["reset_after"] = False
    if not spec.info.nonlinearities:
        others["nonlinearity"] = "relu"
    packed = pack(p, target, **others)
    assert_same_bits(forward(p, target, weights=packed), forward(p, target))


def test_repr_tells_what_it_is(spec: Spec, target: str) -> None:
    p = problem(Case(spec, I=4, H=5, L=2, D=2))
    text = repr(pack(p, target))
    for part in (spec.variants(), "2 layer", "2 direction", "I=4", "H=5", "float64", target):
        assert part in text


def test_copies_and_pickles() -> None:
    packed = rnnfast.pack(rnnfast.init_weights("gru", 3, 4, rng=0), cell="gru")
    assert copy.copy(packed) is copy.deepcopy([packed])[0] is packed
    with pytest.raises(TypeError, match=r"pickle the weights, and call rnnfast\.pack"):
        pickle.dumps(packed)
