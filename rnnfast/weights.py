"""Weights of recurrent layers: the tuple that users build, its check, and its initial values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
    w_hh : array (G*H, P)
        Hidden-to-hidden (recurrent) weights. P is H but for an LSTM with projection.
    b_ih, b_hh : array (G*H,) or None
        Biases. None means no bias; either may be given alone. They are added after a
        normalisation, as its shift.
    w_hr : array (P, H) or None
        LSTM projection, as PyTorch's proj_size.
    w_peep : array (3, H) or None
        LSTM peepholes of i, f and o.
    ln_ih, ln_hh : array (G*H,) or None
        Gains of the layer normalisation of W_ih x and W_hh h; both or none. Over all gates
        together, but in a GRU over r and z together and over n.
    ln_c, ln_c_shift : array (H,) or None
        LSTM with ln_ih: gain and shift of the layer normalisation of c on its way to h.
    bn_ih : array (G*H,) or None
        Gain of the batch normalisation of W_ih x, over all steps and rows (Laurent et al. 2015).
    bn_mean, bn_var : array (G*H,) or None
        Its running statistics, given with bn_ih. A call in training uses those of its batch, and
        writes new running ones into these arrays; see `bn_momentum` in `rnnfast.Options`.
    """

    w_ih: Any
    w_hh: Any
    b_ih: Any = None
    b_hh: Any = None
    w_hr: Any = None
    w_peep: Any = None
    ln_ih: Any = None
    ln_hh: Any = None
    ln_c: Any = None
    ln_c_shift: Any = None
    bn_ih: Any = None
    bn_mean: Any = None
    bn_var: Any = None


Layer = tuple[Weights, ...]  # one Weights a direction


class Checked:
    """Weights of a cell that have been checked, for callers that come again with the same memory.

    Accepted in place of `weights`; gradients then have the structure that was checked.
    """

    __slots__ = ("cell", "layers", "single", "template")

    def __init__(self, weights: Any, cell: Cell) -> None:
        self.cell = cell
        self.template = weights
        self.layers = parse(weights, cell, None)
        # One `Weights` a layer, where there is one direction.
        one = len(self.layers[0]) == 1
        self.single = [w for (w,) in self.layers] if one else None

    def fitting(self, cell: Cell, dtype: np.dtype[Any] | None) -> list[Layer]:
        """The layers, where they are for this cell and of the dtype of x."""
        if cell is not self.cell:
            raise ValueError(f"weights: checked for {self.cell.name}, expected {cell.name}")
        w_hh = self.layers[0][0].w_hh
        arrays.check_dtype("weights", w_hh.dtype, dtype, arrays.on_device(w_hh))
        return self.layers


class InOrder:
    """Weights of plain cells whose gates are in another order than ours, for adapters.

    Gate g of `rnnfast.spec.CELLS` is the `places[g]`-th of theirs. Accepted in place of `weights`;
    gradients have their order, too.
    """

    __slots__ = ("places", "weights")

    def __init__(self, weights: Any, places: Iterable[int]) -> None:
        self.weights = weights
        self.places = tuple(places)

    def to_ours(self, w: Weights) -> Weights:
        return rearranged(w, self.places)

    def to_theirs(self, w: Weights) -> Weights:
        return rearranged(w, inverse(self.places))


def inverse(places: Sequence[int]) -> tuple[int, ...]:
    """The places that take gates back to where they were."""
    return tuple(places.index(g) for g in range(len(places)))


def in_order(array: Any, places: Sequence[int], concatenate: Any = np.concatenate) -> Any:
    """The blocks of the first axis, one a gate, in the order of `places`.

    Of any kind of array, with the function that puts such arrays together along that axis.
    """
    count = array.shape[0] // len(places)
    return concatenate([array[place * count : (place + 1) * count] for place in places])


def rearranged(w: Weights, places: Sequence[int], concatenate: Any = np.concatenate) -> Weights:
    """Each array of a plain cell's weights `in_order`."""
    return Weights(*(None if a is None else in_order(a, places, concatenate) for a in w))


_OF_LSTM = ("w_hr", "w_peep", "ln_c", "ln_c_shift")
_NEEDED = {  # by a field: the others that must be there
    "ln_ih": ("ln_hh",),
    "ln_hh": ("ln_ih",),
    "ln_c": ("ln_ih",),
    "ln_c_shift": ("ln_c",),
    "bn_ih": ("bn_mean", "bn_var"),
    "bn_mean": ("bn_ih", "bn_var"),
    "bn_var": ("bn_ih", "bn_mean"),
}


