"""Which backends there are and which is chosen; what the package imports and shows."""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import (
    ROOT,
    Case,
    assert_same_bits,
    forward,
    function,
    problem,
    python,
    usable_backends,
)

import rnnfast
from rnnfast.spec import Spec

PUBLIC = {
    *("lstm", "gru", "rnn", "gated", "lstm_vjp", "gru_vjp", "rnn_vjp", "gated_vjp"),
    *("Weights", "init_weights", "convert", "pack", "backends", "show_config"),
    *("set_num_threads", "get_num_threads", "UnsupportedError"),
}
PLANNED = {name: reason for name, reason in rnnfast.backends().items() if reason is not None}


def test_public_names() -> None:
    assert set(rnnfast.__all__) >= PUBLIC
    assert all(hasattr(rnnfast, name) for name in rnnfast.__all__)
    assert issubclass(rnnfast.UnsupportedError, NotImplementedError)


def test_status_of_backends() -> None:
    status = rnnfast.backends()
    assert {"native", "reference", "numba", "cuda"} <= status.keys()
    assert status["reference"] is None
    assert all(reason is None or reason for reason in status.values())
    status.clear()
    assert rnnfast.backends()


@pytest.mark.parametrize("name", PLANNED)
@pytest.mark.parametrize("vjp", [False, True])
def test_unusable_backends_say_why(name: str, vjp: bool, spec: Spec) -> None:
    """With the backend asked for, the reason, and the backends that can do it instead."""
    p = problem(Case(spec))
    with pytest.raises(rnnfast.UnsupportedError) as caught:
        function(spec, vjp)(p.x, p.weights, backend=name)
    message = str(caught.value)
    assert repr(name) in message
    assert str(PLANNED[name]) in message
    assert all(other in message for other in usable_backends())


def test_a_backend_that_lacks_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for what it lacks, a backend refuses; no other takes its place."""
    registry = importlib.import_module("rnnfast.backends")
    reference = importlib.import_module("rnnfast.backends.reference").BACKEND
    monkeypatch.setattr(type(reference), "supports", lambda self, spec: spec.cell != "gru")
    for cached in (registry._resolve, registry.supporting):
        cached.cache_clear()
    try:
        p = problem(Case(Spec("gru")))
        with pytest.raises(rnnfast.UnsupportedError, match=r"'reference'.*gru\(reset_after=True\)"):
            forward(p, "reference")
        forward(problem(Case(Spec("lstm"))), "reference")
    finally:
        for cached in (registry._resolve, registry.supporting):
            cached.cache_clear()


def test_the_environment_chooses_for_auto(
    backend: str, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = problem(Case(spec, dtype="float32", H=33))
    wanted = forward(p, backend)
    monkeypatch.setenv("RNNFAST_BACKEND", backend)
    assert_same_bits(forward(p, "auto"), wanted)
    assert repr(backend) in repr(rnnfast.pack(p.weights, cell=spec.cell))


def test_the_environment_does_not_overrule(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNFAST_BACKEND", "cuda")
    p = problem(Case(Spec("lstm")))
    forward(p, backend)
    with pytest.raises(rnnfast.UnsupportedError, match="cuda"):
        forward(p, "auto")


def test_a_bad_name_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNFAST_BACKEND", "nonsense")
    with pytest.raises(ValueError, match=r"native.*'nonsense'"):
        forward(problem(Case(Spec("lstm"))), "auto")


def test_an_empty_name_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`RNNFAST_BACKEND= command` is the shell's way to unset a default."""
    monkeypatch.setenv("RNNFAST_BACKEND", "")
    assert rnnfast.backends()["native"] is None or pytest.skip("native is not usable")
    forward(problem(Case(Spec("lstm"))), "auto")


def test_auto_in_a_fresh_process() -> None:
    code = "import rnnfast\nprint(rnnfast.pack(rnnfast.init_weights('lstm', 2, 3), cell='lstm'))"
    found = python(code, RNNFAST_BACKEND="reference")
    assert "backend 'reference'" in found.stdout, found.stderr
    if "native" in usable_backends():
        found = python(code, RNNFAST_BACKEND="auto")
        assert "backend 'native'" in found.stdout, found.stderr


def test_show_config_tells_what_is_wrong() -> None:
    found = python("import rnnfast; rnnfast.show_config()", RNNFAST_NUM_THREADS="many")
    assert re.search("threads +RNNFAST_NUM_THREADS: expected .* got 'many'", found.stdout)


def test_show_config(capsys: pytest.CaptureFixture[str]) -> None:
    rnnfast.show_config()
    printed = capsys.readouterr().out
    for part in (rnnfast.__version__, np.__version__, *rnnfast.backends(), *PLANNED.values()):
        assert str(part) in printed
    if "native" in usable_backends():
        assert rnnfast._native.get_isa() in printed
        assert str(rnnfast.get_num_threads()) in printed


def test_import_needs_numpy_alone() -> None:
    """No other package is loaded, not even where it is installed."""
    code = """
import sys
before = set(sys.modules)
import rnnfast
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new - set(sys.stdlib_module_names) - {"numpy", "rnnfast"}))
"""
    found = python(code)
    assert found.stdout.strip() == "[]", found.stdout + found.stderr


@pytest.mark.parametrize(
    ("package", "above"),
    [
        ("spec.py", {"weights", "backends", "reference", "layers", "api"}),
        ("weights.py", {"backends", "reference", "layers", "api"}),
        ("reference", {"backends", "layers", "api"}),
        ("backends", {"layers", "api"}),
        ("layers.py", {"api"}),
    ],
)
def test_imports_run_downwards(package: str, above: set[str]) -> None:
    root = Path(rnnfast.__file__).parent
    files = [root / package] if package.endswith(".py") else sorted((root / package).glob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            names = {alias.name for alias in node.names} if not node.module else set()
            first = {(node.module or "").removeprefix("rnnfast.").partition(".")[0]}
            assert not (names | first) & above, f"{file.name}, line {node.lineno}"


@pytest.mark.parametrize("name", ["api", "weights", "convert", "config", "backends", "layers"])
def test_examples_in_docstrings(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNFAST_BACKEND", backend)
    module: Any = importlib.import_module(f"rnnfast.{name}")
    failed, tried = doctest.testmod(module, extraglobs={"np": np, "rnnfast": rnnfast})
    assert failed == 0
    assert tried > 0 or name != "api"


def test_required_backends() -> None:
    """A session that requires a backend fails where that one cannot be tested."""
    code = (
        "import sys, pytest\n"
        "sys.exit(pytest.main(['-q', '--collect-only', 'tests/test_registry.py']))"
    )
    for required, expected in (("reference", 0), ("reference, cuda", pytest.ExitCode.USAGE_ERROR)):
        found = python(code, RNNFAST_REQUIRE_BACKENDS=required, PATH=os.environ["PATH"])
        assert found.returncode == expected, found.stdout + found.stderr
    assert "RNNFAST_REQUIRE_BACKENDS: cuda" in (found.stdout + found.stderr).replace("  ", " ")
    assert (ROOT / "tests").is_dir()
