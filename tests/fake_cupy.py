"""An emulation of CuPy on the CPU, for tests of the backend "cuda" where there is no GPU.

It is NOT a GPU, and proves nothing about speed, about CuPy itself, or about what only a device
does: memory ordering between blocks, streams that run at the same time, cuBLAS' roundings. It does
run every line of the backend's Python and the logic of every kernel, the real steps.cu, built with
the system's C++ compiler under tests/cuda_emulation.cpp. Where CuPy is strict, it is: arrays do not
turn into NumPy's or mix with them. Where a GPU forgives nothing, it tells: fresh memory is NaN,
memory has guards on both sides, products must lie within one allocation, and a graph holds only
what it was given while it was captured.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes  # noqa: F401  NumPy's bfloat16, by that name
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [
    ROOT / "rnnfast" / "backends" / "cuda" / name
    for name in (
        *("numbers.cuh", "cells.cuh", "units.cuh", "sequences.cuh", "exchange.cuh"),
        *("steps.cu", "grid.cu", "cluster.cu"),
    )
]
_EMULATION = Path(__file__).with_name("cuda_emulation.cpp")
REQUIRED = os.environ.get("RNNFAST_REQUIRE_CUDA") == "1"  # whether CI may leave its tests out
_GUARD, _GUARD_BYTE = 256, 0xA5

__version__ = "14.2.0"  # what it acts like

launches: list[str] = []  # what has run: names of kernels, "gemm", "graph"
places: list[Any] = []  # on which stream
damaged: list[str] = []  # what was written outside of its memory
limits = {"MultiProcessorCount": 6, "CooperativeLaunch": 1, "MaxSharedMemoryPerBlockOptin": 232448}
compute_capability = "86"  # no clusters, but where a test says so
impatient = False  # whether blocks of a cluster do not wait for each other
order = 0  # of the threads of a block and the blocks of a grid; see cuda_emulation.cpp


# ------------------------------------------------------------------------------------ memory


class _Memory:
    """One allocation, from a pool that gives the same places again, as CuPy's does."""

    pool: dict[int, list[Any]] = {}  # noqa: RUF012
    live: dict[int, int] = {}  # noqa: RUF012
    foreign: list[tuple[int, int]] = []  # noqa: RUF012

    def __init__(self, size: int) -> None:
        self.size = max(size, 1)
        free = self.pool.setdefault(self.size, [])
        self.buffer = free.pop() if free else np.empty(self.size + 2 * _GUARD, np.uint8)
        self.buffer[:_GUARD] = self.buffer[_GUARD + self.size :] = _GUARD_BYTE
        self.bytes = self.buffer[_GUARD : _GUARD + size]
        self.live[self.bytes.ctypes.data] = self.size

    def __del__(self) -> None:
        if sys is None or sys.is_finalizing():
            return
        for part in (self.buffer[:_GUARD], self.buffer[_GUARD + self.size :]):
            if (part != _GUARD_BYTE).any():
                damaged.append(f"memory of {self.size} bytes")
        del self.live[self.bytes.ctypes.data]
        self.pool[self.size].append(self.buffer)


def _check_memory(pointer: int, size: int) -> None:
    places = [*_Memory.live.items(), *_Memory.foreign]
    inside = any(at <= pointer and pointer + size <= at + n for at, n in places)
    assert inside, f"a product touches {size} bytes outside of any allocation"


class _Foreign:
    """The memory of an array that somebody else owns, as long as it is looked at."""

    def __init__(self, owner: Any, host: Any) -> None:
        self.owner, self.host = owner, host
        low, high = np.lib.array_utils.byte_bounds(host)
        self.at = low, high - low
        _Memory.foreign.append(self.at)

    def __del__(self) -> None:
        _Memory.foreign.remove(self.at)


class _Exported:
    """An array in a form that NumPy, and who looks by NumPy, keeps together with its memory."""

    def __init__(self, array: Any) -> None:
        self.array, self.__array_interface__ = array, array.host.__array_interface__


class _Pointer:
    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


