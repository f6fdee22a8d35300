"""Two layers of one input, one of them backwards, as one call."""

from __future__ import annotations

from typing import Any

import keras

from . import kernels
from .layers import Fused, computed_in, listed, output_before, starts_at_zero, steps_of, zeroes
from .packing import Packing
from .translation import cast, options_of


@keras.saving.register_keras_serializable(package="rnnfast")
class Bidirectional(keras.layers.Bidirectional):
    """`keras.layers.Bidirectional`, which runs both directions of a layer of rnnfast at once.

    The arguments, config, weights, states and results are Keras'; see
    `keras.layers.Bidirectional`. Where its layers are not alike, are stateful, or drop something in
    this call, each is called by itself, as Keras does.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._packing = Packing()
        if kernels.BACKEND == "tensorflow" and isinstance(self.forward_layer, Fused):
            self.supports_jit = False

    def call(
        self, sequences: Any, initial_state: Any = None, mask: Any = None, training: Any = None
    ) -> Any:
        """See `keras.layers.Bidirectional`."""
        if not self._is_one_call(bool(training)):
            return super().call(
                sequences, initial_state=initial_state, mask=mask, training=training
            )
        layers = (self.forward_layer, self.backward_layer)
        first, dtype = layers[0], computed_in(layers[0])
        at_zero = initial_state is None and all(map(starts_at_zero, layers))
        if initial_state is None:
            batch = keras.ops.shape(sequences)[0]
            initial_state = [s for k in layers for s in listed(k.get_initial_state(batch))]
        given = [cast(keras.ops.convert_to_tensor(s), dtype) for s in initial_state]
        half = len(given) // 2
        states = [given[:half], given[half:]]
        cells = [k.cell for k in layers]
        options = options_of(first.rnnfast_cell, cells[0])
        weights = self._packing.weights(first.rnnfast_cell, cells, dtype, options)
        steps = steps_of(mask, sequences, False, self.return_sequences)
        y, states_n = kernels.run(
            first.rnnfast_cell,
            steps.pack(cast(sequences, dtype)),
            weights,
            states,
            steps.lengths,
            options,
            bool(training),
            at_zero,
        )
        if self.return_sequences:
            y = steps.unpack(y, None, None)
        else:
            masked = steps.lengths is not None
            y = keras.ops.concatenate(
                [
                    steps.last(state_n[0], output_before(first, state[0]) if masked else None)
                    for state_n, state in zip(states_n, states, strict=True)
                ],
                axis=-1,
            )
        merged = self._merged(cast(y, self.compute_dtype))
        if not self.return_state:
            return merged
        outputs = merged if self.merge_mode is None else (merged,)
        return (*outputs, *(cast(s, self.compute_dtype) for state_n in states_n for s in state_n))

    def _merged(self, y: Any) -> Any:
        if self.merge_mode == "concat":
            return y
        forward, backward = keras.ops.split(y, 2, axis=-1)
        if self.merge_mode == "sum":
            return forward + backward
        if self.merge_mode == "ave":
            return (forward + backward) / 2
        return (forward, backward) if self.merge_mode is None else forward * backward

    def _is_one_call(self, training: bool) -> bool:
        """Whether one call of rnnfast can do what both layers do."""
        first, second = self.forward_layer, self.backward_layer
        if not isinstance(first, Fused) or type(first) is not type(second) or self.stateful:
            return False
        kind = type(first)
        if kind.call is not Fused.call or kind.inner_loop is not Fused.inner_loop:
            return False  # a subclass does something else
        cells = (first.cell, second.cell)
        if training and any(c.dropout or c.recurrent_dropout for c in cells):
            return False
        alike = all(
            getattr(first, name) == getattr(second, name)
            for name in ("units", "use_bias", "unroll", "compute_dtype")
        )
        return (
            alike
            and first.compute_dtype == self.compute_dtype
            and options_of(first.rnnfast_cell, cells[0]) == options_of(first.rnnfast_cell, cells[1])
            and second.go_backwards
            and all(
                zeroes(k, k.zero_output_for_mask) == self.return_sequences
                and k.activity_regularizer is None
                for k in (first, second)
            )
        )
