"""The backend "cuda" in float16 and bfloat16, on the emulation of CuPy (fake_cupy.py).

No GPU takes part: see tests/test_cuda_emulated.py. What may differ is stated in tolerance.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

import fake_cupy
import numpy as np
import pytest
from helpers import Case, assert_same_bits, forward, function, problem, run
from option_sets import OPTIONS, of, with_options
from test_cuda_emulated import AHEAD, in_order
from test_cuda_grid import OUR_KERNELS, device
from tolerance import allowed, assert_agrees, assert_close, finfo, truth

import rnnfast
from rnnfast.spec import Spec, all_specs

pytestmark = pytest.mark.skipif(
    fake_cupy.compiler() is None and not fake_cupy.REQUIRED,
    reason="needs a C++ compiler (g++) for the emulation",
)
DTYPES = ("float16", "bfloat16")
ENGINES = ("alternating", "grid")
STORED = {"float16": b"rnnfast::Float16", "bfloat16": b"rnnfast::BFloat16"}
# Without kinks, at which a rounding may rightly change a gradient by a lot, and without batch
# normalisation, which is refused.
SMOOTH = (
    *("projection", "peepholes", "layer_norm", "layer_norm_c", "output_activation"),
    *("input_forget", "truncate", "recurrent_dropout", "zoneout", "dropconnect", "dropout"),
)
ALTERNATING_ONLY = {"projection", "layer_norm", "layer_norm_c"}
CELLS = [s for s in all_specs() if s.nonlinearity == "tanh"]


@pytest.fixture(scope="module", autouse=True)
def emulation() -> Iterator[None]:
    with fake_cupy.installed():
        yield


@pytest.fixture(autouse=True)
def memory_is_whole() -> Iterator[None]:
    yield
    assert fake_cupy.damaged == []


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RNNFAST_CUDA_ENGINE", request.param)
    return str(request.param)


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def on_device(array: Any, dtype: Any = None) -> Any:
    return fake_cupy.asarray(np.asarray(array, dtype))


# ------------------------------------------------------------------------------------ rounding


def test_the_emulation_rounds_as_numpy_does(dtype: str) -> None:
    """Every number of 16 bits and what lies around it: ties, denormals, overflow, both signs."""
    library, stored = fake_cupy.emulation(), STORED[dtype]
    every = np.arange(1 << 16, dtype=np.uint16)
    values = np.empty(every.size, np.float32)
    library.values_of(stored, every.ctypes, values.ctypes, ctypes.c_longlong(every.size))
    wanted = every.view(dtype).astype(np.float32)
    np.testing.assert_array_equal(values, wanted)
    finite = np.sort(wanted[np.isfinite(wanted)])
    ties = finite[1:] / 2 + finite[:-1] / 2
    around = np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf))
    largest = np.float32([65519.9, 65520, 65536, 3.39e38, 3.4e38, np.inf, -np.inf])
    given = np.concatenate([finite, ties, *around, largest])
    found = np.empty(given.size, np.uint16)
    library.round_to(stored, given.ctypes, found.ctypes, ctypes.c_longlong(given.size))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found, given.astype(dtype).view(np.uint16))
    nan = np.full(1, np.nan, np.float32)
    library.round_to(stored, nan.ctypes, found.ctypes, ctypes.c_longlong(1))
    assert np.isnan(found[:1].view(dtype).astype(np.float32))


# ------------------------------------------------------------------------------------- results


@pytest.mark.parametrize(("H", "B"), [(1, 1), (31, 3), (66, 9)])
def test_plain_cells(spec: Spec, engine: str, dtype: str, H: int, B: int) -> None:
    layers = 2 if H < 60 else 1
    case = Case(spec, T=4, B=B, I=5, H=H, L=layers, D=2, dtype=dtype, ragged=H % 2 == 1)
    fake_cupy.launches.clear()
    assert_agrees(case, run(problem(case), "cuda"))
    in_one_launch = [fake_cupy.launches.count(name) for name in OUR_KERNELS]
    assert in_one_launch == ([layers, layers] if engine == "grid" else [0, 0])
    outputs, wanted = forward(problem(case), "cuda"), truth(case)[0]
    assert_close(outputs, {name: wanted[name] for name in outputs}, allowed(case))


@pytest.mark.parametrize("T", [30, 100])
def test_many_steps(engine: str, dtype: str, T: int) -> None:
    for spec in CELLS[:3]:
        case = Case(spec, T=T, B=2, I=6, H=20, dtype=dtype)
        assert_agrees(case, run(problem(case), "cuda"))


@pytest.mark.parametrize("spec", CELLS, ids=Spec.variants)
def test_pairs_of_options(spec: Spec, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name in of(spec) if name in SMOOTH]
    if engine == "grid":
        names = [name for name in names if name not in ALTERNATING_ONLY]
    pairs = list(combinations(names, 2))
    assert len(pairs) >= 10
    for k, pair in enumerate(pairs):
        case = Case(spec, T=4, B=3, I=4, H=9, L=2, D=1 + k % 2, dtype="float16", ragged=k % 3 == 0)
        case = with_options(case, pair)
        assert_agrees(case, run(problem(case), "cuda"))


@pytest.mark.parametrize("name", sorted({"clip", "grad_clip", "training", "variational"}))
def test_other_options(name: str, engine: str, dtype: str) -> None:
    case = OPTIONS[name].change(Case(Spec("lstm"), T=4, B=3, I=4, H=9, L=2, dtype=dtype))
    if name == "training":
        case = OPTIONS["zoneout"].change(case)
    assert_agrees(case, run(problem(case), "cuda"))


@pytest.mark.parametrize("options", [{"save": "recompute"}, {"checkpoint": 3}])
def test_saving_less(spec: Spec, engine: str, dtype: str, options: dict[str, Any]) -> None:
    case = Case(spec, T=7, B=3, I=5, H=13, L=2, dtype=dtype, ragged=True)
    whole, found = (run(problem(case), "cuda", **more) for more in ({}, options))
    assert_agrees(case, found)
    bits = found if "save" in options else [k for k in found if k in ("y", "h_n", "c_n")]
    assert_same_bits({k: found[k] for k in bits}, {k: whole[k] for k in bits})


def test_no_rows_and_no_lengths(engine: str, dtype: str) -> None:
    p = problem(Case(Spec("lstm"), T=3, B=2, I=4, H=5, D=2, dtype=dtype))
    for empty in (p.rows(slice(0)), replace(p, lengths=np.zeros(2, int))):
        found, wanted = run(empty, "cuda"), run(empty.astype(np.float64))
        for name, array in found.items():
            assert array.dtype == dtype
            np.testing.assert_array_equal(array, wanted[name].astype(dtype))


def test_order_and_division_do_not_matter(engine: str, dtype: str) -> None:
    for spec in (Spec("lstm"), Spec("gru"), Spec("gru", reset_after=False)):
        case = Case(spec, T=3, B=10, I=5, H=34, D=2, dtype=dtype, ragged=True)
        wanted = run(problem(case), "cuda")
        for multiprocessors, order in ((6, 1), (20, 2), (2, 5), (2, AHEAD)):
            with device(multiprocessors), in_order(order):
                assert_same_bits(run(problem(case), "cuda"), wanted)


def test_a_graph_gives_the_bits_of_single_launches(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNFAST_CUDA_ENGINE", "alternating")
    p = problem(Case(Spec("gru"), T=4, B=3, I=5, H=33, D=2, dtype=dtype)).map(fake_cupy.asarray)
    first = run(p, "cuda")
    fake_cupy.launches.clear()
    for _ in range(8):
        assert_same_bits(run(p, "cuda"), first)
    assert fake_cupy.launches.count("graph") > 0


@pytest.mark.parametrize(("H", "B"), [(5, 1), (66, 9)])
def test_multiply_adds_where_tensor_cores_lack_the_instruction(
    spec: Spec, H: int, B: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNFAST_CUDA_ENGINE", "grid")
    monkeypatch.setattr(fake_cupy, "compute_capability", "70")
    case = Case(spec, T=4, B=B, I=5, H=H, D=2, dtype="float16", ragged=H % 2 == 1)
    with device(6):  # the emulation refuses the instruction
        assert_agrees(case, run(problem(case), "cuda"))


def test_how_products_are_made() -> None:
    from rnnfast.backends.cuda.grid import _PARTS, plan
    from rnnfast.backends.cuda.launch import Limits

    assert fake_cupy.emulation().size_of(b"TensorCores") == _PARTS
    for name, cores, rows, way in (
        ("float16", True, 1, "TensorCores"),
        ("bfloat16", True, 64, "TensorCores"),
        ("float16", False, 64, "Lanes<8>"),
        ("float16", False, 1, "Lanes<1>"),
        ("float32", True, 64, "Lanes<8>"),
    ):
        found = plan(Spec("lstm"), np.dtype(name), 256, rows, 1, Limits(100, 1 << 17, cores, 0))
        assert found is not None
        assert found.products == way


@pytest.mark.parametrize("H", [15, 16, 17, 127, 128, 129, 150])
def test_tiles_of_every_length(H: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Around the 16 numbers of a tile, and the 128 that eight warps read at a time."""
    monkeypatch.setenv("RNNFAST_CUDA_ENGINE", "grid")
    for spec in (Spec("rnn"), Spec("gru", reset_after=False)):
        case = Case(spec, T=3, B=9, I=5, H=H, dtype="float16")
        with device(4):
            assert_agrees(case, run(problem(case), "cuda"))


