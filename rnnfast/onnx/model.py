"""Weights of recurrent nodes out of models."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator

from .. import arrays, checks
from .attributes import OPERATORS, Attributes
from .layer import Layer

_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


def weights(
    model: str | os.PathLike[str] | bytes | ModelProto, node: str | int | NodeProto = 0
) -> Layer:
    """Take a recurrent node out of an ONNX model.

    Parameters
    ----------
    model : path, bytes of a file, or onnx.ModelProto
    node : str, int or onnx.NodeProto
        Which one: its name, its place among the LSTM, GRU and RNN nodes of the main graph in
        order, or itself.

    Returns
    -------
    Layer
        The node's weights as rnnfast's functions take them and what else a call needs: `cell`,
        `weights`, `state`, `options`; and itself a function, ``y, state_n = layer(x)``, that does
        what the node does, in rnnfast's shapes.

    Raises
    ------
    ValueError
        Where there is no such node, or its W, R, B or P depend on the model's inputs.
    TypeError
        For a model or a node of another kind.

    Notes
    -----
    W, R, B and P may be initialisers, constants, or computed from such, as exporters leave them. A
    constant initial state becomes `Layer.state`; one that the model computes from its inputs
    does not, and sequence_lens never does: they are for the caller to give.

    Examples
    --------
    >>> layer = rnnfast.onnx.weights("model.onnx")
    >>> y, (h_n, c_n) = layer(x)
    >>> y, (h_n, c_n) = rnnfast.lstm(x, layer.weights, layer.state, **layer.options)  # the same
    """
    proto = without_functions(_load(model))
    found = _node(proto, node)
    attributes = Attributes.of(
        found.op_type,
        {a.name: _value(a) for a in found.attribute},
    )
    graph = _Constants(proto)
    inputs = dict(zip(_INPUTS, found.input, strict=False))
    w, r, b, p = (
        graph.value(name, inputs[name]) if inputs.get(name) else None
        for name in ("W", "R", "B", "P")
    )
    assert w is not None
    assert r is not None
    layer = Layer.of(attributes, w, r, b, p)
    states = [
        graph.value_if_constant(inputs[name]) if inputs.get(name) else None
        for name in ("initial_h", "initial_c")
    ]
    if layer.batch_first:
        states = [None if s is None else s.swapaxes(0, 1) for s in states]
    if all(s is None for s in states):
        return layer
    return replace(layer, state=tuple(states) if layer.cell == "lstm" else states[0])


def without_functions(model: ModelProto) -> ModelProto:
    """The model with the nodes of its functions in their places."""
    if not model.functions:
        return model
    # onnx's inliner takes an attribute that a call leaves out for one that the node has not.
    defaults = {(f.domain, f.name): f.attribute_proto for f in model.functions}
    if any(defaults.values()):
        whole = ModelProto()
        whole.CopyFrom(model)
        model = whole
        for nodes in (model.graph.node, *(f.node for f in model.functions)):
            _give_defaults(nodes, defaults)
    inlined: ModelProto = inline_local_functions(model)
    return inlined


def _give_defaults(nodes: Any, defaults: dict[tuple[str, str], Any]) -> None:
    for node in nodes:
        given = {a.name for a in node.attribute}
        own = defaults.get((node.domain, node.op_type), ())
        node.attribute.extend([a for a in own if a.name not in given])
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                _give_defaults(graph.node, defaults)


def _load(model: Any) -> ModelProto:
    if isinstance(model, ModelProto):
        return model
    if isinstance(model, bytes):
        return onnx.load_model_from_string(model)
    if isinstance(model, str | os.PathLike):
        return onnx.load(os.fspath(model))
    raise TypeError(
        f"model: expected a path, bytes or an onnx.ModelProto, got {arrays.describe(model)}"
    )


def _value(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [v.decode() if isinstance(v, bytes) else v for v in value]
    return value


def _node(model: ModelProto, node: str | int | NodeProto) -> NodeProto:
    if isinstance(node, NodeProto):
        if node.op_type not in OPERATORS:
            raise ValueError(
                f"node: expected an operator of {', '.join(OPERATORS)}, got {node.op_type}"
            )
        return node
    known: list[NodeProto] = [
        n for n in model.graph.node if n.op_type in OPERATORS and not n.domain
    ]
    listed = ", ".join(f"{n.op_type} {n.name!r}" for n in known) or "none"
    if isinstance(node, str):
        named = [n for n in known if n.name == node]
        if len(named) != 1:
            raise ValueError(
                f"node: expected the name of one recurrent node of the graph, which has {listed}; "
                f"got {node!r}"
            )
        return named[0]
    if not checks.is_integer(node):
        raise TypeError(
            f"node: expected a name, an int or an onnx.NodeProto, got {arrays.describe(node)}"
        )
    if not 0 <= node < len(known):
        raise ValueError(
            f"node: expected a place among the recurrent nodes of the graph, which has {listed}; "
            f"got {node}"
        )
    return known[int(node)]


class _Constants:
    """The values in a graph that do not depend on its inputs."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        graph = model.graph
        self.initializers = {t.name: t for t in graph.initializer}
        self.makers: dict[Any, int] = {
            name: k for k, n in enumerate(graph.node) for name in n.output
        }

    def value(self, argument: str, name: str) -> NDArray[Any]:
        """Compute one; `argument` is what it is to the node."""
        found = self.value_if_constant(name)
        if found is None:
            raise ValueError(
                f"{argument}: expected a constant of the model, an initializer or what nodes "
                f"without subgraphs make of some, got {name!r}"
            )
        return found

    def value_if_constant(self, name: str) -> NDArray[Any] | None:
        needed = self._makers_of(name)
        if needed is None:
            return None
        nodes = [self.model.graph.node[k] for k in sorted(needed)]
        wanted = {name, *(i for n in nodes for i in n.input)}
        graph = helper.make_graph(
            nodes,
            name,
            [],
            [helper.make_empty_tensor_value_info(name)],
            [t for key, t in self.initializers.items() if key in wanted],
        )
        part = helper.make_model(graph, opset_imports=self.model.opset_import)
        return np.asarray(*ReferenceEvaluator(part).run(None, {}))

    def _makers_of(self, name: str) -> set[int] | None:
        """Places of the nodes that compute `name`, None if that takes more than constants."""
        needed: set[int] = set()
        open_names = [name]
        while open_names:
            at = open_names.pop()
            if not at or at in self.initializers:
                continue
            place = self.makers.get(at)
            if place is None:
                return None
            maker = self.model.graph.node[place]
            if (
                any(a.HasField("g") or a.graphs for a in maker.attribute)
                or "Random" in maker.op_type
            ):
                return None
            if place not in needed:
                needed.add(place)
                open_names += maker.input
        return needed