class _Flags:
    def __init__(self, flags: Any) -> None:
        self.c_contiguous, self.f_contiguous = flags.c_contiguous, flags.f_contiguous
        self.owndata = flags.owndata


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):  # noqa: N801
    """A device array. `host` is its memory, which only this file and `asnumpy` touch."""

    def __init__(self, host: Any, memory: _Memory | _Foreign) -> None:
        self.host, self.memory = host, memory

    shape = property(lambda self: self.host.shape)
    dtype = property(lambda self: self.host.dtype)
    strides = property(lambda self: self.host.strides)
    itemsize = property(lambda self: self.host.itemsize)
    ndim = property(lambda self: self.host.ndim)
    size = property(lambda self: self.host.size)
    nbytes = property(lambda self: self.host.nbytes)
    flags = property(lambda self: _Flags(self.host.flags))
    data = property(lambda self: _Pointer(self.host.ctypes.data))
    device = property(lambda self: Device(0))
    T = property(lambda self: self._view(self.host.T))

    def _view(self, host: Any) -> Any:
        return ndarray(host, self.memory)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """As CuPy has it, but the pointer is one of the CPU: only to be asked for."""
        return {**self.host.__array_interface__, "version": 3}

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.pop("out", None)
        if out is not None:
            kwargs["out"] = tuple(_host(o) for o in out)
        result = getattr(ufunc, method)(*map(_host, inputs), **kwargs)
        return out[0] if out is not None else _wrapped(result)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        own = getattr(sys.modules[__name__], function.__name__, None)
        return NotImplemented if own is None else own(*args, **kwargs)

    def __len__(self) -> int:
        return len(self.host)

    def __iter__(self) -> Any:
        return (self[k] for k in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        index = _index(index)
        found = self.host[index]
        if isinstance(found, np.ndarray) and np.may_share_memory(found, self.host):
            return self._view(found)
        if not isinstance(found, np.ndarray):
            return self._view(
                self.host[(*index, ...) if isinstance(index, tuple) else (index, ...)]
            )
        return _wrapped(found)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.host[_index(index)] = _host(value)

    def reshape(self, *shape: Any) -> Any:
        made = self.host.reshape(*shape)
        return self._view(made) if np.may_share_memory(made, self.host) else _wrapped(made)

    def swapaxes(self, a: int, b: int) -> Any:
        return self._view(self.host.swapaxes(a, b))

    def fill(self, value: float) -> None:
        self.host.fill(value)

    def copy(self, order: str = "C") -> Any:
        return _wrapped(self.host.copy(order))

    def astype(self, dtype: Any, copy: bool = True) -> Any:
        return self if not copy and self.dtype == dtype else _wrapped(self.host.astype(dtype))

    def take(self, indices: Any, axis: int | None = None) -> Any:
        return take(self, indices, axis)

    def sum(self, axis: Any = None) -> Any:
        return _wrapped(self.host.sum(axis))

    def mean(self, axis: Any = None) -> Any:
        return _wrapped(self.host.mean(axis))

    def min(self) -> Any:
        return _wrapped(self.host.min())

    def max(self) -> Any:
        return _wrapped(self.host.max())

    def any(self) -> Any:
        return _wrapped(self.host.any())

    def get(self) -> Any:
        return self.host.copy()

    def __bool__(self) -> bool:
        return bool(self.host)

    def __float__(self) -> float:
        return float(self.host)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)  # kDLCUDA

    def __dlpack__(self, stream: int | None = None, **options: Any) -> Any:
        assert stream == get_current_stream().ptr, "handed to another stream"
        return _tensor_of_torch(self).__dlpack__()


def _host(value: Any) -> Any:
    if isinstance(value, ndarray):
        return value.host
    if isinstance(value, np.ndarray) and value.ndim > 0:
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return value


def _index(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_host, index))
    return _host(index)


def _wrapped(host: Any) -> ndarray:
    host = np.asarray(host)
    made = empty(host.shape, host.dtype)
    made.host[...] = host
    return made


# --------------------------------------------------------------------------- functions of CuPy


def empty(shape: Any, dtype: Any = float) -> ndarray:
    kind = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    memory = _Memory(int(np.prod(shape)) * kind.itemsize)
    host = memory.bytes.view(kind).reshape(shape)
    host[...] = np.nan if kind.kind == "f" or kind.name == "bfloat16" else 77
    return ndarray(host, memory)


class _Allocated(_Pointer):
    def __init__(self, size: int) -> None:
        self.memory = _Memory(size)
        super().__init__(self.memory.bytes.ctypes.data)


def zeros(shape: Any, dtype: Any = float) -> ndarray:
    made = empty(shape, dtype)
    made.host[...] = 0
    return made


