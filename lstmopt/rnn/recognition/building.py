"""Puts a recurrent node, and what stands around it, into a graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from lstmopt.rnn.recognition.regions import batch_axis
from lstmopt.rnn.weights import RnnWeights
from lstmopt.rnn.writer import free_name, onnx_arrays


@dataclass
class Builder:
    """Collects new nodes of a graph.

    Args:
        graph: to which they are added.
        opset: of the model: from 13 on axes are inputs.
    """

    graph: ir.Graph
    opset: int
    nodes: list[ir.Node] = field(default_factory=list)
    _replaced: dict[ir.Value, ir.Value] = field(default_factory=dict)
    _numbers: Iterator[int] = field(init=False)

    def __post_init__(self) -> None:
        taken = {str(value.name) for node in self.graph.all_nodes() for value in node.outputs}
        self._numbers = (n for n in count() if f"written_out.{n}" not in taken)

    def add(
        self, kind: str, inputs: Sequence[ir.Value | None], results: int = 1, **attributes: Any
    ) -> ir.Node:
        """Adds a node."""
        now = [value if value is None else self._replaced.get(value, value) for value in inputs]
        node = ir.node(kind, now, attributes, num_outputs=results)
        for value in node.outputs:  # a part of the graph that is run on its own tells values apart by name
            value.name = f"written_out.{next(self._numbers)}"
        self.nodes.append(node)
        return node

    def constant(self, array: npt.ArrayLike, dtype: Any = np.int64) -> ir.Value:
        """Returns a constant's value."""
        node = self.add("Constant", [], value=ir.tensor(np.asarray(array, dtype)))
        return node.outputs[0]

    def move(self, kind: str, value: ir.Value, axes: Sequence[int]) -> ir.Value:
        """Returns a value without axes of size 1 (Squeeze), or with more of them (Unsqueeze)."""
        if not axes:
            return value
        if self.opset >= 13:
            return self.add(kind, [value, self.constant(list(axes))]).outputs[0]
        return self.add(kind, [value], axes=list(axes)).outputs[0]

    def transpose(self, value: ir.Value, order: Sequence[int]) -> ir.Value:
        """Returns a value with its axes in another order."""
        return (
            value
            if list(order) == sorted(order)
            else self.add("Transpose", [value], perm=list(order)).outputs[0]
        )

    def reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """Returns a value in another shape, by ONNX's rules for 0 and -1."""
        return self.add("Reshape", [value, self.constant(list(shape))]).outputs[0]

    def slice(self, value: ir.Value, axis: int, begin: int, end: int, step: int = 1) -> ir.Value:
        """Returns a part of a value."""
        if self.opset < 10:
            return self.add("Slice", [value], axes=[axis], starts=[begin], ends=[end]).outputs[0]
        return self.add("Slice", [value, *(self.constant([n]) for n in (begin, end, axis, step))]).outputs[0]

    def flat(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """Returns ``[batch, features]`` of a value that had such a shape."""
        return value if len(shape) == 2 else self.reshape(value, [-1, shape[-1]])

    def shaped(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """Returns ``[batch, features]`` with ones among its axes, as in a shape that was seen."""
        axis = batch_axis(tuple(shape))
        return self.move("Unsqueeze", value, [a for a in range(len(shape) - 1) if a != axis])

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Gives a value's readers another one, nodes that are added later among them.

        Where the graph hands it out, the new one gets its name and type.
        """
        name, handed_out = old.name, old.is_graph_output()
        new.type, new.shape = old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        if handed_out:
            old.name = f"{name}.written_out"
            new.name = name
        self._replaced[old] = new

    def finish(self) -> None:
        """Adds the nodes and puts the graph into order."""
        self.graph.extend(self.nodes)
        self.graph.sort()
        self.nodes = []


@dataclass(frozen=True)
class Layer:
    """A new recurrent node.

    Attributes:
        y: ``[sequence, batch, hidden]``.
        last: last states, ``[1, batch, hidden]``.
    """

    node: ir.Node
    y: ir.Value
    last: tuple[ir.Value, ...]


def rnn_node(
    builder: Builder,
    weights: RnnWeights,
    x: ir.Value,
    states: Sequence[ir.Value | None],
    name: str,
    main: ir.Graph,
) -> Layer:
    """Adds a recurrent node.

    Args:
        builder: of its graph.
        weights: of one direction.
        x: ``[sequence, batch, input]``.
        states: initial states, ``[1, batch, hidden]``; None for zeros.
        name: of the node, made free.
        main: the graph that gets the weights.
    """
    import numpy as np

    inputs: list[ir.Value | None] = [x]
    taken = {node.name for node in main.all_nodes()}
    while name in taken:
        name += "_"
    for position, array in onnx_arrays(weights).items():
        label = free_name(main, f"{name}.{'XWRB___P'[position]}")
        exact = np.ascontiguousarray(array, dtype=np.float32)
        value = ir.Value(
            name=label, const_value=ir.Tensor(exact, name=label), shape=ir.Shape(exact.shape),
            type=ir.TensorType(ir.DataType.FLOAT),
        )  # fmt: skip
        main.register_initializer(value)
        inputs.append(value)
    inputs += [None, *states]
    while inputs[-1] is None:
        inputs.pop()
    attributes: dict[str, Any] = {"hidden_size": weights.hidden_size, "direction": weights.direction}
    if weights.reset_after:
        attributes["linear_before_reset"] = 1
    node = builder.add(weights.cell.kind, inputs, 1 + len(weights.cell.states), **attributes)
    node.name = name
    y = builder.move("Squeeze", node.outputs[0], [1])
    return Layer(node, y, tuple(node.outputs[1:]))
