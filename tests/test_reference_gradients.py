"""The reference's gradients against central differences of its own forward pass, in float64."""

from __future__ import annotations

import pytest
from differences import element_by_element, in_random_directions
from helpers import BIASES, STATES, Array, Case, problem, run
from tolerance import DIFFERENCES, assert_close

from rnnfast.spec import Spec


def needed(case: Case) -> dict[str, Array]:
    """The gradients of the inputs that the case has."""
    p = problem(case)
    results = run(p)
    return {name: results[name] for name in p.inputs()}


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_every_element(spec: Spec, directions: int, ragged: bool) -> None:
    case = Case(spec, T=3, B=3, I=2, H=2, D=directions, ragged=ragged)
    wanted = element_by_element(problem(case))
    assert {"dx", "dh_0"} < wanted.keys()
    assert_close(needed(case), wanted, DIFFERENCES)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("state", STATES)
def test_every_element_with_parts_missing(spec: Spec, bias: str, state: str) -> None:
    case = Case(spec, T=3, B=2, I=1, H=2, bias=bias, state=state)
    assert_close(needed(case), element_by_element(problem(case)), DIFFERENCES)


@pytest.mark.parametrize("cotangents", ["y", "h", "c", "hc"])
def test_every_element_with_one_cotangent(spec: Spec, cotangents: str) -> None:
    if cotangents == "c" and not spec.info.has_c:
        pytest.skip("the cell has no c")
    case = Case(spec, T=2, B=2, I=2, H=2, cotangents=cotangents)
    assert_close(needed(case), element_by_element(problem(case)), DIFFERENCES)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("bias", BIASES)
def test_random_directions(
    spec: Spec, layers: int, directions: int, ragged: bool, bias: str
) -> None:
    case = Case(
        spec, T=7, B=5, I=6, H=9, L=layers, D=directions, bias=bias, ragged=ragged, seed=layers
    )
    p = problem(case)
    assert_close(*in_random_directions(p, run(p)), DIFFERENCES)
