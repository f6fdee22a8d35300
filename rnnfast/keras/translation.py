"""From Keras' names, layouts and gate orders to rnnfast's."""

from __future__ import annotations

from functools import partial
from typing import Any

import keras

from ..convert import _ORDERS as ORDERS
from ..errors import UnsupportedError
from ..spec import CELLS
from ..weights import Weights, rearranged

# Keras' functions with their default arguments, in the order of the message for any other.
_ACTIVATIONS: dict[Any, str | tuple[str, float, float]] = {
    keras.activations.tanh: "tanh",
    keras.activations.sigmoid: "sigmoid",
    keras.activations.relu: "relu",
    keras.activations.linear: "linear",
    keras.activations.hard_sigmoid: ("hard_sigmoid", 1 / 6, 0.5),
    keras.activations.leaky_relu: ("leaky_relu", 0.2, 0.0),
    keras.activations.elu: ("elu", 1.0, 0.0),
    keras.activations.softsign: "softsign",
    keras.activations.softplus: "softplus",
}

_CALLS = {c.call for c in (keras.layers.LSTMCell, keras.layers.GRUCell, keras.layers.SimpleRNNCell)}


def options_of(cell: str, keras_cell: Any) -> dict[str, Any]:
    """The options of rnnfast's function: the variant of the cell, and what is not its default.

    Raises
    ------
    UnsupportedError
        For an activation that rnnfast does not have, and a cell that is not Keras' own.
    """
    if type(keras_cell).call not in _CALLS:
        raise UnsupportedError(
            f"cell: expected one of Keras' own, got {type(keras_cell).__name__}, whose call would "
            f"not run; keras.layers.RNN runs it"
        )
    options: dict[str, Any] = {}
    activation = _activation("activation", keras_cell.activation)
    if cell == "rnn":
        return {"nonlinearity": activation}
    if cell == "gru":
        options["reset_after"] = bool(keras_cell.reset_after)
    if activation != "tanh":
        options["activation"] = activation
        if cell == "lstm":
            options["output_activation"] = activation
    gates = _activation("recurrent_activation", keras_cell.recurrent_activation)
    if gates != "sigmoid":
        options["gate_activation"] = gates
    return options


def _activation(name: str, function: Any) -> str | tuple[str, float, float]:
    try:
        return _ACTIVATIONS[function]
    except (KeyError, TypeError):
        known = ", ".join(f.__name__ for f in _ACTIVATIONS)
        got = getattr(function, "__name__", repr(function))
        raise UnsupportedError(
            f"{name}: expected one of keras.activations' {known}, got {got}"
        ) from None


def cast(tensor: Any, dtype: str) -> Any:
    """`keras.ops.cast`, which takes longer than a small layer even where there is nothing to do."""
    if keras.backend.standardize_dtype(tensor.dtype) == dtype:
        return tensor
    return keras.ops.cast(tensor, dtype)


def places_of(cell: str) -> tuple[int, ...]:
    """Those of PyTorch's gates among Keras'; () where they are the same."""
    order, wanted = ORDERS["keras"][cell], CELLS[cell].gates
    return () if order == wanted else tuple(map(order.index, wanted))


def weights_of(keras_cell: Any, dtype: str) -> Weights:
    """The variables of a Keras cell in PyTorch's layout, with the gates in Keras' order.

    On tensorflow they are left as they lie, w_ih (I, G*H), w_hh (H, G*H) and both biases in b_ih:
    its operators read them so, and its callbacks turn them, which moves nothing in memory.
    """
    if keras.backend.backend() == "tensorflow":
        variables = (keras_cell.kernel, keras_cell.recurrent_kernel, keras_cell.bias)
        return Weights(*(None if v is None else cast(v.value, dtype) for v in variables))

    def turned(variable: Any) -> Any:
        """Gates from the last axis to the first."""
        value = cast(variable.value, dtype)
        # Tensors of torch and JAX transpose themselves in a tenth of the time of Keras.
        return value.T if hasattr(value, "T") else keras.ops.transpose(value)

    b_ih = b_hh = None
    if keras_cell.bias is not None:
        b_ih = cast(keras_cell.bias.value, dtype)
        if len(b_ih.shape) > 1:  # of a GRU with reset_after
            b_ih, b_hh = b_ih[0], b_ih[1]
    return Weights(turned(keras_cell.kernel), turned(keras_cell.recurrent_kernel), b_ih, b_hh)


def in_our_order(cell: str, w: Weights) -> Weights:
    """The same with the gates in PyTorch's order."""
    places = places_of(cell)
    return rearranged(w, places, partial(keras.ops.concatenate, axis=0)) if places else w
