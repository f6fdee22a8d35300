"""What runs on the device: kernels and matrix products, one by one or as a CUDA graph.

The steps of a pass are a list of operations for each direction; the two may run at the same time.
The first time that steps come with certain shapes and pointers they are launched one by one; the
second time they are captured in a graph; from then on the graph alone is launched. Everything is
ordered by the current stream, and nothing waits for the device.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import cupy
import numpy as np
from cupy_backends.cuda.api import driver

from ...arrays import computed
from ...errors import UnsupportedError
from ...spec import Spec
from . import cublas, parameters

_FOLDER = Path(__file__).parent
_CELLS = {"lstm": "Lstm", "rnn": "Rnn", "gated": "Gated"}
_THREADS = 256  # of a block at most: the launch bound of the kernels
# Kept for each device: graphs, keys of steps that came before, streams of the caller.
_GRAPHS, _SEEN, _STREAMS = 32, 1024, 16
_IDLE = 256  # launches without a graph, after which another one may take its place
# Of a dtype by name: its type in C++, and its cudaDataType.
_TYPES = {
    "float32": ("float", 0),
    "float64": ("double", 1),
    "float16": ("rnnfast::Float16", 2),
    "bfloat16": ("rnnfast::BFloat16", 14),
}
_OF_THREAD = 2  # cudaStreamPerThread
_HOPPER = 9  # major compute capability
_AMPERE = 80  # compute capability of the first with bfloat16, and an instruction of grid.cu
# Blocks of a cluster, by the major one: 16 on the large devices, which have so many processors; 8
# is what all have.
_CLUSTERS = (9, 10)
_LARGE, _MOST_BLOCKS, _PORTABLE_BLOCKS = 100, 16, 8
_NON_PORTABLE_CLUSTERS = 14  # CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED


class Queue(NamedTuple):
    """Where operations go: a stream, and cuBLAS bound to it."""

    stream: Any
    handle: cublas.Handle


Operation = Callable[[Queue], None]
Steps = list[list[Operation]]  # of each direction
Sizes = tuple[int, int, int]


# ------------------------------------------------------------------------------- operations


def cell_name(spec: Spec) -> str:
    """Its class in steps.cu."""
    if spec.cell == "gru":
        return "GruAfter" if spec.reset_after else "GruBefore"
    return _CELLS[spec.cell]


@cache
def compile_options(spec: Spec, dtype: np.dtype[Any], *variant: str) -> tuple[str, ...]:
    """What NVRTC is told beside the source, for the kernels of a cell in a variant of a file."""
    functions = (spec.of_gates, spec.of_candidate, spec.of_output)
    gate, candidate, output = (f.number for f in functions)
    return (
        "-std=c++17",
        f"-DRNNFAST_CELL={cell_name(spec)}",
        f"-DRNNFAST_REAL={_TYPES[computed(dtype).name][0]}",
        f"-DRNNFAST_STORED={_TYPES[dtype.name][0]}",
        *variant,
        f"-DRNNFAST_GATE={gate}",
        f"-DRNNFAST_CANDIDATE={candidate}",
        f"-DRNNFAST_OUTPUT={output}",
        f"-DRNNFAST_CLIP={int(spec.clip is not None)}",
        f"-DRNNFAST_GRAD_CLIP={int(spec.grad_clip is not None)}",
        f"-DRNNFAST_INPUT_FORGET={int(spec.input_forget)}",
    )


def of_steps(norm: bool) -> tuple[str, ...]:
    """The variants of steps.cu, and so on: what the ends of the files say."""
    return (f"-DRNNFAST_NORM={int(norm)}",)


def of_grid(products: str) -> tuple[str, ...]:
    return (f"-DRNNFAST_PRODUCTS=rnnfast::{products}",)


def of_cluster(division: str) -> tuple[str, ...]:
    blocks = division[len("Division<") :].partition(",")[0]
    return f"-DRNNFAST_DIVISION={division}", f"-DRNNFAST_BLOCKS={blocks}"


def known(
    backward: bool, hidden: int, two: bool, equal: bool, there: Mapping[str, bool | None]
) -> tuple[str, ...]:
    """What sequences.cuh builds in; `there` tells of pointers of a step whether they are null."""
    pointers = (
        f"RNNFAST_{'THERE' if is_there else 'NULL'}({name})"
        for name, is_there in there.items()
        if is_there is not None
    )
    return (
        f"-DRNNFAST_BACKWARD={int(backward)}",
        f"-DRNNFAST_HIDDEN={hidden}",
        f"-DRNNFAST_TWO={int(two)}",
        f"-DRNNFAST_EQUAL={int(equal)}",
        f"-DRNNFAST_POINTERS={' '.join(pointers)}",
    )


def source(file: str) -> str:
    """With its headers in it, each once: CuPy keeps compiled code by what it is given alone."""
    return _source(file, set())


def _source(file: str, there: set[str]) -> str:
    there.add(file)
    lines = []
    for line in (_FOLDER / file).read_text(encoding="utf-8").splitlines():
        if line.startswith('#include "'):
            header = line.split('"')[1]
            line = "" if header in there else _source(header, there)
        lines.append(line.replace("#pragma once", ""))
    return "\n".join(lines) + "\n"


@cache
def _module(file: str, options: tuple[str, ...]) -> Any:
    return cupy.RawModule(code=source(file), options=options)


@cache
def _function(file: str, options: tuple[str, ...], name: str) -> Any:
    return _module(file, options).get_function(name)


class Kernels:
    """The kernels of a cell with its options, in one dtype."""

    def __init__(self, spec: Spec, dtype: np.dtype[Any]) -> None:
        self._options = compile_options(spec, dtype, *of_steps(spec.layer_norm))
        self._norm = spec.layer_norm

    def __call__(self, name: str, rows: int, units: int, *arguments: Any) -> Operation:
        """A launch with a row of the batch for each block in x; arguments are arrays, by value."""
        function = _function("steps.cu", self._options, name)
        block = min(_THREADS, -(-units // 32) * 32)
        parts = 1 if self._norm else -(-units // block)
        arguments = tuple(parameters.by_value(a) for a in arguments)

        def run(queue: Queue) -> None:
            function((rows, parts), (block,), arguments, stream=queue.stream)

        return run


def divided(count: int, parts: int) -> int:
    """Rounded up."""
    return -(-count // parts)


class Matrix(NamedTuple):
    """Some rows of row-major memory, each `stride` numbers from the next."""

    pointer: int
    rows: int
    columns: int
    stride: int


class Products:
    """Products of matrices of one dtype, written in the one that is computed with.

    Those of 16 bits are added up in float32. float32 is float32, unless RNNFAST_CUDA_TF32=1 asks
    for TF32. alpha and beta are read when a product is launched.
    """

    def __init__(self, dtype: np.dtype[Any], tf32: bool) -> None:
        self.result = real = computed(dtype)
        self._type, self._type_of_result = _TYPES[dtype.name][1], _TYPES[real.name][1]
        if dtype == np.float64:
            self.compute = cublas.COMPUTE_64F
        elif dtype == np.float32 and tf32:
            self.compute = cublas.COMPUTE_32F_FAST_TF32
        else:
            self.compute = cublas.COMPUTE_32F
        self._numbers = np.array([0, 1], real)
        self._zero = self._numbers.ctypes.data
        self._one = self._zero + real.itemsize

    def arguments(
        self,
        a: Matrix,
        b: Matrix,
        c: Matrix,
        a_transposed: bool = False,
        b_transposed: bool = False,
        add: bool = False,
    ) -> tuple[Any, ...]:
        """Those of cuBLAS for c = a b, or c += a b, each of a and b perhaps transposed.

        cuBLAS counts columns first: what it is given is c^T = b^T a^T.
        """
        length = a.rows if a_transposed else a.columns
        beta = self._one if add else self._zero
        return (
            *(int(b_transposed), int(a_transposed), c.columns, c.rows, length, self._one),
            *(b.pointer, self._type, b.stride, a.pointer, self._type, a.stride, beta),
            *(c.pointer, self._type_of_result, c.stride, self.compute),
        )

    def __call__(self, a: Matrix, b: Matrix, c: Matrix, **how: bool) -> Operation:
        arguments = self.arguments(a, b, c, **how)

        def run(queue: Queue) -> None:
            queue.handle.gemm(*arguments)

        return run


def products(dtype: np.dtype[Any]) -> Products:
    tf32 = os.environ.get("RNNFAST_CUDA_TF32", "0")
    if tf32 not in ("0", "1"):
        raise ValueError(f"RNNFAST_CUDA_TF32: expected 0 or 1, got {tf32!r}")
    return _products(dtype, tf32 == "1")


_products = cache(Products)


# ------------------------------------------------------------------------------------ launch


class Limits(NamedTuple):
    """Of a cooperative launch: blocks at once, one on each multiprocessor; bytes for each.

    And whether there is the instruction of tensor cores that grid.cu has, and how many blocks a
    cluster may have.
    """

    blocks: int
    shared: int
    tensor_cores: bool
    clusters: int


class _Captured(NamedTuple):
    graph: Any
    used: int  # the launch that used it last


class _Device:
    """Handles, streams and graphs of one device; used by one thread at a time.

    No stream is made the current one: CuPy forgets what `use()` had set before.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self.handles = [cublas.Handle(), cublas.Handle()]
        self.capturing = cupy.cuda.Stream(non_blocking=True)
        self.beside = cupy.cuda.Stream(non_blocking=True)
        self.workspaces: OrderedDict[Any, Any] = OrderedDict()  # of the caller's streams
        self.seen: OrderedDict[int, None] = OrderedDict()  # hashes of keys
        self.graphs: OrderedDict[Any, _Captured] = OrderedDict()
        self.launches = 0
        self.last: Any = None  # the end of the last cooperative launch

    @cached_property
    def workspace(self) -> int:
        """Bytes, as NVIDIA recommends."""
        major = int(cupy.cuda.Device().compute_capability) // 10
        return (32 if major >= _HOPPER else 4) << 20

    @cached_property
    def limits(self) -> Limits:
        attributes = cupy.cuda.Device().attributes
        capability = int(cupy.cuda.Device().compute_capability)
        processors = attributes["MultiProcessorCount"]
        of_cluster = _MOST_BLOCKS if processors >= _LARGE else _PORTABLE_BLOCKS
        return Limits(
            processors * attributes["CooperativeLaunch"],
            attributes["MaxSharedMemoryPerBlockOptin"],
            capability >= _AMPERE,
            of_cluster if capability // 10 in _CLUSTERS else 0,
        )

    def together(self, function: Any, grid: Sizes, shared: int, arguments: Any) -> None:
        with self.lock:
            stream = cupy.cuda.get_current_stream()
            if self.last is not None:
                stream.wait_event(self.last)
            if function.max_dynamic_shared_size_bytes < shared:
                function.max_dynamic_shared_size_bytes = shared
            kernel, block = function.kernel, (_THREADS,)
            kernel(grid, block, arguments, shared_mem=shared, enable_cooperative_groups=True)
            self.last = stream.record(_event())

    def queues(self, current: Any, captured: bool = False) -> list[Queue]:
        """The current stream, or the one that stands for it in a graph, and the one beside it.

        Each with a part of the current stream's workspace, which stays where it is as long as there
        are graphs of it.
        """
        name = _name(current)
        if name not in self.workspaces:
            self.workspaces[name] = cupy.cuda.alloc(2 * self.workspace)
            if len(self.workspaces) > _STREAMS:
                gone, _ = self.workspaces.popitem(last=False)
                for key in [key for key in self.graphs if key[0] == gone]:
                    del self.graphs[key]
        self.workspaces.move_to_end(name)
        memory = self.workspaces[name].ptr
        found = []
        for k, stream in enumerate((self.capturing if captured else current, self.beside)):
            self.handles[k].bind(stream.ptr, memory + k * self.workspace, self.workspace)
            found.append(Queue(stream, self.handles[k]))
        return found

    def run(self, operations: Iterable[Operation]) -> None:
        with self.lock:
            queue, _ = self.queues(cupy.cuda.get_current_stream())
            for operation in operations:
                operation(queue)

    def gemms(self, products: Iterable[tuple[Any, ...]]) -> None:
        with self.lock:
            queue, _ = self.queues(cupy.cuda.get_current_stream())
            for arguments in products:
                queue.handle.gemm(*arguments)

    def launch(self, steps_key: Any, make: Callable[[], Steps]) -> None:
        with self.lock:
            current = cupy.cuda.get_current_stream()
            key = _name(current), steps_key
            self.launches += 1
            if key not in self.graphs:
                if not self._is_second(hash(key)) or not self._has_room():
                    self._launch(make(), self.queues(current))
                    return
                graph = self._captured(make(), self.queues(current, captured=True))
            else:
                graph = self.graphs[key].graph
            self.graphs[key] = _Captured(graph, self.launches)
            self.graphs.move_to_end(key)
            self.workspaces.move_to_end(key[0])
            graph.launch(current)

    def _has_room(self) -> bool:
        """Whether one more graph may be kept, in the place of one that nobody has used for long.

        Where more are used in turn than are kept, to capture each time takes longer than to launch
        one by one.
        """
        if len(self.graphs) < _GRAPHS:
            return True
        oldest = next(iter(self.graphs))
        if self.launches - self.graphs[oldest].used < _IDLE:
            return False
        del self.graphs[oldest]
        return True

    def _is_second(self, number: int) -> bool:
        """Whether a key came before; it counts as having come."""
        if number in self.seen:
            return True
        self.seen[number] = None
        if len(self.seen) > _SEEN:
            self.seen.popitem(last=False)
        return False

    def _captured(self, steps: Steps, queues: list[Queue]) -> Any:
        self.capturing.begin_capture()
        try:
            self._launch(steps, queues)
        except BaseException:
            with suppress(Exception):  # what went wrong is what counts
                self.capturing.end_capture()
            raise
        return self.capturing.end_capture()

    def _launch(self, steps: Steps, queues: list[Queue]) -> None:
        here, beside = queues
        if len(steps) == 2:
            beside.stream.wait_event(here.stream.record(_event()))
        try:
            of_each = list(zip(queues, steps, strict=False))
            for queue, operations in reversed(of_each):
                for operation in operations:
                    operation(queue)
        except BaseException:  # the memory of a call that fails is free again, too
            if len(steps) == 2:
                with suppress(Exception):
                    here.stream.wait_event(beside.stream.record(_event()))
            raise
        if len(steps) == 2:
            here.stream.wait_event(beside.stream.record(_event()))


