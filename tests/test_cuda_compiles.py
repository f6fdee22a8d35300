"""Every kernel of the backend "cuda", in every instantiation, compiles for every architecture.

By NVRTC, the compiler that CuPy uses at run time; it needs neither a GPU nor a driver. Whether the
kernels do the right thing is the subject of tests/test_cuda_emulated.py.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import fake_cupy
import numpy as np
import pytest

from rnnfast.spec import ACTIVATIONS, CELLS, Spec, all_specs

ARCHITECTURES = ("sm_70", "sm_80", "sm_90", "sm_100")
DTYPES = ("float32", "float64", "float16", "bfloat16")
with fake_cupy.installed():
    from rnnfast.backends.cuda import cluster, launch, sequences
    from rnnfast.backends.cuda.grid import WAYS
    from rnnfast.backends.cuda.launch import compile_options, of_cluster, of_grid, of_steps, source
    from rnnfast.backends.cuda.parameters import BACKWARD_STEP, FORWARD_STEP, pointers
SOURCES = {name: source(name) for name in ("steps.cu", "grid.cu", "cluster.cu")}
KERNELS = {
    name: re.findall(r"^RNNFAST_KERNEL (\w+)", text, re.MULTILINE) for name, text in SOURCES.items()
}
# The pointers of a step that a call without options has.
PLAIN = {
    False: ("gx", "raw", "b_ih", "b_hh", "h", "y"),
    True: ("dy", "gates", "h_before", "dh", "d", "d_h", "product_h"),
}
OF_LSTM = {False: ("c",), True: ("value", "c_before", "dc")}


def library() -> Path | None:
    """NVRTC of the package nvidia-cuda-nvrtc-cu12 (or -cuda-nvrtc, which knows no sm_70)."""
    found = importlib.util.find_spec("nvidia")
    folders = [] if found is None else list(found.submodule_search_locations or ())
    libraries = [p for f in folders for p in sorted(Path(f).glob("*/lib/libnvrtc.so.*"))]
    return min(libraries, key=lambda path: path.name, default=None)


pytestmark = pytest.mark.skipif(
    library() is None and not fake_cupy.REQUIRED,
    reason="needs NVRTC: pip install nvidia-cuda-nvrtc-cu12",
)


@cache
def nvrtc() -> ctypes.CDLL:
    return ctypes.CDLL(str(library()))


class Compiled(NamedTuple):
    code: bytes
    ptx: bytes
    log: str


def compiled(file: str, options: tuple[str, ...]) -> Compiled:
    """A file as machine code; an AssertionError with the compiler's words where it has errors."""
    program = ctypes.c_void_p()
    done = nvrtc().nvrtcCreateProgram(
        ctypes.byref(program), SOURCES[file].encode(), file.encode(), 0, None, None
    )
    assert done == 0
    given = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    done = nvrtc().nvrtcCompileProgram(program, len(options), given)
    log = _text(program, "ProgramLog").decode()
    assert done == 0, log
    code, ptx = _text(program, "CUBIN"), _text(program, "PTX")
    nvrtc().nvrtcDestroyProgram(ctypes.byref(program))
    return Compiled(code, ptx, log)


