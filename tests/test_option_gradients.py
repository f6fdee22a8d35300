"""The reference's gradients with every option, against central differences of its forward pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from differences import FINE, element_by_element, in_random_directions
from helpers import Array, Case, Problem, assert_same_bits, problem, run
from kinks import DIFFERENCING, clear
from option_sets import (
    ACTIVATIONS,
    BATCH_NORMS,
    INTERACTING,
    NOT_A_DERIVATIVE,
    OPTIONS,
    SPECS,
    each,
    keywords,
    of,
    unless_unsupported,
    with_options,
)
from tolerance import DIFFERENCES, TORCH, assert_close

from rnnfast.spec import Spec


def derivable(spec: Spec) -> list[str]:
    return [name for name in of(spec) if name not in NOT_A_DERIVATIVE]


def interacting(spec: Spec) -> list[tuple[str, ...]]:
    return [chosen for chosen in INTERACTING if set(chosen) <= set(derivable(spec))]


def check(case: Case) -> None:
    p = problem(clear(case, DIFFERENCING))
    assert_close(*in_random_directions(p, run(p), FINE), DIFFERENCES)


@each(derivable)
def test_every_element(spec: Spec, names: str) -> None:
    ragged = names not in BATCH_NORMS  # dx of a batch of one row would be rounding alone
    case = with_options(Case(spec, T=3, B=2, I=3, H=3, ragged=ragged), [names])
    p = problem(clear(case, DIFFERENCING))
    results = run(p)
    assert_close({k: results[k] for k in p.inputs()}, element_by_element(p, FINE), DIFFERENCES)


@each(derivable)
@pytest.mark.parametrize("layers", [1, 2])
def test_each_alone(spec: Spec, names: str, layers: int) -> None:
    """Rows of different lengths in two directions; two layers."""
    sizes = {"L": layers, "D": 3 - layers, "ragged": layers == 1}
    check(with_options(Case(spec, T=4, B=3, I=3, H=4, **sizes), [names]))


@each(interacting)
def test_what_acts_together(spec: Spec, names: tuple[str, ...]) -> None:
    check(with_options(Case(spec, T=3, B=3, I=3, H=4, L=1, D=2, ragged=True), names))


@pytest.mark.parametrize("spec", SPECS, ids=Spec.variants)
@pytest.mark.parametrize("f", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("clip", [None, 0.8])
def test_activations(f: Any, clip: float | None, spec: Spec) -> None:
    """In each of the cell's places at once."""
    places = ("gate_activation", "activation", "output_activation", "nonlinearity")
    own = {place: f for place in places if spec.cell in OPTIONS[place].cells}
    check(keywords(**own, clip=clip)(Case(spec, T=3, B=2, I=2, H=3)))


def test_some_arguments_are_clipped() -> None:
    """Without this, tests of clip could not fail: both sides are met, and neither always."""
    for spec in SPECS:
        for clip in (0.7, 0.8, 0.9):
            p = problem(Case(spec, T=3, B=5, I=6, H=9))
            wide = run(p)["y"]
            narrow = run(replace(p, keywords={"clip": clip}))["y"]
            changed = (wide[0] != narrow[0]).mean()
            assert 0.1 < changed <= 1
            assert not np.allclose(wide, narrow)


# ------------------------------------------------------------------ truncated BPTT


def chunks(p: Problem, every: int, target: str) -> dict[str, Array]:
    """Separate calls on `every` steps each, with the state carried between them and no gradient."""
    parts: list[dict[str, Array]] = []
    state: dict[str, Any] = {"h_0": p.h_0, "c_0": p.c_0}
    for first in range(0, len(p.x), every):
        steps = slice(first, first + every)
        last = first + every >= len(p.x)
        part = replace(p, x=p.x[steps], dy=p.dy[steps], **state)
        if not last:
            part = replace(part, dh_n=None, dc_n=None)
        parts.append(run(part, target))
        state = {"h_0": parts[-1]["h_n"], "c_0": parts[-1].get("c_n")}
    found = {name: np.concatenate([part[name] for part in parts]) for name in ("y", "dx")}
    for name in ("h_n", "c_n"):
        if name in parts[-1]:
            found[name] = parts[-1][name]
    for name in ("dh_0", "dc_0"):
        if name in parts[0]:
            found[name] = parts[0][name]
    for name in parts[0]:
        if name.startswith("dw"):
            found[name] = np.sum([part[name] for part in parts], axis=0)
    return found