def is_entry(value: object) -> bool:
    """Whether value is a Weights or a plain tuple of arrays, i.e. one direction of one layer."""
    if isinstance(value, Weights):
        return True
    return isinstance(value, tuple) and not any(isinstance(v, (tuple, list)) for v in value)


def _pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(is_entry(v) for v in value)


def parse(weights: object, cell: Cell, dtype: np.dtype[Any] | None) -> list[Layer]:
    """Check the structure, kinds, dtypes and shapes of `weights`; return it as NumPy arrays.

    The result has one tuple of `Weights` a layer. `dtype` is the one that x has, or None to take
    that of the first array.
    """
    if type(weights) is Checked:
        return weights.fitting(cell, dtype)
    if type(weights) is InOrder:
        theirs = parse(weights.weights, cell, dtype)
        return [tuple(map(weights.to_ours, layer)) for layer in theirs]
    if is_entry(weights):
        entries: Sequence[object] = [weights]
        names = ["weights"]
    elif isinstance(weights, list):
        entries = weights
        names = [f"weights[{k}]" for k in range(len(weights))]
    elif isinstance(weights, tuple):
        _refuse_lists("weights", weights)
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
            _refuse_lists(name, entry)
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
            first = layers[0][0] if layers else layer[0] if layer else None
            one = _direction(part_name, part, cell, dtype, features, layer, first)
            dtype = one.w_ih.dtype
            layer.append(one)
        layers.append(tuple(layer))
        features = len(layer) * layer[0].w_hh.shape[1]
    return layers


def _refuse_lists(name: str, entry: object) -> None:
    """Lists of numbers in the place of arrays, by the names that these have."""
    if not isinstance(entry, tuple):
        return
    for field, value in zip(Weights._fields, entry, strict=False):
        inner = value[0] if isinstance(value, list) and value else None
        if isinstance(inner, list | float | int):
            raise TypeError(
                f"{name}.{field}: expected a NumPy array or another with DLPack, got list"
            )


def _direction(
    name: str,
    entry: Any,
    cell: Cell,
    dtype: np.dtype[Any] | None,
    features: int | None,
    before: list[Weights],
    first: Weights | None,
) -> Weights:
    """Check one direction. `before` is the forward one of its layer, `first` that of the stack."""
    if not isinstance(entry, Weights):
        if not 2 <= len(entry) <= len(Weights._fields):
            raise ValueError(
                f"{name}: expected 2 to {len(Weights._fields)} arrays "
                f"({', '.join(Weights._fields)}), got {len(entry)}"
            )
        entry = Weights(*entry)
    _check_fields(name, entry, cell, first)
    w_ih = arrays.floating(f"{name}.w_ih", entry.w_ih, dtype)
    if entry.bn_ih is not None and arrays.computed(w_ih.dtype) != w_ih.dtype:
        raise UnsupportedError(
            f"{name}.bn_ih: no backend has batch normalisation in {w_ih.dtype}, whose running "
            f"statistics would stand still; expected float32 or float64"
        )
    w_hh = arrays.floating(f"{name}.w_hh", entry.w_hh, w_ih.dtype)
    gates = len(cell.gates)
    if entry.w_hr is not None:
        w_hr = arrays.floating(f"{name}.w_hr", entry.w_hr, w_ih.dtype)
        if w_hr.ndim != 2 or 0 in w_hr.shape:
            raise ValueError(f"{name}.w_hr: expected shape (P, H), got {w_hr.shape}")
        outputs, hidden = w_hr.shape
        if w_hh.shape != (gates * hidden, outputs):
            raise ValueError(
                f"{name}.w_hh: expected shape {(gates * hidden, outputs)} as w_hr has shape "
                f"{w_hr.shape}, got {w_hh.shape}"
            )
    elif w_hh.ndim != 2 or w_hh.shape[0] != gates * w_hh.shape[1] or w_hh.shape[1] == 0:
        raise ValueError(
            f"{name}.w_hh: expected shape ({gates}*H, H) with H >= 1 for {cell.name}, "
            f"got {w_hh.shape}"
        )
    rows, outputs = w_hh.shape
    hidden = rows // gates
    other = before[0] if before else first
    if other is not None and w_hh.shape != other.w_hh.shape:
        where = "the forward direction" if before else "the first layer"
        size = other.w_hh.shape[0] // gates
        wanted = f"hidden size {size}" if size != hidden else f"shape {other.w_hh.shape}"
        got = hidden if size != hidden else w_hh.shape
        raise ValueError(f"{name}.w_hh: expected {wanted} as in {where}, got {got}")
    if before:
        features = before[0].w_ih.shape[1]
    wanted_ih = f"({rows}, {'I' if features is None else features})"
    if w_ih.ndim != 2 or w_ih.shape[0] != rows or w_ih.shape[1] == 0:
        raise ValueError(f"{name}.w_ih: expected shape {wanted_ih}, got {w_ih.shape}")
    if features is not None and w_ih.shape[1] != features:
        raise ValueError(f"{name}.w_ih: expected shape {wanted_ih}, got {w_ih.shape}")
    found: list[Any] = [arrays.contiguous(w_ih), arrays.contiguous(w_hh)]
    plain = all(value is None for value in entry[4:])
    for field, value in zip(
        ("b_ih", "b_hh") if plain else Weights._fields[2:], entry[2:], strict=False
    ):
        array = value
        if value is not None:
            array = arrays.floating(f"{name}.{field}", value, w_ih.dtype)
            shape = _SHAPES.get(field)
            wanted_shape = shape(rows, outputs, hidden) if shape else (rows,)
            if array.shape != wanted_shape:
                raise ValueError(
                    f"{name}.{field}: expected shape {wanted_shape}, got {array.shape}"
                )
            if field not in RUNNING:
                array = arrays.contiguous(array)
        found.append(array)
    return Weights(*found)


