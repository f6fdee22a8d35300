"""The layers: Keras' own, with another loop over time."""

from __future__ import annotations

from typing import Any

import keras

from ..errors import UnsupportedError
from . import kernels
from .masks import Masked, Unmasked
from .packing import Packing
from .translation import cast, options_of


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
            self.supports_jit = False  # XLA cannot call Python

    def inner_loop(
        self, sequences: Any, initial_state: Any, mask: Any, training: bool = False
    ) -> tuple[Any, Any, list[Any]]:
        """Keras' hook for the loop: (last_output, outputs, states).

        sequences (B, T, I), initial_state one or two (B, H), mask (B, T) or None.
        """
        cell = self.cell
        options = options_of(self.rnnfast_cell, cell)
        dtype = "float64" if self.compute_dtype == "float64" else "float32"
        weights = self._packing.weights(self.rnnfast_cell, cell, dtype, options)
        x = cast(sequences, dtype)
        state = [cast(s, dtype) for s in _listed(initial_state)]
        if training and cell.dropout:
            dropped = _listed(cell.get_dropout_mask(sequences[:, 0]))[0]
            x = x * cast(dropped, dtype)[:, None]
        if training and cell.recurrent_dropout:
            options["recurrent_dropout"] = cell.recurrent_dropout
            options["rng"] = kernels.rng(cell.seed_generator.next())
        if self.stateful and kernels.BACKEND == "torch":
            state = [
                keras.ops.copy(s) for s in state
            ]  # the variables change before backward reads them
        steps = self._steps(_listed(mask)[0], state[0])
        y, state_n = kernels.run(
            self.rnnfast_cell, steps.pack(x), weights, state, steps.lengths, options, bool(training)
        )
        last = steps.last(state_n[0])
        return last, steps.unpack(y, state_n[0]) if self.return_sequences else last, state_n

    def _steps(self, mask: Any, h_0: Any) -> Masked | Unmasked:
        if mask is None:
            return Unmasked(self.go_backwards)
        # Before the first step that counts, Keras gives h_0 on jax, and zeros elsewhere.
        carries = kernels.BACKEND == "jax" and not self.unroll
        before = h_0 if carries else keras.ops.zeros_like(h_0)
        mask = keras.ops.cast(mask, "bool")
        if len(mask.shape) == 3:
            mask = mask[:, :, 0]
        return Masked(mask, self.go_backwards, before, self.zero_output_for_mask)


def _listed(value: Any) -> list[Any]:
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
