"""Problems to run, the one way to run them, and results as flat dictionaries of arrays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import rnnfast
from rnnfast.spec import Spec

Array = NDArray[Any]
ROOT = Path(__file__).resolve().parent.parent
SIZES = (1, 3, 15, 16, 17, 31, 33, 63, 64, 65, 129, 200, 513)  # around every tile and vector
DTYPES = ("float32", "float64")
BIASES = ("both", "none", "ih", "hh")
STATES = ("both", "none", "h", "c")
COTANGENTS = ("yhc", "y", "h", "c", "hc", "yh", "yc", "")


def usable_backends() -> list[str]:
    return [name for name, reason in rnnfast.backends().items() if reason is None]


@dataclass(frozen=True)
class Case:
    """What determines a problem. Letters as in `rnnfast.spec`."""

    spec: Spec
    T: int = 5
    B: int = 3
    I: int = 4  # noqa: E741
    H: int = 5
    L: int = 1
    D: int = 1
    dtype: str = "float64"
    bias: str = "both"  # which of b_ih and b_hh are there: both, none, ih, hh
    state: str = "both"  # which of h_0 and c_0 are there: both, none, h, c
    ragged: bool = False  # whether rows have lengths; the first is 0 if there is a second
    cotangents: str = "yhc"  # which of dy, dh_n and dc_n are there
    seed: int = 0
    P: int = 0  # of a projection; 0 for none
    fields: tuple[str, ...] = ()  # further arrays of the weights
    keywords: tuple[tuple[str, Any], ...] = ()  # further arguments of the call

    @property
    def outputs(self) -> int:
        """The size of h."""
        return self.P or self.H

    def __str__(self) -> str:
        options = [self.dtype, f"bias={self.bias}", f"state={self.state}", f"d={self.cotangents}"]
        sizes = f"T{self.T}.B{self.B}.I{self.I}.H{self.H}.P{self.P}.L{self.L}.D{self.D}"
        options += [*self.fields, *(f"{k}={v}" for k, v in self.keywords)]
        return " ".join([self.spec.variants(), sizes, *options, *(["ragged"] * self.ragged)])


@dataclass
class Problem:
    """The arguments of a call and of its backward: arrays of any kind, or None."""

    spec: Spec
    x: Any
    weights: Any
    h_0: Any
    c_0: Any
    lengths: Any
    dy: Any
    dh_n: Any
    dc_n: Any
    keywords: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> Any:
        """The third argument of the call, whatever the cell."""
        return self._pair(self.h_0, self.c_0)

    @property
    def dstate(self) -> Any:
        return self._pair(self.dh_n, self.dc_n)

    def _pair(self, h: Any, c: Any) -> Any:
        if not self.spec.info.has_c:
            return h
        return None if h is None and c is None else (h, c)

    def inputs(self) -> dict[str, Array]:
        """Every array that has a gradient, by the name of its gradient in `run`."""
        named = {"dx": self.x, "dh_0": self.h_0, "dc_0": self.c_0} | flatten_weights(self.weights)
        running = (".bn_mean", ".bn_var")  # no parameters
        return {k: v for k, v in named.items() if v is not None and not k.endswith(running)}

    def map(self, change: Callable[[Array], Array]) -> Problem:
        """The same problem with every floating array changed."""

        def walk(value: Any) -> Any:
            if isinstance(value, np.ndarray):
                return change(value) if value.dtype.kind in "fV" else value  # V: bfloat16
            if isinstance(value, rnnfast.Weights):
                return rnnfast.Weights(*map(walk, value))
            if isinstance(value, list | tuple):
                return type(value)(map(walk, value))
            return value

        return replace(self, **{k: walk(v) for k, v in vars(self).items()})

    def rows(self, at: int | slice) -> Problem:
        """A part of the batch; one row, unbatched, where `at` is a number."""
        names = ("x", "h_0", "c_0", "dy", "dh_n", "dc_n")
        part: dict[str, Any] = {k: getattr(self, k) for k in names}
        part = {k: None if v is None else v[:, at] for k, v in part.items()}
        if isinstance(at, slice) and self.lengths is not None:
            part["lengths"] = self.lengths[at]
        return replace(self, **part)

    def astype(self, dtype: Any) -> Problem:
        return self.map(lambda a: a.astype(dtype))


def problem(case: Case) -> Problem:
    """Random arrays of a size at which gates neither saturate nor stay linear.

    relu gets weights whose units stay clear of the kink, on one side or the other, because two
    backends whose roundings differ may rightly take different sides of it: all inputs and states
    are positive, and the weights of a unit have one sign. (For other functions with kinks, see
    `kinks.clear`.)

    What is random in a call is drawn from the case's seed.
    """
    rng = np.random.default_rng([case.seed, case.T, case.B, case.I, case.H])
    relu = case.spec.nonlinearity == "relu"
    gates, count = len(case.spec.info.gates), case.L * case.D

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(case.dtype)

    def positive(low: float, high: float, *shape: int) -> Array:
        return rng.uniform(low, high, shape).astype(case.dtype)

    def direction(features: int) -> rnnfast.Weights:
        rows = gates * case.H
        if relu:
            sign = rng.choice([-1.0, 1.0], rows).astype(case.dtype)
            sign[0] = 1
            w_ih = sign[:, None] * positive(0.5, 1, rows, features) / features
            w_hh = sign[:, None] * positive(0.5, 1, rows, case.H) / (sign > 0).sum()
            biases = [sign * positive(0.1, 0.3, rows) for _ in range(2)]
        else:
            w_ih, w_hh = normal(rows, features), normal(rows, case.outputs)
            w_ih, w_hh = w_ih / features**0.5, w_hh / case.outputs**0.5
            biases = [normal(rows) / 2, normal(rows) / 2]
        b_ih, b_hh = (
            b if case.bias in ("both", name) else None
            for b, name in zip(biases, ("ih", "hh"), strict=True)
        )
        w = rnnfast.Weights(w_ih.astype(case.dtype), w_hh.astype(case.dtype), b_ih, b_hh)
        return w._replace(**further(rows))

    own = np.random.default_rng([case.seed, case.T, case.B, case.I, case.H, 1])

    def further(rows: int) -> dict[str, Array]:
        """The optional arrays: gains around 1, shifts around 0."""
        shapes = {"w_hr": (case.P, case.H), "w_peep": (3, case.H)}
        shapes |= {"ln_c": (case.H,), "ln_c_shift": (case.H,)}
        found = {}
        for name in (*(["w_hr"] if case.P else []), *case.fields):
            shape = shapes.get(name, (rows,))
            if name in ("w_hr", "w_peep", "ln_c_shift", "bn_mean"):
                a = own.standard_normal(shape) / {"w_hr": case.H**0.5 / 2}.get(name, 2)
            else:
                a = own.uniform(0.5, 1.5, shape)
            found[name] = a.astype(case.dtype)
        return found

    weights = []
    features = case.I
    for _ in range(case.L):
        pair = tuple(direction(features) for _ in range(case.D))
        weights.append(pair if case.D == 2 else pair[0])
        features = case.D * case.outputs

    x = positive(0.5, 1.5, case.T, case.B, case.I) if relu else normal(case.T, case.B, case.I)
    h_0, c_0, dh_n, dc_n = (normal(count, case.B, size) for size in (case.outputs, case.H) * 2)
    if relu:
        h_0 = abs(h_0) / 2
    lengths = None
    if case.ragged:
        lengths = rng.integers(1, case.T + 1, case.B)
        lengths[:1] = 0 if case.B > 1 else case.T
    has_c = case.spec.info.has_c
    return Problem(
        spec=case.spec,
        x=x,
        weights=weights,
        h_0=h_0 if case.state in ("both", "h") else None,
        c_0=c_0 if case.state in ("both", "c") and has_c else None,
        lengths=lengths,
        dy=normal(case.T, case.B, case.D * case.outputs) if "y" in case.cotangents else None,
        dh_n=dh_n if "h" in case.cotangents else None,
        dc_n=dc_n if "c" in case.cotangents and has_c else None,
        keywords={"rng": case.seed} | dict(case.keywords) if case.keywords else {},
    )


def without_empty_rows(p: Problem) -> Problem:
    """p with lengths of at least 1: torch refuses 0, and ONNX Runtime returns zero states."""
    return p if p.lengths is None else replace(p, lengths=np.maximum(p.lengths, 1))


def function(spec: Spec, vjp: bool = False) -> Callable[..., Any]:
    """rnnfast.lstm and so on (or its _vjp), with the options of the variant filled in."""
    options: dict[str, Any] = {}
    if spec.info.has_reset_after:
        options["reset_after"] = spec.reset_after
    if spec.info.nonlinearities:
        options["nonlinearity"] = spec.nonlinearity
    return partial(getattr(rnnfast, spec.cell + "_vjp" * vjp), **options)


def variant(spec: Spec) -> dict[str, Any]:
    """The arguments of `rnnfast.pack` that select this cell."""
    return {"cell": spec.cell, **function(spec).keywords}  # type: ignore[attr-defined]


def placed(p: Problem, backend: str) -> Problem:
    """The problem where this backend wants its arrays: on a device for "cuda"."""
    if backend != "cuda":
        return p
    import cupy

    return p.map(cupy.asarray)


def fetched(results: dict[str, Any]) -> dict[str, Any]:
    """Results in CPU memory, wherever they are."""
    return {k: a.get() if hasattr(a, "__cuda_array_interface__") else a for k, a in results.items()}


def forward(p: Problem, backend: str = "reference", **options: Any) -> dict[str, Any]:
    """y, h_n and perhaps c_n of an inference call; `weights=` replaces the problem's."""
    p = placed(p, backend)
    weights = options.pop("weights", None)
    own = with_own_statistics(p.weights)
    options = {"lengths": p.lengths, "backend": backend, **p.keywords, **options}
    y, state_n = function(p.spec)(p.x, own if weights is None else weights, p.state, **options)
    return fetched({"y": y} | flatten_state(p.spec, state_n, "h_n", "c_n") | statistics(own))


