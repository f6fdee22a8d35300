"""One call of a cell's function: its arguments checked, the backend run, and the way back.

Every option, shape and dtype is checked here, once, above the backends.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import arrays, batchnorm, checks, layers
from .backends import ShortTape, get
from .errors import UnsupportedError
from .noise import Between, DropConnect, OnState
from .options import QUIET, with_weights
from .options import parse as parse_options
from .packed import Packed
from .spec import Spec, Steps
from .weights import RUNNING, Checked, InOrder, Layer, Weights, matching, parse, rebuild

Array = NDArray[Any]


def forward(
    spec: Spec,
    x: Any,
    weights: Any,
    state: Any,
    lengths: Any,
    batch_first: bool,
    dropout: float,
    rng: Any,
    backend: str,
    out: Any,
    options: Any,
) -> tuple[Any, Any]:
    # Most calls need no conversion: the backend may take the arguments as they are.
    done = rows = None
    if type(dropout) is float and dropout == 0.0 and rng is None and not options:
        rows = _steps_first(x, batch_first)
        if rows is None and batch_first is False and type(weights) is Packed:
            rows = None if arrays.is_lazy(x, state, out) else x
    if rows is None or (batch_first and out is not None):
        pass
    elif type(weights) is Packed:
        fits = weights.called is spec and backend in ("auto", weights.backend.name)
        if fits and weights.shortcut is not None:
            done = weights.shortcut(rows, state, out, lengths)
    elif out is None:
        given, places = _as_they_lie(weights)
        if isinstance(given, list | tuple):
            done = get(backend, spec).call(spec, rows, given, state, lengths, places)
    if done is not None:
        return (done[0].swapaxes(0, 1), done[1]) if batch_first else done
    rest = (lengths, batch_first, dropout, rng, backend, out, options)
    call = Call(spec, x, weights, state, *rest)
    return call.forward()


def _as_they_lie(weights: Any) -> tuple[Any, tuple[int, ...]]:
    """Weights for the short way, and the places of their gates where these are not in our order."""
    if type(weights) is Checked:
        return weights.single, ()
    if type(weights) is InOrder:
        return weights.weights, weights.places
    return weights, ()


def short_vjp(
    spec: Spec, x: Any, weights: Any, state: Any, lengths: Any = None, backend: str = "auto"
) -> tuple[Any, Any, ShortTape] | None:
    """`Backend.call_vjp` for a call without options, of the weights as the API takes them.

    For adapters, too: x and the state may be tensors where the backend reads these.
    """
    given, places = _as_they_lie(weights)
    if not isinstance(given, list | tuple):
        return None
    return get(backend, spec).call_vjp(spec, x, given, state, lengths, places)


def _steps_first(x: Any, batch_first: Any) -> Array | None:
    """NumPy's array x with the steps first; None for anything else."""
    if type(x) is not np.ndarray:
        return None
    if batch_first is False:
        return x
    if batch_first is not True or x.ndim != 3:
        return None
    return np.ascontiguousarray(x.swapaxes(0, 1))


def vjp(
    spec: Spec,
    x: Any,
    weights: Any,
    state: Any,
    lengths: Any,
    batch_first: bool,
    dropout: float,
    rng: Any,
    backend: str,
    out: Any,
    options: Any,
    save: str,
    checkpoint: int | None,
) -> tuple[Any, Any, Backward]:
    # As in `forward`.
    rest = (lengths, batch_first, dropout, rng, backend, out, options, save, checkpoint)
    if (
        type(dropout) is float
        and dropout == 0.0
        and rng is None
        and not options
        and out is None
        and type(save) is str
        and save == "all"
        and checkpoint is None
        and (rows := _steps_first(x, batch_first)) is not None
    ):
        done = short_vjp(spec, rows, weights, state, lengths, backend)
        if done is not None:
            y, state_n, tape = done
            # What the caller may change before `backward`.
            kept = list(weights) if type(weights) is list else weights
            if lengths is not None:
                rest = (lengths.copy(), *rest[1:])
            if state is not None and rows.dtype == np.float64:  # which has second derivatives
                state = tuple(map(_copy, state)) if type(state) is tuple else _copy(state)
            if batch_first:
                y = y.swapaxes(0, 1)
            arguments = (spec, x, kept, state, *rest)
            return y, state_n, _ShortBackward(tape, y.shape, batch_first, arguments)
    return Call(spec, x, weights, state, *rest).vjp()


