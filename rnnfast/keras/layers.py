"""The layers: Keras' own, with another loop over time."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import keras

from ..errors import UnsupportedError
from . import kernels
from .masks import Masked, Unmasked
from .packing import Packing
from .translation import cast, options_of

# Whether the layer that is called starts with a state of zeros, which Keras makes a tensor.
_at_zero: ContextVar[bool] = ContextVar("rnnfast_at_zero", default=False)


class Fused(keras.layers.RNN):
    """What replaces Keras' loop over time. Comes before Keras' own layer in the bases."""

    rnnfast_cell: str

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if getattr(self, "use_cudnn", "auto") is True:
            raise UnsupportedError("use_cudnn: expected 'auto' or False, got True")
        options_of(self.rnnfast_cell, self.cell)
        self._packing = Packing()
        if kernels.BACKEND == "tensorflow":
            self.supports_jit = False  # XLA has neither operators of TensorFlow nor Python

    def call(
        self, sequences: Any, initial_state: Any = None, mask: Any = None, training: Any = False
    ) -> Any:
        """See Keras' own layer."""
        zeros = initial_state is None and not self.stateful and starts_at_zero(self)
        token = _at_zero.set(zeros)
        try:
            return super().call(
                sequences, initial_state=initial_state, mask=mask, training=training
            )
        finally:
            _at_zero.reset(token)

    def inner_loop(
        self, sequences: Any, initial_state: Any, mask: Any, training: bool = False
    ) -> tuple[Any, Any, list[Any]]:
        """Keras' hook for the loop: (last_output, outputs, states).

        sequences (B, T, I), initial_state one or two (B, H), mask (B, T) or None.
        """
        cell = self.cell
        options = options_of(self.rnnfast_cell, cell)
        dtype = computed_in(self)
        weights = self._packing.weights(self.rnnfast_cell, [cell], dtype, options)
        x = cast(sequences, dtype)
        state = [cast(s, dtype) for s in listed(initial_state)]
        if training and cell.dropout:
            dropped = listed(cell.get_dropout_mask(sequences[:, 0]))[0]
            x = x * cast(dropped, dtype)[:, None]
        if training and cell.recurrent_dropout:
            options["recurrent_dropout"] = cell.recurrent_dropout
            options["rng"] = kernels.rng(cell.seed_generator.next())
        if self.stateful and kernels.BACKEND == "torch":
            state = [
                keras.ops.copy(s) for s in state
            ]  # the variables change before backward reads them
        steps = steps_of(mask, x, self.go_backwards, zeroes(self, self.zero_output_for_mask))
        y, [state_n] = kernels.run(
            self.rnnfast_cell,
            steps.pack(x),
            weights,
            [state],
            steps.lengths,
            options,
            bool(training),
            _at_zero.get(),
        )
        before = None if steps.lengths is None else output_before(self, state[0])
        last = steps.last(state_n[0], before)
        outputs = steps.unpack(y, state_n[0], before) if self.return_sequences else last
        return last, outputs, state_n


def output_before(layer: Any, h_0: Any) -> Any:
    """What Keras has for masked steps before the first that counts: h_0 on jax, or zeros."""
    carries = kernels.BACKEND == "jax" and not layer.unroll
    return h_0 if carries else keras.ops.zeros_like(h_0)


def zeroes(layer: Any, wanted: Any) -> bool:
    """Whether outputs of masked steps are zero; Keras' unrolled loop on jax never does that."""
    return bool(wanted) and not (kernels.BACKEND == "jax" and layer.unroll)


def computed_in(layer: Any) -> str:
    return "float64" if layer.compute_dtype == "float64" else "float32"


def starts_at_zero(layer: Any) -> bool:
    """Whether the state that Keras makes for a layer is Keras' own: zeros."""
    return all(
        getattr(one.get_initial_state, "__func__", None) is own.get_initial_state
        for one, own in ((layer, keras.layers.RNN), (layer.cell, class_of_keras(layer.cell)))
    )


def class_of_keras(value: Any) -> Any:
    """The first of an object's classes that is Keras' own."""
    return next(c for c in type(value).__mro__ if c.__module__.partition(".")[0] == "keras")


def steps_of(mask: Any, x: Any, go_backwards: bool, zero_output: bool) -> Masked | Unmasked:
    """mask (B, T) or (1, T), or with an axis of 1 at its end, or None, or a list of one of them.

    Of x (B, T, I).
    """
    mask = listed(mask)[0]
    if mask is None:
        return Unmasked(go_backwards)
    mask = keras.ops.cast(mask, "bool")
    if len(mask.shape) == 3 and mask.shape[2] in (None, 1):
        mask = mask[:, :, 0]
    pairs = list(zip(mask.shape, x.shape[:2], strict=False))
    fits = [None in pair or pair[0] == pair[1] for pair in pairs]
    if len(mask.shape) != 2 or not fits[1] or not (fits[0] or mask.shape[0] == 1):
        raise ValueError(
            f"mask: expected shape {tuple(x.shape[:2])} for sequences of shape {tuple(x.shape)}, "
            f"got {tuple(mask.shape)}"
        )
    if mask.shape[0] in (None, 1) and x.shape[0] != 1:
        mask = keras.ops.broadcast_to(mask, keras.ops.shape(x)[:2])
    return Masked(mask, go_backwards, zero_output)


def listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


@keras.saving.register_keras_serializable(package="rnnfast")
class LSTM(Fused, keras.layers.LSTM):
    """`keras.layers.LSTM` on rnnfast's kernels.

    The arguments, config, weights, states and results are Keras'; see `keras.layers.LSTM` and
    docs/keras.md.

    Raises
    ------
    UnsupportedError
        For an activation that rnnfast does not have, and for ``use_cudnn=True``.
    """

    rnnfast_cell = "lstm"


@keras.saving.register_keras_serializable(package="rnnfast")
class GRU(Fused, keras.layers.GRU):
    """`keras.layers.GRU` on rnnfast's kernels, with either `reset_after`; see `LSTM`."""

    rnnfast_cell = "gru"


@keras.saving.register_keras_serializable(package="rnnfast")
class SimpleRNN(Fused, keras.layers.SimpleRNN):
    """`keras.layers.SimpleRNN` on rnnfast's kernels; see `LSTM`."""

    rnnfast_cell = "rnn"