@pytest.mark.parametrize("spec", SPECS, ids=Spec.variants)
@pytest.mark.parametrize("every", [1, 2, 3, 7, 8, 50])
@pytest.mark.parametrize("others", [(), ("peepholes", "projection"), ("layer_norm", "clip")])
def test_truncation_is_separate_calls(
    every: int, others: tuple[str, ...], spec: Spec, target: str
) -> None:
    """T of 8 steps, a multiple of `every` or not; two layers."""
    names = [name for name in others if spec.cell in OPTIONS[name].cells]
    p = problem(with_options(Case(spec, T=8, B=3, I=4, H=9, L=2), names))
    with unless_unsupported(target):
        found = run(p, target, truncate=every)
    wanted = chunks(p, every, target)
    assert_close(found, wanted, TORCH)
    if every < 8:
        assert not np.allclose(found["dx"], run(p, target)["dx"])
    else:
        assert_same_bits(found, run(p, target, truncate=8))


@pytest.mark.parametrize("spec", SPECS, ids=Spec.variants)
@pytest.mark.parametrize("every", [1, 3, 4])
def test_truncation_of_a_reverse_direction(every: int, spec: Spec, target: str) -> None:
    """Cuts lie between the same steps: those of a reversed sequence count from its end."""
    p = problem(Case(spec, T=8, B=3, I=4, H=9, D=2))
    found = run(p, target, truncate=every)
    reverse = p.weights[0][1]
    one = replace(p, weights=[reverse], x=p.x[::-1], dy=p.dy[::-1, :, 9:])
    one = replace(one, **{k: v[1:] for k, v in vars(p).items() if k in STATES and v is not None})
    offset = 8 % every  # the first chunk that the reverse direction meets is the shorter one
    head = replace(one, x=one.x[:offset], dy=one.dy[:offset])
    if not offset:
        wanted = chunks(one, every, target)
        names = [k for k in wanted if k.startswith("dw")]
        for name in names:
            other = found[name.replace("dw[0]", "dw[0][1]")]
            np.testing.assert_allclose(other, wanted[name], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found["dh_0"][1], wanted["dh_0"][0], rtol=1e-9, atol=1e-12)
        return
    first = run(replace(head, dh_n=None, dc_n=None), target)
    rest = replace(
        one, x=one.x[offset:], dy=one.dy[offset:], h_0=first["h_n"], c_0=first.get("c_n")
    )
    wanted = chunks(rest, every, target)
    for name in (k for k in wanted if k.startswith("dw")):
        other = found[name.replace("dw[0]", "dw[0][1]")]
        np.testing.assert_allclose(other, wanted[name] + first[name], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found["dh_0"][1], first["dh_0"][0], rtol=1e-9, atol=1e-12)


STATES = ("h_0", "c_0", "dh_n", "dc_n")


@pytest.mark.parametrize("spec", SPECS, ids=Spec.variants)
def test_a_wide_bound_clips_no_gradient(spec: Spec, dtype: str, target: str) -> None:
    p = problem(Case(spec, T=6, B=3, I=4, H=9, L=2, D=2, dtype=dtype))
    wide = run(p, target, grad_clip=1e6)
    assert_same_bits(wide, run(p, target, grad_clip=1e7))
    narrow = run(p, target, grad_clip=1e-3)
    rows = np.abs(narrow["dw[1][0].b_ih"])
    assert 0 < rows.max() <= 1e-3 * 6 * 3 * (1 + 1e-6)
    assert_close({"y": narrow["y"]}, {"y": wide["y"]}, 0)
