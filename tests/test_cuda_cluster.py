"""The cluster engine of the backend "cuda", and calls with packed weights that it serves.

On the emulation of a grid (cuda_emulation.cpp), whose clusters send numbers into each other's
memory; no GPU takes part. It is built anew for each division of a layer, so that tests have few.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

import fake_cupy
import numpy as np
import pytest
from helpers import Case, assert_same_bits, forward, problem, run
from hypothesis import given, settings
from hypothesis import strategies as st
from option_sets import OPTIONS, of, with_options
from test_cuda_emulated import AHEAD, in_order
from test_cuda_grid import OUR_KERNELS, device
from tolerance import allowed, assert_agrees, assert_close, truth

import rnnfast
from rnnfast.spec import CELLS, Spec, all_specs

pytestmark = pytest.mark.skipif(
    fake_cupy.compiler() is None and not fake_cupy.REQUIRED,
    reason="needs a C++ compiler (g++) for the emulation",
)
DTYPES = ("float32", "float16", "bfloat16")
SPECS = [s for s in all_specs() if s.reset_after]
OTHERS = ("projection", "layer_norm", "layer_norm_c")  # options that other engines have


@pytest.fixture(scope="module", autouse=True)
def emulation() -> Iterator[None]:
    with fake_cupy.installed():
        yield


@pytest.fixture(autouse=True)
def clusters(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from rnnfast.backends.cuda import launch

    monkeypatch.setenv("RNNFAST_CUDA_ENGINE", "cluster")
    monkeypatch.setattr(fake_cupy, "compute_capability", "90")
    launch._devices.clear()
    yield
    launch._devices.clear()
    assert fake_cupy.damaged == []


# ----------------------------------------------------------------------------------- results


@pytest.mark.parametrize(("H", "B"), [(1, 1), (33, 9), (150, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", SPECS, ids=Spec.variants)
def test_plain_cells(spec: Spec, dtype: str, H: int, B: int) -> None:
    """A block and a few, all rows at each step and fewer and fewer, both directions."""
    case = Case(spec, T=4, B=B, I=5, H=H, L=2, D=2, dtype=dtype, ragged=H % 2 == 1)
    with device(40):
        fake_cupy.launches.clear()
        assert_agrees(case, run(problem(case), "cuda"))
        assert [fake_cupy.launches.count(name) for name in OUR_KERNELS] == [2, 2]
        outputs, wanted = forward(problem(case), "cuda"), truth(case)[0]
        assert_close(outputs, {name: wanted[name] for name in outputs}, allowed(case))


@pytest.mark.parametrize("spec", [s for s in SPECS if s.nonlinearity == "tanh"], ids=Spec.variants)
def test_pairs_of_options(spec: Spec) -> None:
    names = [name for name in of(spec) if name not in OTHERS]
    for k, pair in enumerate(combinations(names, 2)):
        ragged = k % 3 == 0
        case = Case(spec, T=4, B=3, I=4, H=9, L=2, D=1 + k % 2, dtype="float32", ragged=ragged)
        case = with_options(case, pair)
        assert_agrees(case, run(problem(case), "cuda"))


@pytest.mark.parametrize("name", ["truncate", "recurrent_dropout", "zoneout", "peepholes", "clip"])
def test_options_across_blocks(name: str) -> None:
    for ragged in (False, True):
        case = Case(Spec("lstm"), T=5, B=3, I=4, H=70, D=2, dtype="float32", ragged=ragged)
        case = OPTIONS[name].change(case)
        with device(60):
            assert_agrees(case, run(problem(case), "cuda"))


@pytest.mark.parametrize("options", [{"save": "recompute"}, {"checkpoint": 3}])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_saving_less(dtype: str, options: dict[str, Any]) -> None:
    case = Case(Spec("gru"), T=7, B=3, I=5, H=13, L=2, dtype=dtype, ragged=True)
    assert_agrees(case, run(problem(case), "cuda", **options))


def test_no_rows_and_no_lengths() -> None:
    p = problem(Case(Spec("lstm"), T=3, B=2, I=4, H=5, D=2, dtype="float32"))
    for empty in (p.rows(slice(0)), replace(p, lengths=np.zeros(2, int))):
        wanted, found = run(empty), run(empty, "cuda")
        assert_same_bits(
            {k: abs(v) for k, v in found.items()}, {k: abs(v) for k, v in wanted.items()}
        )


@pytest.mark.parametrize(
    ("cell", "H", "B", "multiprocessors"),
    [("lstm", 150, 9, 20), ("rnn", 300, 6, 20), ("gru", 150, 5, 40), ("gated", 90, 20, 6)],
)
def test_order_of_threads_and_blocks_does_not_matter(
    cell: str, H: int, B: int, multiprocessors: int
) -> None:
    """Blocks get as far ahead of each other as their mail lets them, the first or the last."""
    case = Case(Spec(cell), T=6, B=B, I=5, H=H, D=2, dtype="float32", ragged=True)
    with device(multiprocessors):
        wanted = run(problem(case), "cuda")
        assert_agrees(case, wanted)
        for order in (1, 2, 5, AHEAD):
            with in_order(order):
                assert_same_bits(run(problem(case), "cuda"), wanted)


def test_blocks_that_do_not_wait_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(Spec("lstm"), T=6, B=2, I=5, H=150, dtype="float32")
    wanted = run(problem(case), "cuda")
    monkeypatch.setattr(fake_cupy, "impatient", True)
    with pytest.raises(AssertionError):
        assert_same_bits(run(problem(case), "cuda"), wanted)


# ------------------------------------------------------------------------------------- plans


@given(data=st.data())
@settings(max_examples=300)
def test_plans_fit(data: Any) -> None:
    """Every unit and row has a block, every block has something to do, and its memory suffices."""
    from rnnfast.backends.cuda import cluster
    from rnnfast.backends.cuda.launch import Limits

    spec = Spec(data.draw(st.sampled_from(list(CELLS))))
    H, B = data.draw(st.integers(1, 700)), data.draw(st.integers(1, 300))
    backward, equal = data.draw(st.booleans()), data.draw(st.booleans())
    limits = Limits(
        data.draw(st.integers(1, 150)),
        data.draw(st.sampled_from([49152, 232448])),
        True,
        data.draw(st.sampled_from([8, 16])),
    )
    dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
    gates = len(spec.info.gates)
    directions = data.draw(st.integers(1, 2))
    found = cluster.plan(spec, dtype, H, B, directions, equal, backward, limits)
    if found is None:
        assert 8 * limits.clusters < H or limits.shared < 100000
        return
    assert found.shared <= limits.shared
    blocks, rows, units, lanes, numbers, *known = cluster.division_of(found)
    assert blocks <= limits.clusters
    assert (blocks - 1) * found.units < H <= blocks * found.units
    assert found.units == 256 // lanes * units
    assert lanes * numbers >= H * (4 if backward and gates > 1 else 1)
    assert (found.row_blocks - 1) * found.rows < B <= found.row_blocks * found.rows
    assert found.rows % rows == 0
    assert known == [H, found.rows, B % found.rows == 0, equal]


def test_the_whole_of_an_h100() -> None:
    """One cluster for one row; many where there are many rows."""
    from rnnfast.backends.cuda import cluster
    from rnnfast.backends.cuda.launch import Limits

    def plan(cell: str, H: int, B: int, backward: bool = False) -> Any:
        limits = Limits(132, 232448, True, 16)
        return cluster.plan(Spec(cell), np.dtype("float32"), H, B, 1, True, backward, limits)

    assert plan("lstm", 64, 1)[:1] == (1,)
    assert plan("lstm", 64, 64).row_blocks == 64
    assert 1 < plan("lstm", 256, 8).blocks <= 16
    assert plan("lstm", 512, 1) is None
    assert plan("rnn", 512, 1).blocks <= 16


def test_small_devices_have_the_clusters_that_all_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver refuses one of 16 blocks where they do not fit."""
    from rnnfast.backends.cuda import launch

    for processors, blocks in ((78, 8), (132, 16)):
        monkeypatch.setitem(fake_cupy.limits, "MultiProcessorCount", processors)
        launch._devices.clear()
        assert launch.limits().clusters == blocks
    monkeypatch.setattr(fake_cupy, "compute_capability", "89")
    launch._devices.clear()
    assert launch.limits().clusters == 0


