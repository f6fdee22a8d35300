"""save="recompute" and checkpoint=k: less memory, the same gradients."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import Case, assert_same_bits, flatten_weights, function, problem, python, run
from tolerance import allowed, assert_agrees, assert_close

import rnnfast
from rnnfast.spec import Spec

SIZES: list[dict[str, Any]] = [
    {"T": 7, "B": 3, "I": 4, "H": 17},
    {"T": 5, "B": 6, "I": 2, "H": 33, "L": 2, "D": 2, "ragged": True},
    {"T": 40, "B": 20, "I": 5, "H": 8, "D": 2},
    {"T": 6, "B": 1, "I": 3, "H": 70, "state": "none", "cotangents": "y"},
    {"T": 1, "B": 2, "I": 3, "H": 5, "L": 2, "bias": "none", "state": "h"},
    {"T": 700, "B": 1, "I": 3, "H": 6, "cotangents": "hc"},
]


@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: f"T{s['T']}B{s['B']}H{s['H']}")
def test_recompute_gives_the_same_bits(
    sizes: dict[str, Any], spec: Spec, dtype: str, target: str
) -> None:
    p = problem(Case(spec, **sizes, dtype=dtype))
    assert_same_bits(run(p, target, save="recompute"), run(p, target))


def test_recompute_for_every_number_of_threads(spec: Spec, isa: str) -> None:
    p = problem(Case(spec, T=5, B=9, I=20, H=150, ragged=True, dtype="float32"))
    wanted = run(p, "native")
    before = rnnfast.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            rnnfast.set_num_threads(threads)
            assert_same_bits(run(p, "native", save="recompute"), wanted)
    finally:
        rnnfast.set_num_threads(before)


@pytest.mark.parametrize("save", ["all", "recompute"])
@pytest.mark.parametrize("every", [1, 3, 7, 100])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_checkpoints(
    layers: int, ragged: bool, every: int, save: str, spec: Spec, dtype: str, target: str
) -> None:
    case = Case(spec, T=11, B=4, I=3, H=17, L=layers, ragged=ragged, dtype=dtype)
    assert_agrees(case, run(problem(case), target, save=save, checkpoint=every))


@pytest.mark.parametrize("cotangents", ["y", "h", "hc", ""])
@pytest.mark.parametrize("state", ["none", "h", "c"])
def test_checkpoints_with_parts_left_out(
    cotangents: str, state: str, spec: Spec, target: str
) -> None:
    case = Case(spec, T=5, B=2, I=3, H=5, state=state, cotangents=cotangents)
    assert_agrees(case, run(problem(case), target, checkpoint=2))


@pytest.mark.parametrize("ragged", [False, True])
def test_masks_are_those_without_checkpoints(ragged: bool, spec: Spec, target: str) -> None:
    case = Case(spec, T=9, B=3, I=3, H=13, L=3, ragged=ragged)
    p = problem(case)
    wanted = run(p, target, dropout=0.4, rng=5)
    got = run(p, target, dropout=0.4, rng=5, checkpoint=4)
    assert_close(got, wanted, allowed(case))
    assert_same_bits({"y": got["y"]}, {"y": wanted["y"]})


def test_layouts(spec: Spec, target: str) -> None:
    p = problem(Case(spec, T=5, B=2, I=3, H=5))
    function_ = function(spec, vjp=True)
    y, _, backward = function_(p.x, p.weights, p.state, backend=target)
    dx = backward(p.dy, p.dstate)[0]
    swapped = p.x.swapaxes(0, 1)
    y_s, _, backward = function_(
        swapped, p.weights, p.state, backend=target, batch_first=True, checkpoint=2
    )
    dx_s = backward(p.dy.swapaxes(0, 1), p.dstate)[0]
    assert_close({"y": y_s, "dx": dx_s}, {"y": y.swapaxes(0, 1), "dx": dx.swapaxes(0, 1)}, 1e-12)


def test_backward_may_be_called_again(spec: Spec, target: str) -> None:
    p = problem(Case(spec, T=5, B=2, H=5))
    for options in ({"save": "recompute"}, {"checkpoint": 2}):
        _, _, backward = function(spec, vjp=True)(
            p.x, p.weights, p.state, backend=target, **options
        )
        first = backward(p.dy, p.dstate)[0]
        assert_same_bits({"dx": backward(p.dy, p.dstate)[0]}, {"dx": first})


@pytest.mark.parametrize(
    "options", [{}, {"save": "recompute"}, {"checkpoint": 2}], ids=["all", "recompute", "parts"]
)
def test_what_may_change_before_backward(
    options: dict[str, Any], spec: Spec, dtype: str, target: str
) -> None:
    """All but x and the arrays of the weights: the state, and the list of layers."""
    p = problem(Case(spec, T=5, B=2, H=5, L=2, dtype=dtype))
    wanted = function(spec, vjp=True)(p.x, p.weights, p.state, backend=target, **options)[2](
        p.dy, p.dstate
    )
    for change in ("pop", "append", "replace"):
        layers, state = list(p.weights), p.map(np.copy).state
        _, _, backward = function(spec, vjp=True)(p.x, layers, state, backend=target, **options)
        for a in state if isinstance(state, tuple) else (state,):
            a[...] = 9
        if change == "replace":
            layers[0] = None
        else:
            getattr(layers, change)(*([layers[0]] if change == "append" else []))
        found = backward(p.dy, p.dstate)
        assert_same_bits(
            {"dx": found[0]} | flatten_weights(found[1]),
            {"dx": wanted[0]} | flatten_weights(wanted[1]),
        )


def test_no_steps_at_all(spec: Spec, target: str) -> None:
    p = replace(problem(Case(spec, T=4, B=2)), lengths=np.zeros(2, int))
    assert_same_bits(run(p, target, checkpoint=2), run(p, target))


@pytest.mark.parametrize(("options", "error", "words"), [
    ({"save": "nothing"}, ValueError, ("save:", "'all' or 'recompute'", "'nothing'")),
    ({"save": True}, ValueError, ("save:", "'all' or 'recompute'", "True")),
    ({"checkpoint": 0}, ValueError, ("checkpoint:", "at least 1", "0")),
    ({"checkpoint": -3}, ValueError, ("checkpoint:", "at least 1", "-3")),
    ({"checkpoint": 2.0}, TypeError, ("checkpoint:", "int", "2.0")),
    ({"checkpoint": True}, TypeError, ("checkpoint:", "int", "True")),
])  # fmt: skip
def test_bad_options(
    options: dict[str, Any], error: type[Exception], words: tuple[str, ...], spec: Spec
) -> None:
    p = problem(Case(spec))
    with pytest.raises(error) as caught:
        function(spec, vjp=True)(p.x, p.weights, **options)
    assert all(word in str(caught.value) for word in words)


def test_checkpoints_of_two_directions(spec: Spec, target: str) -> None:
    p = problem(Case(spec, D=2))
    with pytest.raises(rnnfast.UnsupportedError, match=r"checkpoint: .*bidirectional.*recompute"):
        run(p, target, checkpoint=2)


HELD = """
import mmap, numpy as np, rnnfast
def held():
    return int(open("/proc/self/statm").read().split()[1]) * mmap.PAGESIZE