class Call:
    """One checked call: the arguments in the form that `layers` takes, and the way back.

    For adapters, `weights` may be `Checked`, and `lengths` may be Steps: x is then (N, I), the
    rows of a packed batch, y and their gradients likewise, and the rows of every state are in the
    order of that batch.
    """

    def __init__(
        self,
        spec: Spec,
        x: Any,
        weights: Any,
        state: Any,
        lengths: Any,
        batch_first: bool,
        dropout: float,
        rng: Any,
        backend: str,
        out: Any,
        options: Any,
        save: str = "all",
        checkpoint: int | None = None,
    ) -> None:
        spec, self.noise = parse_options(spec, options) if options else (spec, QUIET)
        self.like = x
        self.weights = list(weights) if type(weights) is list else weights
        self.batch_first = checks.flag("batch_first", batch_first)
        if isinstance(weights, Packed):
            self.packed: Packed | None = weights
            self.parsed: list[Layer] = []
            spec = with_weights(spec, weights.first)
            if weights.spec is not spec and weights.spec != spec:
                raise ValueError(
                    f"weights: packed for {weights.spec.variants()}, expected {spec.variants()}"
                )
            if self.noise.dropconnect > 0:
                raise TypeError(
                    "weights: packed weights are for inference; expected the weights themselves "
                    "for dropconnect"
                )
            if backend not in ("auto", weights.backend.name):
                raise ValueError(
                    f"backend: the weights are packed for {weights.backend.name!r}, got {backend!r}"
                )
            self.backend = weights.backend
        else:
            self.packed = None

        data = arrays.floating("x", x)
        self.steps = lengths if type(lengths) is Steps else None
        self.flat = data.ndim == 2  # neither x nor y has a batch axis
        self.unbatched = self.flat and self.steps is None  # nor has the state
        if data.ndim not in (2, 3):
            raise ValueError(
                f"x: expected shape (T, B, I), (B, T, I) with batch_first, or (T, I), "
                f"got {data.shape}"
            )
        if self.flat:
            data = data[:, None]
        elif self.batch_first:
            data = data.swapaxes(0, 1)
        self.num_steps, self.batch, features = data.shape
        if self.steps is not None:
            if not self.flat or self.steps.rows != len(data):
                raise ValueError(
                    f"x: expected shape ({self.steps.rows}, I), rows as batch_sizes counts them, "
                    f"got {arrays.take('x', x).shape}"
                )
            self.batch = self.steps.batch
        if self.num_steps == 0:
            raise ValueError(
                f"x: expected at least one time step, got shape {arrays.take('x', x).shape}"
            )

        if self.packed is not None:
            if data.dtype != self.packed.dtype:
                raise TypeError(
                    f"x: expected dtype {self.packed.dtype} as the packed weights have, "
                    f"got {data.dtype}"
                )
            arrays.take("weights", self.packed.first[0][0].w_hh)  # on the current device
            wanted = self.packed.input_size
            self.num_layers = len(self.packed.prepared)
            layer = self.packed.first[0]
        else:
            self.parsed = parse(weights, spec.info, data.dtype)
            spec = with_weights(spec, self.parsed)
            self.backend = get(backend, spec, arrays.on_device(data))
            self.num_layers = len(self.parsed)
            layer = self.parsed[0]
            wanted = layer[0].w_ih.shape[1]
        kind = type(data)
        for of_layer in self.parsed or [layer]:
            for w in of_layer:
                for array in w:
                    if type(array) is not kind and array is not None:
                        arrays.check_place("weights", array, data)
        self.spec = spec
        rows, self.outputs = layer[0].w_hh.shape
        self.hidden, self.directions = rows // len(spec.info.gates), len(layer)
        if features != wanted:
            raise ValueError(
                f"x: expected {wanted} features (I) as weights.w_ih has columns, "
                f"got shape {arrays.take('x', x).shape}"
            )
        self.dtype = data.dtype
        # Rows times everything that a layer may keep for a row, in bytes.
        per_row = max(features, 8 * self.hidden * self.directions) * self.dtype.itemsize
        if data.shape[0] * data.shape[1] * per_row > sys.maxsize:
            raise ValueError(
                f"x: shape {arrays.take('x', x).shape} with H = {self.hidden} is too large "
                f"to address; expected fewer steps or rows"
            )
        self.x = arrays.contiguous(data)
        self.state = self._state(state)
        self.lengths = None if self.steps is not None else self._lengths(lengths)
        self.save = checks.saved(save)
        self.checkpoint = self._checkpoint(checkpoint)
        self.dropout = checks.probability("dropout", dropout)
        random = dropout or rng is not None or (self.noise is not QUIET and self.noise != QUIET)
        self.rng = checks.generator(rng) if random else None
        self.y_shape = (*self.x.shape[:2], self.directions * self.outputs)
        self.given_y, self.given_state = _parts_of(out)
        self.out = None if self.given_y is None else self._out(self.given_y)
        self.state_out = self._state_out()
        # (T, B, D*H) to be written in place; out of another layout is copied to at the end.
        self.into = self.out
        if self.out is not None:
            if self.flat:
                self.into = self.out[:, None]
            elif self.batch_first:
                self.into = None

    def forward(self) -> tuple[Any, Any]:
        y, state_n, _ = self._run(save=False)
        return self._give_y(y), self._give_state_n(state_n)

    def vjp(self) -> tuple[Any, Any, Backward]:
        if self.packed is not None:
            raise TypeError(
                "weights: packed weights are for inference; expected the weights themselves"
            )
        if self.dtype == np.float64:  # the caller may change it before second derivatives
            h, c = self.state
            self.state = _copy(h), _copy(c)
        y, state_n, tape = self._run(save=True)
        assert tape is not None
        return self._give_y(y), self._give_state_n(state_n), Backward(self, tape)

    def backward(self, tape: layers.Tape, dy: Any, dstate_n: Any) -> tuple[Any, Any, Any]:
        dstate = self._dstate(dstate_n)
        dx, dweights, dinitial = layers.backward(tape, self._dy("dy", dy), dstate)
        return self._give_gradients(dx, dweights, dinitial)

    def second(
        self, tape: layers.Tape, dy: Any, dstate_n: Any, ddx: Any, ddweights: Any, ddstate: Any
    ) -> tuple[tuple[Any, Any, Any], tuple[Any, Any]]:
        """The VJP of `backward`; see `Backward.vjp`.

        With S = <dy, y> as a function of x, weights and state, `backward` gives its gradient. So
        the gradients asked for are the derivatives, along the direction (ddx, ddweights, ddstate),
        of y and of what `backward` gives: dual numbers carry them through both passes.
        """
        flat = iter(w for layer in self.parsed for w in layer)
        tangents = iter(matching("ddweights", ddweights, self.weights, flat))
        parsed = [
            tuple(
                Weights(*(_dual(a, d) for a, d in zip(w, next(tangents), strict=True)))
                for w in layer
            )
            for layer in self.parsed
        ]
        if self.dropconnect is not None:
            parsed = self.dropconnect.apply(parsed)
        initial = self._state(ddstate, "ddh_0", "ddc_0", "ddstate_0")
        h_0, c_0 = (_dual(s, d) for s, d in zip(self.state, initial, strict=True))
        stack = replace(
            tape.stack,
            dtype=np.dtype(np.complex128),
            prepared=[self.backend.prepare(self.spec, p, reuse=True) for p in parsed],
        )
        x = _dual(self.x, self._laid_out("ddx", ddx, self.x.shape))
        assert x is not None
        y, state_n, dual_tape = layers.forward(
            stack, x, (h_0, c_0), tape.how, None, (None, None), self.save, self.checkpoint
        )
        assert dual_tape is not None
        dh_n, dc_n = (_dual(d, None) for d in self._dstate(dstate_n))
        given_dy = _dual(self._dy("dy", dy), None)
        dx, dweights, dinitial = layers.backward(dual_tape, given_dy, (dh_n, dc_n))
        gradients = self._give_gradients(
            _tangent(dx),
            [Weights(*map(_tangent, w)) for w in dweights],
            (_tangent(dinitial[0]), _tangent(dinitial[1])),
        )
        of_y = arrays.give(self._layout(_tangent(y)), self.like)
        return gradients, (of_y, self._give_state(tuple(map(_tangent, state_n))))

    def _check_second(self) -> None:
        name = f"backend {self.backend.name!r}"
        if self.dtype != np.float64:
            raise UnsupportedError(
                f"x: second derivatives are for float64, got {self.dtype}; convert x, weights and "
                f"states"
            )
        for option in ("truncate", "grad_clip"):
            if getattr(self.spec, option) is not None:
                raise UnsupportedError(
                    f"{option}: {name} has no second derivatives with it, as no backend has"
                )
        if self.parsed[0][0].bn_ih is not None:
            raise UnsupportedError(
                f"bn_ih: {name} has no second derivatives with batch normalisation, as no backend "
                f"has"
            )
        if not self.backend.twice:
            raise UnsupportedError(f"{name} has no second derivatives; reference and native have")

    def _dstate(self, dstate_n: Any) -> layers.State:
        return self._state(dstate_n, "dh_n", "dc_n", "dstate_n")

    def _give_gradients(
        self, dx: Array, dweights: list[Weights], dinitial: tuple[Array | None, ...]
    ) -> tuple[Any, Any, Any]:
        if self.dropconnect is not None:
            dweights = self.dropconnect.backward(dweights)
        given = dweights
        if type(self.like) is not np.ndarray:
            given = [
                Weights(*(None if a is None else arrays.give(a, self.like) for a in w))
                for w in dweights
            ]
        return (
            arrays.give(self._layout(dx), self.like),
            rebuild(self.weights, iter(given)),
            self._give_state(dinitial),
        )

    def _run(self, save: bool) -> tuple[Array, tuple[Array | None, ...], layers.Tape | None]:
        how: layers.Ragged | Steps | None = self.steps
        if self.lengths is not None:
            how = layers.Ragged.of(self.lengths)
        stack = self._stack(how, save)
        return layers.forward(
            stack,
            self.x,
            self.state,
            how,
            self.into,
            self.state_out,
            self.save if save else None,
            self.checkpoint if save else None,
        )

    def _stack(self, how: layers.Ragged | Steps | None, save: bool) -> layers.Stack:
        """The layers, with everything drawn that is random."""
        noise, rng = self.noise, self.rng
        if how is None:
            steps = Steps(self.num_steps, self.batch)
        else:
            steps = how if isinstance(how, Steps) else how.steps
        between = on_state = None
        if self.dropout > 0 and noise.training and rng is not None:
            between = Between(
                rng, self.dropout, noise.variational, self.num_layers, steps, self.y_shape[-1]
            )
        if self.spec.recurrent_dropout or self.spec.zoneout:
            on_state = OnState(
                rng, noise, self.num_layers, self.directions, steps, self.outputs, self.hidden
            )
        parsed = self.parsed
        self.dropconnect = None
        if noise.dropconnect > 0 and rng is not None:
            self.dropconnect = DropConnect(rng, noise.dropconnect, parsed)
            parsed = self.dropconnect.apply(parsed)
        normed = None
        if self.packed is not None:
            prepared = self.packed.prepared
        elif parsed[0][0].bn_ih is not None and (save or noise.training):
            self._check_running()
            normed, prepared = parsed, [None] * len(parsed)
        else:
            again = save and self.checkpoint is not None
            plain = batchnorm.for_inference(parsed)
            prepared = [self.backend.prepare(self.spec, p, reuse=again) for p in plain]
        return layers.Stack(
            self.spec,
            self.backend,
            self.dtype,
            prepared,
            self.hidden,
            self.outputs,
            self.directions,
            between,
            on_state,
            normed,
            noise.bn_momentum if noise.training else None,
            self.x,
        )

    def _check_running(self) -> None:
        """Running statistics are written, unless they are used."""
        for k, layer in enumerate(self.parsed):
            for w in layer:
                for name in RUNNING:
                    if self.noise.training and not arrays.is_writeable(getattr(w, name)):
                        raise ValueError(
                            f"weights[{k}].{name}: expected a writable array, or training=False"
                        )
        if self.checkpoint is not None:
            raise UnsupportedError(
                "checkpoint: no backend has it with batch normalisation, whose statistics are "
                "those of all steps; save='recompute' saves memory there"
            )

    def _layout(self, array: Array) -> Array:
        """(T, B, F) as the caller lays out x and y."""
        if self.flat:
            return array[:, 0]
        return array.swapaxes(0, 1) if self.batch_first else array

    def _give_y(self, y: Array) -> Any:
        if self.out is None:
            return arrays.give(self._layout(y), self.like)
        if self.into is None:
            self.out[...] = self._layout(y)
        return self.given_y

    def _give_state_n(self, state: tuple[Array | None, ...]) -> Any:
        return self._give_state(state) if self.given_state is None else self.given_state

    def _give_state(self, state: tuple[Array | None, ...]) -> Any:
        given = [
            arrays.give(s[:, 0] if self.unbatched else s, self.like) for s in state if s is not None
        ]
        return tuple(given) if self.spec.info.has_c else given[0]

    def _state(
        self, state: Any, h: str = "h_0", c: str = "c_0", both: str = "state"
    ) -> layers.State:
        """A state or its cotangent as (h, c), each (L*D, B, P or H) or None."""
        if state is None:
            return None, None
        if not self.spec.info.has_c:
            return self._one_state(h, state, self.outputs), None
        if not isinstance(state, tuple | list) or len(state) != 2:
            got = f"{len(state)} of them" if isinstance(state, tuple) else arrays.describe(state)
            raise TypeError(f"{both}: expected a pair ({h}, {c}), got {got}")
        h_c = zip((h, c), state, (self.outputs, self.hidden), strict=True)
        first, second = (self._one_state(*one) for one in h_c)
        return first, second

    def _one_state(self, name: str, value: Any, size: int) -> Array | None:
        if value is None:
            return None
        array = arrays.floating(name, value, self.dtype)
        arrays.check_place(name, array, self.x)
        wanted = self._state_shape(size)
        if array.shape != wanted:
            raise ValueError(f"{name}: expected shape {wanted}, got {array.shape}")
        return arrays.contiguous(array.reshape(wanted[0], self.batch, size))

    def _state_shape(self, size: int) -> tuple[int, ...]:
        count = self.num_layers * self.directions
        return (count, size) if self.unbatched else (count, self.batch, size)

    def _checkpoint(self, given: Any) -> int | None:
        every = checks.steps("checkpoint", given)
        if every is None:
            return None
        if self.directions == 2:
            raise UnsupportedError(
                "checkpoint: no backend has it for bidirectional layers, whose reverse direction "
                "starts at the end; save='recompute' saves memory there"
            )
        if self.spec.truncate is not None and every % self.spec.truncate:
            raise ValueError(
                f"checkpoint: expected a multiple of truncate = {self.spec.truncate}, got {every}"
            )
        return every

    def _lengths(self, lengths: Any) -> NDArray[np.int64] | None:
        if lengths is None:
            return None
        if isinstance(lengths, list | tuple):
            try:
                lengths = np.asarray(lengths)
            except ValueError:
                raise ValueError(
                    f"lengths: expected {self.batch} integers, got {lengths}"
                ) from None
        array = arrays.take("lengths", lengths)
        if arrays.on_device(array):
            raise TypeError(
                "lengths: expected integers in CPU memory, which plan the launches, got an array "
                "on a CUDA device"
            )
        if array.dtype.kind not in "iu" and array.size:
            raise TypeError(f"lengths: expected integers, got dtype {array.dtype}")
        if self.unbatched:
            raise ValueError("lengths: expected None for unbatched x; slice x instead")
        if array.shape != (self.batch,):
            raise ValueError(f"lengths: expected shape ({self.batch},), got {array.shape}")
        if array.size and (array.min() < 0 or array.max() > self.num_steps):
            raise ValueError(
                f"lengths: expected values from 0 to T = {self.num_steps}, "
                f"got {array.min()} to {array.max()}"
            )
        return array.astype(np.int64)

    def _out(self, out: Any) -> Array:
        array = arrays.floating("out", out, self.dtype)
        wanted = self._layout(np.broadcast_to(array.dtype.type(0), self.y_shape)).shape
        if array.shape != wanted:
            raise ValueError(f"out: expected shape {wanted}, got {array.shape}")
        self._check_written("out", array)
        for name, value in zip(("h_0", "c_0"), self.state, strict=True):
            _check_apart("out", array, name, value)
        return array

    def _state_out(self) -> layers.State:
        """Where h_n and c_n are to be written, (L*D, B, H) each; or (None, None)."""
        if self.given_state is None:
            return None, None
        given = (self.given_state,)
        if self.spec.info.has_c:
            given = self.given_state
            if not isinstance(given, tuple) or len(given) != 2:
                raise TypeError(
                    f"out: expected (y, (h_n, c_n)), got {arrays.describe(given)} in second place"
                )
        made: list[Array] = []
        sizes = (self.outputs, self.hidden)
        for name, value, size in zip(("out h_n", "out c_n"), given, sizes, strict=False):
            array = arrays.floating(name, value, self.dtype)
            wanted = self._state_shape(size)
            if array.shape != wanted:
                raise ValueError(f"{name}: expected shape {wanted}, got {array.shape}")
            self._check_written(name, array)
            _check_apart(name, array, "out y", self.out)
            for other in made:
                _check_apart(name, array, "out h_n", other)
            made.append(array.reshape(wanted[0], self.batch, size))
        # An initial state that is updated in place is read after h_n is written.
        h_0, c_0 = (
            s.copy() if s is not None and any(np.may_share_memory(s, m) for m in made) else s
            for s in self.state
        )
        self.state = h_0, c_0
        return made[0], made[1] if self.spec.info.has_c else None

    def _check_written(self, name: str, array: Array) -> None:
        arrays.check_place(name, array, self.x)
        if not arrays.is_contiguous(array) or not arrays.is_writeable(array):
            raise ValueError(f"{name}: expected a C-contiguous, aligned, writable array")
        _check_apart(name, array, "x", self.x)
        for layer in self.parsed:
            for direction in layer:
                for value in direction:
                    _check_apart(name, array, "weights", value)

    def _dy(self, name: str, dy: Any) -> Array | None:
        return self._laid_out(name, dy, self.y_shape)

    def _laid_out(self, name: str, value: Any, shape: tuple[int, ...]) -> Array | None:
        """A cotangent or tangent that the caller lays out as x and y, as (T, B, F)."""
        if value is None:
            return None
        array = arrays.floating(name, value, self.dtype)
        arrays.check_place(name, array, self.x)
        steps, batch, width = shape
        if self.flat:
            wanted: tuple[int, ...] = (steps, width)
        else:
            wanted = (batch, steps, width) if self.batch_first else shape
        if array.shape != wanted:
            raise ValueError(
                f"{name}: expected shape {wanted} as {name.lstrip('d')} has, got {array.shape}"
            )
        if self.flat:
            array = array[:, None]
        elif self.batch_first:
            array = array.swapaxes(0, 1)
        return arrays.contiguous(array)


