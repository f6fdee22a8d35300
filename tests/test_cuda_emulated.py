"""The backend "cuda" on an emulation of CuPy (fake_cupy.py): its Python, its kernels' logic; the
alternating engine. tests/test_cuda_grid.py and test_cuda_cluster.py have the others.

No GPU takes part. tests/test_cuda_compiles.py compiles the same kernels for GPUs, and
tests/test_cuda.py runs them where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import fake_cupy
import numpy as np
import pytest
from helpers import (
    BIASES,
    COTANGENTS,
    STATES,
    Case,
    assert_same_bits,
    flatten_state,
    flatten_weights,
    forward,
    function,
    problem,
    run,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tolerance import allowed, assert_agrees, assert_close, truth

import rnnfast
from bench import gpu
from bench.problem import draw
from bench.shapes import Shape
from rnnfast.spec import ACTIVATIONS, CELLS, Spec, all_specs

pytestmark = pytest.mark.skipif(
    fake_cupy.compiler() is None and not fake_cupy.REQUIRED,
    reason="needs a C++ compiler (g++) for the emulation",
)
DTYPES = ("float32", "float64")
AHEAD = -1  # an order: each warp goes on as far as it gets before the next one runs
# What the fields of the kernels' structs are declared as.
_KINDS = (
    *("const T*", "const S*", "const Index*", "const void*", "T*", "S*", "Count*", "void*"),
    *("Index", "Options"),
)


@pytest.fixture(scope="module", autouse=True)
def emulation() -> Iterator[None]:
    with fake_cupy.installed():
        yield


@pytest.fixture(autouse=True)
def alternating(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNFAST_CUDA_ENGINE", "alternating")


@pytest.fixture(autouse=True)
def memory_is_whole() -> Iterator[None]:
    yield
    assert fake_cupy.damaged == []


def on_host(results: dict[str, Any]) -> dict[str, Any]:
    for name, array in results.items():
        assert isinstance(array, fake_cupy.ndarray), f"{name} is not on the device"
    return {name: array.get() for name, array in results.items()}


def emulated(case: Case, **options: Any) -> dict[str, Any]:
    return run(problem(case), "cuda", **options)


# ------------------------------------------------------------------------------- plain cells


@pytest.mark.parametrize("H", [1, 31, 33, 257])
@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_cells(spec: Spec, dtype: str, H: int) -> None:
    case = Case(spec, T=4, B=3, I=5, H=H, L=2, D=2, dtype=dtype, ragged=H % 2 == 1)
    assert_agrees(case, emulated(case))
    outputs = forward(problem(case), "cuda")
    wanted = truth(case)[0]
    assert_close(outputs, {name: wanted[name] for name in outputs}, allowed(case))


@given(data=st.data())
def test_anything(spec: Spec, data: Any) -> None:
    size = st.integers(1, 40)
    case = Case(
        spec,
        T=data.draw(st.integers(1, 8), "T"),
        B=data.draw(st.integers(1, 6), "B"),
        I=data.draw(size, "I"),
        H=data.draw(size, "H"),
        L=data.draw(st.integers(1, 3), "L"),
        D=data.draw(st.integers(1, 2), "D"),
        bias=data.draw(st.sampled_from(BIASES), "bias"),
        state=data.draw(st.sampled_from(STATES), "state"),
        ragged=data.draw(st.booleans(), "ragged"),
        cotangents=data.draw(st.sampled_from(COTANGENTS), "cotangents"),
        seed=data.draw(st.integers(0, 2**32 - 1), "seed"),
    )
    assert_agrees(case, emulated(case))


def test_order_of_threads_and_blocks_does_not_matter(spec: Spec) -> None:
    case = Case(spec, T=3, B=3, I=5, H=70, D=2)
    wanted = emulated(case)
    for order in (1, 2, 5, AHEAD):
        with in_order(order):
            assert_same_bits(emulated(case), wanted)


class in_order:  # noqa: N801
    def __init__(self, order: int) -> None:
        self.order = order

    def __enter__(self) -> None:
        fake_cupy.order = self.order

    def __exit__(self, *_: Any) -> None:
        fake_cupy.order = 0


@pytest.mark.parametrize("options", [{"save": "recompute"}, {"checkpoint": 3}])
def test_saving_less_gives_the_same_bits(spec: Spec, options: dict[str, Any]) -> None:
    case = Case(spec, T=7, B=3, I=5, H=33, L=2, ragged=True)
    assert_agrees(case, emulated(case, **options))
    if "save" in options:
        assert_same_bits(emulated(case, **options), emulated(case))


def test_no_rows_at_all(spec: Spec) -> None:
    p = problem(Case(spec, T=3, B=2, I=4, H=5, D=2)).rows(slice(0))
    wanted, found = run(p), run(p, "cuda")
    assert_same_bits({k: abs(v) for k, v in found.items()}, wanted)


def test_rows_of_no_length(spec: Spec) -> None:
    p = replace(problem(Case(spec, T=3, B=2, I=4, H=5, D=2)), lengths=np.zeros(2, int))
    wanted, found = run(p), run(p, "cuda")
    assert_same_bits({k: abs(v) for k, v in found.items()}, {k: abs(v) for k, v in wanted.items()})


# ------------------------------------------------------------------------------------ options


def options_of(cell: str, draw: Any) -> dict[str, Any]:
    """Options of a call, at random."""
    names = st.sampled_from([None, *ACTIVATIONS])
    wanted = {
        "gate_activation": names if cell != "rnn" else st.none(),
        "activation": names if cell != "rnn" else st.none(),
        "output_activation": names if cell == "lstm" else st.none(),
        "nonlinearity": names if cell == "rnn" else st.none(),
        "clip": st.sampled_from([None, 0.7]),
        "input_forget": st.sampled_from([None, True] if cell == "lstm" else [None]),
        "grad_clip": st.sampled_from([None, 0.05]),
        "truncate": st.sampled_from([None, 1, 2]),
        "recurrent_dropout": st.sampled_from([None, 0.4]),
        "zoneout": st.sampled_from([None, 0.3, (0.2, 0.5)]),
        "dropconnect": st.sampled_from([None, 0.3]),
        "dropout": st.sampled_from([None, 0.3]),
        "variational": st.sampled_from([None, True]),
        "training": st.sampled_from([None, None, False]),
        "reset_after": st.booleans() if cell == "gru" else st.none(),
    }
    drawn = {name: draw(values) for name, values in wanted.items()}
    return {name: value for name, value in drawn.items() if value is not None}


def weights_of(cell: str, draw: Any, features: int, hidden: int, plain: bool = False) -> list[Any]:
    """Those of layers; `plain` ones have neither layer normalisation nor projection."""
    lstm = cell == "lstm"
    norm = draw(st.sampled_from(["", "", "batch"] if plain else ["", "", "layer", "batch"]))
    weights = rnnfast.init_weights(
        cell,
        features,
        hidden,
        num_layers=draw(st.integers(1, 2)),
        bidirectional=draw(st.booleans()),
        proj_size=draw(st.sampled_from([0, 3])) if lstm and not plain else 0,
        peepholes=lstm and draw(st.booleans()),
        layer_norm=norm == "layer",
        batch_norm=norm == "batch",
        bias=draw(st.booleans()),
        dtype=np.float64,
        rng=draw(st.integers(0, 99)),
    )
    rng = np.random.default_rng(1)

    def changed(w: Any) -> Any:
        if not isinstance(w, rnnfast.Weights):
            return tuple(map(changed, w))
        named = {
            k: v for k, v in w._asdict().items() if k.startswith(("ln", "bn")) and v is not None
        }
        return w._replace(**{k: v + rng.uniform(0.1, 0.5, v.shape) for k, v in named.items()})

    weights = [changed(w) for w in weights]
    if norm == "layer" and lstm and draw(st.booleans()):
        strip = {"ln_c": None, "ln_c_shift": None}
        weights = [
            w._replace(**strip)
            if isinstance(w, rnnfast.Weights)
            else tuple(v._replace(**strip) for v in w)
            for w in weights
        ]
    return weights


def results(cell: str, backend: str, p: Any, weights: Any, **options: Any) -> dict[str, Any]:
    y, state, backward = getattr(rnnfast, cell + "_vjp")(
        p.x, weights, p.state, lengths=p.lengths, backend=backend, rng=5, **options
    )
    p_state = flatten_state(p.spec, state, "h_n", "c_n")
    dx, dweights, dstate = backward(p.dy, p.dstate)
    gradients = {"dx": dx, **flatten_state(p.spec, dstate, "dh_0", "dc_0")}
    return {"y": y, **p_state, **gradients, **flatten_weights(dweights)}


@pytest.mark.parametrize("cell", list(CELLS))
@given(data=st.data())
@settings(max_examples=100)
def test_options(cell: str, data: Any) -> None:
    """Any combination of options, forward and backward, against the reference in float64."""
    check_options(cell, data, data.draw(st.sampled_from([5, 33])), plain=False)


def check_options(cell: str, data: Any, H: int, plain: bool) -> None:
    T, B, I = 5, 3, 4  # noqa: E741
    weights = weights_of(cell, data.draw, I, H, plain)
    options = options_of(cell, data.draw)
    first = weights[0] if isinstance(weights[0], rnnfast.Weights) else weights[0][0]
    directions = 1 if isinstance(weights[0], rnnfast.Weights) else 2
    case = Case(Spec(cell), T, B, I, H, len(weights), directions, ragged=data.draw(st.booleans()))
    p = problem(case)
    P = first.w_hh.shape[1]
    p.dy, p.h_0, p.dh_n = (
        p.dy.reshape(-1)[: T * B * directions * P],
        p.h_0[..., :P],
        p.dh_n[..., :P],
    )
    p.dy = p.dy.reshape(T, B, directions * P)
    save = data.draw(st.sampled_from(["all", "recompute"]))
    wanted_weights, found_weights = (problem_weights(p, weights, f) for f in (np.copy, on_device))
    with np.errstate(all="ignore"):
        wanted = results(cell, "reference", p, wanted_weights, **options)
    # Some functions let c grow without bounds, until no two ways to round agree.
    assume(all(np.abs(wanted[name]).max(initial=0) < 1e3 for name in ("y", "dx")))
    device = p.map(fake_cupy.asarray)
    found = on_host(results(cell, "cuda", device, found_weights, save=save, **options))
    assert_close(found, wanted, 1e-9)
    running = flatten_weights(wanted_weights), on_host(flatten_weights(found_weights))
    assert_close(running[1], running[0], 1e-9)


def on_device(a: Any) -> Any:
    return fake_cupy.asarray(a)


def problem_weights(p: Any, weights: Any, change: Any) -> Any:
    return replace(p, weights=weights).map(change).weights


@pytest.mark.parametrize("engine", ["alternating", "grid", "cluster"])
def test_biases_of_one_direction(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled for two directions holds for both."""
    from rnnfast.backends.cuda import launch

    monkeypatch.setenv("RNNFAST_CUDA_ENGINE", engine)
    monkeypatch.setattr(fake_cupy, "compute_capability", "90")
    launch._devices.clear()
    p = problem(Case(Spec("gru"), T=3, B=2, I=4, H=5, D=2, dtype="float32"))
    for absent in (("b_ih", "b_hh"), ("b_ih",), ("b_hh",)):
        (forwards, back) = p.weights[0]
        for pair in (
            (forwards._replace(**dict.fromkeys(absent)), back),
            (forwards, back._replace(**dict.fromkeys(absent))),
        ):
            one = replace(p, weights=[pair])
            wanted = run(one)
            found = run(one, "cuda")
            assert_close(found, wanted, 1e-5)
            packed = rnnfast.pack(one.map(fake_cupy.asarray).weights, cell="gru")
            y, _ = rnnfast.gru(fake_cupy.asarray(p.x), packed, fake_cupy.asarray(p.h_0))
            assert_close({"y": y.get()}, {"y": wanted["y"]}, 1e-5)
    launch._devices.clear()


