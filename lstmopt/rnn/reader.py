"""Finds recurrent layers in a graph and reads their weights into `RnnWeights`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lstmopt.errors import LstmoptError
from lstmopt.rnn.cells import CELLS, CellSpec
from lstmopt.rnn.constants import constant_value, deciding_inputs
from lstmopt.rnn.weights import RnnWeights

if TYPE_CHECKING:
    import onnx_ir as ir

# Positions of ONNX's inputs and outputs of LSTM; a GRU has the first of them.
X, W, R, B, SEQUENCE_LENS, INITIAL_H, INITIAL_C, P = range(8)
Y, Y_H, Y_C = range(3)

DIRECTIONS = ("forward", "reverse", "bidirectional")

MAIN = "main"
"""Where a layer is that no body holds."""

QUANTISED_LSTM = "DynamicQuantizeLSTM"
"""ONNX Runtime's int8 LSTM: sequence, lengths, states and outputs are at an LSTM's positions."""


@dataclass(frozen=True, eq=False)
class RnnLayer:
    """One recurrent node of a model.

    Attributes:
        name: the node's name, made unique within the model.
        node: the node itself.
        cell: its kind.
        where: "main", or the path of the subgraph that holds it.
        weights: its weights, or None where they could not be read.
        supported: whether this version changes such a layer's weights.
        reason: why not, or why its hidden size stays.
    """

    name: str
    node: ir.Node
    cell: CellSpec
    where: str
    weights: RnnWeights | None
    supported: bool
    reason: str

    @property
    def resizable(self) -> bool:
        """Whether its hidden units can be followed; those of a layer in a body end at the body."""
        return self.supported and self.where == MAIN

    @property
    def in_body(self) -> bool:
        """Whether its weights can be changed, but not its hidden size."""
        return self.supported and self.where != MAIN

    def input(self, position: int) -> ir.Value | None:
        """Returns the value at an input's position, or None where it is absent."""
        return value_at(self.node.inputs, position)

    def output(self, position: int) -> ir.Value | None:
        """Returns the value at an output's position, or None where it is absent or unnamed."""
        return value_at(self.node.outputs, position)


def find_rnns(model: ir.Model) -> tuple[RnnLayer, ...]:
    """Returns the recurrent layers of a model in the order of its nodes, those in subgraphs included.

    Raises:
        LstmoptError: weights hold NaN or infinity, or have shapes that do not fit together.
    """
    layers: list[RnnLayer] = []
    _visit(model.graph, MAIN, layers)
    return tuple(layers)


def recurrent_nodes(model: ir.Model) -> list[ir.Node]:
    """Returns the LSTM and GRU nodes of the main graph in its order, int8 ones of ONNX Runtime among them."""
    kinds = {spec.kind for spec in CELLS}
    return [
        node
        for node in model.graph
        if (node.op_type in kinds and node.domain in ("", "ai.onnx"))
        or (node.op_type == QUANTISED_LSTM and node.domain == "com.microsoft")
    ]


def value_at(values: Sequence[ir.Value | None], position: int) -> ir.Value | None:
    """Returns a node's input or output at a position, or None where it is absent or unnamed."""
    value = values[position] if position < len(values) else None
    return value if value is not None and value.name else None


def require_rnns(model: ir.Model, source: str) -> tuple[RnnLayer, ...]:
    """Returns the layers that this version can change.

    Raises:
        LstmoptError: there is none; the line says what was found instead.
    """
    layers = find_rnns(model)
    supported = tuple(layer for layer in layers if layer.supported)
    if not layers:
        raise LstmoptError(source, "holds no LSTM or GRU node", "see what it holds with lstmopt inspect")
    if not supported:
        raise LstmoptError(
            source,
            f"none of its {len(layers)} LSTM or GRU nodes is supported ({layers[0].reason})",
            "see lstmopt inspect",
        )
    return supported


def without_branches(model: ir.Model, layer: RnnLayer) -> str:
    """Returns how a layer behind an `If` on an input becomes one of the main graph, or nothing."""
    # Switches: an If on numbers of the data takes no one value.
    given = {
        str(value.name)
        for value in model.graph.inputs
        if value.shape is not None and all(size == 1 for size in value.shape)
    }
    for node in model.graph:
        condition = node.inputs[0] if node.op_type == "If" else None
        if condition is None or not (by := deciding_inputs(condition)) or not by <= given:
            continue
        branches = [item.as_graph() for item in node.attributes.values()]
        if any(inner is layer.node for branch in branches for inner in branch.all_nodes()):
            fixed = " ".join(f"{name}=VALUE" for name in sorted(by))
            return f"make it for one value of it: lstmopt fix MODEL {fixed} -o FIXED.onnx"
    return ""


