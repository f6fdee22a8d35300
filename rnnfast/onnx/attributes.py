"""What the attributes of an LSTM, GRU or RNN node say, in rnnfast's names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UnsupportedError
from ..spec import ACTIVATIONS

# rnnfast's names, and what of alpha and beta a function takes, by ONNX's names in lower case.
_ACTIVATIONS = {
    "sigmoid": ("sigmoid", ""),
    "tanh": ("tanh", ""),
    "relu": ("relu", ""),
    "affine": ("affine", "alpha beta"),
    "leakyrelu": ("leaky_relu", "alpha"),
    "thresholdedrelu": ("thresholded_relu", "alpha"),
    "scaledtanh": ("scaled_tanh", "alpha beta"),
    "hardsigmoid": ("hard_sigmoid", "alpha beta"),
    "elu": ("elu", "alpha"),
    "softsign": ("softsign", ""),
    "softplus": ("softplus", ""),
}

# For each operator, rnnfast's keywords for its activations f, g, h, and what they are by default.
_PLACES = {
    "LSTM": {"gate_activation": "sigmoid", "activation": "tanh", "output_activation": "tanh"},
    "GRU": {"gate_activation": "sigmoid", "activation": "tanh"},
    "RNN": {"nonlinearity": "tanh"},
}
OPERATORS = tuple(_PLACES)
_SHARED = {
    "activation_alpha",
    "activation_beta",
    "activations",
    "clip",
    "direction",
    "hidden_size",
    "layout",
}
_OWN = {"LSTM": {"input_forget"}, "GRU": {"linear_before_reset"}, "RNN": set[str]()}
_DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


@dataclass(frozen=True)
class Attributes:
    """A node's attributes as keyword arguments of rnnfast's functions.

    Attributes
    ----------
    cell : {"lstm", "gru", "rnn"}
        The function to call.
    direction : {"forward", "reverse", "bidirectional"}
    options : tuple of dict
        For each direction the keyword arguments that differ from the function's defaults.
    batch_first : bool
        ONNX's ``layout``.
    hidden_size : int or None
        As the node says it, if it does.
    """

    cell: str
    direction: str
    options: tuple[dict[str, Any], ...]
    batch_first: bool
    hidden_size: int | None

    @property
    def reset_after(self) -> bool:
        """ONNX's ``linear_before_reset``; True for other cells, where it means nothing."""
        return bool(self.options[0].get("reset_after", True))

    @classmethod
    def of(cls, operator: str, given: dict[str, Any]) -> Attributes:
        """Read the attributes of a node; what is left out or None has ONNX's default.

        Parameters
        ----------
        operator : {"LSTM", "GRU", "RNN"}
        given : dict
            Values by name, as in https://onnx.ai/onnx/operators/.

        Raises
        ------
        ValueError
            For a value that ONNX does not allow.
        UnsupportedError
            For an attribute of before opset 7.
        """
        values = {name: value for name, value in given.items() if value is not None}
        unknown = values.keys() - _SHARED - _OWN[operator]
        if unknown:
            raise UnsupportedError(
                f"{operator}: unknown attributes {', '.join(sorted(unknown))}; "
                f"opset 7 and later are supported"
            )
        direction = values.get("direction", "forward")
        if direction not in _DIRECTIONS:
            raise ValueError(
                f"direction: expected one of {', '.join(_DIRECTIONS)}, got {direction!r}"
            )
        shared: dict[str, Any] = {}
        if operator == "GRU":
            shared["reset_after"] = _flag("linear_before_reset", values)
        if operator == "LSTM" and _flag("input_forget", values):
            shared["input_forget"] = True
        if "clip" in values:
            if not values["clip"] > 0:
                raise ValueError(f"clip: expected a number above 0, got {values['clip']}")
            shared["clip"] = float(values["clip"])
        places = _PLACES[operator]
        count = _DIRECTIONS[direction]
        return cls(
            cell=operator.lower(),
            direction=direction,
            options=tuple(
                {**shared, **{k: v for k, v in chosen.items() if v != places[k]}}
                for chosen in _activations(tuple(places.items()), count, values)
            ),
            batch_first=_flag("layout", values),
            hidden_size=values.get("hidden_size"),
        )


def _flag(name: str, values: dict[str, Any]) -> bool:
    value = values.get(name, 0)
    if value not in (0, 1):
        raise ValueError(f"{name}: expected 0 or 1, got {value!r}")
    return bool(value)


def _activations(
    places: Sequence[tuple[str, str]], directions: int, values: dict[str, Any]
) -> list[dict[str, Any]]:
    """For each direction an activation for each place.

    Values of alpha and beta are consumed in order by the activations that take one.
    """
    names = values.get("activations") or [default for _, default in places] * directions
    if len(names) != directions * len(places):
        raise ValueError(
            f"activations: expected {directions * len(places)} names, {len(places)} for each "
            f"direction, got {len(names)}"
        )
    parameters = {k: list(values.get(f"activation_{k}") or ()) for k in ("alpha", "beta")}
    left = {k: iter(v) for k, v in parameters.items()}
    chosen = [_activation(name, left) for name in names]
    for k, remaining in left.items():
        if (more := len(list(remaining))) > 0:
            raise ValueError(
                f"activation_{k}: expected a value for each activation that has {k}, in order, at "
                f"most {len(parameters[k]) - more} for {', '.join(map(str, names))}, "
                f"got {len(parameters[k])}"
            )
    keywords = [keyword for keyword, _ in places]
    return [dict(zip(keywords, chosen[d * len(places) :], strict=False)) for d in range(directions)]


def _activation(name: str, left: dict[str, Iterator[float]]) -> Any:
    if name.lower() not in _ACTIVATIONS:
        raise ValueError(f"activations: expected names of {', '.join(_ACTIVATIONS)}, got {name!r}")
    own, takes = _ACTIVATIONS[name.lower()]
    given: dict[str, Any] = {
        k: float(v) for k in takes.split() if (v := next(left[k], None)) is not None
    }
    return tuple(ACTIVATIONS[own]._replace(**given)) if given else own