# ------------------------------------------------------------------------ arrays and launches


def test_a_graph_runs_from_the_second_call_on(spec: Spec) -> None:
    from rnnfast.backends.cuda import launch

    launch._devices.clear()
    p = problem(Case(spec, T=4, B=3, I=5, H=33, L=2, D=2)).map(fake_cupy.asarray)
    runs = []
    for _ in range(12):
        fake_cupy.launches.clear()
        found = run(p, "cuda")
        runs.append((found, fake_cupy.launches.count("graph")))
    assert runs[0][1] == 0
    assert runs[-1][1] > 0
    for found, _ in runs[1:]:
        assert_same_bits(found, runs[0][0])


@pytest.mark.parametrize("D", [1, 2])
def test_a_stream_in_use_stays_so(D: int) -> None:
    """Whatever CuPy does to it at the end of a `with`: first calls, captures and graphs."""
    p = problem(Case(Spec("gru"), T=4, B=3, I=5, H=33, D=D)).map(fake_cupy.asarray)
    of_torch = fake_cupy._new_stream()
    before = fake_cupy.get_current_stream()
    stream = fake_cupy._new_stream().use()
    try:
        kept = []
        for _ in range(8):
            fake_cupy.launches.clear()
            fake_cupy.places.clear()
            kept.append(run(p, "cuda"))
            assert fake_cupy.get_current_stream() is stream
            pairs = list(zip(fake_cupy.launches, fake_cupy.places, strict=True))
            assert {place for name, place in pairs if name == "graph"} <= {stream}
            if "graph" not in fake_cupy.launches:
                others = {place for _, place in pairs} - {stream}
                assert len(others) == D - 1
            with of_torch:
                pass
            stream.use()
        assert "graph" in fake_cupy.launches
    finally:
        before.use()
    for found in kept:
        assert_same_bits(found, kept[0])


