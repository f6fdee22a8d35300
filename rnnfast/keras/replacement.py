"""The recurrent layers of an existing model, replaced by rnnfast's."""

from __future__ import annotations

from typing import Any

import keras

from ..errors import UnsupportedError
from .bidirectional import Bidirectional
from .layers import GRU, LSTM, Fused, SimpleRNN, class_of_keras

_OURS: dict[Any, Any] = {
    keras.layers.LSTM: LSTM,
    keras.layers.GRU: GRU,
    keras.layers.SimpleRNN: SimpleRNN,
}
_REPLACED: dict[Any, Any] = {**_OURS, keras.layers.Bidirectional: Bidirectional}


def replace(model: Any) -> Any:
    """A copy of a model in which every LSTM, GRU, SimpleRNN and Bidirectional is rnnfast's.

    Parameters
    ----------
    model : keras.Model
        Sequential or functional. Layers inside wrappers (`Bidirectional`, `TimeDistributed`) and
        inner models are replaced too. It is not changed itself.

    Returns
    -------
    keras.Model
        With copies of the weights. It is not compiled, and the states of stateful layers are
        zero, as `keras.models.clone_model` leaves them.

    Raises
    ------
    TypeError
        If model is not a Keras model.
    ValueError
        If there is nothing to replace.
    UnsupportedError
        For a subclassed model or layer, whose inside only its own code knows, and for an
        activation that rnnfast does not have.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"model: expected a keras.Model, got {type(model).__name__}")
    for part in _inside(model):
        if isinstance(part, keras.Model) and not _is_plain(part):
            raise UnsupportedError(
                f"model: expected a Sequential or functional model, got {type(part).__name__}, a "
                f"subclass of keras.Model; use the layers of rnnfast.keras in its code"
            )
    if not any(type(layer) in _OURS for layer in _inside(model)):
        raise ValueError("model: expected at least one LSTM, GRU or SimpleRNN layer of Keras")
    replaced = keras.models.clone_model(model, clone_function=_clone, recursive=True)
    for layer in _inside(replaced):
        if issubclass(type(layer), tuple(_OURS)) and not isinstance(layer, Fused):
            raise UnsupportedError(
                f"model: layer {layer.name!r}, a {type(layer).__name__}, cannot be replaced where "
                f"it is; expected layers of Keras' own classes, named in the config of the layer "
                f"or model around them"
            )
    if model.built:
        replaced.set_weights(model.get_weights())
        for theirs, ours in zip(_inside(model), _inside(replaced), strict=True):
            if isinstance(ours, Fused):
                ours.cell.trainable = theirs.cell.trainable  # which no config has
        for layer in _inside(replaced):
            if isinstance(layer, keras.layers.Normalization):  # it keeps copies of its weights
                layer.finalize_state()
    return replaced


def _is_plain(model: Any) -> bool:
    """Whether clone_model makes one that computes the same: it knows no other call than Keras'."""
    known = isinstance(model, keras.Sequential) or hasattr(model, "operations")  # functional
    theirs = class_of_keras(model)
    return known and getattr(type(model), "call", None) is getattr(theirs, "call", None)


def _inside(model: Any) -> list[Any]:
    return list(model._flatten_layers())


def _clone(layer: Any) -> Any:
    kind = _REPLACED.get(type(layer), type(layer))
    return kind.from_config(_translated(layer.get_config()))


def _translated(config: Any) -> Any:
    """A config with the class of every layer inside it replaced."""
    if isinstance(config, list | tuple):
        values = [_translated(value) for value in config]
        return tuple(values) if isinstance(config, tuple) else values
    if not isinstance(config, dict):
        return config
    config = {key: _translated(value) for key, value in config.items()}
    if config.get("module") == "keras.layers":
        for theirs, ours in _REPLACED.items():
            if config.get("class_name") == theirs.__name__:
                config["module"] = ours.__module__
                config["registered_name"] = keras.saving.get_registered_name(ours)
    return config
