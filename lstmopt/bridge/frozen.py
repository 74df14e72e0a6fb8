"""Nodes that the bridge does not have: ONNX Runtime runs each as it is, and no gradient passes through.

What the recurrent layers hand to such a node (a cut) is trained to be what the original hands to it, by
distillation against the original's activations there; weights from which no gradient arrives anywhere keep
their values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

from lstmopt.bridge.node import Node
from lstmopt.errors import LstmoptError
from lstmopt.rnn.constants import bodies_of, constant_value
from lstmopt.rnn.execution import first_line
from lstmopt.rnn.trainable import is_frozen, title

Array = npt.NDArray[Any]

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
BLIND = frozenset(
    {
        "ArgMax", "ArgMin", "Ceil", "Equal", "EyeLike", "Floor", "Greater", "GreaterOrEqual", "IsInf",
        "IsNaN", "Less", "LessOrEqual", "NonZero", "Not", "OneHot", "Round", "Shape", "Sign", "Size",
    }
)  # fmt: skip
"""Operators of the bridge that hand no gradient on."""


@dataclass
class Frozen:
    """A node as ONNX Runtime runs it: a model of its own, loaded for the types that arrive.

    Attributes:
        proto: the node, its operands called ``in0``, ``in1`` and its results ``out0``, ``out1``.
        operands: of each operand that is fed its name and the type that the graph declares, or None.
        constants: operands that are embedded.
        model: the model it is of, for operator sets and functions.
    """

    proto: onnx.NodeProto
    operands: tuple[tuple[str, np.dtype[Any] | None] | None, ...]
    constants: tuple[onnx.TensorProto, ...]
    model: onnx.ModelProto
    _sessions: dict[Any, Any] = field(default_factory=dict)

    def __call__(self, node: Node, *inputs: Tensor | Array | None) -> list[Any]:
        """Returns the node's outputs, cut off from all gradients."""
        feeds: dict[str, Array] = {}
        for operand, tensor in zip(self.operands, inputs, strict=False):
            if operand is not None and tensor is not None:
                name, dtype = operand
                array = _array(node, tensor)
                feeds[name] = np.asarray(array if dtype is None else array.astype(dtype), order="C")
        try:
            results = self._session(feeds).run(None, feeds)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime raises classes without a common base
            raise node.error(f"ONNX Runtime cannot run it by itself ({first_line(error)})") from error
        if not all(isinstance(result, np.ndarray | np.generic) for result in results):
            raise node.error("gives something that is not a tensor")
        # A result that nothing reads has no name, and ONNX Runtime does not give it.
        given = iter(_tensor(node, np.asarray(result)) for result in results)
        return [next(given) if name else torch.empty(0) for name in self.proto.output]

    def _session(self, feeds: Mapping[str, Array]) -> Any:
        import onnxruntime as ort

        key = tuple((name, array.dtype.str, tuple(_known_sizes(array))) for name, array in feeds.items())
        if key not in self._sessions:
            infos = [
                onnx.helper.make_tensor_value_info(
                    name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), _known_sizes(array)
                )
                for name, array in feeds.items()
            ]
            outputs = [onnx.ValueInfoProto(name=name) for name in self.proto.output if name]
            graph = onnx.helper.make_graph([self.proto], "frozen", infos, outputs, self.constants)
            made = onnx.helper.make_model(
                graph,
                opset_imports=self.model.opset_import,
                ir_version=self.model.ir_version,
                functions=self.model.functions,
            )
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            options.log_severity_level = 4
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            self._sessions[key] = ort.InferenceSession(
                made.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        return self._sessions[key]


def _known_sizes(array: Array) -> list[int | None]:
    """Returns the sizes to load a node for: of a list of axes or sizes its length, which some nodes read."""
    return [None] * array.ndim if array.ndim > 1 or array.dtype.kind == "f" else list(array.shape)


def _array(node: Node, value: Tensor | Array) -> Array:
    """Returns what a node is fed; strings, which only frozen nodes hand on, are arrays already."""
    if isinstance(value, np.ndarray):
        return value
    if not isinstance(value, Tensor):
        raise node.error("reads something that is not a tensor")
    plain = value.detach()
    return np.asarray((plain.float() if plain.dtype == torch.bfloat16 else plain).numpy())


def _tensor(node: Node, array: Array) -> Any:
    """Returns what a node gave; strings stay as they are."""
    if array.dtype.kind in "OUS":
        return array
    if array.dtype.kind == "f":
        return torch.from_numpy(np.array(array, dtype=np.float32 if array.itemsize < 4 else array.dtype)).to(
            node.run.dtype
        )
    if array.dtype in (np.uint16, np.uint32, np.uint64):
        array = array.astype(np.int64)
    try:
        return torch.from_numpy(np.array(array))
    except TypeError as error:
        raise node.error(f"gives a tensor of type {array.dtype}") from error


class Freezer:
    """Makes the frozen nodes of one model.

    Args:
        model: the graph.
        trained: values that are trained, which are never embedded.
    """

    def __init__(self, model: ir.Model, trained: frozenset[ir.Value]) -> None:
        proto = onnx.ModelProto(ir_version=model.ir_version)
        imports = {**model.opset_imports}
        proto.opset_import.extend(onnx.helper.make_opsetid(name, number) for name, number in imports.items())
        proto.functions.extend(ir.to_proto(function) for function in model.functions.values())
        self._model, self._trained = proto, trained
        self._known: dict[ir.Value, Array | None] = {}

    def _constant(self, value: ir.Value) -> Array | None:
        if value not in self._known:
            self._known[value] = None if value in self._trained else constant_value(value)
        return self._known[value]

    def operands(self, node: ir.Node) -> list[ir.Value | None]:
        """Returns what a node is fed: its inputs, without the constants that a frozen one has inside."""
        frozen = is_frozen(node)
        return [
            None if value is None or (frozen and self._constant(value) is not None) else value
            for value in node.inputs
        ]

    def __call__(self, node: ir.Node) -> Frozen:
        """Returns a node in the form that is executed.

        Raises:
            LstmoptError: it has a body, which may read values from outside.
        """
        if any(attribute.type.name in ("GRAPH", "GRAPHS") for attribute in node.attributes.values()):
            raise LstmoptError(
                f"node {node.name or node.op_type}",
                f"operator {title(node)} has a body and cannot be trained through",
                "export the model without it, or optimise without training",
            )
        proto = ir.to_proto(node)
        assert isinstance(proto, onnx.NodeProto)
        operands: list[tuple[str, np.dtype[Any] | None] | None] = []
        constants = []
        for index, (value, fed) in enumerate(zip(node.inputs, self.operands(node), strict=True)):
            name = "" if value is None else f"in{index}"
            proto.input[index] = name
            dtype = None if fed is None or fed.dtype is None else np.dtype(fed.dtype.numpy())
            operands.append(None if fed is None else (name, dtype))
            if value is not None and fed is None:
                constants.append(_proto(value, self._constant(value), name))
        for index, value in enumerate(node.outputs):
            proto.output[index] = f"out{index}" if value.name else ""
        return Frozen(proto, tuple(operands), tuple(constants), self._model)


def _proto(value: ir.Value, array: Array | None, name: str) -> onnx.TensorProto:
    """Returns a constant under another name."""
    if value.const_value is not None:
        proto = ir.serde.serialize_tensor(value.const_value)
        proto.name = name
        return proto
    return onnx.numpy_helper.from_array(np.asarray(array), name)


@dataclass(frozen=True)
class Reach:
    """Where gradients go in a graph with frozen nodes.

    Attributes:
        cuts: values that recurrent layers hand to frozen nodes.
        without: trained values from which no gradient arrives anywhere.
        kinds: frozen operators and how many there are.
    """

    cuts: tuple[ir.Value, ...]
    without: tuple[ir.Value, ...]
    kinds: Mapping[str, int]


def reach(model: ir.Model, trained: frozenset[ir.Value]) -> Reach:
    """Follows gradients through a graph.

    Raises:
        LstmoptError: a cut is what a loop carries, of which no activation can be captured.
    """
    from lstmopt.bridge.program import walk

    nodes = [node for _, node in walk(model.graph)]
    frozen = [node for node in nodes if is_frozen(node)]
    if not frozen:
        return Reach((), (), {})
    links: list[tuple[ir.Value, ir.Value]] = []
    for node in nodes:
        if is_frozen(node) or node.op_type in BLIND:
            continue
        bodies = bodies_of(node).values()
        inner = [value for body in bodies for value in body.outputs]
        carried = [value for body in bodies for value in body.inputs]
        for value in node.inputs:
            if value is not None:
                links += [(value, other) for other in (*node.outputs, *carried)]
        links += [(value, other) for value in inner for other in (*node.outputs, *carried)]
    after: dict[ir.Value, list[ir.Value]] = {}
    before: dict[ir.Value, list[ir.Value]] = {}
    for one, other in links:
        after.setdefault(one, []).append(other)
        before.setdefault(other, []).append(one)
    recurrent = {value for node in nodes if node.op_type in RECURRENT for value in node.outputs}
    reached = _closure(recurrent, after)
    cuts = tuple(
        dict.fromkeys(
            value for node in frozen for value in node.inputs if value is not None and value in reached
        )
    )
    for value in cuts:
        if value.producer() is None:
            raise LstmoptError(
                f"node {next(node for node, _ in value.uses()).name}",
                "reads what a loop carries, and cannot be trained through",
                "export the model without it, or optimise without training",
            )
    useful = _closure({*cuts, *model.graph.outputs}, before)
    without = tuple(value for value in trained if value not in useful)
    return Reach(cuts, without, dict(Counter(map(title, frozen))))


def _closure(start: set[ir.Value], links: Mapping[ir.Value, list[ir.Value]]) -> set[ir.Value]:
    found, left = set(start), list(start)
    while left:
        for value in links.get(left.pop(), ()):
            if value not in found:
                found.add(value)
                left.append(value)
    return found


def frozen_note(found: Reach) -> tuple[str, ...]:
    """Returns what the user should know of the frozen nodes."""
    if not found.kinds:
        return ()
    kinds = ", ".join(name if count == 1 else f"{name} ({count})" for name, count in found.kinds.items())
    said = f"frozen: {kinds} cannot be trained through and run as in the original"
    if found.cuts:
        said += "; what the recurrent layers hand to them is trained to be the original's"
    if found.without:
        said += f"; {len(found.without)} weights before them keep their values"
    return (said,)


def cut_loss(ours: Mapping[str, list[Tensor]], theirs: Mapping[str, list[Tensor]]) -> Tensor | None:
    """Returns the square error over the variance at all cuts that hand gradients on, or None without any.

    Args:
        ours: what the student handed to frozen nodes, by name, one tensor each time.
        theirs: the same of the original.

    Raises:
        LstmoptError: the original has other activations there.
    """
    losses = []
    for name, tensors in ours.items():
        known = theirs.get(name, [])
        if [tensor.shape for tensor in tensors] != [tensor.shape for tensor in known]:
            raise LstmoptError(
                f"value {name}", "has another shape in the original", "leave the hidden sizes as they are"
            )
        losses += [
            F.mse_loss(one.float(), other.float()) / other.float().var().clamp_min(1e-12)
            for one, other in zip(tensors, known, strict=True)
            if one.requires_grad and one.numel() > 1
        ]
    return torch.stack(losses).mean() if losses else None