def test_workspaces_live_as_long_as_their_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    from rnnfast.backends.cuda import launch

    monkeypatch.setattr(launch, "_STREAMS", 2)
    launch._devices.clear()
    p = problem(Case(Spec("lstm"), T=4, B=3, I=5, H=33)).map(fake_cupy.asarray)
    streams = [fake_cupy._new_stream() for _ in range(3)]
    wanted = run(p, "cuda")
    for _ in range(3):
        for stream in streams:
            for _ in range(3):
                with stream:
                    assert_same_bits(run(p, "cuda"), wanted)
            device = launch._device(0)
            assert len(device.workspaces) <= 2
            assert {key[0] for key in device.graphs} <= set(device.workspaces)
            assert device.graphs
    launch._devices.clear()


def test_a_capture_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves nothing behind that the next call would trip over."""
    from rnnfast.backends.cuda import launch

    launch._devices.clear()
    p = problem(Case(Spec("gru"), T=4, B=3, I=5, H=33, D=2)).map(fake_cupy.asarray)
    wanted = run(p, "cuda")
    whole = launch._Device._launch

    def failing(self: Any, steps: Any, queues: Any) -> None:
        def fail(queue: Any) -> None:
            raise MemoryError("no memory")

        whole(self, [[*steps[0], fail], *steps[1:]], queues)

    launch._devices.clear()
    device = launch._device(0)
    with monkeypatch.context() as patched:
        patched.setattr(launch._Device, "_launch", failing)
        for _ in range(4):
            with pytest.raises(MemoryError, match="no memory"):
                run(p, "cuda")
            assert not device.beside.open  # memory of it may be used again
    for _ in range(4):
        assert_same_bits(run(p, "cuda"), wanted)
    launch._devices.clear()


def test_more_calls_in_turn_than_graphs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that find no place are launched one by one, not captured each time."""
    from rnnfast.backends.cuda import launch

    monkeypatch.setattr(launch, "_GRAPHS", 2)
    monkeypatch.setattr(launch, "_IDLE", 20)
    launch._devices.clear()
    device = launch._device(0)
    captures = []
    whole = launch._Device._captured
    monkeypatch.setattr(
        launch._Device, "_captured", lambda *given: captures.append(1) or whole(*given)
    )
    passes = [
        problem(Case(Spec("rnn"), T=T, B=3, I=5, H=33)).map(fake_cupy.asarray) for T in (3, 4, 5)
    ]
    wanted = [forward(p, "cuda") for p in passes]
    for _ in range(6):
        for p, right in zip(passes, wanted, strict=True):
            assert_same_bits(forward(p, "cuda"), right)
    assert len(captures) == len(device.graphs) == 2
    for _ in range(30):
        forward(passes[2], "cuda")
    assert len(captures) == 3
    launch._devices.clear()


