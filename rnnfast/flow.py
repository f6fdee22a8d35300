"""How the gradient of a loss flows back through time: why a network does not learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import api, arrays, checks
from .errors import UnsupportedError
from .weights import parse

Array = NDArray[Any]

# Drawn for a whole call, so that a call for each step would draw them anew.
_DRAWN = ("dropout", "recurrent_dropout", "zoneout", "dropconnect")


@dataclass(frozen=True, eq=False)
class GradientFlow:
    """What `gradient_flow` returns. L layers, D directions, T steps, B rows.

    Attributes
    ----------
    norms : float64 array (L, D, T)
        The Euclidean norm of dL/dh_t over batch and units.
    per_row : float64 array (L, D, T, B)
        The same over units alone, for each row of the batch.
    """

    norms: NDArray[np.float64]
    per_row: NDArray[np.float64]

    def plot(self, ax: Any = None) -> Any:
        """Draw `norms` over t with Matplotlib, on a logarithmic scale, one line a direction.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None
            Where to draw; None for a new figure of `matplotlib.pyplot`.

        Returns
        -------
        matplotlib.axes.Axes
            Norms that are zero leave gaps.
        """
        if ax is None:
            from matplotlib import pyplot

            ax = pyplot.subplots()[1]
        layers, directions, steps = self.norms.shape
        for k in range(layers):
            for d in range(directions):
                name = f"layer {k}" + (", reverse" if d else ", forward") * (directions == 2)
                line = np.where(self.norms[k, d] > 0, self.norms[k, d], np.nan)
                style = "-" if steps > 1 else "o"
                ax.plot(np.arange(steps), line, style, label=name)
        ax.set(xlabel="step t", ylabel="norm of dL/dh_t", yscale="log")
        ax.grid(alpha=0.3)
        ax.legend()
        return ax


def gradient_flow(
    x: Any,
    weights: Any,
    dy: Any = None,
    dstate_n: Any = None,
    *,
    cell: str,
    state: Any = None,
    lengths: Any = None,
    batch_first: bool = False,
    backend: str = "auto",
    **options: Any,
) -> GradientFlow:
    """The norm of the gradient of a loss with respect to h_t, for every step of every layer.

    Where it falls towards the first steps, the network cannot learn what depends on them: the
    gradient vanishes. Where it grows, it explodes (Bengio et al. 1994, "Learning long-term
    dependencies with gradient descent is difficult"; Pascanu et al. 2013). dL/dh_t is the whole
    gradient: through y_t or the layer above, and through every later step.

    It is a diagnosis, not a part of training: each step of each layer is a call of its own, of
    about a millisecond at B = 32, H = 128.

    Parameters
    ----------
    x, weights, state, lengths, batch_first, backend
        As the _vjp function of the cell takes them.
    dy, dstate_n
        The gradients of the loss with respect to y and to the final state, as `backward` of that
        function takes them. At least one must be given.
    cell : {"lstm", "gru", "rnn", "gated"}
    **options
        The variant of the cell, as that function takes it, and `rnnfast.Options`. What is drawn,
        and batch normalisation, belong to a whole sequence: they need training=False.

    Returns
    -------
    GradientFlow
        With `norms` (L, D, T), `per_row` (L, D, T, B) and `plot(ax=None)`. t counts the steps of
        x, for a reverse direction too; past the end of a row the gradient is zero.

    Raises
    ------
    ValueError, TypeError
        As the _vjp function and its `backward` do, and where neither dy nor dstate_n is given.
    UnsupportedError
        As they do, and for dropout, zoneout and batch normalisation in training.

    Examples
    --------
    >>> y, _, backward = rnnfast.lstm_vjp(x, weights)
    >>> dy = np.zeros_like(y)
    >>> dy[-1] = y[-1] - target  # a loss of the last step
    >>> flow = rnnfast.gradient_flow(x, weights, dy, cell="lstm")
    >>> flow.plot()
    """
    info = checks.cell(cell)
    if dy is None and dstate_n is None:
        raise ValueError("dy: expected the gradient of a loss in dy or dstate_n, got None in both")
    for name in ("out", "save", "checkpoint"):
        if name in options:
            raise TypeError(f"{name}: unexpected argument of gradient_flow")
    layers = parse(weights, info, None)
    if arrays.on_device(layers[0][0].w_hh):
        raise UnsupportedError(
            "weights: gradient_flow takes arrays in CPU memory; native and reference can"
        )
    if options.get("training", True):
        drawn = [name for name in _DRAWN if np.any(options.get(name, 0.0))]
        if len(layers) == 1 and "dropout" in drawn:  # which is between layers
            drawn.remove("dropout")
        normed = layers[0][0].bn_ih is not None
        for name in [*drawn, *["weights.bn_ih"] * normed]:
            raise UnsupportedError(
                f"{name}: gradient_flow runs step by step and cannot repeat what belongs to a "
                f"whole sequence; leave it out, or give training=False"
            )
    # The whole call checks every argument.
    vjp = getattr(api, f"{cell}_vjp")
    how = {"backend": backend, **options}
    _, state_n, backward = vjp(x, weights, state, lengths=lengths, batch_first=batch_first, **how)
    backward(dy, dstate_n)
    every = how.pop("truncate", None)

    inputs = arrays.take("x", x)

    def steps_first(array: Array) -> Array:
        if inputs.ndim == 2:
            return array[:, None]
        return array.swapaxes(0, 1) if batch_first else array

    def states(value: Any) -> list[Array]:
        """h and perhaps c, (L*D, B, H) each; zeros where None is given."""
        ends = state_n if info.has_c else (state_n,)
        given = value if info.has_c and value is not None else [value] * len(ends)
        taken = [
            np.zeros_like(arrays.take("state_n", end))
            if part is None
            else arrays.take("state", part)
            for part, end in zip(given, ends, strict=True)
        ]
        return [s[:, None] for s in taken] if inputs.ndim == 2 else taken

    below = steps_first(inputs)
    num_steps, batch, _ = below.shape
    if lengths is None:
        ends = np.full(batch, num_steps)
    else:
        listed = isinstance(lengths, list | tuple)
        ends = np.asarray(lengths) if listed else arrays.take("lengths", lengths)
    runs = np.arange(num_steps)[:, None] < ends
    functions = _Functions(getattr(api, cell), vjp, how)
    initial, final = states(state), states(dstate_n)

    stack: list[list[_Direction]] = []
    at = 0
    for layer in layers:
        stack.append([])
        for d, w in enumerate(layer):
            state_0 = [s[at : at + 1] for s in initial]
            stack[-1].append(_Direction(functions, w, below, state_0, runs, every, d == 1))
            at += 1
        below = np.concatenate([direction.y() for direction in stack[-1]], axis=-1)

    above = np.zeros_like(below) if dy is None else steps_first(arrays.take("dy", dy))
    per_row = np.zeros((len(stack), len(stack[0]), num_steps, batch))
    for k in reversed(range(len(stack))):
        parts = np.split(above, len(stack[k]), axis=-1)
        dx = []
        for d in reversed(range(len(stack[k]))):
            at -= 1
            dstate = [s[at : at + 1] for s in final]
            dx_d, per_row[k, d] = stack[k][d].backward(parts[d], dstate)
            dx.append(dx_d)
        above = np.sum(dx, axis=0)
    return GradientFlow(np.sqrt((per_row**2).sum(axis=-1)), per_row)


class _Functions(NamedTuple):
    """The functions of a cell, and what they are called with beside arrays."""

    forward: Callable[..., Any]
    vjp: Callable[..., Any]
    options: dict[str, Any]


class _Direction:
    """One direction of one layer, run step by step: its inputs and the state before each step."""

    def __init__(
        self,
        functions: _Functions,
        weights: Any,
        x: Array,  # (T, B, F)
        state: list[Array],  # h and perhaps c, (1, B, H)
        runs: NDArray[np.bool_],  # (T, B) whether a row has the step
        truncate: int | None,
        reverse: bool,
    ) -> None:
        self._functions, self._weights, self._runs = functions, weights, runs
        step, ends = np.arange(len(x))[:, None], runs.sum(axis=0)
        self._flip = np.where(runs, ends - 1 - step, step)[..., None] if reverse else None
        # Whether gradients stop on the way to the step before.
        self._cut = np.zeros_like(runs)
        if truncate is not None:
            later = ends - step if reverse else step  # of the two steps, in the time of x
            self._cut = runs & (step > 0) & (later % truncate == 0)
        self._x = self._turned(x)
        self._states = [state]
        for t in range(len(x)):
            # Of the arguments of a step, those of its forward pass.
            arguments, how = self._arguments(t)
            state = _listed(functions.forward(*arguments, **how)[1])
            self._states.append(state)

    def y(self) -> Array:
        """(T, B, H); past the end of a row anything."""
        return self._turned(np.concatenate([state[0] for state in self._states[1:]]))

    def backward(self, dy: Array, dstate: list[Array]) -> tuple[Array, Array]:
        """dx (T, B, F), and the norm of dL/dh_t for every row (T, B)."""
        dy = self._turned(np.where(self._runs[..., None], dy, 0))
        dx, norms = np.empty_like(self._x), np.zeros(self._runs.shape)
        for t in reversed(range(len(dy))):
            dstate[0] = dstate[0] + dy[t]
            norms[t] = np.where(self._runs[t], _norm(dstate[0][0]), 0)
            arguments, how = self._arguments(t)
            _, _, backward = self._functions.vjp(*arguments, **how)
            dx[t], _, dbefore = backward(None, tuple(dstate) if len(dstate) > 1 else dstate[0])
            dstate = [np.where(self._cut[t][:, None], 0, d) for d in _listed(dbefore)]
        return self._turned(dx), self._turned(norms[..., None])[..., 0]

    def _arguments(self, t: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """x, weights and state of a step on its own; rows that have it not keep their state."""
        state, runs = self._states[t], self._runs[t]
        how = self._functions.options
        if not runs.all():
            how = {**how, "lengths": runs.astype(np.int64)}
        given = tuple(state) if len(state) > 1 else state[0]
        return (self._x[t : t + 1], self._weights, given), how

    def _turned(self, array: Array) -> Array:
        """(T, B, F) in the order in which this direction visits the steps, or back."""
        return array if self._flip is None else np.take_along_axis(array, self._flip, axis=0)


def _listed(state: Any) -> list[Array]:
    return list(state) if isinstance(state, tuple) else [state]


def _norm(a: Array) -> NDArray[np.float64]:
    """Of each row, in float64."""
    norm: NDArray[np.float64] = np.linalg.norm(a.astype(np.float64), axis=-1)
    return norm