def _text(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    assert getattr(nvrtc(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
    made = ctypes.create_string_buffer(size.value)
    assert getattr(nvrtc(), f"nvrtcGet{what}")(program, made) == 0
    return made.raw


@cache
def architectures() -> tuple[str, ...]:
    count = ctypes.c_int()
    assert nvrtc().nvrtcGetNumSupportedArchs(ctypes.byref(count)) == 0
    known = (ctypes.c_int * count.value)()
    assert nvrtc().nvrtcGetSupportedArchs(known) == 0
    return tuple(f"sm_{k}" for k in known)


def of_gpu(options: tuple[str, ...], architecture: str) -> tuple[str, ...]:
    """Those of the backend, and what CuPy adds."""
    own = ("-ftz=true", "--device-as-default-execution-space")
    return (*options, *own, f"-arch={architecture}", "--ptxas-options=-v")


def options(spec: Spec, dtype: str, architecture: str) -> tuple[str, ...]:
    """Of steps.cu."""
    variant = of_steps(spec.layer_norm)
    return of_gpu(compile_options(spec, np.dtype(dtype), *variant), architecture)


def of_all_steps(
    spec: Spec,
    dtype: str,
    architecture: str,
    backward: bool,
    variant: tuple[str, ...],
    hidden: int = 100,
    equal: bool = True,
    everything: bool = False,
) -> tuple[str, ...]:
    """Of grid.cu and cluster.cu; with every pointer there, or those of a plain call."""
    names = pointers(BACKWARD_STEP if backward else FORWARD_STEP)
    plain = set(PLAIN[backward])
    plain |= set(OF_LSTM[backward]) if spec.cell == "lstm" else set()
    plain |= {"q"} if spec.cell == "gru" and spec.reset_after else set()
    there = tuple(everything or name in plain for name in names)
    of = spec, np.dtype(dtype), backward, hidden, everything, equal, there, variant
    return of_gpu(sequences.options(*of), architecture)


def check(file: str, wanted: list[tuple[str, ...]], most_spilled: int) -> None:
    with ThreadPoolExecutor(2) as pool:
        for one, made in zip(wanted, pool.map(partial(compiled, file), wanted), strict=True):
            lines = [line for line in made.log.splitlines() if "warning" in line]
            assert all("deprecated" in line for line in lines), (one, made.log)
            names = KERNELS[file]
            if file != "steps.cu":
                names = ["backward_steps" if "-DRNNFAST_BACKWARD=1" in one else "forward_steps"]
            assert all(name.encode() in made.code for name in names), one
            spilled = [int(n) for n in re.findall(r"(\d+) bytes spill", made.log)]
            assert len(spilled) >= 2 * len(names), made.log
            assert max(spilled) <= most_spilled, (one, made.log)  # bytes


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_instantiation(architecture: str) -> None:
    if architecture not in architectures():
        pytest.skip(f"this NVRTC no longer knows {architecture}")
    dtypes = [d for d in DTYPES if d != "bfloat16" or architecture != "sm_70"]  # which has none
    specs = [Spec(cell.name, r) for cell in CELLS.values() for r in reset_after(cell)]
    assert [len(names) for names in KERNELS.values()] == [8, 2, 2]
    check(
        "steps.cu",
        [
            options(replace(spec, layer_norm=norm), dtype, architecture)
            for spec in specs
            for norm in (False, True)
            for dtype in dtypes
        ],
        64,
    )
    check(
        "grid.cu",
        [
            of_all_steps(spec, dtype, architecture, backward, of_grid(products), everything=every)
            for spec in specs
            for dtype in dtypes
            for products in ways(dtype, architecture)
            for backward, every in ((False, False), (True, True))
        ],
        0,
    )


@pytest.mark.parametrize("architecture", ["sm_90", "sm_100"])
def test_divisions_of_clusters(architecture: str) -> None:
    """Small and large ones of each cell, of one block and of 16, without a register in memory."""
    if architecture not in architectures():
        pytest.skip(f"this NVRTC does not know {architecture}")
    device = launch.Limits(132, 232448, True, 16)
    wanted, blocks = [], set()
    for cell in CELLS:
        for H, B, dtype in (
            *((1, 1, "float32"), (64, 1, "float16"), (100, 64, "float32")),
            *((256, 7, "bfloat16"), (256, 300, "float32"), (400, 8, "float32")),
        ):
            for backward in (False, True):
                of = Spec(cell), np.dtype(dtype), H, B, 1, B != 7, backward, device
                found = cluster.plan(*of)
                if found is None:
                    assert H == 400
                    assert cell != "rnn"
                    continue
                blocks.add(found.blocks)
                variant = of_cluster(found.division)
                of_launch = Spec(cell), dtype, architecture, backward, variant, H, B != 7
                wanted.append(of_all_steps(*of_launch))
                if H == 100:
                    wanted.append(of_all_steps(*of_launch, everything=True))
    assert {1, 16} <= blocks
    check("cluster.cu", wanted, 0)


def ways(dtype: str, architecture: str) -> tuple[str, ...]:
    """How the products of grid.cu are made there."""
    narrow = np.dtype(dtype).itemsize == 2
    return WAYS[2:] if narrow and architecture != "sm_70" else WAYS[:2]


def reset_after(cell: Any) -> tuple[bool, ...]:
    return (True, False) if cell.has_reset_after else (True,)


def test_every_function() -> None:
    """In the places that the compiler builds them into."""
    wanted = [options(Spec("rnn", activation=f), "float32", "sm_80") for f in ACTIVATIONS.values()]
    check("steps.cu", wanted, 64)
    specs = [s for s in all_specs() if s.cell == "rnn"]
    assert len({options(s, "float32", "sm_80") for s in specs}) == len(specs)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_loads_of_all_steps_see_what_other_blocks_wrote(cell: str) -> None:
    """None goes through the cache of what never changes; each barrier releases and acquires."""
    for backward in (False, True):
        of = Spec(cell), "float32", "sm_90", backward, of_grid(WAYS[1])
        ptx = compiled("grid.cu", of_all_steps(*of)).ptx.decode()
        assert ".global.nc" not in ptx
        lines = ptx.splitlines()
        adds = [k for k, line in enumerate(lines) if "red.release.gpu.global.add" in line]
        polls = [k for k, line in enumerate(lines) if "ld.acquire.gpu.global" in line]
        assert len(adds) == len(polls) > 0
        assert all(add < poll for add, poll in zip(adds, polls, strict=True))


def test_tensor_cores_make_the_products_of_16_bits() -> None:
    for dtype, architecture, kind in (
        ("float16", "sm_70", ""),
        ("float16", "sm_80", "f16"),
        ("bfloat16", "sm_90", "bf16"),
        ("float32", "sm_90", ""),
    ):
        if architecture not in architectures():
            continue
        (*_, way) = ways(dtype, architecture)
        of = Spec("gru"), dtype, architecture, False, of_grid(way)
        ptx = compiled("grid.cu", of_all_steps(*of)).ptx
        found = set(re.findall(rb"mma\.sync\.aligned\.m16n8k16\.[\w.]+", ptx))
        wanted = f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32".encode()
        assert found == ({wanted} if kind else set())


def test_wrong_code_does_not_compile() -> None:
    wrong = tuple(
        o.replace("CELL=Rnn", "CELL=Run") for o in options(Spec("rnn"), "float32", "sm_80")
    )
    with pytest.raises(AssertionError, match="Run"):
        compiled("steps.cu", wrong)
