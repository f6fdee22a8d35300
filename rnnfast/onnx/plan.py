"""A graph as a list of calls, with everything done beforehand that depends on constants alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx.reference import ReferenceEvaluator

from .ops import Recurrent

_RANDOM = ("Bernoulli", "Dropout", "Multinomial")  # and what has Random in its name
_WEIGHTS = (1, 2, 3, 7)  # W, R, B and P among the inputs of a node
_OTHERS = (0, 4, 5, 6)


class _Step(NamedTuple):
    """One node."""

    call: Callable[..., Sequence[Any]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    in_context: bool  # whether the node has a graph of its own, which may read every value


class Plan:
    """What a run of the evaluator's graph takes, node by node.

    What depends on constants alone is computed here, a recurrent node whose weights are among it
    has them packed, and what no output needs is left out.

    Parameters
    ----------
    evaluator : onnx.reference.ReferenceEvaluator
        Of a graph without functions, with rnnfast's operators.

    Attributes
    ----------
    inputs : set of str
        The inputs of the graph that are no initialisers. A run must get these and no others.
    """

    def __init__(self, evaluator: ReferenceEvaluator) -> None:
        self.inputs = {name for name in evaluator.input_names if name not in evaluator.rt_inits_}
        self._outputs = list(evaluator.output_names)
        self._constants: dict[str, Any] = {"": None, **evaluator.rt_inits_}
        self._steps: list[_Step] = []
        for node in _needed(evaluator.rt_nodes_, self._outputs):
            inputs, outputs = tuple(node.input), tuple(node.output)
            constant = all(name in self._constants for name in inputs)
            if constant and _is_foldable(node):
                found = node.run(*(self._constants[name] for name in inputs))
                self._constants.update(zip(outputs, map(_kept, found), strict=False))
                self._constants[""] = None
            else:
                self._steps.append(self._step(node, inputs, outputs))

    def run(self, given: Mapping[str, Any]) -> tuple[Any, ...]:
        """The outputs of the graph."""
        values = self._constants.copy()
        values.update(given)
        for call, inputs, outputs, in_context in self._steps:
            arguments = [values[name] for name in inputs]
            found = call(*arguments, context=values) if in_context else call(*arguments)
            for name, value in zip(outputs, found, strict=False):
                if name:
                    values[name] = value
        return tuple([values[name] for name in self._outputs])

    def _step(self, node: Any, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> _Step:
        if not isinstance(node, Recurrent):
            return _Step(node.run, inputs, outputs, node.need_context())
        inputs += ("",) * (8 - len(inputs))
        if any(inputs[k] not in self._constants for k in _WEIGHTS):
            return _Step(node.run, inputs, outputs, False)
        prepared = node.prepared(*(self._constants[inputs[k]] for k in _WEIGHTS))
        others = [inputs[k] for k in _OTHERS]
        while not others[-1]:
            others.pop()
        return _Step(prepared, tuple(others), outputs, False)


def _needed(nodes: Sequence[Any], outputs: Sequence[str]) -> list[Any]:
    """The nodes, in order, that lead to the outputs."""
    if any(node.need_context() for node in nodes):  # which read more than their inputs
        return list(nodes)
    wanted, found = set(outputs), []
    for node in reversed(nodes):
        if not wanted.isdisjoint(name for name in node.output if name):
            wanted.update(node.input)
            found.append(node)
    return found[::-1]


def _is_foldable(node: Any) -> bool:
    """Whether the node gives the same at every run."""
    return (
        node.domain == ""
        and node.op_type not in _RANDOM
        and "Random" not in node.op_type
        and not node.need_context()
    )


def _kept(value: Any) -> Any:
    """A value that lasts, and that a caller who gets it cannot change."""
    if isinstance(value, np.ndarray):
        value = value.view()
        value.flags.writeable = False
    return value