def test_default_streams_of_threads_are_apart() -> None:
    """They have one pointer."""
    from rnnfast.backends.cuda import launch

    launch._devices.clear()
    p = problem(Case(Spec("rnn"), T=4, B=3, I=5, H=33)).map(fake_cupy.asarray)
    own = fake_cupy._new_stream()
    own.ptr = 2
    wanted = forward(p, "cuda")
    before = fake_cupy.get_current_stream()
    own.use()
    try:
        with ThreadPoolExecutor(1) as other:
            for _ in range(3):
                assert_same_bits(forward(p, "cuda"), wanted)
                assert_same_bits(other.submit(forward, p, "cuda").result(), wanted)
    finally:
        before.use()
    device = launch._device(0)
    places = [m.ptr for name, m in device.workspaces.items() if isinstance(name, tuple)]
    assert len(set(places)) == 2
    launch._devices.clear()


def test_too_many_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from rnnfast.backends.cuda import engine

    monkeypatch.setattr(engine, "_MOST_ROWS", 11)
    p = problem(Case(Spec("rnn"), T=4, B=3, I=5, H=33)).map(fake_cupy.asarray)
    with pytest.raises(rnnfast.UnsupportedError, match=r"at most 11 rows .* got 12"):
        forward(p, "cuda")


def test_gradients_on_a_device_are_clipped() -> None:
    case = Case(Spec("lstm"), T=4, B=3, I=5, H=33)
    there = problem(case).map(fake_cupy.asarray)
    _, _, backward = rnnfast.lstm_vjp(there.x, there.weights, there.state)
    gradients = backward(there.dy)
    copies = [a.get() for a in (gradients[0], *gradients[1][0][:4])]
    for limit in (np.inf, 0.5):
        norm = rnnfast.clip_grad_norm(gradients[:2], limit)
        assert norm == pytest.approx(rnnfast.clip_grad_norm(copies, limit), rel=1e-12)
    for found, wanted in zip((gradients[0], *gradients[1][0][:4]), copies, strict=True):
        np.testing.assert_array_equal(found.get(), wanted)


