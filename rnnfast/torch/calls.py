"""One call of rnnfast on tensors, in the flat form that PyTorch's autograd and compiler take.

A call is described by tensors and plain values alone:

x, h_0, c_0
    As `rnnfast.lstm` takes them.
lengths
    An int64 tensor; or `rnnfast.spec.Steps`, for rows that are packed already: x is then (N, I).
weights
    Every given array of every direction of every layer, in order.
seed
    Of the dropout masks: an int64 tensor of one number, or None where there is no dropout.
cell, directions, batch_first, dropout
    As in rnnfast.
fields
    The names of the given fields of `rnnfast.Weights`, with spaces between them, for one direction
    of one layer if all are alike, or for each with commas between.
options
    The other keyword arguments, as the `repr` of a dictionary.
places
    Of the gates in the weights, as `rnnfast.weights.InOrder` has them, with spaces between them,
    or none for our order.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from numpy.typing import NDArray
from torch import Tensor

import rnnfast

from ..call import Backward, short_vjp
from ..options import spec_of
from ..spec import CELLS, Spec, Steps
from ..weights import InOrder
from . import tapes
from .memory import array, as_tensor, place

Lengths: TypeAlias = "Tensor | Steps | None"
Results: TypeAlias = "tuple[Tensor, Tensor, Tensor | None]"  # y, h_n, and c_n where there is one
Kept: TypeAlias = "tuple[Tensor, Tensor, Tensor | None, Tensor]"  # and a tape

_TRAINING_ONLY = ("save", "checkpoint")  # keywords of the _vjp functions


class Call(NamedTuple):
    """What of a call is no tensor."""

    cell: str
    fields: str
    directions: int
    batch_first: bool
    dropout: float
    options: str
    places: str = ""

    def names(self, count: int) -> tuple[tuple[str, ...], ...]:
        """The fields of each direction of each layer, for so many arrays."""
        return _names(self.fields, count)

    def structure(self, arrays: Sequence[Any]) -> Any:
        """The arrays as `rnnfast.lstm` takes weights."""
        found = self.unflatten(arrays)
        return InOrder(found, map(int, self.places.split())) if self.places else found

    def unflatten(self, arrays: Sequence[Any]) -> list[Any]:
        """The arrays in the structure of `rnnfast.lstm`'s weights, and of their gradients."""
        rest = iter(arrays)
        entries = [_weights(names, rest) for names in self.names(len(arrays))]
        if self.directions == 1:
            return entries
        return list(zip(entries[::2], entries[1::2], strict=True))

    def flatten(self, structure: list[Any], count: int) -> list[Any]:
        """`count` arrays: the inverse of `unflatten`."""
        entries = structure if self.directions == 1 else [w for pair in structure for w in pair]
        flat: list[Any] = []
        for entry, names in zip(entries, self.names(count), strict=True):
            if names == rnnfast.Weights._fields[: len(names)]:
                flat += entry[: len(names)]
            else:
                flat += [getattr(entry, name) for name in names]
        return flat

    def keywords(self, training: bool) -> dict[str, Any]:
        """The options that the function, or with `training` the _vjp function, takes."""
        return dict(_parsed(self.options, training))