def _name(stream: Any) -> Any:
    """What tells a stream from others; the default one of each thread has the same pointer."""
    return (stream.ptr, threading.get_ident()) if stream.ptr == _OF_THREAD else stream.ptr


def _event() -> Any:
    return cupy.cuda.Event(disable_timing=True)


_devices: dict[int, _Device] = {}
_devices_lock = Lock()


def _device(number: int) -> _Device:
    """The one of a number; the same for all threads, which wait for each other's launches by it."""
    with _devices_lock:
        if number not in _devices:
            _devices[number] = _Device()
        return _devices[number]


def run(operations: Iterable[Operation]) -> None:
    """One after the other, on the current stream."""
    _device(cupy.cuda.Device().id).run(operations)


def gemms(products: Iterable[tuple[Any, ...]]) -> None:
    """Products by their arguments, on the current stream."""
    _device(cupy.cuda.Device().id).gemms(products)


def launch(key: Any, make: Callable[[], Steps]) -> None:
    """What `make` gives, or a graph of it.

    Equal keys must stand for equal steps: the same operations on the same pointers.
    """
    _device(cupy.cuda.Device().id).launch(key, make)


def limits() -> Limits:
    """Those of the current device."""
    return _device(cupy.cuda.Device().id).limits


def launch_together(
    options: tuple[str, ...], name: str, grid: Sizes, shared: int, parameters: Any
) -> None:
    """A kernel of grid.cu on the current stream, all blocks at once.

    Two such launches on a device, each with a part of its blocks in place, would wait for ever:
    each waits for the one before it, where that was on another stream.
    """
    function = _function("grid.cu", options, name)
    _device(cupy.cuda.Device().id).together(function, grid, shared, (parameters,))