class Backward:
    """What the _vjp functions return last: BPTT through one call, any number of times."""

    def __init__(self, call: Call, tape: layers.Tape) -> None:
        self._call = call
        self._tape = tape

    def __call__(
        self, dy: Any = None, dstate_n: Any = None, *, dx: bool = True, dstate_0: bool = True
    ) -> tuple[Any, Any, Any]:
        """Gradients of x, of the weights and of the initial state; see `rnnfast.lstm_vjp`."""
        dx, dstate_0 = checks.flag("dx", dx), checks.flag("dstate_0", dstate_0)
        of_x, dweights, of_state = self._call.backward(self._tape, dy, dstate_n)
        return of_x if dx else None, dweights, of_state if dstate_0 else None

    def vjp(self, dy: Any = None, dstate_n: Any = None) -> tuple[tuple[Any, Any, Any], Any]:
        """``backward(dy, dstate_n)``, and a function that back-propagates through it.

        Parameters
        ----------
        dy, dstate_n
            As `backward` takes them; float64.

        Returns
        -------
        dx, dweights, dstate_0
            What `backward` returns.
        double_backward : callable
            ``(gx, gweights, gstate_0), (gdy, gdstate_n) = double_backward(ddx, ddweights,
            ddstate_0)``: the gradients of a scalar, given its gradients with respect to dx,
            dweights and dstate_0, any of which may be None for zeros (so may arrays in
            ddweights). They are exact: dual numbers go through the forward and the backward pass
            (Pearlmutter 1994, "Fast exact multiplication by the Hessian").
            dy and dstate_n must keep their values until its last call.

        Raises
        ------
        UnsupportedError
            For float32, batch normalisation, truncate and grad_clip.
        """
        self._call._check_second()
        results = self(dy, dstate_n)

        def double_backward(
            ddx: Any = None, ddweights: Any = None, ddstate_0: Any = None
        ) -> tuple[tuple[Any, Any, Any], tuple[Any, Any]]:
            """See `Backward.vjp`."""
            return self._call.second(self._tape, dy, dstate_n, ddx, ddweights, ddstate_0)

        return results, double_backward