# ----------------------------------------------------------------------- float32 where it matters


def test_the_state_is_carried_in_float32(engine: str, dtype: str) -> None:
    """Steps that are too small for 16 bits: c and h would stand still halfway."""
    T, one = 1500, np.ones((1, 1))
    x = on_device(np.zeros((T, 1, 1)), dtype)
    w = on_device(0 * one.repeat(4, 0), dtype)
    bias = on_device([0, 30, 0.003, 30], dtype)  # i = 1/2, f = o = 1
    y, (_, c_n) = rnnfast.lstm(x, rnnfast.Weights(w, w, bias))
    wanted = T / 2 * np.tanh(float(bias.get()[2]))
    assert wanted > 2
    assert abs(float(c_n.get()[0, 0, 0]) - wanted) <= float(finfo(dtype).eps) * wanted
    w, bias = (on_device(a.get()[:3], dtype) for a in (w, on_device([0, 7, 1], dtype)))  # z = 0.999
    y, h_n = rnnfast.gru(x, rnnfast.Weights(w, w, bias))
    wanted = np.tanh(1) * (1 - (1 / (1 + np.exp(-7.0))) ** T)
    assert abs(float(h_n.get()[0, 0, 0]) - wanted) <= float(finfo(dtype).eps) * wanted
    assert y.get()[-1] == h_n.get()[0]


