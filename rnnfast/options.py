"""The options of the cells beyond those of a plain one: what there is, checked once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, TypedDict

from . import arrays, checks
from .errors import UnsupportedError
from .spec import ACTIVATIONS, CELLS, Activation, Spec
from .weights import Layer


class Options(TypedDict, total=False):
    """Keyword arguments that every function of a cell takes, its _vjp and `rnnfast.pack` too.

    An activation is a name or a tuple (name, alpha, beta), with the formulas and the defaults of
    alpha and beta of ONNX's LSTM (thresholded_relu is 0 at alpha too, as ONNX Runtime has it):
    "sigmoid", "tanh", "relu", "linear", "affine" (1, 0),
    "leaky_relu" (0.01), "thresholded_relu" (1), "scaled_tanh" (1, 1), "hard_sigmoid" (0.2, 0.5),
    "elu" (1), "softsign", "softplus".

    Attributes
    ----------
    gate_activation : activation
        Of the gates (not of the candidate); ONNX's f, Keras' recurrent_activation. Not for rnn,
        whose one function is `nonlinearity`.
    activation : activation
        Of the candidate; ONNX's g. Not for rnn.
    output_activation : activation
        LSTM: of c on its way to h; ONNX's h.
    clip : float
        The arguments of the gates' and the candidate's activations are limited to [-clip, clip],
        as in ONNX Runtime.
    input_forget : bool
        LSTM: f = 1 - i, as in ONNX.
    grad_clip : float
        BPTT: gradients of the arguments of the gates' activations are limited to
        [-grad_clip, grad_clip] at every step (Graves 2013).
    truncate : int
        Truncated BPTT: no gradient flows through the state from step t to step t - 1 where t is a
        multiple of this; in a reverse direction the other way round.
    recurrent_dropout : float
        Probability of zeroing each unit of h where it is multiplied with w_hh, one mask for all
        steps of a row (Gal & Ghahramani 2016).
    zoneout : float or (float, float)
        Probability that a unit of h, and of an LSTM's c, keeps its value in a step (Krueger et al.
        2017). Of a pair, cells without c use the first. A mask for every step; without `training`
        its expectation.
    dropconnect : float
        Probability of zeroing each element of w_hh, one mask for the call (Merity et al. 2017).
    variational : bool
        Whether `dropout` between layers has one mask for all steps of a row (Gal & Ghahramani
        2016) in place of one for each step.
    training : bool
        True by default. False switches every dropout off, lets zoneout take its expectation, and
        batch normalisation its running statistics.
    bn_momentum : float
        How far running statistics move towards those of the batch; 0.1 as in
        torch.nn.BatchNorm1d. They are written into bn_mean and bn_var.
    """

    gate_activation: str | tuple[Any, ...]
    activation: str | tuple[Any, ...]
    output_activation: str | tuple[Any, ...]
    clip: float | None
    input_forget: bool
    grad_clip: float | None
    truncate: int | None
    recurrent_dropout: float
    zoneout: float | tuple[float, float]
    dropconnect: float
    variational: bool
    training: bool
    bn_momentum: float


class Noise(NamedTuple):
    """What is random in training, and what stands in for it otherwise."""

    recurrent_dropout: float = 0.0
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    dropconnect: float = 0.0
    variational: bool = False
    training: bool = True
    bn_momentum: float = 0.1


QUIET = Noise()
# Of calls without options, which are found faster by them.
LSTM, GATED = Spec("lstm"), Spec("gated")
GRU = {reset_after: Spec("gru", reset_after) for reset_after in (False, True)}
_RNN = {name: Spec("rnn", nonlinearity=name) for name in CELLS["rnn"].nonlinearities}
_PARAMETERS = {  # how many numbers a function has
    "affine": 2,
    "leaky_relu": 1,
    "thresholded_relu": 1,
    "scaled_tanh": 2,
    "hard_sigmoid": 2,
    "elu": 1,
}
WHOSE = {  # the cells that may have an option, where not all may
    "gate_activation": ("lstm", "gru", "gated"),
    "activation": ("lstm", "gru", "gated"),
    "output_activation": ("lstm",),
    "input_forget": ("lstm",),
}


def spec_of(cell: str, reset_after: bool, nonlinearity: Any) -> Spec:
    """The plain cell in this variant; what belongs to other cells is not read."""
    info = checks.cell(cell)
    reset_after = checks.flag("reset_after", reset_after)
    if info.has_reset_after:
        return GRU[reset_after]
    if not info.nonlinearities:
        return LSTM if info.has_c else GATED
    if isinstance(nonlinearity, str) and nonlinearity in _RNN:
        return _RNN[nonlinearity]
    f = activation("nonlinearity", nonlinearity)
    return _RNN[f.name] if f.name in _RNN else Spec(cell, activation=f)


def parse(spec: Spec, options: dict[str, Any]) -> tuple[Spec, Noise]:
    """The spec with these options, and what is random."""
    for name in options:
        if name not in Options.__annotations__:
            raise TypeError(
                f"{name}: unexpected argument; expected one that the function names, or one of "
                f"{', '.join(Options.__annotations__)}"
            )
        if spec.cell not in WHOSE.get(name, (spec.cell,)):
            raise UnsupportedError(
                f"{name}: expected none for {spec.cell}; {', '.join(WHOSE[name])} can have it"
            )
    defaults = {
        "gate_activation": ACTIVATIONS["sigmoid"],
        "activation": spec.of_candidate,
        "output_activation": spec.of_output,
    }
    chosen: dict[str, Any] = {}
    for name, own in defaults.items():
        if name in options:
            f = activation(name, options[name])
            chosen[name] = None if f == own else f
    for name in ("clip", "grad_clip"):
        chosen[name] = _bound(name, options.get(name))
    chosen["truncate"] = checks.steps("truncate", options.get("truncate"))
    chosen["input_forget"] = checks.flag("input_forget", options.get("input_forget", False))
    noise = _noise(spec, options)
    chosen["recurrent_dropout"] = noise.recurrent_dropout > 0
    chosen["zoneout"] = noise.zoneout_h > 0 or noise.zoneout_c > 0
    return replace(spec, **chosen), noise


def with_weights(spec: Spec, parsed: list[Layer]) -> Spec:
    """The spec with what the weights alone tell."""
    w = parsed[0][0]
    if w.w_hr is None and w.w_peep is None and w.ln_ih is None:
        return spec
    return replace(
        spec,
        projection=w.w_hr is not None,
        peepholes=w.w_peep is not None,
        layer_norm=w.ln_ih is not None,
    )


def activation(name: str, value: Any) -> Activation:
    """The function that a name, or a tuple (name, alpha, beta), stands for."""
    parts = value if isinstance(value, tuple) else (value,)
    if not 1 <= len(parts) <= 3 or not isinstance(parts[0], str):
        got = value if isinstance(value, tuple) else arrays.describe(value)
        raise TypeError(f"{name}: expected a str or (str, alpha, beta), got {got}")
    if parts[0] not in ACTIVATIONS:
        raise ValueError(f"{name}: expected one of {', '.join(ACTIVATIONS)}, got {parts[0]!r}")
    own = ACTIVATIONS[parts[0]]
    numbers = [own.alpha, own.beta]
    for k, number in enumerate(parts[1:]):
        if number is not None:
            real = checks.real(name, number)
            if k < _PARAMETERS.get(parts[0], 0):  # as in ONNX, others are ignored
                numbers[k] = real
    f = Activation(parts[0], *numbers)
    if f.name in ("leaky_relu", "elu") and f.alpha <= 0:
        raise ValueError(f"{name}: expected alpha above 0 for {f.name}, got {f.alpha}")
    if f.name == "thresholded_relu" and f.alpha < 0:
        raise ValueError(f"{name}: expected alpha of at least 0 for {f.name}, got {f.alpha}")
    if f.name == "scaled_tanh" and f.alpha == 0:
        raise ValueError(f"{name}: expected alpha other than 0 for {f.name}, got 0")
    return f


def _noise(spec: Spec, options: dict[str, Any]) -> Noise:
    zoneout = options.get("zoneout", 0.0)
    pair = zoneout if isinstance(zoneout, tuple) else (zoneout, zoneout)
    if len(pair) != 2:
        raise ValueError(f"zoneout: expected a probability or a pair of them, got {zoneout}")
    of_h, of_c = (checks.probability("zoneout", p) for p in pair)
    training = checks.flag("training", options.get("training", True))
    return Noise(
        checks.probability("recurrent_dropout", options.get("recurrent_dropout", 0.0)) * training,
        of_h,
        of_c if spec.info.has_c else 0.0,
        checks.probability("dropconnect", options.get("dropconnect", 0.0)) * training,
        checks.flag("variational", options.get("variational", False)),
        training,
        checks.probability("bn_momentum", options.get("bn_momentum", 0.1)),
    )


def _bound(name: str, value: Any) -> float | None:
    if value is None:
        return None
    bound = checks.real(name, value)
    if bound <= 0:
        raise ValueError(f"{name}: expected a number above 0 or None, got {value}")
    return bound