def test_matrices_of_one_row_may_have_any_stride() -> None:
    case = Case(Spec("rnn"), T=4, B=3, I=5, H=1)
    p = problem(case)
    wanted = run(p.map(fake_cupy.asarray), "cuda")

    def laid_across(a: Any) -> Any:
        if a.ndim != 2 or a.shape[0] != 1:
            return fake_cupy.asarray(a)
        made = fake_cupy.asarray(np.ascontiguousarray(a.T)).T
        assert made.strides[0] == made.itemsize
        return made

    assert_same_bits(run(p.map(laid_across), "cuda"), wanted)


def test_a_graph_of_the_caller_is_refused() -> None:
    """It would use memory that is free again when the call has ended."""
    p = problem(Case(Spec("gru"))).map(fake_cupy.asarray)
    _, _, backward = rnnfast.gru_vjp(p.x, p.weights, p.h_0)
    packed = rnnfast.pack(p.weights, cell="gru")
    with fake_cupy._new_stream() as stream:
        stream.begin_capture()
        for call in (
            lambda: rnnfast.gru(p.x, p.weights),
            lambda: rnnfast.gru(p.x, packed),
            lambda: backward(p.dy),
        ):
            with pytest.raises(rnnfast.UnsupportedError, match="captured in a CUDA graph"):
                call()
        stream.end_capture()


def test_a_graph_reads_the_numbers_of_its_call(spec: Spec) -> None:
    """New numbers in the same places: a graph holds pointers and shapes, no values."""
    case = Case(spec, T=4, B=3, I=5, H=33)
    p = problem(case).map(fake_cupy.asarray)
    for _ in range(3):
        run(p, "cuda")
    other = problem(replace(case, seed=1))
    p.x[...] = fake_cupy.asarray(other.x)
    assert_close(run(p, "cuda"), run(replace(problem(case), x=other.x)), allowed(case))


def test_one_product_and_one_kernel_a_step() -> None:
    spec = Spec("lstm")
    p = problem(Case(spec, T=20, B=3, I=5, H=33)).map(fake_cupy.asarray)
    fake_cupy.launches.clear()
    forward(p, "cuda")
    assert fake_cupy.launches == ["gemm", *["gemm", "forward"] * 20]
    _, _, backward = function(spec, vjp=True)(p.x, p.weights, backend="cuda")
    fake_cupy.launches.clear()
    backward(p.dy)
    assert fake_cupy.launches == [*["backward", "gemm"] * 20, *["gemm"] * 4]


def test_auto_goes_where_x_lives() -> None:
    p = problem(Case(Spec("gru")))
    device = p.map(fake_cupy.asarray)
    assert_close(forward(device, "auto"), forward(p, "auto"), 1e-12)
    packed = rnnfast.pack(device.weights, cell="gru")
    assert "'cuda'" in repr(packed)
    assert_close(forward(device, "auto", weights=packed), forward(p, "auto"), 1e-12)