def _visit(graph: ir.Graph, where: str, layers: list[RnnLayer]) -> None:
    specs = {spec.kind: spec for spec in CELLS}
    for index, node in enumerate(graph):
        if node.op_type in specs and node.domain in ("", "ai.onnx"):
            name = node.name or f"{node.op_type}_{index}"
            if any(layer.name == name for layer in layers):
                name = f"{name}_{len(layers)}"
            layers.append(_read(node, specs[node.op_type], name, where))
        for attribute in node.attributes.values():
            bodies = {"GRAPH": [attribute.value], "GRAPHS": attribute.value}.get(attribute.type.name, [])
            for body in bodies:
                path = f"{node.op_type} {node.name or index} {attribute.name}"
                _visit(body, path if where == MAIN else f"{where} > {path}", layers)


def _read(node: ir.Node, cell: CellSpec, name: str, where: str) -> RnnLayer:
    stays = "" if where == MAIN else f"inside {where}: its hidden size stays"

    def result(weights: RnnWeights | None, reason: str) -> RnnLayer:
        return RnnLayer(name, node, cell, where, weights, supported=not reason, reason=reason or stays)

    arrays: dict[int, npt.NDArray[Any]] = {}
    for position in (W, R, B, P):
        value = node.inputs[position] if position < len(node.inputs) else None
        if value is None:
            continue
        array = constant_value(value)
        if array is None:
            return result(None, f"input {'XWRB___P'[position]} is computed from the model's inputs")
        if not np.issubdtype(array.dtype, np.floating):
            return result(None, f"weights of type {array.dtype}")
        if not np.isfinite(array).all():
            raise LstmoptError(
                f"{name}, tensor {value.name!r}",
                f"{int(np.count_nonzero(~np.isfinite(array)))} weights are NaN or infinite",
                "export a model that has been trained to the end",
            )
        arrays[position] = array
    if W not in arrays or R not in arrays:
        raise LstmoptError(name, "has no weights W or R", "export the model again")
    weights = _canonical(node, cell, name, arrays)
    reason = ""
    if int(_attribute(node, "layout", 0)) != 0:
        reason = "layout=1: lstmopt.load_model rewrites it"
    elif weights.w.dtype != np.float32:
        # ONNX Runtime, the reference of every check, has these layers in float32 alone.
        reason = f"weights of type {weights.w.dtype} are not supported yet"
    return result(weights, reason)


def _canonical(node: ir.Node, cell: CellSpec, name: str, arrays: dict[int, npt.NDArray[Any]]) -> RnnWeights:
    direction = str(_attribute(node, "direction", "forward"))
    if direction not in DIRECTIONS:
        raise LstmoptError(
            name, f"direction {direction!r} is none of {', '.join(DIRECTIONS)}", "export it again"
        )
    directions, gates = 2 if direction == "bidirectional" else 1, len(cell.gates)
    hidden = int(arrays[R].shape[-1])
    declared = int(_attribute(node, "hidden_size", hidden))
    if arrays[W].ndim == 3 and arrays[W].shape[1] == gates * declared:
        hidden = declared  # two of three agree
    shapes = {
        W: ((directions, gates * hidden, int(arrays[W].shape[-1])), (directions, gates, hidden, -1)),
        R: ((directions, gates * hidden, hidden), (directions, gates, hidden, hidden)),
        B: ((directions, 2 * gates * hidden), (directions, 2, gates, hidden)),
        P: ((directions, len(cell.peepholes) * hidden), (directions, len(cell.peepholes), hidden)),
    }
    canonical = {}
    for position, array in arrays.items():
        expected, form = shapes[position]
        if array.shape != expected:
            raise LstmoptError(
                f"{name}, input {'XWRB___P'[position]}",
                f"has shape {array.shape}, expected {expected}",
                "export it again",
            )
        canonical[position] = array.reshape(form)
    if declared != hidden:
        raise LstmoptError(name, f"hidden_size is {declared}, its weights have {hidden}", "export it again")
    clip = _attribute(node, "clip", None)
    return RnnWeights(
        cell=cell,
        direction=direction,
        w=canonical[W],
        r=canonical[R],
        b=canonical.get(B),
        p=canonical.get(P),
        activations=tuple(str(item) for item in _attribute(node, "activations", ())),
        activation_alpha=tuple(float(item) for item in _attribute(node, "activation_alpha", ())),
        activation_beta=tuple(float(item) for item in _attribute(node, "activation_beta", ())),
        clip=None if clip is None else float(clip),
        input_forget=bool(int(_attribute(node, "input_forget", 0))),
        reset_after=bool(int(_attribute(node, "linear_before_reset", 0))),
    )


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.value