def vjp(p: Problem, backend: str = "reference", **options: Any) -> tuple[dict[str, Any], Any]:
    """What `forward` returns, from the _vjp function, and its backward."""
    p = placed(p, backend)
    own = with_own_statistics(p.weights)
    options = {"lengths": p.lengths, "backend": backend, **p.keywords, **options}
    y, state_n, backward = function(p.spec, vjp=True)(p.x, own, p.state, **options)
    found = {"y": y} | flatten_state(p.spec, state_n, "h_n", "c_n") | statistics(own)
    return fetched(found), backward


def with_own_statistics(weights: Any) -> Any:
    """Running statistics, which calls change, are copied; everything else is shared."""
    if isinstance(weights, rnnfast.Weights):
        if weights.bn_ih is None:
            return weights
        return weights._replace(bn_mean=weights.bn_mean + 0, bn_var=weights.bn_var + 0)
    if isinstance(weights, list) or (isinstance(weights, tuple) and len(weights) == 2):
        return type(weights)(map(with_own_statistics, weights))
    return weights


def statistics(weights: Any) -> dict[str, Any]:
    """The running statistics of any structure of weights, by name."""
    named = flatten_weights(weights, "new")
    return {name: a for name, a in named.items() if name.endswith((".bn_mean", ".bn_var"))}