@pytest.mark.parametrize(("T", "B", "checkpoint"), [(60, 50, None), (700, 3, 1)])
def test_gradients_of_weights_are_added_up_in_float32(
    T: int, B: int, checkpoint: int | None, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of ones: 16 bits would stand still at 2048, or at 256."""
    monkeypatch.setenv("RNNFAST_CUDA_ENGINE", "alternating")
    one = np.ones((1, 1))
    x = on_device(np.ones((T, B, 1)), dtype)
    weights = rnnfast.Weights(*(on_device(a, dtype) for a in (one, 0 * one, one[0], one[0])))
    *_, backward = rnnfast.rnn_vjp(x, weights, nonlinearity="linear", checkpoint=checkpoint)
    _, d, _ = backward(x)
    for gradient in (d.w_ih, d.b_ih, d.b_hh):
        assert gradient.dtype == dtype
        assert float(gradient.get().reshape(())) == float(np.float32(T * B).astype(dtype))


# ------------------------------------------------------------------------------ the public face


def test_everything_has_the_dtype_of_the_arguments(spec: Spec, engine: str, dtype: str) -> None:
    p = problem(Case(spec, T=3, B=2, dtype=dtype)).map(fake_cupy.asarray)
    y, state, backward = function(spec, vjp=True)(p.x, p.weights, p.state)
    dx, dweights, dstate = backward(p.dy)
    pairs = [s if isinstance(s, tuple) else (s,) for s in (state, dstate)]
    for array in (y, dx, *dweights[0][:4], *pairs[0], *pairs[1]):
        assert array.dtype == dtype


def test_out_layouts_and_packed_weights(dtype: str) -> None:
    p = problem(Case(Spec("lstm"), T=4, B=3, I=5, H=7, L=2, dtype=dtype))
    d = p.map(fake_cupy.asarray)
    wanted = forward(p, "cuda")
    y = fake_cupy.empty(wanted["y"].shape, dtype)
    found = rnnfast.lstm(d.x, d.weights, d.state, out=(y, d.state))
    assert found[0] is y
    assert_same_bits({"y": y.get(), "h_n": d.h_0.get(), "c_n": d.c_0.get()}, wanted)
    d = p.map(fake_cupy.asarray)
    packed = rnnfast.pack(d.weights, cell="lstm")
    assert_same_bits(forward(d, "cuda", weights=packed), wanted)
    y, _ = rnnfast.lstm(d.x.swapaxes(0, 1), d.weights, d.state, batch_first=True)
    assert_same_bits({"y": y.swapaxes(0, 1).get()}, {"y": wanted["y"]})


def test_other_backends_refuse_them(dtype: str) -> None:
    p = problem(Case(Spec("lstm"), dtype=dtype))
    words = rf"x: expected dtype float32 or float64, got {dtype}; backend 'cuda' takes float16 and"
    for backend in ("auto", "native", "numba", "reference"):
        if rnnfast.backends().get(backend) is not None:
            continue
        with pytest.raises(TypeError, match=words):
            rnnfast.lstm(p.x, p.weights, backend=backend)
    with pytest.raises(TypeError, match=r"weights\[0\].w_ih: .*float32 or float64.*'cuda' takes"):
        rnnfast.pack(p.weights, cell="lstm")


def test_nothing_is_cast_in_silence(dtype: str) -> None:
    d = problem(Case(Spec("lstm"), dtype=dtype)).map(fake_cupy.asarray)
    other = d.map(lambda a: a)
    single = problem(Case(Spec("lstm"), dtype="float32")).map(fake_cupy.asarray)
    other = problem(Case(Spec("lstm"), dtype="float16" if dtype == "bfloat16" else "bfloat16"))
    other = other.map(fake_cupy.asarray)
    for wrong in (single, other):
        with pytest.raises(TypeError, match=f"w_ih: expected dtype {dtype} as the other arrays"):
            rnnfast.lstm(d.x, wrong.weights)
        with pytest.raises(TypeError, match=f"h_0: expected dtype {dtype} as the other arrays"):
            rnnfast.lstm(d.x, d.weights, wrong.state)
        *_, backward = rnnfast.lstm_vjp(d.x, d.weights)
        with pytest.raises(TypeError, match=f"dy: expected dtype {dtype} as the other arrays"):
            backward(wrong.dy)
    with pytest.raises(TypeError, match="h_0: expected an array on a CUDA device"):
        rnnfast.lstm(d.x, d.weights, tuple(s.get() for s in d.state))
    integers = fake_cupy.asarray(np.zeros((5, 3, 4), np.int32))
    with pytest.raises(TypeError, match="x: expected dtype float16, bfloat16, float32 or float64"):
        rnnfast.lstm(integers, d.weights)


def test_what_16_bits_do_not_have(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = OPTIONS["batch_norm"].change(Case(Spec("lstm"), dtype=dtype))
    p = problem(case).map(fake_cupy.asarray)
    with pytest.raises(rnnfast.UnsupportedError, match=rf"bn_ih: .*{dtype}.*float32 or float64"):
        rnnfast.lstm(p.x, p.weights)
    monkeypatch.setattr(fake_cupy, "compute_capability", "75")
    p = problem(Case(Spec("lstm"), dtype=dtype)).map(fake_cupy.asarray)
    with device(6):  # whose limits are asked for anew
        if dtype == "float16":
            rnnfast.lstm(p.x, p.weights)
            return
        wanted = r"8\.0 on, this device has 7\.5; .*float16"
        with pytest.raises(rnnfast.UnsupportedError, match=wanted):
            rnnfast.lstm(p.x, p.weights)
