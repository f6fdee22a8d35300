"""A backend of onnx.backend.base: onnx's reference evaluator with rnnfast's operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnx import ModelProto, NodeProto
from onnx.backend.base import Backend as Base
from onnx.backend.base import BackendRep, Device, DeviceType
from onnx.reference import ReferenceEvaluator

from ..errors import UnsupportedError
from .model import without_functions
from .ops import OPS
from .plan import Plan


class Rep(BackendRep):
    """A prepared model; made by `Backend.prepare`."""

    def __init__(self, evaluator: ReferenceEvaluator, plan: Plan | None) -> None:
        self.evaluator = evaluator
        self._plan = plan
        self._names = list(evaluator.input_names)
        self._needed = [name for name in self._names if name not in evaluator.rt_inits_]

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run the model.

        Parameters
        ----------
        inputs : sequence of arrays in the order of the graph's inputs, or dict of them by name
            A sequence may leave out initialisers that are inputs too, if all of them.
        **kwargs
            For `onnx.reference.ReferenceEvaluator.run`.

        Returns
        -------
        tuple
            The graph's outputs.

        Raises
        ------
        ValueError
            For a wrong number of inputs.
        """
        if not isinstance(inputs, dict):
            inputs = self._named(inputs)
        if self._plan is not None and not kwargs and inputs.keys() == self._plan.inputs:
            return self._plan.run(inputs)
        return tuple(self.evaluator.run(None, inputs, **kwargs))

    def _named(self, inputs: Any) -> dict[str, Any]:
        if isinstance(inputs, Mapping):
            return dict(inputs)
        return _named(inputs, self._needed if len(inputs) == len(self._needed) else self._names)


def _named(values: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    if len(values) != len(names):
        raise ValueError(f"inputs: expected {len(names)} ({', '.join(names)}), got {len(values)}")
    return dict(zip(names, values, strict=True))


class Backend(Base):
    """Runs models with rnnfast's LSTM, GRU and RNN, and onnx's own evaluator for the rest.

    The class methods are those of `onnx.backend.base.Backend`. The evaluator's operators are there
    to be right, not fast: what surrounds the recurrent nodes runs in NumPy.
    """

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether device is "CPU"."""
        return bool(Device(device).type == DeviceType.CPU)

    @classmethod
    def is_compatible(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether the device is supported; that of a model's operators shows in `prepare`."""
        return cls.supports_device(device)

    @classmethod
    def prepare(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> Rep:
        """Check a model and get it ready for many runs.

        What depends on constants alone is computed, and the weights of recurrent nodes that do are
        packed.

        Parameters
        ----------
        model : onnx.ModelProto
        device : "CPU"
        **kwargs
            For `onnx.reference.ReferenceEvaluator`, whose own loop over the nodes runs then.

        Raises
        ------
        UnsupportedError
            For another device.
        ValueError, TypeError
            For weights that do not fit their node.
        """
        _check(device)
        super().prepare(model, device)
        model = without_functions(model)  # inside of which the evaluator has its own operators
        evaluator = ReferenceEvaluator(model, new_ops=OPS, **kwargs)
        return Rep(evaluator, None if kwargs else Plan(evaluator))

    @classmethod
    def run_node(
        cls,
        node: NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Run one node.

        Parameters
        ----------
        node : onnx.NodeProto
        inputs : sequence of arrays, or dict of them by name
            A sequence has one array for each input of the node that has a name.
        device : "CPU"
        outputs_info
            Not needed.
        **kwargs
            ``opset_version``, by default the newest.

        Returns
        -------
        tuple
            One value for each output, None for one without a name.
        """
        _check(device)
        super().run_node(node, inputs, device, outputs_info, **kwargs)
        opsets = {node.domain: kwargs["opset_version"]} if "opset_version" in kwargs else None
        evaluator = ReferenceEvaluator(node, opsets=opsets, new_ops=OPS)
        if not isinstance(inputs, Mapping):
            inputs = _named(inputs, [name for name in node.input if name])
        named = [name for name in node.output if name]
        found = dict(zip(named, evaluator.run(named, dict(inputs)), strict=True))
        return tuple(found.get(name) for name in node.output)


def _check(device: str) -> None:
    if not Backend.supports_device(device):
        raise UnsupportedError(f"device: expected 'CPU', got {device!r}")