def gradients(p: Problem, backward: Any) -> dict[str, Any]:
    """dx, dh_0, dc_0 and the gradient of each weight, by name."""
    if backward._call is not None:  # as after a short call, which is for NumPy's arrays alone
        p = placed(p, backward._call.backend.name)
    dx, dweights, dstate = backward(p.dy, p.dstate)
    return fetched(
        {
            "dx": dx,
            **flatten_state(p.spec, dstate, "dh_0", "dc_0"),
            **flatten_weights(dweights),
        }
    )


def run(p: Problem, backend: str = "reference", **options: Any) -> dict[str, Any]:
    """Every output and every gradient, by name."""
    results, backward = vjp(p, backend, **options)
    return results | gradients(p, backward)


def flatten_state(spec: Spec, state: Any, h: str, c: str) -> dict[str, Any]:
    return {h: state[0], c: state[1]} if spec.info.has_c else {h: state}


def flatten_weights(weights: Any, name: str = "dw") -> dict[str, Any]:
    """Every array of any structure of weights, under a name like dw[1][0].w_ih."""
    if isinstance(weights, rnnfast.Weights):
        named = zip(weights._fields, weights, strict=True)
        return {f"{name}.{field}": a for field, a in named if a is not None}
    found: dict[str, Any] = {}
    for k, entry in enumerate(weights):
        if isinstance(entry, list | tuple):
            found |= flatten_weights(entry, f"{name}[{k}]")
        elif entry is not None:
            found[f"{name}[{k}]"] = entry
    return found


def assert_same_bits(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Equal to the last bit, signs of zero and NaN included."""
    assert got.keys() == wanted.keys()
    for name, array in got.items():
        other = np.asarray(wanted[name])
        array = np.asarray(array)
        assert array.dtype == other.dtype
        assert array.shape == other.shape
        if array.tobytes() != other.tobytes():
            with np.errstate(invalid="ignore"):
                worst = np.abs(array - other).max()
            raise AssertionError(f"{name}: bits differ, by up to {worst}")


def python(code: str, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that can import rnnfast as this one does."""
    return command([sys.executable, "-c", code], timeout, **environment)


def command(
    arguments: Iterable[str], timeout: float = 60, **environment: str
) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(
        list(arguments),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
