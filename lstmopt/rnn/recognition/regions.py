"""A part of a graph as a function of some of its values, evaluated in float64."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from lstmopt.rnn.constants import RANDOM_OPS, Array, evaluate, has_graph
from lstmopt.rnn.execution import Reference

Rows = npt.NDArray[np.float64]

FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE})


class Unfit(Exception):
    """A part of a graph is not what it was taken for."""


class Constants:
    """Which values of a graph and its bodies are constant, and their arrays.

    Args:
        model: the graph, its nodes in topological order.
    """

    def __init__(self, model: ir.Model) -> None:
        self._arrays: dict[ir.Value, Array | None] = {}
        self._constant: set[ir.Value] = set()
        for graph in model.graphs():
            self._constant |= set(graph.initializers.values())
        for node in model.graph.all_nodes():
            size = self._fixed_size(node)
            if size is not None:
                self._arrays[node.outputs[0]] = size
                self._constant.add(node.outputs[0])
                continue
            known = all(value is None or value in self._constant for value in node.inputs)
            if known and node.op_type not in RANDOM_OPS and not has_graph(node):
                self._constant.update(node.outputs)

    def _fixed_size(self, node: ir.Node) -> Array | None:
        """Returns what a Gather takes from a Shape, where that size is fixed whatever the others are."""
        shape = node.inputs[0].producer() if node.op_type == "Gather" and node.inputs[0] is not None else None
        if shape is None or shape.op_type != "Shape" or {"start", "end"} & set(shape.attributes):
            return None
        sizes = None if shape.inputs[0] is None else shape.inputs[0].shape
        index = self.of(node.inputs[1])
        if sizes is None or index is None or index.size != 1:
            return None
        place = int(index.reshape(-1)[0])
        size = sizes[place] if -len(sizes) <= place < len(sizes) else None
        return np.full(index.shape, size, np.int64) if isinstance(size, int) else None

    def of(self, value: ir.Value | None) -> Array | None:
        """Returns a constant value's array, else None."""
        if value is None or value not in self._constant:
            return None
        return evaluate(value, self._arrays)


class Region:
    """The nodes between some values and others.

    Args:
        outputs: what is computed.
        leaves: where it ends.
        constants: of the whole model.
        opset: of the model.
        bypass: nodes that hand their first input on instead of computing.
        outer: whether nodes of the graphs around are part of it too.

    Attributes:
        inputs: leaves that were reached, and values that nothing inside computes.
    """

    def __init__(
        self,
        outputs: Sequence[ir.Value],
        leaves: Collection[ir.Value],
        constants: Constants,
        opset: int,
        bypass: Collection[ir.Node] = (),
        outer: bool = False,
    ) -> None:
        self._outputs = outputs
        self.inputs: list[ir.Value] = []
        names: dict[ir.Value, str] = {}
        protos: list[onnx.NodeProto] = []
        tensors: list[onnx.TensorProto] = []
        graph = next(
            (node.graph for node in (value.producer() for value in outputs) if node is not None), None
        )
        pending = [(value, False) for value in reversed(outputs)]
        while pending:
            value, ready = pending.pop()
            if value in names:
                continue
            array = None if value in leaves else constants.of(value)
            node = value.producer()
            if array is not None:
                names[value] = f"v{len(names)}"
                tensors.append(onnx.numpy_helper.from_array(_wide(array), names[value]))
            elif value in leaves or node is None or (node.graph is not graph and not outer):
                names[value] = f"v{len(names)}"
                self.inputs.append(value)
            elif not ready:
                if has_graph(node) or node.domain not in ("", "ai.onnx"):
                    raise Unfit(node.op_type)
                pending.append((value, True))
                pending += [(item, False) for item in reversed(node.inputs) if item is not None]
            else:
                protos.append(_written(node, names, node in bypass))
        self._names = names
        infos = [
            onnx.helper.make_tensor_value_info(names[value], _element(value), None) for value in self.inputs
        ]
        # A leaf that is asked for is handed out under a name of its own.
        results = [f"out{index}" for index in range(len(outputs))]
        for value, result in zip(outputs, results, strict=True):
            protos.append(onnx.helper.make_node("Identity", [names[value]], [result]))
        proto = onnx.helper.make_model(
            onnx.helper.make_graph(
                protos, "region", infos, [onnx.ValueInfoProto(name=name) for name in results], tensors
            ),
            opset_imports=[onnx.helper.make_opsetid("", opset)],
            ir_version=8,
        )
        self._session = Reference(ir.from_proto(proto))

    def run(self, feeds: Mapping[ir.Value, Array]) -> list[Array]:
        """Returns the outputs.

        Raises:
            LstmoptError: the nodes do not run on these arrays.
        """
        missing = [value for value in self.inputs if value not in feeds]
        if missing:
            raise Unfit(f"depends on {missing[0].name}")
        given = {self._names[value]: _wide(np.asarray(feeds[value])) for value in self.inputs}
        results = self._session.run(given)
        return [results[f"out{index}"] for index in range(len(self._outputs))]


def form(outputs: Sequence[ir.Value], leaves: Mapping[ir.Value, Hashable]) -> Hashable:
    """Returns what two parts of a graph have in common that compute the same from leaves of the same names.

    That is every node with its attributes and where its inputs come from, and the values that no node makes,
    initializers among them.

    Args:
        outputs: what is computed.
        leaves: where it ends, by name.
    """
    places: dict[ir.Value, Hashable] = dict(leaves)
    lines: list[Hashable] = []
    pending = [(value, False) for value in reversed(outputs)]
    while pending:
        value, ready = pending.pop()
        node = value.producer()
        if value in places:
            continue
        if node is None:
            places[value] = value
        elif not ready:
            pending.append((value, True))
            pending += [(item, False) for item in reversed(node.inputs) if item is not None]
        else:
            places |= {item: (len(lines), index) for index, item in enumerate(node.outputs)}
            inputs = tuple(None if item is None else places[item] for item in node.inputs)
            lines.append((node.op_identifier(), node.version, _attributes(node), inputs))
    return tuple(lines), tuple(places[value] for value in outputs)


