"""What `lstmopt inspect` shows."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from lstmopt.errors import LstmoptError
from lstmopt.rnn.groups import UnitGroup, unit_groups
from lstmopt.rnn.reader import INITIAL_C, INITIAL_H, SEQUENCE_LENS, RnnLayer, find_rnns
from lstmopt.rnn.recognition.recognise import recognise
from lstmopt.rnn.states import state_pairs
from lstmopt.rnn.trainable import frozen_nodes, title

if TYPE_CHECKING:
    import onnx_ir as ir


_NOT_YET = {
    "DynamicQuantizeLSTM": "quantised and left as they are; start from the model before quantisation",
    "RNN": "not optimised yet",
    "Loop": "LSTM and GRU nodes inside are pruned, nothing else is",
    "Scan": "LSTM and GRU nodes inside are pruned, nothing else is",
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Interface(_Frozen):
    """An input or output of the graph; a dynamic size is a name, or "?" without one."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class LayerInfo(_Frozen):
    """A recurrent layer; parameters are the entries of W and R."""

    name: str
    kind: str
    where: str
    direction: str
    input_size: int
    hidden_size: int
    parameters: int
    nonzero_parameters: int
    biases: bool
    peepholes: bool
    clip: float | None
    activations: tuple[str, ...]
    initial_states: bool
    sequence_lens: bool
    supported: bool
    reason: str


class GroupInfo(_Frozen):
    """Layers whose hidden sizes change together."""

    layers: tuple[str, ...]
    hidden_size: int
    resizable: bool
    reason: str
    exact: bool
    readers: tuple[str, ...]
    interface: tuple[str, ...]


class StateInfo(_Frozen):
    """A state that an output of one call gives and an input of the next one takes."""

    input: str
    output: str


class Inspection(_Frozen):
    """A model as this package sees it."""

    source: str
    opset: int
    ir_version: int
    inputs: tuple[Interface, ...]
    outputs: tuple[Interface, ...]
    operators: dict[str, int]
    frozen: dict[str, int]
    layers: tuple[LayerInfo, ...]
    decomposed_cells: int
    groups: tuple[GroupInfo, ...]
    states: tuple[StateInfo, ...]
    parameters: int
    rnn_parameters: int
    notes: tuple[str, ...]

    def render(self) -> Any:
        """Returns the tables of the shell's output."""
        from lstmopt.rnn.inspection_view import view

        return view(self)


def inspect_model(model: ir.Model, source: str = "model") -> Inspection:
    """Describes a model.

    Args:
        model: the graph.
        source: what to call it.

    Raises:
        LstmoptError: weights that are NaN or do not fit together.
    """
    operators = Counter(node.op_type for node in model.graph.all_nodes())
    recognised = recognise(model)
    model = recognised.model
    layers = find_rnns(model)
    cells = decomposed_cells(model)
    notes = list(recognised.notes)
    groups: tuple[UnitGroup, ...] = ()
    try:
        groups = unit_groups(model)
    except LstmoptError as error:
        notes.append(f"hidden units were not followed: {error.fault}")
    if not layers:
        notes.append("no LSTM or GRU node: nothing to optimise")
    for kind, what in _NOT_YET.items():
        count = sum(node.op_type == kind for node in model.graph.all_nodes())
        if count:
            notes.append(f"{count} {kind} nodes: {what}")
    if cells:
        notes.append(
            f"{cells} decomposed cells (Sigmoid, Tanh and Mul instead of an LSTM node) are left as they are"
        )
    frozen = Counter(title(node) for node in frozen_nodes(model.graph))
    if frozen:
        missing = ", ".join(f"{name} ({count})" for name, count in sorted(frozen.items()))
        notes.append(
            f"cannot be trained through: {missing}; ONNX Runtime runs them while training, and what the "
            "recurrent layers hand to them is trained to be the original's"
        )
    return Inspection(
        source=source,
        opset=model.opset_imports.get("", 0),
        ir_version=model.ir_version,
        inputs=tuple(_interface(value) for value in model.graph.inputs if value.const_value is None),
        outputs=tuple(_interface(value) for value in model.graph.outputs),
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        frozen=dict(sorted(frozen.items())),
        layers=tuple(_layer(layer) for layer in layers),
        decomposed_cells=cells,
        groups=tuple(_group(group) for group in groups),
        states=tuple(StateInfo(input=pair.input, output=pair.output) for pair in state_pairs(model)),
        parameters=_parameters(model),
        rnn_parameters=sum(layer.weights.parameters for layer in layers if layer.weights is not None),
        notes=tuple(notes),
    )


def decomposed_cells(model: ir.Model) -> int:
    """Returns how many cells look like an LSTM written out: C = f . C + i . c, H = o . tanh(C)."""
    count = 0
    for node in model.graph.all_nodes():
        if node.op_type != "Tanh":
            continue
        added = node.inputs[0].producer() if node.inputs[0] is not None else None
        if added is None or added.op_type != "Add":
            continue
        products = [value.producer() for value in added.inputs if value is not None]
        users = [user for user, _ in node.outputs[0].uses()]
        gated = [_comes_from(product, "Sigmoid") for product in products]
        if all(gated) and len(gated) == 2 and any(_comes_from(user, "Sigmoid") for user in users):
            count += 1
    return count


def _parameters(model: ir.Model) -> int:
    """Returns the floating-point numbers that the graph and its subgraphs hold, scalars left out."""
    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    for node in model.graph.all_nodes():
        if node.op_type == "Constant" and "value" in node.attributes:
            tensors.append(node.attributes["value"].as_tensor())
    return sum(
        tensor.size
        for tensor in tensors
        if tensor is not None and tensor.dtype.is_floating_point() and len(tensor.shape)
    )


def _comes_from(node: ir.Node | None, kind: str) -> bool:
    """Whether a product has a factor that such an operator gave."""
    if node is None or node.op_type != "Mul":
        return False
    producers = [value.producer() for value in node.inputs if value is not None]
    return any(producer is not None and producer.op_type == kind for producer in producers)


def _interface(value: ir.Value) -> Interface:
    shape = tuple(size if isinstance(size, int) else size.value or "?" for size in value.shape or ())
    return Interface(
        name=str(value.name), dtype="?" if value.dtype is None else value.dtype.name.lower(), shape=shape
    )


def _layer(layer: RnnLayer) -> LayerInfo:
    weights = layer.weights
    return LayerInfo(
        name=layer.name,
        kind=layer.cell.kind,
        where=layer.where,
        direction="?" if weights is None else weights.direction,
        input_size=0 if weights is None else weights.input_size,
        hidden_size=0 if weights is None else weights.hidden_size,
        parameters=0 if weights is None else weights.parameters,
        nonzero_parameters=0 if weights is None else weights.nonzero_parameters,
        biases=weights is not None and weights.b is not None,
        peepholes=weights is not None and weights.p is not None,
        clip=None if weights is None else weights.clip,
        activations=() if weights is None else weights.activations,
        initial_states=layer.input(INITIAL_H) is not None or layer.input(INITIAL_C) is not None,
        sequence_lens=layer.input(SEQUENCE_LENS) is not None,
        supported=layer.supported,
        reason=layer.reason,
    )


def _group(group: UnitGroup) -> GroupInfo:
    return GroupInfo(
        layers=group.layers,
        hidden_size=group.hidden_size,
        resizable=group.pinned is None,
        reason=group.pinned or "",
        exact=group.exact,
        readers=(
            *group.readers,
            *(f"{m.node.op_type} {m.node.name}" for m in group.members if m.role == "consumer"),
        ),
        interface=group.interface,
    )
