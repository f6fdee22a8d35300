"""The parameters of a stack of layers by name, for layers of Flax: `w_ih_l0`, `b_hh_l1_reverse`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax

from .. import checks
from ..spec import CELLS
from ..weights import Weights

_FIELDS = Weights._fields[:4]


def check(hidden_size: int, num_layers: int, dropout: float) -> None:
    """What no call would find: sizes that make no layer, and a rate that no layer draws by."""
    for name, size in (("hidden_size", hidden_size), ("num_layers", num_layers)):
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
    checks.probability("dropout", dropout)


def shapes(
    cell: str,
    input_size: int,
    hidden_size: int,
    num_layers: int,
    bidirectional: bool,
    bias: bool,
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every parameter."""
    rows = len(CELLS[cell].gates) * hidden_size
    features = input_size
    for k in range(num_layers):
        for end in _ends(bidirectional):
            yield f"w_ih_l{k}{end}", (rows, features)
            yield f"w_hh_l{k}{end}", (rows, hidden_size)
            if bias:
                yield f"b_ih_l{k}{end}", (rows,)
                yield f"b_hh_l{k}{end}", (rows,)
        features = hidden_size * (1 + bidirectional)


def weights(get: Callable[[str], Any], num_layers: int, bidirectional: bool, bias: bool) -> Any:
    """The parameters as `rnnfast.jax.lstm` takes them; get(name) is one of them."""
    fields = _FIELDS if bias else _FIELDS[:2]
    layers = [
        tuple(
            Weights(*(get(f"{field}_l{k}{end}") for field in fields))
            for end in _ends(bidirectional)
        )
        for k in range(num_layers)
    ]
    return layers if bidirectional else [layer[0] for layer in layers]


def _ends(bidirectional: bool) -> tuple[str, ...]:
    return ("", "_reverse") if bidirectional else ("",)


def uniform(hidden_size: int) -> Callable[..., Any]:
    """An initializer: uniform in +-1/sqrt(H), as `torch.nn.LSTM` draws its weights."""
    bound = hidden_size**-0.5

    def draw(key: Any, shape: tuple[int, ...], dtype: Any = "float32") -> Any:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw
