"""The backend "cuda" on a GPU: what the emulation of test_cuda_emulated.py cannot show.

Where there is a GPU, the shared suite runs on it too: `pytest -m gpu` and `pytest -k cuda`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import Case, assert_same_bits, problem, run
from tolerance import assert_agrees

import rnnfast
from rnnfast.spec import Spec

REASON = rnnfast.backends()["cuda"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(REASON is not None, reason=f"needs a GPU: {REASON}"),
]


@pytest.fixture
def cupy() -> Any:
    found = pytest.importorskip("cupy")
    if found.__name__ != "cupy" or not hasattr(found, "__version__"):
        pytest.skip("needs a GPU: CuPy is emulated here")
    from rnnfast.backends.cuda import launch

    found.cuda.Device().synchronize()
    launch._devices.clear()  # graphs of other tests leave no place for those of this one
    return found


DTYPES = ["float32", "float64", "float16", "bfloat16"]


@pytest.mark.parametrize("H", [1, 33, 64, 257, 1024])
@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_cells(cupy: Any, spec: Spec, dtype: str, H: int) -> None:
    case = Case(spec, T=9, B=5, I=7, H=H, L=2, D=2, dtype=dtype, ragged=True)
    assert_agrees(case, run(problem(case), "cuda"))


@pytest.mark.parametrize(("H", "B"), [(1, 1), (33, 3), (64, 9), (130, 2), (256, 1), (256, 64)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("engine", ["grid", "cluster"])
def test_all_steps_in_one_launch(
    cupy: Any,
    monkeypatch: pytest.MonkeyPatch,
    spec: Spec,
    dtype: str,
    H: int,
    B: int,
    engine: str,
) -> None:
    from rnnfast.backends.cuda.cluster import able
    from rnnfast.backends.cuda.launch import limits

    monkeypatch.setenv("RNNFAST_CUDA_ENGINE", engine)
    case = Case(spec, T=9, B=B, I=7, H=H, L=2, D=2, dtype=dtype, ragged=B % 2 == 1)
    p = problem(case).map(cupy.asarray)
    if engine == "cluster" and not able(spec, p.x.dtype, limits()):
        pytest.skip("clusters have no such cell or dtype, or this device has no clusters")
    first = run(p, "cuda")
    assert_agrees(case, first)
    for _ in range(20):
        assert_same_bits(run(p, "cuda"), first)


def test_grids_on_two_streams(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNFAST_CUDA_ENGINE", "grid")
    p = problem(Case(Spec("lstm"), T=50, B=3, I=7, H=512, dtype="float32")).map(cupy.asarray)
    wanted = rnnfast.lstm(p.x, p.weights)[0]
    cupy.cuda.Device().synchronize()
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(3)]
    found = []
    for k in range(60):
        with streams[k % 3]:
            found.append(rnnfast.lstm(p.x, p.weights)[0])
    cupy.cuda.Device().synchronize()
    for y in found:
        np.testing.assert_array_equal(y.get(), wanted.get())


def test_graphs_give_the_bits_of_single_launches(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, spec: Spec
) -> None:
    from rnnfast.backends.cuda import launch

    monkeypatch.setenv("RNNFAST_CUDA_ENGINE", "alternating")
    p = problem(Case(spec, T=9, B=5, I=7, H=65, L=2, D=2)).map(cupy.asarray)
    first = run(p, "cuda")
    for _ in range(12):
        assert_same_bits(run(p, "cuda"), first)
    assert launch._device(0).graphs


def test_the_current_stream_is_respected(cupy: Any) -> None:
    """x is still being written on that stream when the call comes."""
    p = problem(Case(Spec("lstm"), T=20, B=32, I=64, H=256)).map(cupy.asarray)
    wanted = rnnfast.lstm(p.x, p.weights)[0].get()
    stream = cupy.cuda.Stream(non_blocking=True)
    late = cupy.zeros_like(p.x)
    big = cupy.ones((4096, 4096), np.float32)
    cupy.cuda.Device().synchronize()
    with stream:
        for _ in range(20):
            big = big @ big * np.float32(1e-4)
        late[...] = p.x
        y, _ = rnnfast.lstm(late, p.weights)
        found = y.get(stream=stream)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("engine", ["alternating", "grid", "cluster"])
def test_a_stream_in_use_stays_so(cupy: Any, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    """The work of all calls is on it, those that capture and launch a graph too."""
    monkeypatch.setenv("RNNFAST_CUDA_ENGINE", engine)
    from rnnfast.backends.cuda.launch import limits

    if engine == "cluster" and not limits().clusters:
        pytest.skip("this device has no clusters")
    p = problem(Case(Spec("gru"), T=20, B=8, I=64, H=64, D=2, dtype="float32")).map(cupy.asarray)
    wanted = rnnfast.gru(p.x, p.weights)[0].get()
    late = cupy.zeros_like(p.x)
    big = cupy.ones((4096, 4096), np.float32)
    cupy.cuda.Device().synchronize()
    before, stream = cupy.cuda.get_current_stream(), cupy.cuda.Stream(non_blocking=True)
    stream.use()
    try:
        for _ in range(4):
            late[...] = 0
            for _ in range(5):
                big = big @ big * np.float32(1e-4)
            late[...] = p.x
            y, _ = rnnfast.gru(late, p.weights)
            assert cupy.cuda.get_current_stream() == stream
            np.testing.assert_array_equal(y.get(stream=stream), wanted)
            del y
    finally:
        before.use()


@pytest.mark.parametrize("engine", ["alternating", "grid", "cluster"])
def test_a_call_does_not_wait_for_the_device(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """Neither the second call, in which a graph is captured, nor the third."""
    from rnnfast.backends.cuda.launch import limits

    if engine == "cluster" and not limits().clusters:
        pytest.skip("this device has no clusters")
    monkeypatch.setenv("RNNFAST_CUDA_ENGINE", engine)
    p = problem(Case(Spec("gru"), T=4, B=3, I=5, H=64, dtype="float32")).map(cupy.asarray)
    rnnfast.gru(p.x, p.weights)
    big = cupy.ones((8192, 8192), np.float32)
    big @ big
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.get_current_stream()
    for _ in range(30):
        big @ big
    for _ in range(2):
        rnnfast.gru(p.x, p.weights)
    assert not stream.done
    stream.synchronize()


def test_a_graph_of_the_caller_is_refused(cupy: Any) -> None:
    p = problem(Case(Spec("lstm"), T=9, B=3, I=5, H=64, dtype="float32")).map(cupy.asarray)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        wanted = rnnfast.lstm(p.x, p.weights, p.state)[0].get()
        stream.begin_capture()
        with pytest.raises(rnnfast.UnsupportedError, match="captured in a CUDA graph"):
            rnnfast.lstm(p.x, p.weights, p.state)
        stream.end_capture()
        np.testing.assert_array_equal(rnnfast.lstm(p.x, p.weights, p.state)[0].get(), wanted)


def test_several_devices(cupy: Any) -> None:
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two GPUs")
    case = Case(Spec("lstm"), T=4, B=3, I=5, H=33)
    with cupy.cuda.Device(1):
        assert_agrees(case, run(problem(case), "cuda"))
        x = problem(case).map(cupy.asarray).x
        packed = rnnfast.pack(problem(case).map(cupy.asarray).weights, cell="lstm")
        rnnfast.lstm(x, packed)
    with pytest.raises(rnnfast.UnsupportedError, match="device 1"):
        rnnfast.lstm(problem(case).map(cupy.asarray).x, packed)
    with pytest.raises(rnnfast.UnsupportedError, match="device 1"):
        rnnfast.lstm(x, problem(case).map(cupy.asarray).weights)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tensors_of_torch_in_16_bits(cupy: Any, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs torch with CUDA")
    kind = getattr(torch, dtype)
    p = problem(Case(Spec("gru"), T=4, B=3, I=5, H=33, dtype="float32"))
    given = p.map(lambda a: torch.as_tensor(a).to("cuda", kind))
    y, h_n, backward = rnnfast.gru_vjp(given.x, given.weights, given.h_0)
    dx, dweights, dh_0 = backward(given.dy)
    assert {a.dtype for a in (y, h_n, dx, dh_0, *dweights[0][:4])} == {kind}
    same, _ = rnnfast.gru(cupy.from_dlpack(given.x), given.weights, given.h_0)
    assert isinstance(same, cupy.ndarray)
    assert (torch.from_dlpack(same) == y).all()


def test_tensors_of_torch(cupy: Any) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs torch with CUDA")
    case = Case(Spec("lstm"), T=4, B=3, I=5, H=33)
    p = problem(case)
    given = p.map(lambda a: torch.as_tensor(a).cuda())
    y, (h_n, c_n) = rnnfast.lstm(given.x, given.weights, given.state)
    wanted = rnnfast.lstm(p.x, p.weights, p.state)
    assert y.device.type == h_n.device.type == c_n.device.type == "cuda"
    np.testing.assert_allclose(y.cpu().numpy(), wanted[0], atol=1e-12)