def empty_like(a: ndarray) -> ndarray:
    return empty(a.shape, a.dtype)


def zeros_like(a: ndarray) -> ndarray:
    return zeros(a.shape, a.dtype)


def asarray(a: Any, dtype: Any = None) -> ndarray:
    if isinstance(a, ndarray):
        return a if dtype is None else a.astype(dtype)
    return _wrapped(np.asarray(a, dtype))


def asnumpy(a: Any) -> Any:
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


def concatenate(arrays: Any, axis: int = 0) -> ndarray:
    return _wrapped(np.concatenate([_host(a) for a in arrays], axis))


def stack(arrays: Any) -> ndarray:
    return _wrapped(np.stack([_host(a) for a in arrays]))


def take(a: ndarray, indices: Any, axis: int | None = None) -> ndarray:
    return _wrapped(a.host.take(_host(indices), axis))


def may_share_memory(a: ndarray, b: ndarray) -> bool:
    return isinstance(a, ndarray) and isinstance(b, ndarray) and np.may_share_memory(a.host, b.host)


def from_dlpack(value: Any) -> ndarray:
    """Of an array of its own, or a tensor of torch on the CPU that feigns a device."""
    if isinstance(value, ndarray):
        return value
    if type(value).__module__.partition(".")[0] != "torch":
        raise BufferError("the emulation knows no other arrays on a device")
    assert not value.requires_grad, "torch refuses it"
    narrow = str(value.dtype) == "torch.bfloat16"
    host = (
        value.view(sys.modules["torch"].int16).numpy().view("bfloat16") if narrow else value.numpy()
    )
    return ndarray(host, _Foreign(value, host))


