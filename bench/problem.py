"""What a row computes: its inputs, drawn once for everyone, and the truth that all must meet."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import rnnfast
from rnnfast.spec import Spec, all_specs

from .shapes import Shape

Array = NDArray[Any]
Mode = Literal["forward", "training"]
MODES: tuple[Mode, ...] = ("forward", "training")


def _name(spec: Spec) -> str:
    name = spec.cell if spec.reset_after else f"{spec.cell}-before"
    return name if spec.nonlinearity == "tanh" else f"{name}-{spec.nonlinearity}"


# lstm, gru, gru-before (reset_after=False), rnn, rnn-relu, rnn-sigmoid, gated.
CELLS = {_name(spec): spec for spec in all_specs()}
DEFAULT_CELLS = [name for name, spec in CELLS.items() if spec.nonlinearity == "tanh"]


@dataclass(frozen=True)
class Problem:
    """The inputs of one row, float32. `training` is a forward pass and all gradients for one dy."""

    spec: Spec
    shape: Shape
    mode: Mode
    x: Array  # (T, B, I)
    weights: list[Any]  # as rnnfast takes them
    lengths: NDArray[np.int64] | None
    dy: Array  # (T, B, D*H), zero past the end of each row
    states: tuple[Array, ...] | None  # of a stream, which carries them: h_0 and perhaps c_0

    @property
    def state(self) -> Any:
        """The states as rnnfast and torch.nn take them, whatever the cell."""
        return self.states[0] if self.states and len(self.states) == 1 else self.states


def draw(spec: Spec, shape: Shape, mode: Mode) -> Problem:
    """The same numbers for the same arguments, always."""
    rng = np.random.default_rng([shape.T, shape.B, shape.I, shape.H])
    weights = rnnfast.init_weights(
        spec.cell, shape.I, shape.H, num_layers=shape.L, bidirectional=shape.D == 2, rng=rng
    )
    x = rng.standard_normal((shape.T, shape.B, shape.I), np.float32)
    dy = rng.standard_normal((shape.T, shape.B, shape.D * shape.H), np.float32)
    lengths = None
    if shape.ragged:
        lengths = rng.integers(1, shape.T + 1, shape.B)
        dy = within(dy, lengths)
    states = None
    if shape.T == 1 and shape.L == 1:  # without them half of the work of a step might be left out
        size, count = (shape.D, shape.B, shape.H), 1 + spec.info.has_c
        states = tuple(rng.uniform(-0.9, 0.9, size).astype(np.float32) for _ in range(count))
    return Problem(spec, shape, mode, x, weights, lengths, dy, states)


def within(y: Array, lengths: Array | None) -> Array:
    """y with zeros past the end of each row."""
    if lengths is None:
        return y
    return np.where(np.arange(len(y))[:, None, None] < lengths[:, None], y, y.dtype.type(0))


def flat(weights: list[Any]) -> list[Array]:
    """w_ih, w_hh, b_ih, b_hh of every direction of every layer: the order of PyTorch too."""
    layers = [(w,) if isinstance(w, rnnfast.Weights) else w for w in weights]
    return [array for layer in layers for direction in layer for array in direction[:4]]


def named(y: Array, state: Any, gradients: Iterable[Array] = ()) -> dict[str, Array]:
    """Results by name, for `errors`. `gradients` are dx and those of the weights, as in `flat`."""
    states = state if isinstance(state, tuple) else (state,)
    names = itertools.chain(["dx"], (f"dweights[{k}]" for k in itertools.count()))
    return {
        "y": y,
        **dict(zip(("h_n", "c_n"), states, strict=False)),
        **dict(zip(names, gradients, strict=False)),
    }


def tolerance(shape: Shape) -> float:
    """The relative error (of the largest number of an array) that a float32 result may have.

    Roundings of a sum of K terms of both signs add up like sqrt(K) eps: sums over I + H numbers
    for the gates, over T*B rows for the gradients of the weights. NumPy's own error is 1 to 12 eps
    on these shapes; a wrong gate order or a forgotten bias is off by thousands.
    """
    sums = 2 * np.sqrt(max(shape.I, shape.D * shape.H) + shape.H) + 2 * np.sqrt(shape.T * shape.B)
    return float(np.finfo(np.float32).eps * shape.L * (16 + sums))


def errors(problem: Problem, got: dict[str, Array]) -> dict[str, float]:
    """The largest error of each array relative to its largest number in the truth.

    The truth is the NumPy reference in float64. Only the final state may be left out.
    """
    true = truth(problem.spec, problem.shape, problem.mode)
    missing = true.keys() - got.keys() - {"h_n", "c_n"}
    found = dict.fromkeys(missing, float("inf"))
    for name, array in got.items():
        wanted = true[name]
        if array.shape != wanted.shape or not np.isfinite(array).all():
            found[name] = float("inf")
            continue
        scale = np.abs(wanted).max(initial=np.finfo(np.float64).tiny)
        found[name] = float(np.abs(array - wanted).max(initial=0) / scale)
    return found


@lru_cache(maxsize=1)
def truth(spec: Spec, shape: Shape, mode: Mode) -> dict[str, Array]:
    """The results of the NumPy reference in float64, by name, for what `draw` gives."""
    problem = draw(spec, shape, mode)
    weights = [
        tuple(map(_double, layer)) if shape.D == 2 else _double(layer) for layer in problem.weights
    ]
    x, dy = problem.x.astype(np.float64), problem.dy.astype(np.float64)
    if problem.states:
        problem = replace(problem, states=tuple(s.astype(np.float64) for s in problem.states))
    how: dict[str, Any] = {**options(spec), "lengths": problem.lengths, "backend": "reference"}
    if mode == "forward":
        return named(*getattr(rnnfast, spec.cell)(x, weights, problem.state, **how))
    y, state, backward = getattr(rnnfast, f"{spec.cell}_vjp")(x, weights, problem.state, **how)
    dx, dweights, _ = backward(dy)
    return named(y, state, [dx, *flat(dweights)])


def _double(weights: rnnfast.Weights) -> rnnfast.Weights:
    return rnnfast.Weights(*(a.astype(np.float64) for a in weights[:4]))


def options(spec: Spec) -> dict[str, Any]:
    """The keyword arguments that select this variant of the cell."""
    return {
        **({"reset_after": spec.reset_after} if spec.info.has_reset_after else {}),
        **({"nonlinearity": spec.nonlinearity} if spec.info.nonlinearities else {}),
    }
