"""An ONNX graph, looked at: who makes a tensor, who reads it, which nodes are layers and activations. Imports onnx."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from mtu.plugins.op import DOMAIN, find_op

ACTIVATIONS = frozenset(
    ("Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Relu", "Sigmoid", "Softplus", "Tanh")
)
"""Nodes that change the values of their first input one by one."""


class GraphView:
    """A graph at one time: make another when nodes have been added or renamed.

    A layer is a convolution with weights of its own. It has the name of its weights without ".weight":
    "HGs.0.enc1.0"; one that is used several times is several nodes.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.nodes = list(graph.node)
        self.inputs = [value.name for value in graph.input]
        self.outputs = [value.name for value in graph.output]
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.producers = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        self.layers: dict[str, list[onnx.NodeProto]] = {}
        """In graph order."""
        self.layer_of: dict[str, str] = {}
        """The layer of a node, by the node's name."""
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
            if layer := self._layer(node):
                self.layers.setdefault(layer, []).append(node)
                self.layer_of[node.name] = layer
        pictures = [value.name for value in graph.output if value.type.tensor_type.elem_type == TensorProto.UINT8]
        self.scaling = [node for picture in pictures for node in self._scaling(picture)]
        """The nodes that pictures go through at the end, from the last: Cast, Transpose, Round, Mul by 255."""

    def _layer(self, node: onnx.NodeProto) -> str | None:
        if node.op_type not in ("Conv", "ConvTranspose"):
            return None
        weight = node.input[1]
        while weight in self.producers:  # from int8 or another type
            weight = self.producers[weight].input[0]
        return weight.removesuffix(".weight") if weight in self.weights else None

    def _scaling(self, picture: str) -> list[onnx.NodeProto]:
        found: list[onnx.NodeProto] = []
        node = self.producers.get(picture)
        while node is not None and node.op_type in ("Cast", "Transpose", "Round"):
            found.append(node)
            node = self.producers.get(node.input[0])
        return [*found, node] if node is not None and node.op_type == "Mul" else found

    def is_layer(self, node: onnx.NodeProto) -> bool:
        """Whether a node has the weights of a layer."""
        return node.name in self.layer_of

    def carried(self, node: onnx.NodeProto) -> list[str]:
        """The inputs whose values a node hands on, changed or not."""
        if self.is_layer(node):
            return [node.input[0]]
        if node.domain == DOMAIN:
            return [node.input[index] for index in find_op(node.op_type).carries]
        return list(node.input)

    def given(self, node: onnx.NodeProto) -> list[str]:
        """The outputs that they go to."""
        return [node.output[0]] if node.domain == DOMAIN else list(node.output)

    def activation(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The activation that alone reads what a node gives."""
        behind = self.readers.get(node.output[0], [])
        return behind[0] if len(behind) == 1 and self.activated(behind[0]) is node else None

    def activated(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The node whose result an activation reads; None for another node."""
        return self.producers.get(node.input[0]) if node.op_type in ACTIVATIONS else None
