"""rnnfast.torch on tensors of a CUDA device beside torch.nn in float64 on the CPU.

Every test runs on the emulation of CuPy (fake_cupy.py), where tensors on the CPU feign to be on a
device, and, where there is one, on a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import fake_cupy
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch_pairs import NAMES, RTOL, close, flat, pair, trained

import rnnfast
import rnnfast.torch

STREAM = 4711  # of the tensors that feign
NO_GPU = rnnfast.backends()["cuda"] or (None if torch.cuda.is_available() else "torch without CUDA")
PLACES = [
    pytest.param(
        "emulated",
        marks=pytest.mark.skipif(
            fake_cupy.compiler() is None and not fake_cupy.REQUIRED,
            reason="needs a C++ compiler (g++) for the emulation",
        ),
    ),
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(NO_GPU is not None, reason=f"needs a GPU: {NO_GPU}"),
        ],
    ),
]
# Of results in 16 bits: h is rounded where a product reads it and y where it is returned.
LOOSE = {torch.float16: 2.0**-8, torch.bfloat16: 2.0**-5}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where tensors of floating numbers live, or feign to."""
    if request.param == "cuda":
        yield "cuda"
        return
    floats = property(lambda t: t.dtype.is_floating_point)
    monkeypatch.setattr(torch.Tensor, "is_cuda", floats, raising=False)
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda t: not t.is_cuda), raising=False)
    monkeypatch.setattr(torch.Tensor, "__dlpack_device__", lambda t: (2 if t.is_cuda else 1, 0))
    stream = SimpleNamespace(cuda_stream=STREAM)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
    with fake_cupy.installed():
        yield "cpu"
    assert fake_cupy.damaged == []


def moved(value: Any, place: str, dtype: Any = None) -> Any:
    """The tensors of x or hx as leaves of their own."""
    if value is None:
        return None
    if isinstance(value, PackedSequence):
        return value.to(place, dtype)  # type: ignore[arg-type]
    if isinstance(value, tuple):
        return tuple(moved(v, place, dtype) for v in value)
    return value.detach().to(place, dtype, copy=True).requires_grad_(value.requires_grad)


def home(tensors: Any) -> list[Any]:
    return [t.detach().cpu().double() for t in flat(tensors)]


def same(place: str, ours: Any, theirs: Any, x: Any, hx: Any, dtype: Any = torch.float64) -> None:
    """Results, gradients, and results without gradients agree."""
    ours = ours.to(place, dtype)
    rtol = LOOSE.get(dtype, RTOL)
    wanted, gradients = trained(theirs, x, hx)
    own_x, own_hx = moved(x, place, dtype), moved(hx, place, dtype)
    got, own = trained(ours, own_x, own_hx)
    assert {t.dtype for t in (*flat(got), *own)} == {dtype}
    assert {t.device.type for t in (*flat(got), *own)} == {place}
    close(home(got), wanted, rtol)
    close(home(own), gradients, rtol)
    with torch.no_grad():
        for _ in range(3):
            close(home(ours(own_x, own_hx)), wanted, rtol)


def inputs(module: Any, steps: int = 5, batch: int = 3, state: bool = True) -> Any:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Any:
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        return drawn.requires_grad_()

    rows = (batch, steps) if module.batch_first else (steps, batch)
    count = module.num_layers * (1 + module.bidirectional)
    h_0 = normal(count, batch, module.proj_size or module.hidden_size)
    c_0 = normal(count, batch, module.hidden_size)
    hx = ((h_0, c_0) if module.mode == "LSTM" else h_0) if state else None
    return normal(*rows, module.input_size), hx


CASES = [
    {},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"bias": False, "bidirectional": True},
    {"num_layers": 2, "bias": False},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_layers(place: str, name: str, case: dict[str, Any]) -> None:
    for state in (False, True):
        theirs, ours = pair(name, 4, 6, **case)
        same(place, ours, theirs, *inputs(theirs, state=state))