def test_what_there_is_not_is_refused() -> None:
    for case in (
        Case(Spec("lstm"), H=5),
        Case(Spec("lstm"), H=512, dtype="float32"),
        Case(Spec("gru", reset_after=False), H=5, dtype="float32"),
        OPTIONS["projection"].change(Case(Spec("lstm"), H=5, dtype="float32")),
        OPTIONS["layer_norm"].change(Case(Spec("rnn"), H=5, dtype="float32")),
    ):
        with pytest.raises(rnnfast.UnsupportedError, match="RNNFAST_CUDA_ENGINE=cluster"):
            forward(problem(case).map(fake_cupy.asarray), "cuda")


def test_devices_without_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    from rnnfast.backends.cuda import launch

    for capability in ("80", "89", "120"):
        monkeypatch.setattr(fake_cupy, "compute_capability", capability)
        launch._devices.clear()
        with pytest.raises(rnnfast.UnsupportedError, match="cluster"):
            forward(problem(Case(Spec("rnn"), H=5, dtype="float32")), "cuda")


def test_the_table_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RNNFAST_CUDA_ENGINE")
    for dtype, kernels in (("float32", [1, 1]), ("float64", [1, 1])):
        p = problem(Case(Spec("gru"), B=2, H=9, dtype=dtype)).map(fake_cupy.asarray)
        fake_cupy.launches.clear()
        run(p, "cuda")
        assert [fake_cupy.launches.count(name) for name in OUR_KERNELS] == kernels