# Of fields that are not (G*H,), from that number, P and H.
_SHAPES: dict[str, Callable[[int, int, int], tuple[int, ...]]] = {
    "w_hr": lambda rows, P, H: (P, H),
    "w_peep": lambda rows, P, H: (3, H),
    "ln_c": lambda rows, P, H: (H,),
    "ln_c_shift": lambda rows, P, H: (H,),
}
RUNNING = ("bn_mean", "bn_var")  # written in place, so that a copy would not do


def _check_fields(name: str, entry: Weights, cell: Cell, first: Weights | None) -> None:
    """Which optional fields there may be, and must be."""
    if all(value is None for value in (*entry[4:], *(first[4:] if first else ()))):
        return
    given = entry._asdict()
    for field in _OF_LSTM:
        if given[field] is not None and cell.name != "lstm":
            raise UnsupportedError(f"{name}.{field}: {cell.name} has none; lstm has")
    for field, needed in _NEEDED.items():
        missing = [other for other in needed if given[other] is None]
        if given[field] is not None and missing:
            raise ValueError(f"{name}.{missing[0]}: expected an array, as {field} is one, got None")
    if entry.ln_ih is not None and entry.bn_ih is not None:
        raise UnsupportedError(
            f"{name}.bn_ih: no backend has batch and layer normalisation of one product; "
            f"expected None as ln_ih is given"
        )
    for field in Weights._fields[4:]:
        if first is not None and (given[field] is None) != (getattr(first, field) is None):
            wanted = "None" if given[field] is not None else "an array"
            got = "None" if given[field] is None else "an array"
            raise ValueError(f"{name}.{field}: expected {wanted} as in the first layer, got {got}")


def rebuild(template: Any, leaves: Iterator[Weights]) -> Any:
    """`leaves` in the structure of `template`: the same lists, pairs and kinds of tuple."""
    if isinstance(template, Weights):
        return next(leaves)
    if type(template) is Checked:
        return rebuild(template.template, leaves)
    if type(template) is InOrder:
        return rebuild(template.weights, map(template.to_theirs, leaves))
    if is_entry(template):
        return _like(template, tuple(next(leaves))[: len(template)])
    return _like(template, [rebuild(entry, leaves) for entry in template])


def _like(template: Any, parts: Any) -> Any:
    """The parts in the kind of list or tuple that the template is."""
    kind = type(template)
    return kind(*parts) if hasattr(kind, "_fields") else kind(parts)


def matching(name: str, value: Any, template: Any, parsed: Iterator[Weights]) -> list[Weights]:
    """`value`, which has the structure of `template`, direction by direction.

    Its arrays have the shapes of those in `parsed`, or are None.
    """
    if type(template) is Checked:
        template = template.template
    if type(template) is InOrder:
        return list(map(template.to_ours, matching(name, value, template.weights, parsed)))
    if value is None:
        return [Weights(None, None) for _ in _leaves(template) if next(parsed)]
    if not is_entry(template):
        if not isinstance(value, list | tuple) or len(value) != len(template):
            raise ValueError(
                f"{name}: expected the structure of weights, {len(template)} entries here, "
                f"got {arrays.describe(value)}"
            )
        named = [
            (f"{name}[{k}]", v, t) for k, (v, t) in enumerate(zip(value, template, strict=True))
        ]
        return [w for n, v, t in named for w in matching(n, v, t, parsed)]
    wanted = next(parsed)
    if not isinstance(value, tuple) or len(value) > len(Weights._fields):
        raise TypeError(f"{name}: expected a Weights, got {arrays.describe(value)}")
    entry = Weights(*value, *[None] * (2 - len(value)))._asdict()
    for field, given in entry.items():
        own = getattr(wanted, field)
        if given is None:
            continue
        if own is None:
            raise ValueError(f"{name}.{field}: expected None as in weights")
        entry[field] = arrays.floating(f"{name}.{field}", given, own.dtype)
        if given.shape != own.shape:
            raise ValueError(f"{name}.{field}: expected shape {own.shape}, got {given.shape}")
    return [Weights(**entry)]