weights = rnnfast.init_weights("lstm", 64, 128, rng=0)
x = np.ones((1000, 16, 64), np.float32)
rnnfast.lstm_vjp(x[:9], weights, clip=50.0, save="{save}")[2](None)
before = held()
kept = [rnnfast.lstm_vjp(x, weights, clip=50.0, save="{save}") for _ in range(3)]
print((held() - before) / sum(y.nbytes for y, _, _ in kept))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
def test_recompute_keeps_no_gates_of_cells_with_options() -> None:
    """Of an LSTM they are 4 times y, and with what lies beside them 11."""

    def times_y(save: str) -> float:
        done = python(HELD.format(save=save))
        assert done.returncode == 0, done.stderr
        return float(done.stdout)

    assert times_y("all") > 6
    assert times_y("recompute") < 2


def test_recompute_where_the_last_state_takes_the_place_of_the_first(target: str) -> None:
    spec = Spec("lstm")
    p = problem(Case(spec, T=5, B=3, H=6))
    wanted = run(p, target, clip=0.7)
    state = tuple(s.copy() for s in p.state)
    out = (np.empty_like(wanted["y"]), state)
    _, _, backward = function(spec, vjp=True)(
        p.x, p.weights, state, backend=target, clip=0.7, save="recompute", out=out
    )
    dx, _, dstate_0 = backward(p.dy, p.dstate)
    assert_same_bits({"dx": dx, "dh_0": dstate_0[0]}, {k: wanted[k] for k in ("dx", "dh_0")})