def test_few_launches() -> None:
    p = problem(Case(Spec("lstm"), T=9, B=3, I=5, H=33, dtype="float32")).map(fake_cupy.asarray)
    fake_cupy.launches.clear()
    _, _, backward = rnnfast.lstm_vjp(p.x, p.weights, backend="cuda")
    assert fake_cupy.launches == ["gemm", "forward_steps"]
    fake_cupy.launches.clear()
    backward(p.dy)
    assert fake_cupy.launches == ["backward_steps", *["gemm"] * 4]


# --------------------------------------------------------------------------- packed weights


@pytest.mark.parametrize(
    ("L", "D", "dtype"), [(2, 2, "float32"), (1, 1, "float16"), (3, 1, "float32")]
)
@pytest.mark.parametrize("spec", SPECS, ids=Spec.variants)
def test_packed_weights_give_the_same_bits(spec: Spec, L: int, D: int, dtype: str) -> None:
    p = problem(Case(spec, T=4, B=3, I=5, H=9, L=L, D=D, dtype=dtype)).map(fake_cupy.asarray)
    how = {"nonlinearity": spec.nonlinearity} if spec.cell == "rnn" else {}
    packed = rnnfast.pack(p.weights, cell=spec.cell, **how)
    function = getattr(rnnfast, spec.cell)
    states = (None, p.state)
    for state in states:
        wanted = function(p.x, p.weights, state, **how)
        for _ in range(2):
            fake_cupy.launches.clear()
            found = function(p.x, packed, state, **how)
            assert fake_cupy.launches == [*["gemm"] * D, "forward_steps"] * L
            assert_same_bits(_arrays(found), _arrays(wanted))
    if not how or spec.nonlinearity == "tanh":
        assert packed.shortcut.launches.cache_info().currsize == 1


def _arrays(results: Any) -> dict[str, Any]:
    y, state_n = results
    states = state_n if isinstance(state_n, tuple) else (state_n,)
    return {"y": y.get(), **{f"state_n[{k}]": s.get() for k, s in enumerate(states)}}


def test_what_goes_the_long_way_with_packed_weights() -> None:
    p = problem(Case(Spec("lstm"), T=4, B=3, I=5, H=9, dtype="float32"))
    device = p.map(fake_cupy.asarray)
    packed = rnnfast.pack(device.weights, cell="lstm")
    wanted = rnnfast.lstm(device.x, device.weights, device.state)
    T_first = fake_cupy.asarray(np.ascontiguousarray(p.x.swapaxes(0, 1)))
    y, state_n = rnnfast.lstm(T_first, packed, device.state, batch_first=True)
    assert_same_bits(_arrays((y.swapaxes(0, 1), state_n)), _arrays(wanted))
    short = rnnfast.lstm(device.x, packed, device.state, lengths=[4, 4, 4])
    assert_same_bits(_arrays(short), _arrays(wanted))
    out = fake_cupy.empty(wanted[0].shape, np.float32)
    assert rnnfast.lstm(device.x, packed, device.state, out=out)[0] is out
    np.testing.assert_array_equal(out.get(), wanted[0].get())
    one_row, _ = rnnfast.lstm(device.x[:, 0], packed)
    np.testing.assert_allclose(one_row.get(), rnnfast.lstm(device.x, packed)[0].get()[:, 0], 1e-5)
    for wrong, match in (
        ((fake_cupy.zeros((4, 3, 6), np.float32), packed), "x: expected 5 features"),
        ((fake_cupy.zeros((4, 3, 5), np.float64), packed), "x: expected dtype float32"),
        ((device.x, packed, device.h_0), "state"),
        ((device.x, packed, (device.h_0[:, :2], device.h_0)), "h_0"),
    ):
        with pytest.raises((TypeError, ValueError), match=match):
            rnnfast.lstm(*wrong)


def test_so_many_shapes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from rnnfast.backends.cuda import inference

    monkeypatch.setattr(inference, "_KEPT", 3)
    p = problem(Case(Spec("rnn"), T=6, B=3, I=5, H=9, dtype="float32")).map(fake_cupy.asarray)
    packed = rnnfast.pack(p.weights, cell="rnn")
    for T in (1, 2, 3, 1, 4, 5):
        y, _ = rnnfast.rnn(p.x[:T], packed)
        np.testing.assert_array_equal(y.get(), rnnfast.rnn(p.x[:T], p.weights)[0].get())
        assert packed.shortcut.launches.cache_info().currsize <= 3


def test_packed_weights_where_clusters_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RNNFAST_CUDA_ENGINE")
    p = problem(Case(Spec("lstm"), T=2, B=1, I=3, H=300, dtype="float32")).map(fake_cupy.asarray)
    packed = rnnfast.pack(p.weights, cell="lstm")
    monkeypatch.setenv("RNNFAST_CUDA_ENGINE", "alternating")
    fake_cupy.launches.clear()
    rnnfast.lstm(p.x, packed)
    assert "forward" in fake_cupy.launches
