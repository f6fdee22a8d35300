"""Fixtures that draw from the registries, so that no test lists cells, backends or dtypes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

EMULATED = os.environ.get("RNNFAST_EMULATE_CUDA") == "1"
if EMULATED:  # before anything asks which backends there are
    import fake_cupy

    sys.modules.update(fake_cupy.modules())

from helpers import DTYPES, usable_backends  # noqa: E402

import rnnfast  # noqa: E402
from rnnfast.spec import Spec, all_specs  # noqa: E402

settings.register_profile(
    "default",
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    # The fixtures only name a backend and choose its instruction set: the same for each example.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=500)
settings.load_profile("default")


# They differ from avx512 in products of 16 and 8 bits alone, the last one also in float32 of
# batches of 16 rows and more.
LOW_SETS = ("avx512vnni", "avx512bf16", "avx512amx")
# Differs from avx512amx in that it takes float32 of any size to the matrix unit.
SPLIT_SET = "avx512amx_every"


def available_isas(low: bool = False) -> list[str]:
    """The instruction sets of the native backend that this machine can run.

    Those that differ in float32 and float64, or in products of fewer bits (`low`).
    """
    if "native" not in usable_backends():
        return []
    from rnnfast import _native

    unlike = (SPLIT_SET,) if low else LOW_SETS
    return [isa for isa in _native.available_isas() if isa not in unlike]


def targets(low: bool = False) -> list[str]:
    """Every usable backend; the native one once for each instruction set, as native@avx2."""
    isas = [f"native@{isa}" for isa in available_isas(low)]
    return [*isas, *(name for name in usable_backends() if name != "native" or not isas)]


def pytest_report_header() -> list[str]:
    lines = [f"rnnfast {rnnfast.__version__}, tested: {', '.join(targets(low=True))}"]
    if EMULATED:
        lines.append("  cuda is EMULATED on the CPU (tests/fake_cupy.py): no GPU is tested")
    lines += [
        f"  NOT tested: backend {name}: {reason}"
        for name, reason in rnnfast.backends().items()
        if reason is not None
    ]
    return lines


# The tests that also run where the backend takes no arrays in CPU memory: those of these modules,
# which hand everything to `helpers`, but for these functions.
PLACED_MODULES = {
    *("test_against_torch", "test_backends_agree", "test_dropout", "test_layouts"),
    *("test_lengths", "test_memory", "test_options", "test_option_product"),
}
NOT_PLACED = {
    "test_masks",
    "test_backward_takes_its_own_outputs",
    "test_out",
    "test_out_may_hold_an_earlier_result",
    "test_out_unbatched",
    "test_backward_may_be_called_again",
    "test_state_and_out_may_be_changed_before_backward",
    "test_every_combination_is_answered",
    "test_torch_tensors",
}
NOT_PLACED_OF = {"test_memory": {"test_layouts"}}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out, for "cuda", tests that hand over NumPy arrays; test_cuda*.py has their like."""
    for item in items:
        chosen = getattr(item, "callspec", None)
        if chosen is None or "cuda" not in (chosen.params.get(k) for k in ("target", "backend")):
            continue
        module, name = item.module.__name__, item.originalname  # type: ignore[attr-defined]
        left_out = name in NOT_PLACED or name in NOT_PLACED_OF.get(module, ())
        if module not in PLACED_MODULES or left_out:
            item.add_marker(pytest.mark.skip("hands over NumPy arrays, which cuda does not take"))


def pytest_sessionstart() -> None:
    """Fail where a backend that RNNFAST_REQUIRE_BACKENDS names cannot be tested."""
    status = rnnfast.backends()
    for name in filter(None, os.environ.get("RNNFAST_REQUIRE_BACKENDS", "").split(",")):
        reason = status.get(name.strip(), "there is no such backend")
        if reason is not None:
            raise pytest.UsageError(f"RNNFAST_REQUIRE_BACKENDS: {name}: {reason}")


@pytest.fixture(autouse=True)
def no_false_alarms() -> Iterator[None]:
    """NumPy's matmul sometimes warns of invalid values where there are none.

    Seen with OpenBLAS 0.3.31 on AVX-512 for (1, 5) @ (5, 15) in float32, finite numbers and a
    right result, about once in 20,000 products. NaN that is there is found by the comparisons.
    """
    with np.errstate(invalid="ignore"):
        yield


@pytest.fixture
def same_threads() -> Iterator[None]:
    """Put the number of threads back."""
    before = rnnfast.get_num_threads()
    yield
    rnnfast.set_num_threads(before)


@pytest.fixture(params=usable_backends())
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=all_specs(), ids=Spec.variants)
def spec(request: pytest.FixtureRequest) -> Spec:
    found: Spec = request.param
    return found


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


NO_NATIVE: Any = pytest.param("", marks=pytest.mark.skip("the native backend is not usable"))


@pytest.fixture(params=available_isas() or [NO_NATIVE])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """An instruction set, in use by the native backend during the test."""
    with use_isa(request.param):
        yield request.param


@pytest.fixture(params=targets())
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backend, once for each of its instruction sets, which is in use."""
    name, _, wanted = request.param.partition("@")
    with use_isa(wanted):
        yield name


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Choose an instruction set, if one is named, and put the former one back."""
    if not name:
        yield
        return
    from rnnfast import _native

    before = _native.get_isa()
    _native.set_isa(name)
    try:
        yield
    finally:
        _native.set_isa(before)