def _attributes(node: ir.Node) -> Hashable:
    """Returns a node's attributes; of one with a graph inside the node itself, which no other is."""
    if has_graph(node):
        return node
    return tuple(
        (name, ir.to_proto(attribute).SerializeToString())
        for name, attribute in sorted(node.attributes.items())
    )


def _wide(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _element(value: ir.Value) -> int:
    element = onnx.TensorProto.FLOAT if value.dtype is None else int(value.dtype.value)
    return onnx.TensorProto.DOUBLE if element in FLOATS else element


def _written(node: ir.Node, names: dict[ir.Value, str], bypassed: bool) -> onnx.NodeProto:
    """Returns a node under the region's names, with float64 in the place of narrower floats."""
    for value in node.outputs:
        names.setdefault(value, f"v{len(names)}")
    if bypassed:
        assert node.inputs[0] is not None
        return onnx.helper.make_node("Identity", [names[node.inputs[0]]], [names[node.outputs[0]]])
    proto = ir.to_proto(node)
    assert isinstance(proto, onnx.NodeProto)
    del proto.input[:], proto.output[:]
    proto.input.extend("" if value is None else names[value] for value in node.inputs)
    proto.output.extend(names[value] for value in node.outputs)
    for attribute in proto.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i in FLOATS:
            attribute.i = onnx.TensorProto.DOUBLE
        elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type in FLOATS:
            attribute.t.CopyFrom(onnx.numpy_helper.from_array(_wide(onnx.numpy_helper.to_array(attribute.t))))
    return proto


class Operand:
    """A quantity of a cell that stands in the graph as one value or several of other shapes.

    Args:
        values: that hold it.
        shape: of the first one in an actual call: the batch, ones, and the features last.
    """

    def __init__(self, values: Sequence[ir.Value], shapes: Sequence[tuple[int, ...]]) -> None:
        if any(len(shape) < 2 for shape in shapes):
            raise Unfit("has no batch")
        if len({shape[-1] for shape in shapes}) != 1:
            raise Unfit("has its features elsewhere")
        self.values, self.shapes = tuple(values), tuple(shapes)

    @property
    def value(self) -> ir.Value:
        """The first of its values."""
        return self.values[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first of its values."""
        return self.shapes[0]

    @property
    def features(self) -> int:
        """Entries of its last axis."""
        return self.shape[-1]

    @property
    def batch(self) -> int:
        """Rows that it had in that call."""
        return int(np.prod(self.shape[:-1]))

    def feeds(self, rows: Rows, wide: bool) -> dict[ir.Value, Array]:
        """Returns its values for so many rows; ``wide``: for as many as there are, else for its batch."""
        result: dict[ir.Value, Array] = {}
        for value, shape in zip(self.values, self.shapes, strict=True):
            if wide:
                axis = batch_axis(shape)
                shape = tuple(len(rows) if i == axis else 1 for i in range(len(shape) - 1)) + shape[-1:]
            result[value] = rows.reshape(shape)
        return result


def batch_axis(shape: tuple[int, ...]) -> int:
    """Returns the axis of the batch among ones: that which is not one, or the last before the features.

    Raises:
        Unfit: two axes are not one.
    """
    found = [axis for axis, size in enumerate(shape[:-1]) if size != 1]
    if len(found) > 1:
        raise Unfit("has two batches")
    return found[0] if found else len(shape) - 2


def evaluate_rows(region: Region, operands: Sequence[Operand], rows: Sequence[Rows]) -> list[Rows]:
    """Returns a region's outputs for rows of its operands, ``[rows, features]`` each.

    All rows go in one call where the nodes allow it, else as many at a time as the model's own batch.

    Raises:
        Unfit: the outputs are not one row a row.
    """
    from lstmopt.errors import LstmoptError

    count = len(rows[0])
    try:
        feeds: dict[ir.Value, Array] = {}
        for operand, part in zip(operands, rows, strict=True):
            feeds |= operand.feeds(part, wide=True)
        return [_flat(array, count) for array in region.run(feeds)]
    except (LstmoptError, Unfit):
        pass
    batch = max(operand.batch for operand in operands)
    if any(operand.batch != batch for operand in operands):
        raise Unfit("operands of several batches")
    results: list[list[Rows]] = []
    for begin in range(0, count, batch):
        feeds = {}
        for operand, part in zip(operands, rows, strict=True):
            piece = np.zeros((batch, operand.features))
            piece[: len(part[begin : begin + batch])] = part[begin : begin + batch]
            feeds |= operand.feeds(piece, wide=False)
        try:
            results.append([_flat(array, batch) for array in region.run(feeds)])
        except LstmoptError as error:
            raise Unfit(error.fault) from error
    return [np.concatenate(parts)[:count] for parts in zip(*results, strict=True)]


def _flat(array: Array, count: int) -> Rows:
    flat = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
    if len(flat) == 1:
        flat = np.broadcast_to(flat, (count, flat.shape[1]))
    if len(flat) != count:
        raise Unfit(f"{len(flat)} rows of {count}")
    return np.asarray(flat, np.float64)