def _tensor_of_torch(a: ndarray) -> Any:
    torch = sys.modules["torch"]
    shared = np.asarray(_Exported(a))
    if a.dtype.name == "bfloat16":
        return torch.from_numpy(shared.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(shared)


# --------------------------------------------------------------------------------- cupy.cuda


class Device:
    def __init__(self, device: Any = None) -> None:
        self.id = 0
        self.attributes = limits
        self.compute_capability = compute_capability

    entered = 0  # how deep

    def __enter__(self) -> Any:
        Device.entered += 1
        return self

    def __exit__(self, *_: Any) -> None:
        Device.entered -= 1


class Event:
    def __init__(self, disable_timing: bool = False) -> None:
        self.recorded = False


class Graph:
    def __init__(self, work: list[Callable[[], None]]) -> None:
        self.work = work

    def launch(self, stream: Any = None) -> None:
        launches.append("graph")
        places.append(stream)
        for run in self.work:
            run()


class Stream:
    """`use` and `with` as in CuPy: after a block counts what the blocks around it say."""

    entered: list[Any] = []  # noqa: RUF012
    current: Any = None
    captured: list[Callable[[], None]] | None = None

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.ptr = id(self)
        self.capturing = False  # itself, or by an event of a stream that is
        self.origin = False  # itself
        self.open = False  # whether there is work on it that no other stream waits for

    def use(self) -> Any:
        Stream.current = self
        return self

    def __enter__(self) -> Any:
        Stream.entered.append(self)
        return self.use()

    def __exit__(self, *_: Any) -> None:
        Stream.entered.pop()
        Stream.current = Stream.entered[-1] if Stream.entered else _null

    def record(self, event: Any) -> Any:
        event.recorded, event.capturing, event.of = True, self.capturing, self
        return event

    def wait_event(self, event: Any) -> None:
        assert event.recorded, "waiting for an event that was not recorded"
        event.of.open = False
        self.capturing = self.capturing or event.capturing

    def is_capturing(self) -> bool:
        return self.capturing

    def begin_capture(self) -> None:
        assert Stream.captured is None, "a capture within a capture"
        Stream.captured, self.capturing, self.origin = [], True, True

    def end_capture(self) -> Graph:
        assert Stream.captured is not None
        work, Stream.captured = Stream.captured, None
        unjoined = [s for s in _streams if s.capturing and s.open and not s.origin]
        for stream in _streams:
            stream.capturing = stream.origin = stream.open = False
        if unjoined:
            raise RuntimeError("cudaErrorStreamCaptureUnjoined")
        return Graph(work)


class ExternalStream(Stream):
    def __init__(self, ptr: int, device_id: int = -1) -> None:
        super().__init__()
        self.ptr = ptr


_null = Stream(null=True)
_streams: list[Stream] = []


def _new_stream(*args: Any, **kwargs: Any) -> Stream:
    _streams.append(Stream(*args, **kwargs))
    return _streams[-1]


def get_current_stream() -> Stream:
    return Stream.current or _null


def _do(name: str, work: Callable[[], None], stream: Stream) -> None:
    """Now, or when the graph is launched that is being captured."""

    def run() -> None:
        launches.append(name)
        places.append(stream)
        work()

    stream.open = True
    if Stream.captured is None:
        run()
        return
    assert stream.capturing, f"{name}: launched beside the capture"
    Stream.captured.append(run)


# --------------------------------------------------------------------------- kernels, products


def compiler() -> str | None:
    return shutil.which("g++") or shutil.which("c++")


@cache
def emulation(*macros: str) -> ctypes.CDLL:
    """The kernels for the CPU, built once for each state of their sources.

    Those of cluster.cu one by one, which `macros` name.
    """
    sources = (_EMULATION, *SOURCES)
    text = b"".join(s.read_bytes() for s in sources) + "".join(macros).encode()
    digest = hashlib.sha256(text).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"rnnfast_cuda_emulation_{digest}.so"
    if not library.exists():
        found = compiler()
        assert found is not None
        made = library.with_suffix(f".{np.random.default_rng().integers(1 << 30)}")
        flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
        flags += ["-Wno-unknown-pragmas"]  # those that unroll loops
        subprocess.run([found, *flags, *macros, "-o", str(made), str(_EMULATION)], check=True)
        made.replace(library)
    loaded = ctypes.CDLL(str(library))
    loaded.emulate.restype = ctypes.c_char_p
    loaded.size_of.restype = ctypes.c_ulonglong
    return loaded


class RawModule:
    def __init__(self, code: str, options: tuple[str, ...]) -> None:
        texts = {file.name: file.read_text(encoding="utf-8") for file in SOURCES}
        given = [n for n, text in texts.items() if "\n".join(text.splitlines()[-20:]) in code]
        numbers, cells, units, sequences, exchange, *_ = texts
        every = [numbers, cells, units]
        assert given in (
            [*every, "steps.cu"],
            [*every, sequences, "grid.cu"],
            [*every, sequences, exchange, "cluster.cu"],
        )
        macros = dict(o[2:].split("=") for o in options if o.startswith("-D"))
        self.file = given[-1]
        self.cell = macros["RNNFAST_CELL"].encode()
        self.stored = macros["RNNFAST_STORED"].encode()
        real = "double" if self.stored == b"double" else "float"
        assert macros["RNNFAST_REAL"] == real
        self.own: tuple[str, ...] = ()  # macros of its own emulation
        self.only: str | None = None  # or the only one that there is
        if "RNNFAST_BACKWARD" in macros:
            way = ("forward", "backward")[int(macros["RNNFAST_BACKWARD"])]
            self.only = f"{way}_steps"
        if self.file == "steps.cu":
            self.variant = int(macros["RNNFAST_NORM"])
        elif self.file == "cluster.cu":
            assert int(compute_capability) >= 90, "no such instructions"
            division, self.variant = macros["RNNFAST_DIVISION"], int(macros["RNNFAST_BACKWARD"])
            self.blocks = int(macros["RNNFAST_BLOCKS"])
            assert division.startswith(f"Division<{self.blocks},")
            self.own = (
                *(f"-DEMULATED_{n}={macros['RNNFAST_' + n]}" for n in ("CELL", "REAL", "STORED")),
                f"-DEMULATED_DIVISION={division}",
                f"-DEMULATED_BACKWARD={self.variant}",
            )
        else:
            ways = "rnnfast::Lanes<1>", "rnnfast::Lanes<8>", "rnnfast::TensorCores"
            self.variant = ways.index(macros["RNNFAST_PRODUCTS"])
            assert self.variant < 2 or int(compute_capability) >= 80, "no such instruction"
        names = ("gate", "candidate", "output")
        self.functions = {name: int(macros["RNNFAST_" + name.upper()]) for name in names}
        names = ("clip", "grad_clip", "input_forget")
        self.options = {name: bool(int(macros["RNNFAST_" + name.upper()])) for name in names}
        pointers = re.findall(r"RNNFAST_(\w+)\((\w+)\)", macros.get("RNNFAST_POINTERS", ""))
        self.hidden = int(macros.get("RNNFAST_HIDDEN", 0))
        self.pointers = {name: is_there == "THERE" for is_there, name in pointers}

    def get_function(self, name: str) -> Kernel:
        assert self.only in (None, name), "compiled for the other one"
        return Kernel(self, name)


class Kernel:
    def __init__(self, module: RawModule, name: str) -> None:
        self.module, self.name = module, name
        self.allows_16 = False  # blocks in a cluster
        self.max_dynamic_shared_size_bytes = 48 * 1024  # until one asks for more

    kernel = property(lambda self: self)
    ptr = property(lambda self: self)

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        arguments: Any,
        shared_mem: int = 0,
        stream: Any = None,
        enable_cooperative_groups: bool = False,
    ) -> None:
        given = [np.array(a) for a in arguments]  # by value, as a GPU takes them
        for a in given:
            for step in _steps(self.name, a):  # what the compiler builds in is what is asked for
                given_options = step["options"]
                built_in = {k: int(given_options[k]["function"]) for k in self.module.functions}
                assert built_in == self.module.functions
                for name in ("clip", "grad_clip", "input_forget"):
                    assert bool(given_options[name]) <= self.module.options[name]
                if self.module.pointers:
                    assert step["hidden"] == self.module.hidden
                    there = {n for n in self.module.pointers if step[n]}  # of those told
                    assert there == {n for n, is_there in self.module.pointers.items() if is_there}
        pointers = (ctypes.c_void_p * len(given))(*(a.ctypes.data for a in given))
        grid = (*grid, 1, 1)[:3]
        assert shared_mem <= min(
            self.max_dynamic_shared_size_bytes, limits["MaxSharedMemoryPerBlockOptin"]
        )
        if enable_cooperative_groups:
            assert np.prod(grid) <= limits["MultiProcessorCount"], "more blocks than fit"
        clusters = self.module.file == "cluster.cu"
        shared = shared_mem if enable_cooperative_groups or clusters else -1
        if clusters:
            assert grid[0] == self.module.blocks <= 8 or self.allows_16

        def run() -> None:
            assert len(given) == len(pointers)  # keeps both
            of = self.module.cell, self.module.stored, self.module.variant, self.name.encode()
            sizes = (ctypes.c_uint * 3)(*grid)
            mistake = ["-DEMULATED_IMPATIENT"] * (impatient and bool(self.module.own))
            library = emulation(*self.module.own, *mistake)
            error = library.emulate(*of, sizes, *block, shared, order, pointers)
            assert error is None, f"{self.name}: {error.decode()}"

        _do(self.name, run, stream or get_current_stream())


