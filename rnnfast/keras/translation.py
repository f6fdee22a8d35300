"""From Keras' names, layouts and gate orders to rnnfast's."""

from __future__ import annotations

from typing import Any

import keras

from ..convert import _ORDERS as ORDERS
from ..errors import UnsupportedError
from ..spec import CELLS
from ..weights import Weights

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


def options_of(cell: str, keras_cell: Any) -> dict[str, Any]:
    """The options of rnnfast's function: the variant of the cell, and what is not its default.

    Raises
    ------
    UnsupportedError
        For an activation that rnnfast does not have.
    """
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


def weights_of(cell: str, keras_cell: Any, dtype: str) -> Weights:
    """The variables of a Keras cell in PyTorch's layout and gate order."""
    order, wanted = ORDERS["keras"][cell], CELLS[cell].gates

    def arranged(variable: Any) -> Any:
        """Gates from the last axis, in Keras' order, to the first, in PyTorch's."""
        value = cast(variable.value, dtype)
        if len(value.shape) > 1:
            # Tensors of torch and JAX transpose themselves in a tenth of the time of Keras.
            value = value.T if hasattr(value, "T") else keras.ops.transpose(value)
        if order == wanted:
            return value
        count = value.shape[0] // len(order)
        blocks = {gate: value[k * count : (k + 1) * count] for k, gate in enumerate(order)}
        return keras.ops.concatenate([blocks[gate] for gate in wanted], axis=0)

    b_ih = b_hh = None
    if keras_cell.bias is not None:
        b_ih = arranged(keras_cell.bias)
        if cell == "gru" and keras_cell.reset_after:
            b_ih, b_hh = b_ih[:, 0], b_ih[:, 1]
    return Weights(arranged(keras_cell.kernel), arranged(keras_cell.recurrent_kernel), b_ih, b_hh)
