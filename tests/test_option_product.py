"""The whole product of options and backends: a right answer, or an error that says who can.

Every cell has a few options that are on or off, or one of several. All combinations are asked for;
what a backend says it can do is tried in full for a covering design, in which any three options
meet in every combination, and compared with the reference, which `test_option_gradients` and
`test_options_against_torch` check on their own.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from itertools import combinations, compress, product
from typing import Any

import numpy as np
import pytest
from helpers import Case, forward, problem, run
from kinks import clear
from option_sets import BATCH_NORMS, COMPLETE, LAYER_NORMS, OPTIONS, SPECS, of, with_options
from tolerance import allowed, assert_agrees, assert_close, truth, well_conditioned

import rnnfast
from rnnfast import UnsupportedError
from rnnfast.backends import get, supporting
from rnnfast.options import parse, with_weights
from rnnfast.spec import Spec

Chosen = tuple[str, ...]


@pytest.fixture(params=SPECS, ids=Spec.variants)
def cell(request: pytest.FixtureRequest) -> Spec:
    found: Spec = request.param
    return found


# These never reach a backend, which is handed other numbers and the same cell.
ABOVE = {"dropout", "variational", "dropconnect", "bn_momentum", "training"}


def every_combination(spec: Spec) -> list[Chosen]:
    names = [name for name in of(spec) if name not in ABOVE]
    return [tuple(compress(names, on)) for on in product((False, True), repeat=len(names))]


Way = tuple[tuple[int, ...], tuple[bool, ...]]  # three options, and which of them are on


def ways(row: tuple[bool, ...]) -> set[Way]:
    """How a combination of options has any three of them."""
    return {(three, tuple(row[k] for k in three)) for three in combinations(range(len(row)), 3)}


@cache
def covering(spec: Spec) -> list[Chosen]:
    """Combinations in which any three options are met in all eight ways, found greedily."""
    names = of(spec)
    rng = random.Random(0)
    left: set[Way] = {
        (three, switches)
        for three in combinations(range(len(names)), 3)
        for switches in product((False, True), repeat=3)
    }
    found = []
    while left:
        wanted = dict(zip(*min(left), strict=True))
        tries = [
            tuple(wanted.get(k, rng.random() < 0.5) for k in range(len(names))) for _ in range(30)
        ]
        sizes = [len(ways(row) & left) for row in tries]
        best = tries[sizes.index(max(sizes))]
        left -= ways(best)
        found.append(tuple(compress(names, best)))
    return found


def tiny(spec: Spec, names: Chosen, dtype: str) -> Case:
    return with_options(Case(spec, T=3, B=3, I=3, H=5, L=2, dtype=dtype), names)


def refusal(call: Callable[[], Any]) -> UnsupportedError | None:
    try:
        call()
    except UnsupportedError as error:
        return error
    return None


def assert_helpful(error: UnsupportedError, names: Chosen) -> None:
    """The message tells which option, and which backends have it."""
    text = str(error)
    words = [*names, "projection", "peepholes", "layer_norm", "bn_ih"]
    whose = [*rnnfast.backends(), "no backend"]
    assert any(word in text for word in words), f"{names}: {text}"
    assert any(who in text for who in whose), f"{names}: {text}"


def refused_by_all(names: Chosen) -> bool:
    return bool(set(names) & LAYER_NORMS and set(names) & BATCH_NORMS)


def test_the_design_covers() -> None:
    for spec in SPECS:
        rows = covering(spec)
        assert len(rows) < 80
        for three in combinations(of(spec), 3):
            met = {tuple(name in row for name in three) for row in rows}
            assert len(met) == 8


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_right_answer_or_an_error_that_helps(dtype: str, cell: Spec, target: str) -> None:
    tried = 0
    for names in covering(cell):
        case = tiny(cell, names, dtype)
        p = problem(case)
        found: dict[str, Any] = {}
        error = refusal(lambda p=p, found=found: found.update(run(p, target)))  # type: ignore[misc]
        if error is not None:
            assert_helpful(error, names)
            assert refused_by_all(names) or target not in COMPLETE, f"{names}: {error}"
            continue
        assert not refused_by_all(names)
        assert all(np.isfinite(a).all() for a in found.values()), names
        case = clear(case)
        if well_conditioned(case):
            tried += 1
            assert_agrees(case, run(problem(case), target))
            outputs = forward(problem(case), target)
            assert_close(outputs, {k: truth(case)[0][k] for k in outputs}, allowed(case))
    assert tried > len(covering(cell)) // 3 or target not in COMPLETE


def test_every_combination_is_answered(cell: Spec, backend: str) -> None:
    """Supported, or refused by name before anything is computed."""
    structures: dict[tuple[Any, ...], Any] = {}
    for names in every_combination(cell):
        if refused_by_all(names):
            continue  # by the check of weights: see above, and test_bad_input
        case = tiny(cell, names, "float64")
        structure = (case.P, case.fields)
        if structure not in structures:
            structures[structure] = [(w,) for w in problem(case).weights]
        options = {k: v for k, v in case.keywords if k != "nonlinearity"}
        spec = with_weights(parse(cell, options)[0], structures[structure])
        error = refusal(lambda spec=spec: get(backend, spec))  # type: ignore[misc]
        assert (error is None) == (backend in supporting(spec))
        assert error is None or backend not in COMPLETE
        if error is not None:
            assert_helpful(error, names)


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_options_of_other_cells_are_refused(name: str, backend: str) -> None:
    """By name, with the cell that has it."""
    for spec in SPECS:
        if spec.cell in OPTIONS[name].cells:
            continue
        p = problem(tiny(spec, (name,), "float64"))
        with pytest.raises((UnsupportedError, TypeError, ValueError)) as caught:
            run(p, backend)
        text = str(caught.value)
        assert any(f in text for f in (name, "w_hr", "w_peep", "ln_c", "nonlinearity", "w_hh")), (
            text
        )