def launch_clusters(
    options: tuple[str, ...], name: str, grid: Sizes, shared: int, parameters: Any
) -> None:
    """A kernel of cluster.cu on the current stream."""
    function = _of_clusters(cupy.cuda.Device().id, options, name, shared)
    function.kernel(grid, (_THREADS,), (parameters,), shared_mem=shared)


@cache
def _of_clusters(device: int, options: tuple[str, ...], name: str, shared: int) -> Any:
    function = _function("cluster.cu", options, name)
    driver.funcSetAttribute(function.kernel.ptr, _NON_PORTABLE_CLUSTERS, 1)
    function.max_dynamic_shared_size_bytes = shared
    return function


def check_stream() -> None:
    """Refuse a call whose temporary memory a graph of the caller would use after its end."""
    if cupy.cuda.get_current_stream().is_capturing():
        raise UnsupportedError(
            "the current stream is being captured in a CUDA graph; backend 'cuda' cannot be a part "
            "of it: call before or after, as it makes graphs of its steps by itself"
        )


def check_dtype(dtype: np.dtype[Any]) -> None:
    if dtype.name != "bfloat16":
        return
    capability = cupy.cuda.Device().compute_capability
    if int(capability) < _AMPERE:
        raise UnsupportedError(
            f"weights: backend 'cuda' has bfloat16 from compute capability 8.0 on, this device has "
            f"{capability[:-1]}.{capability[-1]}; expected float16, float32 or float64"
        )


def check_precision(precision: str | None) -> None:
    if precision is not None:
        raise UnsupportedError(
            f"dtype: backend 'cuda' has no weights of {precision}; native and reference have"
        )
