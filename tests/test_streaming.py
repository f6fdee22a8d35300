"""A loop that calls with one chunk after the other: buffers of its own, state updated in place."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import Array, Case, Problem, assert_same_bits, forward, function, problem, variant

import rnnfast
from rnnfast.spec import Spec


def states_of(p: Problem) -> list[Array]:
    return [s for s in (p.h_0, p.c_0) if s is not None]


def as_state(spec: Spec, states: list[Array]) -> Any:
    return tuple(states) if spec.info.has_c else states[0]


def as_dict(spec: Spec, y: Array, states: list[Array]) -> dict[str, Array]:
    return dict(zip(("y", "h_n", "c_n"), (y, *states), strict=False))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("layers", "directions", "batch"), [(1, 1, 1), (2, 1, 3), (2, 2, 1)])
def test_buffers_and_state_in_place(
    layers: int, directions: int, batch: int, packed: bool, spec: Spec, dtype: str, target: str
) -> None:
    case = Case(spec, T=3, B=batch, I=3, H=17, L=layers, D=directions, dtype=dtype)
    p = problem(case)
    weights = rnnfast.pack(p.weights, backend=target, **variant(spec)) if packed else p.weights
    wanted = forward(p, target)
    states = [s.copy() for s in states_of(p)]
    state = as_state(spec, states)
    y = np.full((3, batch, directions * 17), np.nan, dtype)
    got = function(spec)(p.x, weights, state, out=(y, state), backend=target)
    assert got[0] is y
    assert (got[1] if spec.info.has_c else (got[1],))[0] is states[0]
    assert_same_bits(as_dict(spec, y, states), wanted)

    others = [np.full_like(s, np.nan) for s in states]
    y[...] = np.nan
    function(spec)(p.x, weights, p.state, out=(y, as_state(spec, others)), backend=target)
    assert_same_bits(as_dict(spec, y, others), wanted)


def test_one_step_at_a_time_is_the_whole_sequence(spec: Spec, dtype: str, target: str) -> None:
    """Bit for bit, unbatched and batched, with packed weights and with plain ones."""
    p = problem(Case(spec, T=6, B=1, I=3, H=33, L=2, dtype=dtype))
    whole = forward(p, target)
    packed = rnnfast.pack(p.weights, backend=target, **variant(spec))
    for weights in (packed, p.weights):
        for x, rank in ((p.x, 3), (p.x[:, 0], 2)):
            states = [np.array(s if rank == 3 else s[:, 0]) for s in states_of(p)]
            state = as_state(spec, states)
            y = np.empty((*x.shape[:-1], 33), dtype)
            for t in range(6):
                out = (y[t : t + 1], state)
                function(spec)(x[t : t + 1], weights, state, out=out, backend=target)
            given = {k: a if rank == 3 else a[:, 0] for k, a in whole.items()}
            assert_same_bits(as_dict(spec, y, states), given)


def test_training_may_update_the_state_in_place(spec: Spec, target: str) -> None:
    p = problem(Case(spec, T=3, B=2, H=5))
    _, _, backward = function(spec, vjp=True)(p.x, p.weights, p.state, backend=target)
    wanted = backward(p.dy, p.dstate)[0]
    state = as_state(spec, [s.copy() for s in states_of(p)])
    y = np.empty((3, 2, 5))
    _, _, backward = function(spec, vjp=True)(p.x, p.weights, state, out=(y, state), backend=target)
    assert_same_bits({"dx": backward(p.dy, p.dstate)[0]}, {"dx": wanted})


def test_lengths_with_buffers(spec: Spec, target: str) -> None:
    p = problem(Case(spec, T=4, B=3, H=5, ragged=True))
    wanted = forward(p, target)
    state = as_state(spec, [s.copy() for s in states_of(p)])
    y = np.empty((4, 3, 5))
    function(spec)(p.x, p.weights, state, lengths=p.lengths, out=(y, state), backend=target)
    got = state if spec.info.has_c else (state,)
    assert_same_bits(as_dict(spec, y, list(got)), wanted)


def test_nothing_is_allocated(spec: Spec) -> None:
    """A step whose arrays have 4 kB each leaves and takes nothing of that size."""
    if rnnfast.backends()["native"] is not None:
        pytest.skip("the native backend is not usable")
    p = problem(Case(spec, T=1, B=4, I=256, H=256, dtype="float32"))
    packed = rnnfast.pack(p.weights, backend="native", **variant(spec))
    call, x, state = function(spec), p.x, as_state(spec, states_of(p))
    out = (np.empty((1, 4, 256), np.float32), state)
    call(x, packed, state, out=out)
    tracemalloc.start()
    try:
        for _ in range(10):
            call(x, packed, state, out=out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2000


Change = Callable[[Problem, Array], Any]


BAD: list[tuple[str, Change, type[Exception], tuple[str, ...]]] = [
    ("a triple", lambda p, y: (y, p.h_0, p.c_0), TypeError, ("out:", "pair", "3")),
    ("no y", lambda p, y: (None, (p.h_0, p.c_0)), TypeError, ("out:", "pair", "None")),
    ("no state", lambda p, y: (y, None), TypeError, ("out:", "pair", "None")),
    ("h alone", lambda p, y: (y, p.h_0), TypeError, ("out:", "(h_n, c_n)", "array")),
    ("a list", lambda p, y: (y, [p.h_0, p.c_0]), TypeError, ("out:", "(h_n, c_n)", "list")),
    ("no c", lambda p, y: (y, (p.h_0, None)), TypeError, ("out c_n:", "None")),
    ("another shape", lambda p, y: (y, (p.h_0[:, :1], p.c_0)), ValueError,
     ("out h_n:", "(1, 3, 5)", "(1, 1, 5)")),
    ("another dtype", lambda p, y: (y, (p.h_0, p.c_0.astype(np.float32))), TypeError,
     ("out c_n:", "float64", "float32")),
    ("gaps", lambda p, y: (y, (np.zeros((1, 3, 10))[..., ::2], p.c_0)), ValueError,
     ("out h_n:", "C-contiguous")),
    ("h_n is c_n", lambda p, y: (y, (p.h_0, p.h_0)), ValueError, ("out c_n:", "h_n", "overlap")),
    ("h_n is y", lambda p, y: (y, (y[:1], p.c_0)), ValueError, ("out h_n:", "y", "overlap")),
    ("h_n is x", lambda p, y: (y, (p.x[:1], p.c_0)), ValueError, ("out h_n:", "x", "overlap")),
    ("y is h_0", lambda p, y: (p.h_0, (y[:1].copy(), p.c_0)), ValueError,
     ("out:", "h_0", "overlap")),
]  # fmt: skip


@pytest.mark.parametrize(("what", "change", "error", "words"), BAD, ids=[b[0] for b in BAD])
@pytest.mark.parametrize("packed", [True, False])
def test_bad_buffers(
    what: str,
    change: Change,
    error: type[Exception],
    words: tuple[str, ...],
    packed: bool,
    target: str,
) -> None:
    steps = 1 if what == "y is h_0" else 4
    p = problem(Case(Spec("lstm"), T=steps, B=3, I=5, H=5))
    weights = rnnfast.pack(p.weights, cell="lstm", backend=target) if packed else p.weights
    out = change(p, np.zeros((steps, 3, 5)))
    with pytest.raises(error) as caught:
        rnnfast.lstm(p.x, weights, p.state, out=out, backend=target)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("packed", [True, False])
def test_states_may_be_swapped(packed: bool, target: str) -> None:
    """h_n into the memory of c_0, and c_n into that of h_0: both are read before they are lost."""
    p = problem(Case(Spec("lstm"), T=3, B=2, H=17))
    weights = rnnfast.pack(p.weights, cell="lstm", backend=target) if packed else p.weights
    wanted = forward(p, target)
    h, c = p.h_0.copy(), p.c_0.copy()
    y = np.empty((3, 2, 17))
    rnnfast.lstm(p.x, weights, (h, c), out=(y, (c, h)), backend=target)
    assert_same_bits({"y": y, "h_n": c, "c_n": h}, wanted)


@pytest.mark.parametrize("packed", [True, False])
def test_buffers_of_no_rows(packed: bool, spec: Spec, target: str) -> None:
    p = problem(Case(spec, T=3, B=0, H=5, L=2))
    weights = rnnfast.pack(p.weights, backend=target, **variant(spec)) if packed else p.weights
    states = [np.empty((2, 0, 5)) for _ in states_of(p)]
    out = (np.empty((3, 0, 5)), as_state(spec, states))
    assert function(spec)(p.x, weights, p.state, out=out, backend=target)[0] is out[0]