@lru_cache
def _names(fields: str, count: int) -> tuple[tuple[str, ...], ...]:
    groups = tuple(tuple(group.split()) for group in fields.split(","))
    return groups if len(groups) > 1 else groups * (count // len(groups[0]))


@lru_cache
def _parsed(options: str, training: bool) -> dict[str, Any]:
    found = ast.literal_eval(options)
    return {k: v for k, v in found.items() if training or k not in _TRAINING_ONLY}


def _weights(names: tuple[str, ...], arrays: Iterator[Any]) -> rnnfast.Weights:
    given = [next(arrays) for _ in names]
    if names == rnnfast.Weights._fields[: len(names)]:
        return rnnfast.Weights(*given)
    return rnnfast.Weights(**dict(zip(names, given, strict=True)))


def run(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Any,
    lengths: Lengths,
    seed: Tensor | None,
    call: Call,
) -> Results:
    """y, h_n and c_n. Nothing is kept.

    Here and below, weights are arrays, as rnnfast takes them.
    """
    with place(x):
        y, state_n = getattr(rnnfast, call.cell)(
            array(x), weights, state(call, h_0, c_0), **_keywords(call, lengths, seed, False)
        )
        return results(call, y, state_n)


def run_and_keep(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Any,
    lengths: Lengths,
    seed: Tensor | None,
    call: Call,
) -> Kept:
    """y, h_n, c_n and a tape, from which `gradients` goes back."""
    spec = spec_of_call(call) if lengths is None and seed is None and x.is_cpu else None
    if spec is not None:

        def run(of_x: Any, state_0: Any) -> Any:
            found = short_vjp(spec, of_x, weights, state_0)
            return None if found is None else (*found[:2], tapes.record(found[2]))

        done = run_and_keep_short(x, h_0, c_0, call, run)
        if done is not None:
            return done
    with place(x):
        y, state_n, backward = _vjp(x, h_0, c_0, weights, lengths, seed, call)
        return (*results(call, y, state_n), tapes.record(backward))


def run_and_keep_short(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    call: Call,
    run: Callable[[Any, Any], tuple[Tensor, Any, Tensor] | None],
) -> Kept | None:
    """The same by what takes tensors that C++ reads and makes, or None where it does not.

    `run` takes x and a state, and returns y, the state, and a tape.
    """
    swap = call.batch_first and x.dim() == 3
    done = run(_readable(x, swap), _readable_state(call, h_0, c_0))
    if done is None:
        return None
    y, state_n, tape = done
    h_n, c_n = state_n if CELLS[call.cell].has_c else (state_n, None)
    # In place: autograd would not let a view of its own making be changed in place.
    return y.transpose_(0, 1) if swap else y, h_n, c_n, tape


def _readable(tensor: Tensor | None, swap: bool = False) -> Tensor | None:
    """The numbers as they are in memory, with the first two axes swapped or not."""
    if tensor is None:
        return None
    if swap:
        tensor = tensor.transpose(0, 1)
    # Two questions cost less than the two operators that would answer them.
    if tensor.is_contiguous() and not tensor.is_neg():
        return tensor
    return tensor.detach().resolve_neg().contiguous()


def _readable_state(call: Call, h: Tensor | None, c: Tensor | None) -> Any:
    if h is None and c is None:
        return None
    return (_readable(h), _readable(c)) if CELLS[call.cell].has_c else _readable(h)


def spec_of_call(call: Call) -> Spec | None:
    """Of a call that `run_and_keep_short` can be asked for; None for any other."""
    return (
        _spec(call.cell, call.options) if tapes.TELLS and type(call.batch_first) is bool else None
    )


@lru_cache
def _spec(cell: str, options: str) -> Spec | None:
    """What a call without any option but the cell's variant computes; None for any other."""
    found, info = ast.literal_eval(options), CELLS[cell]
    own = {"reset_after": info.has_reset_after, "nonlinearity": bool(info.nonlinearities)}
    if not all(own.get(name) for name in found):
        return None
    try:
        return spec_of(cell, found.get("reset_after", True), found.get("nonlinearity", "tanh"))
    except (TypeError, ValueError):
        return None  # the long way says what is wrong


def gradients(
    tape: Tensor,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Lengths,
    seed: Tensor | None,
    call: Call,
    of_x: bool = True,
) -> list[Tensor | None]:
    """Those of x, h_0, c_0 and of each of the weights.

    None for x where `of_x` is False, for a state that is None, and for running statistics, which
    have none. Where the tape is lost, or nothing was kept, the forward pass is run again.
    """
    of_state = h_0 is not None or c_0 is not None
    kept = tapes.recorded(tape, x, h_0, c_0, *weights)
    if kept is not None and not isinstance(kept, Backward):
        swap = call.batch_first and dy is not None and dy.dim() == 3
        given = _readable_state(call, dh_n, dc_n)
        done = kept.backward(_readable(dy, swap), given, False, of_x, of_state)
        if done is not None:
            dx, layers, dinitial = done
            if call.batch_first and x.dim() == 3 and dx is not None:
                dx = dx.transpose(0, 1)
            states = _both(call, h_0, c_0, dinitial)
            return [dx, *states, *(d for layer in layers for d in layer if d is not None)]
    with place(x):
        backward = _backward(tape, x, h_0, c_0, weights, lengths, seed, call)
        of_dx, dweights, dinitial = backward(
            _array(dy), state(call, dh_n, dc_n), dx=of_x, dstate_0=of_state
        )
        arrays = _both(call, h_0, c_0, dinitial)
        return [*map(_tensor, (of_dx, *arrays)), *_flat(call, dweights, len(weights))]


def _both(call: Call, h_0: Tensor | None, c_0: Tensor | None, dstate_0: Any) -> list[Any]:
    """The gradients of h_0 and c_0 where these are given."""
    dh_0, dc_0 = dstate_0 if CELLS[call.cell].has_c and dstate_0 is not None else (dstate_0, None)
    return [None if h_0 is None else dh_0, None if c_0 is None else dc_0]


def second(
    tape: Tensor,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Lengths,
    seed: Tensor | None,
    call: Call,
    ddx: Tensor | None,
    ddh_0: Tensor | None,
    ddc_0: Tensor | None,
    ddweights: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradients of dy, dh_n, dc_n, x, h_0, c_0 and the weights, given those of `gradients`."""
    with place(x):
        backward = _backward(tape, x, h_0, c_0, weights, lengths, seed, call)
        _, double_backward = backward.vjp(_array(dy), state(call, dh_n, dc_n))
        (gx, gweights, gstate), (gdy, gdstate) = double_backward(
            _array(ddx), call.unflatten(list(map(_array, ddweights))), state(call, ddh_0, ddc_0)
        )
        return [
            *results(call, gdy, gdstate),
            *results(call, gx, gstate),
            *_flat(call, gweights, len(weights)),
        ]


def _array(given: Tensor | None) -> NDArray[Any] | None:
    return None if given is None else array(given)


def _flat(call: Call, structure: list[Any], count: int) -> list[Tensor | None]:
    return [_tensor(a) for a in call.flatten(structure, count)]


def _tensor(a: NDArray[Any] | None) -> Tensor | None:
    return None if a is None else as_tensor(a)


def state(call: Call, h: Tensor | None, c: Tensor | None) -> Any:
    """A state, or its gradients, as rnnfast takes them."""
    if not CELLS[call.cell].has_c:
        return _array(h)
    return None if h is None and c is None else (_array(h), _array(c))


def _keywords(call: Call, lengths: Lengths, seed: Tensor | None, training: bool) -> dict[str, Any]:
    # What is not asked for is left out, so that rnnfast may take its shortest way.
    found = call.keywords(training)
    if call.batch_first is not False:
        found["batch_first"] = call.batch_first
    if lengths is not None:
        found["lengths"] = lengths if isinstance(lengths, Steps) else array(lengths)
    if seed is not None:
        found["dropout"], found["rng"] = call.dropout, int(seed)
    return found


def _vjp(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Any,
    lengths: Lengths,
    seed: Tensor | None,
    call: Call,
) -> tuple[NDArray[Any], Any, Backward]:
    found: tuple[NDArray[Any], Any, Backward] = getattr(rnnfast, f"{call.cell}_vjp")(
        array(x), weights, state(call, h_0, c_0), **_keywords(call, lengths, seed, True)
    )
    return found


def results(call: Call, y: NDArray[Any], state_n: Any) -> Results:
    """What rnnfast returned, as tensors on the same memory."""
    if CELLS[call.cell].has_c:
        return as_tensor(y), as_tensor(state_n[0]), as_tensor(state_n[1])
    return as_tensor(y), as_tensor(state_n), None


def _backward(
    tape: Tensor,
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Lengths,
    seed: Tensor | None,
    call: Call,
) -> Backward:
    kept = tapes.recorded(tape, x, h_0, c_0, *weights)
    if isinstance(kept, Backward):
        return kept
    structure = call.structure([array(w) for w in weights])
    return _vjp(x, h_0, c_0, structure, lengths, seed, call)[2]