class _ShortBackward(Backward):
    """The same, through what `Backend.call_vjp` left. The arguments are checked when needed."""

    _call: Call | None  # type: ignore[assignment]

    def __init__(
        self,
        tape: ShortTape,
        shape: tuple[int, ...],  # of y
        batch_first: bool,
        arguments: tuple[Any, ...],
    ) -> None:
        self._short = tape
        self._shape = shape
        self._batch_first = batch_first
        self._arguments = arguments
        self._call = None

    def __call__(
        self, dy: Any = None, dstate_n: Any = None, *, dx: bool = True, dstate_0: bool = True
    ) -> tuple[Any, Any, Any]:
        """See `Backward`."""
        dx, dstate_0 = checks.flag("dx", dx), checks.flag("dstate_0", dstate_0)
        done = None
        if dy is None:
            done = self._short.backward(None, dstate_n, False, dx, dstate_0)
        elif type(dy) is np.ndarray and dy.shape == self._shape:
            # The gradient of a sum is one number repeated, with strides of 0.
            rows = np.ascontiguousarray(dy.swapaxes(0, 1) if self._batch_first else dy)
            done = self._short.backward(rows, dstate_n, False, dx, dstate_0)
        if done is None:
            call = self._checked()
            h, c = call._dstate(dstate_n)
            given = (h, c) if call.spec.info.has_c else h
            done = self._short.backward(call._dy("dy", dy), given, True, dx, dstate_0)
            assert done is not None
        of_x, found, of_state = done
        if dx and self._batch_first:
            of_x = of_x.swapaxes(0, 1)
        template = self._arguments[2]
        if type(template) is InOrder:
            template = template.weights
        dweights = rebuild(template, (Weights(*w) for w in found))
        return of_x if dx else None, dweights, of_state if dstate_0 else None

    def vjp(self, dy: Any = None, dstate_n: Any = None) -> tuple[tuple[Any, Any, Any], Any]:
        """See `Backward`."""
        self._tape = self._checked().vjp()[2]._tape
        return super().vjp(dy, dstate_n)

    def _checked(self) -> Call:
        if self._call is None:
            self._call = Call(*self._arguments)
        return self._call


def _copy(a: Any) -> Any:
    return None if a is None else a.copy()


def _dual(value: Array | None, derivative: Array | None) -> Array | None:
    """A dual number, as complex128."""
    if value is None and derivative is None:
        return None
    like = value if value is not None else derivative
    assert like is not None
    dual = np.zeros(like.shape, np.complex128)
    if value is not None:
        dual.real = value
    if derivative is not None:
        dual.imag = derivative
    return dual


def _tangent(dual: Array | None) -> Any:
    return None if dual is None else np.ascontiguousarray(dual.imag)


def _parts_of(out: Any) -> tuple[Any, Any]:
    """out as (y, state_n), None for what is not given."""
    if not isinstance(out, tuple):
        return out, None
    if len(out) != 2 or out[0] is None or out[1] is None:
        raise TypeError(
            f"out: expected an array like y, or a pair (y, state_n) of arrays, got a tuple of "
            f"{len(out)}: {', '.join(map(arrays.describe, out))}"
        )
    return out


def _check_apart(name: str, array: Array, other: str, value: Array | None) -> None:
    if value is not None and np.may_share_memory(array, value):
        raise ValueError(f"{name}: expected memory apart from {other}'s, got an overlap")
