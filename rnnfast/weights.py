"""Weights of recurrent layers: the tuple that users build, its check, and its initial values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import arrays, checks
from .errors import UnsupportedError
from .spec import Cell


class Weights(NamedTuple):
    """The weights of one direction of one layer, in PyTorch's layout and gate order.

    With G gates, input size I and hidden size H. The order of the gates along the first axis is
    i f g o for LSTM, r z n for GRU, i f c for the gated cell; the vanilla RNN has one.

    Attributes
    ----------
    w_ih : array (G*H, I)
        Input-to-hidden weights.
    w_hh : array (G*H, H)
        Hidden-to-hidden (recurrent) weights.
    b_ih, b_hh : array (G*H,) or None
        Biases. None means no bias; either may be given alone.
    w_hr : array (P, H) or None
        LSTM projection. Reserved: no backend has it yet.
    w_peep : array (3, H) or None
        LSTM peepholes i, f, o. Reserved: no backend has them yet.
    """

    w_ih: Any
    w_hh: Any
    b_ih: Any = None
    b_hh: Any = None
    w_hr: Any = None
    w_peep: Any = None


Layer = tuple[Weights, ...]  # one Weights a direction
_RESERVED = ("w_hr", "w_peep")


def is_entry(value: object) -> bool:
    """Whether value is a Weights or a plain tuple of arrays, i.e. one direction of one layer."""
    if isinstance(value, Weights):
        return True
    return isinstance(value, tuple) and not any(isinstance(v, tuple | list) for v in value)


def _pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(is_entry(v) for v in value)


def parse(weights: object, cell: Cell, dtype: np.dtype[Any] | None) -> list[Layer]:
    """Check the structure, kinds, dtypes and shapes of `weights`; return it as NumPy arrays.

    The result has one tuple of `Weights` a layer. `dtype` is the one that x has, or None to take
    that of the first array.
    """
    if is_entry(weights):
        entries: Sequence[object] = [weights]
        names = ["weights"]
    elif isinstance(weights, list):
        entries = weights
        names = [f"weights[{k}]" for k in range(len(weights))]
    elif isinstance(weights, tuple):
        raise TypeError(
            "weights: a tuple of tuples could mean two layers or two directions; expected a list "
            "with one entry per layer, each a Weights or a (forward, reverse) pair of them"
        )
    else:
        raise TypeError(
            f"weights: expected a Weights, a tuple of arrays or a list with one entry per layer, "
            f"got {arrays.describe(weights)}"
        )
    if not entries:
        raise ValueError("weights: expected at least one layer, got an empty list")
    layers: list[Layer] = []
    features: int | None = None
    for name, entry in zip(names, entries, strict=True):
        if is_entry(entry):
            parts, part_names = [entry], [name]
        elif _pair(entry):
            parts, part_names = list(entry), [f"{name}[0]", f"{name}[1]"]  # type: ignore[call-overload]
        else:
            raise TypeError(
                f"{name}: expected a Weights, a tuple of arrays or a (forward, reverse) pair of "
                f"them, got {arrays.describe(entry)}"
            )
        if layers and len(parts) != len(layers[0]):
            raise ValueError(
                f"{name}: expected {len(layers[0])} direction(s) as in weights[0], got {len(parts)}"
            )
        layer: list[Weights] = []
        for part_name, part in zip(part_names, parts, strict=True):
            one = _direction(part_name, part, cell, dtype, features, layer)
            dtype = one.w_ih.dtype
            layer.append(one)
        layers.append(tuple(layer))
        features = len(layer) * layer[0].w_hh.shape[1]
    return layers


def _direction(
    name: str,
    entry: Any,
    cell: Cell,
    dtype: np.dtype[Any] | None,
    features: int | None,
    before: list[Weights],
) -> Weights:
    if not isinstance(entry, Weights):
        if not 2 <= len(entry) <= len(Weights._fields):
            raise ValueError(
                f"{name}: expected 2 to {len(Weights._fields)} arrays "
                f"({', '.join(Weights._fields)}), got {len(entry)}"
            )
        entry = Weights(*entry)
    for field in _RESERVED:
        if getattr(entry, field) is not None:
            raise UnsupportedError(f"{name}.{field}: no backend supports {field} yet")
    w_ih = arrays.floating(f"{name}.w_ih", entry.w_ih, dtype)
    w_hh = arrays.floating(f"{name}.w_hh", entry.w_hh, w_ih.dtype)
    gates = len(cell.gates)
    if w_hh.ndim != 2 or w_hh.shape[0] != gates * w_hh.shape[1] or w_hh.shape[1] == 0:
        raise ValueError(
            f"{name}.w_hh: expected shape ({gates}*H, H) with H >= 1 for {cell.name}, "
            f"got {w_hh.shape}"
        )
    rows, hidden = w_hh.shape
    if before and hidden != before[0].w_hh.shape[1]:
        raise ValueError(
            f"{name}.w_hh: expected hidden size {before[0].w_hh.shape[1]} as in the forward "
            f"direction, got {hidden}"
        )
    if before:
        features = before[0].w_ih.shape[1]
    wanted = f"({rows}, {'I' if features is None else features})"
    if w_ih.ndim != 2 or w_ih.shape[0] != rows or w_ih.shape[1] == 0:
        raise ValueError(f"{name}.w_ih: expected shape {wanted}, got {w_ih.shape}")
    if features is not None and w_ih.shape[1] != features:
        raise ValueError(f"{name}.w_ih: expected shape {wanted}, got {w_ih.shape}")
    biases = []
    for field in ("b_ih", "b_hh"):
        bias = getattr(entry, field)
        if bias is not None:
            bias = arrays.floating(f"{name}.{field}", bias, w_ih.dtype)
            if bias.shape != (rows,):
                raise ValueError(f"{name}.{field}: expected shape ({rows},), got {bias.shape}")
        biases.append(bias)
    return Weights(*(None if a is None else arrays.contiguous(a) for a in (w_ih, w_hh, *biases)))


def rebuild(template: Any, leaves: Iterator[Weights]) -> Any:
    """`leaves` in the structure of `template`: the same lists, pairs and kinds of tuple."""
    if isinstance(template, Weights):
        return next(leaves)
    if is_entry(template):
        return tuple(next(leaves))[: len(template)]
    return type(template)(rebuild(entry, leaves) for entry in template)


def init_weights(
    cell: str,
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    bidirectional: bool = False,
    proj_size: int = 0,
    bias: bool = True,
    dtype: DTypeLike = np.float32,
    rng: np.random.Generator | int | None = None,
) -> list[Weights | tuple[Weights, Weights]]:
    """Random weights, uniform in +-1/sqrt(hidden_size), as `torch.nn.LSTM` draws them.

    Parameters
    ----------
    cell : {"lstm", "gru", "rnn", "gated"}
    input_size, hidden_size : int
        I and H, at least 1.
    num_layers : int
        L. Layer k > 0 reads the D*H outputs of layer k - 1.
    bidirectional : bool
        Whether each entry is a (forward, reverse) pair.
    proj_size : int
        Reserved for the LSTM projection; only 0 is supported yet.
    bias : bool
        Whether b_ih and b_hh are drawn, or None.
    dtype : float32 or float64
    rng : numpy.random.Generator, int or None
        The source of randomness, or a seed for a new one.

    Returns
    -------
    list
        One entry per layer, ready to be passed to `rnnfast.lstm` and its siblings.

    Raises
    ------
    ValueError, TypeError
        For an unknown cell, a size below 1, or an argument of the wrong kind.
    UnsupportedError
        For proj_size other than 0.
    """
    info = checks.cell(cell)
    sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
    for name, size in sizes.items():
        if not isinstance(size, int | np.integer) or isinstance(size, bool):
            raise TypeError(f"{name}: expected an int, got {arrays.describe(size)}")
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
    if proj_size != 0:
        raise UnsupportedError(f"proj_size: no backend supports projection yet, got {proj_size}")
    bidirectional = checks.flag("bidirectional", bidirectional)
    bias = checks.flag("bias", bias)
    kind = arrays.dtype("dtype", dtype)
    generator = checks.generator(rng)
    bound = 1 / np.sqrt(hidden_size)
    rows = len(info.gates) * hidden_size

    def draw(*shape: int) -> NDArray[Any]:
        return generator.uniform(-bound, bound, shape).astype(kind)

    def direction(features: int) -> Weights:
        w_ih, w_hh = draw(rows, features), draw(rows, hidden_size)
        return Weights(w_ih, w_hh, *((draw(rows), draw(rows)) if bias else ()))

    layers: list[Weights | tuple[Weights, Weights]] = []
    features = input_size
    for _ in range(num_layers):
        if bidirectional:
            layers.append((direction(features), direction(features)))
        else:
            layers.append(direction(features))
        features = hidden_size * (1 + bidirectional)
    return layers