def _leaves(template: Any) -> list[Any]:
    return [template] if is_entry(template) else [w for t in template for w in _leaves(t)]


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
    *,
    peepholes: bool = False,
    layer_norm: bool = False,
    batch_norm: bool = False,
) -> list[Any]:  # of Weights, or of pairs of them: of a union readers would have to ask which
    """Random weights, uniform in +-1/sqrt(hidden_size), as `torch.nn.LSTM` draws them.

    Parameters
    ----------
    cell : {"lstm", "gru", "rnn", "gated"}
    input_size, hidden_size : int
        I and H, at least 1.
    num_layers : int
        L. Layer k > 0 reads the D*P outputs of layer k - 1; P is H without projection.
    bidirectional : bool
        Whether each entry is a (forward, reverse) pair.
    proj_size : int
        P, the size of an LSTM's projection w_hr; 0 for none.
    bias : bool
        Whether b_ih and b_hh are drawn, or None.
    dtype : float32 or float64
    rng : numpy.random.Generator, int or None
        The source of randomness, or a seed for a new one.
    peepholes : bool
        Whether an LSTM has w_peep, drawn as the others.
    layer_norm : bool
        Whether there are ln_ih and ln_hh and, for an LSTM, ln_c and ln_c_shift: gains 1, shift 0.
    batch_norm : bool
        Whether there are bn_ih = 1, bn_mean = 0 and bn_var = 1.

    Returns
    -------
    list
        One entry per layer, ready to be passed to `rnnfast.lstm` and its siblings.

    Raises
    ------
    ValueError, TypeError
        For an unknown cell, a size below 1, or an argument of the wrong kind.
    UnsupportedError
        For what the cell does not have.
    """
    info = checks.cell(cell)
    sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
    for name, size in sizes.items():
        checks.integer(name, size, 1)
    checks.integer("proj_size", proj_size, 0)
    peepholes = checks.flag("peepholes", peepholes)
    layer_norm = checks.flag("layer_norm", layer_norm)
    batch_norm = checks.flag("batch_norm", batch_norm)
    if layer_norm and batch_norm:
        raise UnsupportedError("batch_norm: no backend has it together with layer_norm, got both")
    for name, wanted in (("proj_size", proj_size), ("peepholes", peepholes)):
        if wanted and cell != "lstm":
            raise UnsupportedError(f"{name}: {cell} has none; lstm has, got {wanted}")
    bidirectional = checks.flag("bidirectional", bidirectional)
    bias = checks.flag("bias", bias)
    kind = arrays.dtype("dtype", dtype)
    generator = checks.generator(rng)
    bound = 1 / np.sqrt(hidden_size)
    rows = len(info.gates) * hidden_size

    def draw(*shape: int) -> NDArray[Any]:
        return generator.uniform(-bound, bound, shape).astype(kind)

    outputs = int(proj_size) or hidden_size

    def direction(features: int) -> Weights:
        w_ih, w_hh = draw(rows, features), draw(rows, outputs)
        w = Weights(w_ih, w_hh, *((draw(rows), draw(rows)) if bias else ()))
        if proj_size:
            w = w._replace(w_hr=draw(outputs, hidden_size))
        if peepholes:
            w = w._replace(w_peep=draw(3, hidden_size))
        if layer_norm:
            w = w._replace(ln_ih=np.ones(rows, kind), ln_hh=np.ones(rows, kind))
            if cell == "lstm":
                w = w._replace(
                    ln_c=np.ones(hidden_size, kind), ln_c_shift=np.zeros(hidden_size, kind)
                )
        if batch_norm:
            w = w._replace(
                bn_ih=np.ones(rows, kind), bn_mean=np.zeros(rows, kind), bn_var=np.ones(rows, kind)
            )
        return w

    layers: list[Weights | tuple[Weights, Weights]] = []
    features = input_size
    for _ in range(num_layers):
        if bidirectional:
            layers.append((direction(features), direction(features)))
        else:
            layers.append(direction(features))
        features = outputs * (1 + bidirectional)
    return layers