def test_projection_and_relu(place: str) -> None:
    theirs, ours = pair("LSTM", 4, 6, proj_size=3, num_layers=2)
    same(place, ours, theirs, *inputs(theirs))
    theirs, ours = pair("RNN", 4, 6, nonlinearity="relu")
    same(place, ours, theirs, *inputs(theirs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_16_bits(place: str, name: str, dtype: Any) -> None:
    theirs, ours = pair(name, 4, 6)
    rounded = {k: v.to(dtype).double() for k, v in theirs.state_dict().items()}
    theirs.load_state_dict(rounded)
    ours.load_state_dict(rounded)
    x, hx = inputs(theirs)
    x, hx = (moved(moved(t, "cpu", dtype), "cpu", torch.float64) for t in (x, hx))
    same(place, ours, theirs, x, hx, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_packed_sequences(place: str, name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (3, 6, 1)]
    theirs, ours = pair(name, 4, 6, bidirectional=True)
    same(place, ours, theirs, pack_sequence(rows, enforce_sorted=False), inputs(theirs)[1])


@pytest.mark.parametrize("name", NAMES)
def test_functions(place: str, name: str) -> None:
    """Options that torch.nn has not, beside the reference on arrays."""
    theirs = getattr(torch.nn, name)(4, 6, dtype=torch.float64)
    x, hx = inputs(theirs)
    weights = [w.detach() for w in theirs.parameters()]
    lengths = torch.tensor([5, 0, 2])
    function = getattr(rnnfast.torch, name.lower())
    arrays = rnnfast.Weights(*(w.numpy(force=True) for w in weights))
    state = tuple(h.detach().numpy() for h in hx) if isinstance(hx, tuple) else hx.detach().numpy()
    keywords = {"clip": 0.5, "zoneout": 0.2, "rng": 3}
    wanted = getattr(rnnfast, name.lower())(
        x.detach().numpy(), arrays, state, lengths=lengths.numpy(), backend="reference", **keywords
    )
    given = rnnfast.Weights(*(moved(w, place) for w in weights))
    got = function(moved(x, place), given, moved(hx, place), lengths=lengths, **keywords)
    close(home(got), [torch.from_numpy(a) for a in flat_arrays(wanted)])


def flat_arrays(value: Any) -> list[Any]:
    return [a for v in value for a in flat_arrays(v)] if isinstance(value, tuple) else [value]


def test_changed_weights_are_read(place: str) -> None:
    """Without a copy that could be an old one: also those changed where no version counts it."""
    theirs, ours = pair("GRU", 4, 6)
    ours = ours.to(place)
    x, hx = inputs(theirs)
    own = moved(x, place), moved(hx, place)
    with torch.no_grad():
        for k in range(4):
            close(home(ours(*own)), theirs(x, hx))
            for module in (ours, theirs):
                module.weight_hh_l0.data[k] *= 0.5


def test_dropout_is_repeated(place: str) -> None:
    layer = rnnfast.torch.LSTM(4, 6, num_layers=2, dropout=0.5).to(place)
    x = moved(torch.randn(5, 3, 4), place)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(layer(x)[0].detach().cpu())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_work_goes_to_the_stream_of_torch(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward; and CuPy's own stream is put back."""
    import cupy

    from rnnfast.backends.cuda import engine

    seen = []

    def watched(run: Any) -> Any:
        def running(*arguments: Any) -> Any:
            seen.append(cupy.cuda.get_current_stream().ptr)
            return run(*arguments)

        return running

    backend = sys.modules["rnnfast.backends.cuda"]
    for name in ("run_forward", "run_backward"):
        monkeypatch.setattr(backend, name, watched(getattr(engine, name)))
    monkeypatch.setenv("RNNFAST_CUDA_ENGINE", "alternating")
    used = cupy.cuda.Stream(non_blocking=True)
    start = cupy.cuda.get_current_stream()
    before = used.use().ptr
    try:
        layer = rnnfast.torch.GRU(4, 6).to(place)
        x = moved(torch.randn(5, 3, 4), place)
        layer(x)[0].sum().backward()
        streams = {STREAM}
        if place == "cuda":
            other = torch.cuda.Stream()
            other.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(other):
                layer(x)[0].sum().backward()
            streams = {torch.cuda.current_stream().cuda_stream, other.cuda_stream}
        assert set(seen) == streams
        assert len(seen) == 2 * len(streams)
        assert cupy.cuda.get_current_stream().ptr == before
    finally:
        start.use()


def test_all_is_read_on_the_device_of_the_tensors(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever CuPy's current device is."""
    if place == "cuda":
        pytest.skip("asks the emulation")
    from rnnfast import arrays

    entered = []
    on_current_device = arrays._on_current_device

    def watched(name: str, value: Any) -> Any:
        entered.append(fake_cupy.Device.entered)
        return on_current_device(name, value)

    monkeypatch.setattr(arrays, "_on_current_device", watched)
    for name in NAMES:
        layer = getattr(rnnfast.torch, name)(4, 6)
        x = torch.randn(5, 3, 4)
        layer(x)[0].sum().backward()
        with torch.no_grad():
            for _ in range(3):
                layer(x)
    assert entered
    assert min(entered) > 0
    assert fake_cupy.Device.entered == 0


def test_refusals(place: str) -> None:
    layer = rnnfast.torch.GRU(4, 6, dtype=torch.float64).to(place)
    x = moved(torch.randn(5, 3, 4, dtype=torch.float64), place).requires_grad_()
    (dx,) = torch.autograd.grad(layer(x)[0].sum(), x, create_graph=True)
    with pytest.raises(rnnfast.UnsupportedError, match="cuda"):
        dx.sum().backward()
    entry = rnnfast.Weights(*(w.detach() for w in layer.parameters()))
    if place == "cuda":
        with pytest.raises(TypeError, match="lengths: expected integers in CPU memory"):
            rnnfast.torch.gru(x, entry, lengths=torch.tensor([5, 2, 1], device=place))
        with pytest.raises((RuntimeError, ValueError), match="device"):
            layer(x.cpu())


def test_bfloat16_with_an_old_cupy(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy

    monkeypatch.setattr(cupy, "__version__", "13.3.0")
    layer = rnnfast.torch.GRU(4, 6, dtype=torch.bfloat16).to(place)
    with pytest.raises(rnnfast.UnsupportedError, match=r"from version 14 on, this is 13\.3\.0"):
        layer(moved(torch.randn(5, 3, 4), place, torch.bfloat16))


def test_without_cupy(place: str) -> None:
    x = moved(torch.randn(5, 3, 4), place)
    with pytest.MonkeyPatch.context() as patched:  # put back before `place` is
        patched.setitem(sys.modules, "cupy", None)
        with pytest.raises(rnnfast.UnsupportedError, match="needs CuPy"):
            rnnfast.torch.GRU(4, 6).to(place)(x)


@pytest.mark.gpu
@pytest.mark.skipif(NO_GPU is not None, reason=f"needs a GPU: {NO_GPU}")
class TestOnAGpu:
    """What no tensor on the CPU can feign."""

    def test_compiled(self) -> None:
        layer = rnnfast.torch.LSTM(16, 32).cuda()
        x = torch.randn(7, 3, 16, device="cuda", requires_grad=True)
        wanted = layer(x)[0]
        y, _ = torch.compile(layer, fullgraph=True)(x)
        assert torch.equal(y, wanted)
        (dx,) = torch.autograd.grad(y.square().sum(), x)
        (wanted_dx,) = torch.autograd.grad(wanted.square().sum(), x)
        assert torch.equal(dx, wanted_dx)

    def test_autocast_keeps_the_dtype_of_the_weights(self) -> None:
        layer = rnnfast.torch.GRU(16, 32).cuda()
        x = torch.randn(7, 3, 16, device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            y, _ = layer(torch.nn.functional.linear(x, torch.eye(16, device="cuda")))
        assert y.dtype is torch.float32

    def test_the_memory_of_an_unfinished_call_is_not_used_again(self) -> None:
        """Inputs are dropped while the device is still at work before them."""
        layer = rnnfast.torch.LSTM(256, 256).cuda()
        x = torch.randn(50, 32, 256, device="cuda")
        wanted = layer(x)[0]
        big = torch.randn(4096, 4096, device="cuda")
        found = []
        for _ in range(20):
            big = big @ big * 1e-3
            found.append(layer(x.clone())[0])
        for y in found:
            assert torch.equal(y, wanted)

    def test_beside_cudnn(self) -> None:
        for name in NAMES:
            theirs, ours = pair(name, 64, 128, num_layers=2, dtype=torch.float32)
            theirs, ours = theirs.cuda(), ours.cuda()
            x = torch.randn(20, 16, 64, device="cuda")
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                close(ours(x), theirs(x), 1e-5)
