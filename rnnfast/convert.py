"""The one place of gate-order conversion: weights to and from Keras, ONNX and cuDNN.

Every format is a reader and a writer between its own entry and `Layer`, PyTorch's arrays. An
entry is what one format holds for one direction of one layer; only ONNX holds both directions in
one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import arrays, checks
from .errors import UnsupportedError
from .spec import CELLS, Cell
from .weights import Layer, Weights, in_order, parse

Array = NDArray[Any]

# The gates in each format's order, in the letters of `rnnfast.spec.CELLS`.
_TORCH = {name: cell.gates for name, cell in CELLS.items()}
_EVERYWHERE = ("w_ih", "w_hh", "b_ih", "b_hh")  # the fields of Weights that every format has
_ORDERS = {
    "torch": _TORCH,
    "keras": {"lstm": "ifgo", "gru": "zrn", "rnn": "h"},
    "onnx": {"lstm": "iofg", "gru": "zrn", "rnn": "h"},
    "cudnn": {"lstm": "ifgo", "gru": "rzn", "rnn": "h"},
}


def convert(weights: Any, *, cell: str, source: str, target: str, reset_after: bool = True) -> Any:
    """Rearrange the weights of recurrent layers from one framework's layout to another's.

    With G gates, input size I, hidden size H and D directions, an entry is

    "torch"
        `rnnfast.Weights` or a tuple ``(w_ih, w_hh, b_ih, b_hh)``: (G*H, I), (G*H, H), (G*H,),
        (G*H,); either bias may be None. Gates i f g o, r z n.
    "keras"
        ``(kernel, recurrent_kernel, bias)``, as ``layer.get_weights()`` gives them: (I, G*H),
        (H, G*H) and (G*H,), for a GRU with reset_after (2, 3*H). Without a bias
        ``(kernel, recurrent_kernel)``. Gates i f c o, z r h.
    "onnx"
        ``(W, R, B)``, one triple for both directions: (D, G*H, I), (D, G*H, H), (D, 2*G*H); B
        may be None. Gates i o f c, z r h. An LSTM with peepholes has a fourth array, P (D, 3*H).
    "cudnn"
        ``(matrices, biases)``, two lists in the order of cudnnGetRNNWeightParams' linLayerID: 2*G
        matrices (H, I) or (H, H), the first G act on the input; 2*G biases (H,). No bias is an
        empty list; a half that the bias mode lacks is G times None. Gates i f g o, r z n.

    Parameters
    ----------
    weights : entry, or list with one entry per layer
        As `rnnfast.lstm` takes them, with entries of `source`. A bidirectional layer is a
        (forward, reverse) pair of entries, in ONNX one entry with D = 2.
    cell : {"lstm", "gru", "rnn", "gated"}
        "gated" has no layout but "torch".
    source, target : {"torch", "keras", "onnx", "cudnn"}
        The layout that comes and the one that is wanted.
    reset_after : bool
        The form of the GRU (ONNX: ``linear_before_reset``). cuDNN has only True.

    Returns
    -------
    entry or list
        Like `weights`, with entries of `target`, of the kind of array that came. Nothing shares
        memory with `weights`. A single ONNX triple with D = 2 becomes a list of one pair.

    Raises
    ------
    ValueError
        For an unknown name, a cell that a format does not have, or a wrong shape.
    TypeError
        For a wrong structure, kind or dtype.
    UnsupportedError
        For weights that the target has no place for: all but w_ih, w_hh, the biases and, in ONNX,
        w_peep.

    Notes
    -----
    Values are moved, never changed, with two exceptions. Keras has one bias where PyTorch has two
    (except for a GRU with reset_after, where r acts on one of them alone): b_ih + b_hh goes there,
    and comes back as b_ih with b_hh None. Where a format has no place for the absence of half of
    the bias, zeros are written: Keras' GRU with reset_after, ONNX' B.

    The layouts follow the Keras 3 documentation and code of the LSTM, GRU and SimpleRNN layers
    (https://keras.io/api/layers/recurrent_layers/), the ONNX operators LSTM, GRU and RNN
    (https://onnx.ai/onnx/operators/), cudnnGetRNNWeightParams in the cuDNN API reference
    (https://docs.nvidia.com/deeplearning/cudnn/), and `torch.nn.LSTM`, `GRU` and `RNN`
    (https://docs.pytorch.org/docs/stable/nn.html#recurrent-layers).

    Examples
    --------
    >>> weights = rnnfast.init_weights("lstm", 8, 16, rng=0)
    >>> [(kernel, recurrent_kernel, bias)] = rnnfast.convert(
    ...     weights, cell="lstm", source="torch", target="keras"
    ... )
    >>> kernel.shape, recurrent_kernel.shape, bias.shape
    ((8, 64), (16, 64), (64,))
    """
    checks.cell(cell)
    reset_after = checks.flag("reset_after", reset_after)
    for name, form in (("source", source), ("target", target)):
        _check_format(name, form, cell, reset_after)
    two = cell == "gru" and reset_after  # whether the biases must stay apart
    layers = _read(weights, source, _Layout(CELLS[cell], _ORDERS[source][cell], two))
    _check_fields(target, layers)
    write = _WRITERS[target]
    layout = _Layout(CELLS[cell], _ORDERS[target][cell], two)
    like = _first_array(weights)

    def give(value: Any) -> Any:
        if isinstance(value, Weights):
            return Weights(*map(give, value))
        if isinstance(value, tuple | list):
            return type(value)(map(give, value))
        return None if value is None else arrays.give(np.array(value, order="C"), like)

    entries = [give(write(layer, layout)) for layer in layers]
    single = not isinstance(weights, list) or _is_flat(weights)
    return entries[0] if single and (len(layers[0]) == 1 or target == "onnx") else entries


class _Layout(NamedTuple):
    """What the readers and writers of a format must know of a cell."""

    cell: Cell
    order: str  # the format's gates
    two_biases: bool  # GRU with reset_after

    def to_torch(self, array: Array) -> Array:
        """The blocks of the first axis from this order into PyTorch's."""
        return _reorder(array, self.order, self.cell.gates)

    def from_torch(self, array: Array) -> Array:
        return _reorder(array, self.cell.gates, self.order)


def _reorder(array: Array, order: str, wanted: str) -> Array:
    moved: Array = in_order(array, [order.index(gate) for gate in wanted])
    return moved


def _check_format(name: str, form: str, cell: str, reset_after: bool) -> None:
    if not isinstance(form, str) or form not in _ORDERS:
        raise ValueError(f"{name}: expected one of {', '.join(_ORDERS)}, got {form!r}")
    able = [f for f, cells in _ORDERS.items() if cell in cells]
    if form not in able:
        raise ValueError(f"{name}: expected {', '.join(able)} for cell {cell!r}, got {form!r}")
    if form == "cudnn" and cell == "gru" and not reset_after:
        raise ValueError(
            f"{name}: expected torch, keras or onnx for a GRU with reset_after=False, got 'cudnn'"
        )


def _check_fields(target: str, layers: list[Layer]) -> None:
    has = {"torch": Weights._fields, "onnx": (*_EVERYWHERE, "w_peep")}.get(target, _EVERYWHERE)
    for w in (w for layer in layers for w in layer):
        for field, value in zip(Weights._fields, w, strict=True):
            if value is not None and field not in has:
                raise UnsupportedError(
                    f"weights: expected no {field} for target {target!r}, which has no place for it"
                )


# Structure: layers, then directions, then a format's entry.


def _is_flat(value: object) -> bool:
    """Whether value is a tuple or list of arrays, not of tuples or lists."""
    return (
        isinstance(value, tuple | list)
        and len(value) > 0
        and not any(isinstance(v, tuple | list) for v in value)
    )


def _is_cudnn_entry(value: object) -> bool:
    """Whether value is (matrices, biases): a tuple of two flat lists, the last perhaps empty."""
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and _is_flat(value[0])
        and (_is_flat(value[1]) or (isinstance(value[1], tuple | list) and not value[1]))
    )


def _read(weights: Any, source: str, layout: _Layout) -> list[Layer]:
    """The checked weights in PyTorch's layout, one tuple of directions a layer."""
    if source == "torch":
        return parse(weights, layout.cell, None)
    is_one = _is_cudnn_entry if source == "cudnn" else _is_flat
    if is_one(weights):
        entries, names = [weights], ["weights"]
    elif isinstance(weights, list) and weights:
        entries, names = weights, [f"weights[{k}]" for k in range(len(weights))]
    else:
        raise TypeError(
            f"weights: expected {_EXPECTED[source]}, or a list with one entry per layer, "
            f"got {_describe(weights)}"
        )
    layers: list[Layer] = []
    for name, entry in zip(names, entries, strict=True):
        if is_one(entry):
            layer = _READERS[source](name, entry, layout)
        elif source != "onnx" and isinstance(entry, tuple) and len(entry) == 2:
            layer = ()
            for k, part in enumerate(entry):
                if not is_one(part):
                    raise TypeError(
                        f"{name}[{k}]: expected {_EXPECTED[source]}, got {_describe(part)}"
                    )
                layer += _READERS[source](f"{name}[{k}]", part, layout)
        else:
            pair = "" if source == "onnx" else " or a (forward, reverse) pair of them"
            raise TypeError(f"{name}: expected {_EXPECTED[source]}{pair}, got {_describe(entry)}")
        layers.append(layer)
        _check_layer(name, layers)
    return layers


def _check_layer(name: str, layers: list[Layer]) -> None:
    """The last layer against the first and the one before."""
    layer, first = layers[-1], layers[0][0].w_ih
    if len(layer) != len(layers[0]):
        raise ValueError(
            f"{name}: expected {len(layers[0])} direction(s) as in weights[0], got {len(layer)}"
        )
    features = layer[0].w_ih.shape[1]
    if len(layers) > 1:
        before = layers[-2]
        features = len(before) * before[0].w_hh.shape[1]
    hidden = layer[0].w_hh.shape[1]
    for w in layer:
        if w.w_ih.dtype != first.dtype:
            raise TypeError(
                f"{name}: expected dtype {first.dtype} as the other arrays have, got {w.w_ih.dtype}"
            )
        if w.w_hh.shape[1] != hidden:
            raise ValueError(
                f"{name}: expected hidden size {hidden} as in the forward direction, "
                f"got {w.w_hh.shape[1]}"
            )
        if w.w_ih.shape[1] != features:
            raise ValueError(
                f"{name}: expected input size {features} as the layer before or the forward "
                f"direction has it, got {w.w_ih.shape[1]}"
            )


def _describe(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return arrays.describe(value)


def _first_array(weights: Any) -> Any:
    while isinstance(weights, tuple | list):
        weights = weights[0]
    return weights


def _take(name: str, value: Any, shape: tuple[int | str, ...], dtype: Any = None) -> Array:
    """`value` as an array of `shape`, in which a letter stands for any size of at least 1."""
    array = arrays.floating(name, value, dtype)
    fits = array.ndim == len(shape) and all(
        have >= 1 if isinstance(want, str) else have == want
        for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name}: expected shape ({wanted}), got {array.shape}")
    return array


# Readers: an entry of a format, to one or two directions in PyTorch's layout.


def _read_keras(name: str, entry: Sequence[Any], layout: _Layout) -> Layer:
    if not 2 <= len(entry) <= 3:
        raise ValueError(f"{name}: expected {_EXPECTED['keras']}, got {len(entry)} arrays")
    recurrent = _take(f"{name}.recurrent_kernel", entry[1], ("H", f"{len(layout.order)}*H"))
    hidden, dtype = recurrent.shape[0], recurrent.dtype
    rows = len(layout.order) * hidden
    _take(f"{name}.recurrent_kernel", recurrent, (hidden, rows))
    kernel = _take(f"{name}.kernel", entry[0], ("I", rows), dtype)
    b_ih = b_hh = None
    if len(entry) == 3 and entry[2] is not None:
        shape = (2, rows) if layout.two_biases else (rows,)
        bias = _take(f"{name}.bias", entry[2], shape, dtype)
        if layout.two_biases:
            b_ih, b_hh = layout.to_torch(bias[0]), layout.to_torch(bias[1])
        else:
            b_ih = layout.to_torch(bias)
    return (Weights(layout.to_torch(kernel.T), layout.to_torch(recurrent.T), b_ih, b_hh),)


def _read_onnx(name: str, entry: Sequence[Any], layout: _Layout) -> Layer:
    if not 2 <= len(entry) <= (4 if layout.cell.has_c else 3):
        raise ValueError(f"{name}: expected {_EXPECTED['onnx']}, got {len(entry)} arrays")
    r = _take(f"{name}.R", entry[1], ("D", f"{len(layout.order)}*H", "H"))
    directions, _, hidden = r.shape
    if directions > 2:
        raise ValueError(f"{name}.R: expected 1 or 2 directions, got shape {r.shape}")
    rows = len(layout.order) * hidden
    _take(f"{name}.R", r, (directions, rows, hidden))
    w = _take(f"{name}.W", entry[0], (directions, rows, "I"), r.dtype)
    b = None
    if len(entry) > 2 and entry[2] is not None:
        b = _take(f"{name}.B", entry[2], (directions, 2 * rows), r.dtype)
    p = None
    if len(entry) > 3 and entry[3] is not None:
        p = _take(f"{name}.P", entry[3], (directions, 3 * hidden), r.dtype)
    layer = []
    for d in range(directions):
        biases = () if b is None else tuple(layout.to_torch(half) for half in np.split(b[d], 2))
        one = Weights(layout.to_torch(w[d]), layout.to_torch(r[d]), *biases)
        if p is not None:
            one = one._replace(w_peep=_reorder(p[d], "iof", "ifo").reshape(3, hidden))
        layer.append(one)
    return tuple(layer)


def _read_cudnn(name: str, entry: Sequence[Any], layout: _Layout) -> Layer:
    matrices, biases = entry
    gates = len(layout.order)
    if len(matrices) != 2 * gates:
        raise ValueError(f"{name}[0]: expected {2 * gates} matrices, got {len(matrices)}")
    if len(biases) not in (0, 2 * gates):
        raise ValueError(f"{name}[1]: expected {2 * gates} biases or none, got {len(biases)}")
    w = _take(f"{name}[0][0]", matrices[0], ("H", "I"))
    hidden, features = w.shape
    shapes = [(hidden, features)] * gates + [(hidden, hidden)] * gates
    taken = [
        _take(f"{name}[0][{k}]", matrix, shape, w.dtype)
        for k, (matrix, shape) in enumerate(zip(matrices, shapes, strict=True))
    ]
    halves: list[Array | None] = []
    for half in (0, gates) if biases else ():
        part = biases[half : half + gates]
        if all(b is None for b in part):
            halves.append(None)
            continue
        parts = [_take(f"{name}[1][{half + k}]", b, (hidden,), w.dtype) for k, b in enumerate(part)]
        halves.append(layout.to_torch(np.concatenate(parts)))
    w_ih, w_hh = np.concatenate(taken[:gates]), np.concatenate(taken[gates:])
    return (Weights(layout.to_torch(w_ih), layout.to_torch(w_hh), *halves),)


# Writers: the directions of a layer, to an entry of a format or a pair of them.


def _per_direction(
    write: Callable[[Weights, _Layout], Any],
) -> Callable[[Layer, _Layout], Any]:
    def write_layer(layer: Layer, layout: _Layout) -> Any:
        entries = tuple(write(w, layout) for w in layer)
        return entries if len(entries) > 1 else entries[0]

    return write_layer


def _write_torch(w: Weights, layout: _Layout) -> Weights:
    return w


def _write_keras(w: Weights, layout: _Layout) -> tuple[Array, ...]:
    kernel, recurrent = layout.from_torch(w.w_ih).T, layout.from_torch(w.w_hh).T
    given = [b for b in (w.b_ih, w.b_hh) if b is not None]
    if not given:
        return kernel, recurrent
    if layout.two_biases:
        return kernel, recurrent, np.stack(_both_biases(w, layout))
    bias = given[0] if len(given) == 1 else given[0] + given[1]
    return kernel, recurrent, layout.from_torch(bias)


def _write_onnx(layer: Layer, layout: _Layout) -> tuple[Array | None, ...]:
    w = np.stack([layout.from_torch(d.w_ih) for d in layer])
    r = np.stack([layout.from_torch(d.w_hh) for d in layer])
    b = None
    if any(bias is not None for d in layer for bias in (d.b_ih, d.b_hh)):
        b = np.stack([np.concatenate(_both_biases(d, layout)) for d in layer])
    if layer[0].w_peep is None:
        return w, r, b
    return w, r, b, np.stack([_reorder(d.w_peep.ravel(), "ifo", "iof") for d in layer])


def _write_cudnn(w: Weights, layout: _Layout) -> tuple[list[Array], list[Array | None]]:
    gates = len(layout.order)
    matrices = [m for a in (w.w_ih, w.w_hh) for m in np.split(layout.from_torch(a), gates)]
    biases: list[Array | None] = []
    if w.b_ih is not None or w.b_hh is not None:
        for b in (w.b_ih, w.b_hh):
            biases += [None] * gates if b is None else np.split(layout.from_torch(b), gates)
    return matrices, biases


def _both_biases(w: Weights, layout: _Layout) -> list[Array]:
    """b_ih and b_hh in the format's order, zeros for one that is None."""
    zeros = np.zeros(len(w.w_ih), w.w_ih.dtype)
    return [layout.from_torch(zeros if b is None else b) for b in (w.b_ih, w.b_hh)]


_EXPECTED = {
    "keras": "(kernel, recurrent_kernel, bias), the bias left out if there is none",
    "onnx": "(W, R, B) or for LSTM (W, R, B, P), B None if there is none",
    "cudnn": "a tuple of two lists (matrices, biases)",
}
_READERS = {"keras": _read_keras, "onnx": _read_onnx, "cudnn": _read_cudnn}
_WRITERS: dict[str, Callable[[Layer, _Layout], Any]] = {
    "torch": _per_direction(_write_torch),
    "keras": _per_direction(_write_keras),
    "onnx": _write_onnx,
    "cudnn": _per_direction(_write_cudnn),
}
