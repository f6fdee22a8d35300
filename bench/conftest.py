"""What the suites share: their parameters, and a call that has been checked before it is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import rnnfast

from .load import Load, is_loaded
from .peers import OURS, THEIRS, Peer
from .problem import CELLS, DEFAULT_CELLS, draw, errors, tolerance
from .shapes import Shape
from .timing import PAUSE

_loaded: list[str] = []  # benchmarks during which other processes used the cores


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench-all", action="store_true", help="benchmark the large shapes too")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each cell, shape of the module and implementer that can do it."""
    if "checked" not in metafunc.fixturenames:
        return
    mode, shapes = metafunc.module.MODE, metafunc.module.SHAPES
    everything = metafunc.config.getoption("bench_all", default=False)
    cases = [
        pytest.param((cell, shape, peer, mode), id=f"{cell}-{shape}-{peer.name}")
        for cell in DEFAULT_CELLS
        for shape in shapes
        if shape.quick or everything
        for peer in (*OURS, *THEIRS)
        if peer.supports(CELLS[cell], shape, mode)
    ]
    metafunc.parametrize("checked", cases, indirect=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _loaded:
        terminalreporter.section("NOT MEASUREMENTS: timed while other processes used the cores")
        terminalreporter.write_line("\n".join(_loaded))


@pytest.fixture
def checked(
    request: pytest.FixtureRequest, benchmark: BenchmarkFixture
) -> Iterator[Callable[[], Any]]:
    """The call of one implementer, whose results are right."""
    case: tuple[str, Shape, Peer, Any] = request.param
    cell, shape, peer, mode = case
    for module in peer.needs:
        pytest.importorskip(module)
    problem = draw(CELLS[cell], shape, mode)
    contender = peer.make(problem, rnnfast.get_num_threads())
    found = errors(problem, contender.results(contender.run()))
    assert max(found.values()) <= tolerance(shape), found
    benchmark.group = f"{mode} {cell} {shape}"
    benchmark.extra_info["threads"] = rnnfast.get_num_threads()
    if not benchmark.enabled:
        yield contender.run
        return
    time.sleep(PAUSE)  # workers of the implementer before may still spin
    load = Load()
    yield contender.run
    benchmark.extra_info["other_cores"] = others = load.others()
    if is_loaded(others):
        _loaded.append(request.node.nodeid)