def _steps(kernel: str, argument: Any) -> list[Any]:
    """The parameters of steps in an argument of a kernel."""
    if argument.dtype.kind != "V":
        return []
    parameters = sys.modules["rnnfast.backends.cuda.parameters"]
    way = "FORWARD" if kernel.startswith("forward") else "BACKWARD"
    if not kernel.endswith("_steps"):
        return [argument.view(getattr(parameters, f"{way}_STEP"))]
    both = argument.view(getattr(parameters, f"{way}_SEQUENCES"))["of"]["step"]
    return [step for step in both if step["hidden"] > 0]


def _viewed(pointer: int, kind: int, rows: int, columns: int, stride: int) -> Any:
    """Column-major memory as cuBLAS counts it."""
    dtype = np.dtype({0: "float32", 1: "float64", 2: "float16", 14: "bfloat16"}[kind])
    assert stride >= max(1, rows), "a leading dimension below the number of rows"
    count = stride * (columns - 1) + rows
    _check_memory(pointer, count * dtype.itemsize)
    flat = np.ctypeslib.as_array((ctypes.c_char * (count * dtype.itemsize)).from_address(pointer))
    step = dtype.itemsize
    return np.lib.stride_tricks.as_strided(flat.view(dtype), (rows, columns), (step, step * stride))


class _Handle:
    """Of cuBLAS: what it is bound to."""

    stream: Any = None
    memory: tuple[int, int] = (0, 0)

    def bind(self, stream: int, workspace: int, size: int) -> None:
        assert size in (4 << 20, 32 << 20)
        self.memory = workspace, size
        found = [s for s in (*_streams, get_current_stream()) if s.ptr == stream]
        self.stream = found[0]

    def gemm(self, *arguments: int) -> None:
        _gemm(self.stream, self.memory, *arguments)


