"""The grid engine of the backend "cuda" on the emulation of a grid (cuda_emulation.cpp).

No GPU takes part: see tests/test_cuda_emulated.py. The emulated device has few multiprocessors, so
that blocks have several units and rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_cupy
import numpy as np
import pytest
from helpers import BIASES, COTANGENTS, ROOT, STATES, Case, assert_same_bits, forward, problem, run
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cuda_emulated import (
    AHEAD,
    check_options,
    emulated,
    fields_of,
    in_order,
    kernels_of,
    text_of,
)
from tolerance import allowed, assert_agrees, assert_close, truth

import rnnfast
from bench import engines
from rnnfast.spec import CELLS, Spec

pytestmark = pytest.mark.skipif(
    fake_cupy.compiler() is None and not fake_cupy.REQUIRED,
    reason="needs a C++ compiler (g++) for the emulation",
)
DTYPES = ("float32", "float64")
NARROW = ("float16", "bfloat16")  # the subject of tests/test_cuda_narrow.py
OUR_KERNELS = ("forward_steps", "backward_steps")
DEVICES = {  # multiprocessors, bytes of shared memory for a block, tensor cores
    "V100": (80, 98304, False),
    "A100": (108, 166912, True),
    "H100": (132, 232448, True),
    "B200": (148, 232448, True),
}


@pytest.fixture(scope="module", autouse=True)
def emulation() -> Iterator[None]:
    with fake_cupy.installed():
        yield


@pytest.fixture(autouse=True)
def grid(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RNNFAST_CUDA_ENGINE", "grid")
    yield
    assert fake_cupy.damaged == []


class device:  # noqa: N801
    """The emulated one, with other limits."""

    def __init__(self, multiprocessors: int, shared: int = 232448) -> None:
        names = "MultiProcessorCount", "MaxSharedMemoryPerBlockOptin"
        self.limits = dict(zip(names, (multiprocessors, shared), strict=True))

    def __enter__(self) -> None:
        from rnnfast.backends.cuda import launch

        self.before = dict(fake_cupy.limits)
        fake_cupy.limits.update(self.limits)
        launch._devices.clear()

    def __exit__(self, *_: Any) -> None:
        from rnnfast.backends.cuda import launch

        fake_cupy.limits.update(self.before)
        launch._devices.clear()


# ----------------------------------------------------------------------------------- results


@pytest.mark.parametrize(("H", "B"), [(1, 1), (31, 3), (33, 9), (110, 17)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_cells(spec: Spec, dtype: str, H: int, B: int) -> None:
    layers = 2 if H < 100 else 1
    case = Case(spec, T=3, B=B, I=5, H=H, L=layers, D=2, dtype=dtype, ragged=H % 2 == 1)
    fake_cupy.launches.clear()
    assert_agrees(case, emulated(case))
    assert [fake_cupy.launches.count(name) for name in OUR_KERNELS] == [layers, layers]
    if H < 100:
        outputs = forward(problem(case), "cuda")
        wanted = truth(case)[0]
        assert_close(outputs, {name: wanted[name] for name in outputs}, allowed(case))


@given(data=st.data())
@settings(max_examples=20)
def test_anything(spec: Spec, data: Any) -> None:
    case = Case(
        spec,
        T=data.draw(st.integers(1, 8), "T"),
        B=data.draw(st.integers(1, 40), "B"),
        I=data.draw(st.integers(1, 9), "I"),
        H=data.draw(st.integers(1, 50), "H"),
        D=data.draw(st.integers(1, 2), "D"),
        bias=data.draw(st.sampled_from(BIASES), "bias"),
        state=data.draw(st.sampled_from(STATES), "state"),
        ragged=data.draw(st.booleans(), "ragged"),
        cotangents=data.draw(st.sampled_from(COTANGENTS), "cotangents"),
        seed=data.draw(st.integers(0, 2**32 - 1), "seed"),
    )
    with device(data.draw(st.integers(1, 20), "multiprocessors")):
        assert_agrees(case, emulated(case))


def test_order_of_threads_and_blocks_does_not_matter(spec: Spec) -> None:
    """Blocks get as far ahead of each other as barriers let them, the first or the last of them."""
    case = Case(spec, T=5, B=18, I=5, H=40, D=2, ragged=True)
    with device(24):
        wanted = emulated(case)
        for order in (1, 2, 5, AHEAD):
            with in_order(order):
                assert_same_bits(emulated(case), wanted)


def test_division_among_blocks_does_not_matter(spec: Spec) -> None:
    """To the last bit: a sum is added up alike wherever it is."""
    case = Case(spec, T=4, B=18, I=5, H=40, D=2, ragged=True)
    wanted = emulated(case)
    for multiprocessors in (1, 2, 7, 20, 60):
        with device(multiprocessors):
            assert_same_bits(emulated(case), wanted)


@pytest.mark.parametrize("cell", list(CELLS))
@given(data=st.data())
@settings(max_examples=40)
def test_options(cell: str, data: Any) -> None:
    """Any combination of those that the engine has."""
    with device(data.draw(st.sampled_from([3, 8]), "multiprocessors")):
        check_options(cell, data, data.draw(st.sampled_from([5, 18])), plain=True)


@pytest.mark.parametrize("options", [{"save": "recompute"}, {"checkpoint": 3}])
def test_saving_less(spec: Spec, options: dict[str, Any]) -> None:
    case = Case(spec, T=7, B=3, I=5, H=33, L=2, ragged=True)
    assert_agrees(case, emulated(case, **options))


def test_no_rows_and_no_lengths(spec: Spec) -> None:
    p = problem(Case(spec, T=3, B=2, I=4, H=5, D=2))
    for empty in (p.rows(slice(0)), replace(p, lengths=np.zeros(2, int))):
        wanted, found = run(empty), run(empty, "cuda")
        assert_same_bits(
            {k: abs(v) for k, v in found.items()}, {k: abs(v) for k, v in wanted.items()}
        )


# ---------------------------------------------------------------------------------- launches


def test_one_launch_for_all_steps() -> None:
    p = problem(Case(Spec("lstm"), T=20, B=3, I=5, H=33, D=2)).map(fake_cupy.asarray)
    fake_cupy.launches.clear()
    _, _, backward = rnnfast.lstm_vjp(p.x, p.weights, backend="cuda")
    assert fake_cupy.launches == ["gemm", "gemm", "forward_steps"]
    fake_cupy.launches.clear()
    backward(p.dy)
    assert fake_cupy.launches == ["backward_steps", *["gemm"] * 8]


def test_directions_that_do_not_fit_together_run_one_after_the_other() -> None:
    case = Case(Spec("lstm"), T=3, B=3, I=5, H=24, D=2)
    for multiprocessors, shared, launches in (
        (6, 1 << 16, 1),
        (6, 16 * 24 * 8, 2),
        (1, 1 << 16, 2),
    ):
        with device(multiprocessors, shared):
            fake_cupy.launches.clear()
            assert_agrees(case, emulated(case))
            assert [fake_cupy.launches.count(name) for name in OUR_KERNELS] == [launches] * 2


def test_each_launch_waits_for_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """On whatever stream, as one may be another by the same name."""
    waited: list[Any] = []
    monkeypatch.setattr(fake_cupy.Stream, "wait_event", lambda self, event: waited.append(event))
    p = problem(Case(Spec("rnn"))).map(fake_cupy.asarray)
    with device(6):
        rnnfast.rnn(p.x, p.weights)
        assert waited == []
        with fake_cupy.Stream():
            for count in (1, 2):
                rnnfast.rnn(p.x, p.weights)
                assert len(waited) == count


# ------------------------------------------------------------------------------------- choice


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(Case(Spec("lstm"), H=24)).map(fake_cupy.asarray)
    with device(6, 16 * 24 * 8 - 1):
        with pytest.raises(rnnfast.UnsupportedError, match=r"no lstm.* of 24 units in float64"):
            rnnfast.lstm(p.x, p.weights)
        monkeypatch.delenv("RNNFAST_CUDA_ENGINE")
        fake_cupy.launches.clear()
        rnnfast.lstm(p.x, p.weights)
        assert "forward" in fake_cupy.launches


@pytest.mark.parametrize(("option", "value"), [("layer_norm", True), ("proj_size", 2)])
def test_options_that_are_refused(option: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = rnnfast.init_weights("lstm", 4, 5, rng=0, dtype=np.float64, **{option: value})
    device_weights = [
        rnnfast.Weights(*(None if a is None else fake_cupy.asarray(a) for a in w)) for w in weights
    ]
    x = fake_cupy.zeros((3, 2, 4))
    with pytest.raises(rnnfast.UnsupportedError, match="RNNFAST_CUDA_ENGINE=grid: it has no lstm"):
        rnnfast.lstm(x, device_weights)
    monkeypatch.delenv("RNNFAST_CUDA_ENGINE")
    rnnfast.lstm(x, device_weights)


def test_the_engine_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(Case(Spec("gru"))).map(fake_cupy.asarray)
    monkeypatch.setenv("RNNFAST_CUDA_ENGINE", "fast")
    with pytest.raises(ValueError, match="'alternating', 'cluster', 'grid', got 'fast'"):
        rnnfast.gru(p.x, p.weights)
    for engine, kernel in (("alternating", "forward"), ("grid", "forward_steps")):
        monkeypatch.setenv("RNNFAST_CUDA_ENGINE", engine)
        fake_cupy.launches.clear()
        rnnfast.gru(p.x, p.weights)
        assert kernel in fake_cupy.launches


def test_the_table_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    from rnnfast.backends.cuda import choice

    monkeypatch.delenv("RNNFAST_CUDA_ENGINE")
    table = {("gru", "float64"): [(20, choice.Rows(0, 2)), (10, choice.Rows(9, 3))]}
    monkeypatch.setattr(choice, "_table", lambda: table)
    choice.rows.cache_clear()
    for H, B, kernel in ((10, 3, "forward_steps"), (10, 4, "forward"), (11, 2, "forward_steps")):
        p = problem(Case(Spec("gru"), H=H, B=B)).map(fake_cupy.asarray)
        fake_cupy.launches.clear()
        rnnfast.gru(p.x, p.weights)
        assert kernel in fake_cupy.launches
    assert choice.rows("gru", "float64", 21) == (0, 0)
    assert choice.rows("gru", "float32", 10) == (0, 0)
    choice.rows.cache_clear()


def test_the_table_as_it_is() -> None:
    from rnnfast.backends.cuda import choice

    stored = json.loads(choice.TABLE.read_text(encoding="utf-8"))
    found = {(e["cell"], e["dtype"]) for e in stored["most_rows"]}
    assert found == {(cell, dtype) for cell in CELLS for dtype in (*NARROW, *DTYPES)}
    assert choice.rows("lstm", "float32", 256) == (64, 1)
    assert choice.rows("lstm", "float32", 1024) == (0, 0)


def largest(cell: str, dtype: str, directions: int, limits: Any) -> int:
    """Hidden units that fit, all directions in one launch."""
    from rnnfast.backends.cuda.grid import plan
    from rnnfast.backends.cuda.launch import Limits

    low, high = 1, 1 << 14
    while high - low > 1:
        middle = (low + high) // 2
        found = plan(Spec(cell), np.dtype(dtype), middle, 8, directions, Limits(*limits, 0))
        fits = found is not None and found.directions == directions
        low, high = (middle, high) if fits else (low, middle)
    return low


def test_the_sizes_in_the_documentation() -> None:
    rows = Path(ROOT / "docs" / "cuda.md").read_text(encoding="utf-8").splitlines()
    for name, limits in DEVICES.items():
        for dtype in (*NARROW[:1], *DTYPES):
            cells = [
                " / ".join(str(largest(cell, dtype, d, limits)) for d in (1, 2))
                for cell in ("lstm", "gru", "rnn")
            ]
            shown = "16 bits" if dtype in NARROW else dtype
            assert f"| {name} | {shown} | {' | '.join(cells)} |" in rows


@given(data=st.data())
@settings(max_examples=300)
def test_plans_fit(data: Any) -> None:
    """Every block has something to do, every unit and row has a block, and all fit at once."""
    from rnnfast.backends.cuda.grid import plan
    from rnnfast.backends.cuda.launch import Limits

    cell = data.draw(st.sampled_from(list(CELLS)))
    H, B = data.draw(st.integers(1, 2048)), data.draw(st.integers(1, 300))
    directions = data.draw(st.integers(1, 2))
    limits = Limits(
        data.draw(st.integers(1, 150)), data.draw(st.sampled_from([49152, 232448])), True, 0
    )
    dtype = np.dtype(data.draw(st.sampled_from(["float32", "bfloat16"])))
    found = plan(Spec(cell), dtype, H, B, directions, limits)
    if found is None:
        least = 4 if dtype == "float32" else 8
        units = min(H, max(least, -(-H // limits.blocks)))
        beside = 0 if dtype == "float32" else 8192 + units * len(CELLS[cell].gates) * 48
        wanted = units * len(CELLS[cell].gates) * H * dtype.itemsize
        assert wanted + beside > limits.shared
        return
    assert found.shared <= limits.shared
    assert found.unit_blocks * found.row_blocks * found.directions <= limits.blocks
    assert (found.unit_blocks - 1) * found.units < H <= found.unit_blocks * found.units
    assert (found.row_blocks - 1) * found.rows < B <= found.row_blocks * found.rows


def test_the_table_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The grid engine is faster up to 4 rows, says this device; it has no clusters."""

    def timed(calls: dict[str, Any], budget: float) -> dict[str, list[float]]:
        rows = {name: call()[0].shape[1] for name, call in calls.items()}
        times = {"grid": [float(rows["alternating"])], "alternating": [4.5]}
        return {name: times[name] for name in calls}

    monkeypatch.setattr(engines.gpu, "timed", timed)
    monkeypatch.setattr(engines, "STEPS", 3)
    with device(6, 4 * 4 * 24 * 4):
        engines.choose(tmp_path / "t.json", engines.Sizes([8, 24, 32], [8, 1, 4]), 0, "emulated")
    found = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    assert found["measured"] == "emulated"
    assert {e["cluster"] for e in found["most_rows"]} == {0}
    rows = {(e["cell"], e["dtype"], e["units"]): e["grid"] for e in found["most_rows"]}
    assert len(rows) == len(found["most_rows"]) == len(CELLS) * len(engines.DTYPES) * 3
    assert [rows["lstm", "float32", units] for units in (8, 24, 32)] == [4, 4, 0]
    assert [rows["lstm", "float64", units] for units in (8, 24, 32)] == [4, 0, 0]