def test_nothing_is_copied_between_host_and_device() -> None:
    p = problem(Case(Spec("lstm")))
    device = p.map(fake_cupy.asarray)
    for backend in ("native", "reference"):
        if rnnfast.backends()[backend] is None:
            with pytest.raises(rnnfast.UnsupportedError, match="on a CUDA device; cuda can"):
                rnnfast.lstm(device.x, device.weights, backend=backend)
    with pytest.raises(rnnfast.UnsupportedError, match="'cuda' takes arrays on a CUDA device"):
        rnnfast.lstm(p.x, p.weights, backend="cuda")
    with pytest.raises(TypeError, match="weights: expected an array on a CUDA device"):
        rnnfast.lstm(device.x, p.weights)
    with pytest.raises(TypeError, match="h_0: expected an array on a CUDA device"):
        rnnfast.lstm(device.x, device.weights, (p.h_0, device.c_0))
    with pytest.raises(TypeError, match="out: expected an array on a CUDA device"):
        rnnfast.lstm(device.x, device.weights, out=np.empty_like(p.dy))
    with pytest.raises(TypeError, match="lengths: expected integers in CPU memory"):
        rnnfast.lstm(device.x, device.weights, lengths=fake_cupy.asarray([1, 2, 3]))
    *_, backward = rnnfast.lstm_vjp(device.x, device.weights)
    with pytest.raises(TypeError, match="dy: expected an array on a CUDA device"):
        backward(p.dy)
    packed = rnnfast.pack(p.weights, cell="lstm")
    with pytest.raises(TypeError, match="weights: expected an array on a CUDA device"):
        rnnfast.lstm(device.x, packed)


def test_out() -> None:
    p = problem(Case(Spec("lstm"), T=4, B=3, I=5, H=7, L=2))
    for lengths in (None, np.array([4, 0, 2])):
        device = p.map(fake_cupy.asarray)
        wanted = forward(replace(p, lengths=lengths))
        y = fake_cupy.empty(wanted["y"].shape)
        out = y, device.state
        found = rnnfast.lstm(device.x, device.weights, device.state, lengths=lengths, out=out)
        assert found[0] is y
        assert found[1][0] is device.h_0
        named = {"y": y, "h_n": device.h_0, "c_n": device.c_0}
        assert_close(on_host(named), wanted, 1e-12)


def test_layouts() -> None:
    case = Case(Spec("gru"), T=4, B=3, I=5, H=7, D=2)
    p = problem(case)
    device = p.map(fake_cupy.asarray)
    y, h_n = rnnfast.gru(device.x.swapaxes(0, 1), device.weights, batch_first=True)
    wanted = rnnfast.gru(p.x, p.weights)
    assert_close(
        on_host({"y": y.swapaxes(0, 1), "h": h_n}), dict(zip("yh", wanted, strict=True)), 1e-12
    )
    y, h_n = rnnfast.gru(device.x[:, 0], device.weights)
    wanted = rnnfast.gru(p.x[:, 0], p.weights)
    assert_close(on_host({"y": y, "h": h_n}), dict(zip("yh", wanted, strict=True)), 1e-12)


def test_second_derivatives_and_narrow_weights_are_refused() -> None:
    device = problem(Case(Spec("lstm"))).map(fake_cupy.asarray)
    *_, backward = rnnfast.lstm_vjp(device.x, device.weights)
    with pytest.raises(rnnfast.UnsupportedError, match="second derivatives"):
        backward.vjp(device.dy)
    single = device.map(lambda a: a)
    single = problem(Case(Spec("lstm"), dtype="float32")).map(fake_cupy.asarray)
    with pytest.raises(rnnfast.UnsupportedError, match="bfloat16"):
        rnnfast.pack(single.weights, cell="lstm", dtype="bfloat16")


def test_what_is_written_for_arrays_in_cpu_memory() -> None:
    p = problem(Case(Spec("lstm")))
    device = p.map(fake_cupy.asarray)
    with pytest.raises(rnnfast.UnsupportedError, match="x: a stream takes arrays in CPU memory"):
        rnnfast.Stream(p.weights)(device.x)
    with pytest.raises(TypeError, match="weights: expected an array in CPU memory"):
        rnnfast.Stream(device.weights)
    with pytest.raises(rnnfast.UnsupportedError, match="gradient_flow takes arrays in CPU memory"):
        rnnfast.gradient_flow(device.x, device.weights, device.dy, cell="lstm")