def _gemm(
    stream: Any,
    workspace: tuple[int, int],
    a_transposed: int,
    b_transposed: int,
    m: int,
    n: int,
    k: int,
    alpha: int,
    a: int,
    a_kind: int,
    a_stride: int,
    b: int,
    b_kind: int,
    b_stride: int,
    beta: int,
    c: int,
    c_kind: int,
    c_stride: int,
    compute: int,
) -> None:
    assert min(m, n, k) > 0
    assert compute == {0: 68, 1: 70}[c_kind], "not full precision"
    assert a_kind == b_kind
    assert (a_kind, c_kind) in ((0, 0), (1, 1), (2, 0), (14, 0)), "cuBLAS has no such product"
    real = {0: ctypes.c_float, 1: ctypes.c_double}[c_kind]
    by, add = (real.from_address(p).value for p in (alpha, beta))
    assert (by, add) in ((1, 0), (1, 1))

    def run() -> None:
        _check_memory(*workspace)
        left = _viewed(a, a_kind, *((k, m) if a_transposed else (m, k)), a_stride)
        right = _viewed(b, b_kind, *((n, k) if b_transposed else (k, n)), b_stride)
        into = _viewed(c, c_kind, m, n, c_stride)
        left, right = (factor.astype(into.dtype, copy=False) for factor in (left, right))
        product = (left.T if a_transposed else left) @ (right.T if b_transposed else right)
        into[...] = product + into if add else product

    _do("gemm", run, stream)


# ----------------------------------------------------------------------------------- modules


def modules() -> dict[str, ModuleType]:
    """What stands in sys.modules for CuPy, by name."""
    cupy = sys.modules[__name__]
    cuda, runtime = ModuleType("cupy.cuda"), ModuleType("cupy.cuda.runtime")
    runtime.__dict__.update(getDeviceCount=lambda: 1, CUDARuntimeError=RuntimeError)
    cuda.__dict__.update(
        Device=Device,
        Event=Event,
        ExternalStream=ExternalStream,
        Stream=_new_stream,
        alloc=_Allocated,
        get_current_stream=get_current_stream,
        runtime=runtime,
    )
    cupy.__dict__["cuda"] = cuda
    cublas = ModuleType("rnnfast.backends.cuda.cublas")
    cublas.__dict__.update(
        Handle=_Handle,
        COMPUTE_32F=68,
        COMPUTE_64F=70,
        COMPUTE_32F_FAST_TF32=77,
    )
    driver, api = ModuleType("cupy_backends.cuda.api.driver"), ModuleType("cupy_backends.cuda.api")
    driver.__dict__["funcSetAttribute"] = _set_attribute
    api.__dict__["driver"] = driver
    return {
        "cupy": cupy,
        "cupy.cuda": cuda,
        "cupy_backends": ModuleType("cupy_backends"),
        "cupy_backends.cuda": ModuleType("cupy_backends.cuda"),
        "cupy_backends.cuda.api": api,
        "cupy_backends.cuda.api.driver": driver,
        "rnnfast.backends.cuda.cublas": cublas,
    }


def _set_attribute(kernel: Any, attribute: int, value: int) -> None:
    assert (attribute, value) == (14, 1)  # CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
    kernel.allows_16 = True


@contextmanager
def installed() -> Iterator[None]:
    """The emulation in the place of CuPy, and the backend "cuda" on top of it."""
    registry = importlib.import_module("rnnfast.backends")
    caches = (registry._load, registry.supporting, registry._resolve)
    ours = "rnnfast.backends.cuda"
    before = {k: v for k, v in sys.modules.items() if k.partition(".")[0].startswith("cupy")}
    before |= {k: v for k, v in sys.modules.items() if k.startswith(ours)}
    for name in before:
        del sys.modules[name]
    sys.modules.update(modules())
    for cached in caches:
        cached.cache_clear()
    try:
        yield
    finally:
        for name in [*modules(), *(k for k in list(sys.modules) if k.startswith(ours))]:
            sys.modules.pop(name, None)
        sys.modules.update(before)
        for cached in caches:
            cached.cache_clear()