# ------------------------------------------------------------------------------ the emulation


def test_parameters_are_laid_out_as_the_compiler_does() -> None:
    from rnnfast.backends.cuda.parameters import BACKWARD_SEQUENCES, FORWARD_SEQUENCES

    library = fake_cupy.emulation()
    body = text_of("sequences.cuh").split("struct Sequence {")[1].split("};")[0]
    for name, dtype in (("Forward", FORWARD_SEQUENCES), ("Backward", BACKWARD_SEQUENCES)):
        assert library.size_of(f"{name}Sequences".encode()) == dtype.itemsize
        one = dtype["of"].base
        assert one.names == ("of", "step")
        assert fields_of(body) == list(one["of"].names)


def test_a_missing_barrier_is_found(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters that begin high let every block pass; that begin at -1, none."""
    case = Case(spec, T=4, B=3, I=5, H=20)
    wanted = emulated(case)
    zeros = fake_cupy.zeros

    def beginning_at(count: int) -> Any:
        def made(shape: Any, dtype: Any = float) -> Any:
            array = zeros(shape, dtype)
            if np.dtype(dtype) == np.uint64:
                array.host[...] = count
            return array

        return made

    monkeypatch.setattr(fake_cupy, "zeros", beginning_at(1 << 40))
    with pytest.raises(AssertionError):
        assert_same_bits(emulated(case), wanted)
    monkeypatch.setattr(fake_cupy, "zeros", beginning_at(2**64 - 1))
    with pytest.raises(AssertionError, match="wait for one another for ever"):
        emulated(case)


def test_every_kernel_has_run() -> None:
    fake_cupy.launches.clear()
    emulated(Case(Spec("gru")))
    assert set(kernels_of("grid.cu")) == set(OUR_KERNELS) <= set(fake_cupy.launches)