def test_tf32_by_explicit_choice_only(monkeypatch: pytest.MonkeyPatch) -> None:
    device = problem(Case(Spec("lstm"), dtype="float32")).map(fake_cupy.asarray)
    monkeypatch.setenv("RNNFAST_CUDA_TF32", "1")
    with pytest.raises(AssertionError, match="not full precision"):  # the emulation's
        rnnfast.lstm(device.x, device.weights)
    monkeypatch.setenv("RNNFAST_CUDA_TF32", "yes")
    with pytest.raises(ValueError, match="RNNFAST_CUDA_TF32: expected 0 or 1, got 'yes'"):
        rnnfast.lstm(device.x, device.weights)


# --------------------------------------------------------------------------------- benchmark


@pytest.mark.parametrize("mode", ["forward", "training"])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("dtype", gpu.DTYPES)
def test_the_benchmark_checks_what_it_times(
    dtype: str, mode: Any, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(gpu, "_LARGE", 0)
    p = gpu.in_dtype(draw(Spec("lstm"), Shape("custom", 4, 3, 5, 33), mode), dtype)
    side = gpu.ours(p)
    results = side.results(side.run())
    assert len(results) == (7 if mode == "training" else 3) + (mode == "training")
    assert gpu.wrong(p, results) == {}
    results["y"][0, 0, 0] += 10 * gpu.EPS[dtype] + 0.01
    assert list(gpu.wrong(p, results)) == ["y"]


# ------------------------------------------------------------------------------ the emulation


def test_parameters_are_laid_out_as_the_compiler_does() -> None:
    from rnnfast.backends.cuda.parameters import BACKWARD_STEP, FORWARD_STEP

    library = fake_cupy.emulation()
    assert library.size_of(b"ForwardStep") == FORWARD_STEP.itemsize
    assert library.size_of(b"BackwardStep") == BACKWARD_STEP.itemsize
    source = text_of("units.cuh")
    for struct, dtype in (("ForwardStep", FORWARD_STEP), ("BackwardStep", BACKWARD_STEP)):
        body = source.split(f"struct {struct} {{")[1].split("};")[0]
        assert fields_of(body) == list(dtype.names or ())


def text_of(name: str) -> str:
    """A file of the kernels."""
    return next(s for s in fake_cupy.SOURCES if s.name == name).read_text(encoding="utf-8")


def kernels_of(name: str) -> list[str]:
    return re.findall(r"^RNNFAST_KERNEL (\w+)", text_of(name), re.MULTILINE)


def fields_of(body: str) -> list[str]:
    """The names that the lines of a struct declare, in order."""
    found = []
    for line in body.splitlines():
        declared = line.partition("//")[0].strip().rstrip(";")
        for kind in _KINDS:
            if declared.startswith(kind):
                found += [name.strip() for name in declared.removeprefix(kind).split(",")]
                break
    return found


def test_functions_have_the_numbers_of_the_header() -> None:
    header = text_of("cells.cuh")
    names = header.split("enum Function {")[1].split("};")[0].replace("\n", "").split(",")
    wanted = ["k" + name.title().replace("_", "") for name in ACTIVATIONS]
    assert [name.strip() for name in names] == wanted


def test_the_emulation_finds_wrong_code() -> None:
    """An address past an array, numbers never written, and a product outside of its memory."""
    a = fake_cupy.empty((3,))
    assert np.isnan(a.get()).all()
    a.memory.buffer[-1] = 0
    del a
    assert fake_cupy.damaged.pop()
    one = fake_cupy.zeros((2, 2))
    with pytest.raises(AssertionError, match="outside"):
        fake_cupy._viewed(one.data.ptr, 1, 2, 3, 2)
    with pytest.raises(TypeError, match="Unsupported type"):
        one + np.zeros((2, 2))
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(one)


def test_every_kernel_has_run() -> None:
    fake_cupy.launches.clear()
    rng = np.random.default_rng(0)
    x = fake_cupy.asarray(rng.standard_normal((3, 2, 4)))
    for spec in all_specs():
        for projection in (0, 3) if spec.cell == "lstm" else (0,):
            weights = rnnfast.init_weights(
                spec.cell, 4, 5, proj_size=projection, layer_norm=True, dtype=np.float64, rng=0
            )
            device = [
                rnnfast.Weights(*(None if a is None else fake_cupy.asarray(a) for a in w))
                for w in weights
            ]
            y, _, backward = function(spec, vjp=True)(x, device, recurrent_dropout=0.5, rng=1)
            backward(y)
    kernels = kernels_of("steps.cu")
    assert len(kernels) == 8
    assert set(kernels) <= set(fake_cupy.launches)
