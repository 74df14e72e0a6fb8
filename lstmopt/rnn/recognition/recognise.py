"""Gives written-out recurrent layers their node back, where the graph is proved to compute the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from lstmopt.errors import LstmoptError
from lstmopt.rnn.constants import Array
from lstmopt.rnn.examples import real_inputs
from lstmopt.rnn.execution import Reference
from lstmopt.rnn.proof import Proof
from lstmopt.rnn.recognition.bodies import BodyLayer, read_body, rewrite_body
from lstmopt.rnn.recognition.branches import FoldedWeights, TakenBranches
from lstmopt.rnn.recognition.building import Builder
from lstmopt.rnn.recognition.cells import find_cells
from lstmopt.rnn.recognition.lean import LeanLoops
from lstmopt.rnn.recognition.quantised import FloatLayers, has_quantised
from lstmopt.rnn.recognition.reading import Reader
from lstmopt.rnn.recognition.regions import Constants, Unfit
from lstmopt.rnn.recognition.unrolled import Chain, find_chains, rewrite_chain
from lstmopt.rnn.rewriting import rewrite
from lstmopt.rnn.states import state_pairs

LOOSE = 0.25
"""Root mean square difference, of an output's largest value, between an int8 model and its floats."""


class WrittenOutCells(ir.passes.InPlacePass):
    """Puts an LSTM or GRU node in the place of every written-out layer.

    Args:
        feeds: inputs of some calls, to see shapes with.
        left: layers (by the name of a value of theirs) that stay as they are.
    """

    def __init__(self, feeds: Sequence[dict[str, Array]], left: Collection[str] = ()) -> None:
        self._feeds = feeds
        self._left = frozenset(left)
        self.found: dict[str, str] = {}
        self.faults: list[str] = []
        self.leftovers: set[str] = set()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the model."""
        model.graph.sort()
        constants = Constants(model)
        opset = model.opset_imports.get("", 17)
        bodies = [
            n
            for n in loops(model)
            if any(True for _ in find_cells(n.attributes["body"].as_graph(), constants))
        ]
        cells = any(True for _ in find_cells(model.graph, constants))
        if not bodies and not cells:
            return ir.passes.PassResult(model, False)
        builder = Builder(model.graph, opset)
        anchors: dict[str, list[ir.Node]] = {}
        calls = _observe(model, self._feeds) if bodies else []
        for node in bodies:
            try:
                layer = read_body(node, constants, opset, calls)
            except Unfit as fault:
                self.faults.append(f"a cell in the body of {node.op_type} {node.name} is left: {fault}")
                continue
            if layer is not None and (key := str(node.outputs[0].name)) not in self._left:
                anchors[key] = [node]
                self._take(layer, key, builder, constants)
        if cells:
            pairs = frozenset(pair.input for pair in state_pairs(model))
            shapes = {value: array.shape for value, array in _observe(model, self._feeds[:1])[0].items()}

            def seen(values: list[ir.Value]) -> dict[ir.Value, tuple[int, ...]]:
                absent = [value for value in values if value not in shapes and constants.of(value) is None]
                if absent:
                    raise Unfit(f"{absent[0].name} was not seen")
                return {
                    v: shapes[v] if v in shapes else tuple(constants.of(v).shape)  # type: ignore[union-attr]
                    for v in values
                }

            chains, faults = find_chains(model.graph, Reader(constants, opset, seen), pairs)
            self.faults += faults
            for chain in chains:
                key = str(chain.frames[-1].new[0].value.name)
                if key not in self._left:
                    nodes = [value.producer() for frame in chain.frames for value in frame.cell.states]
                    anchors[key] = [node for node in nodes if node is not None]
                    self._take(chain, key, builder, constants)
        builder.finish()
        RemoveUnusedNodesPass()(model)
        present = set(model.graph)
        self.leftovers = {key for key, nodes in anchors.items() if any(node in present for node in nodes)}
        return ir.passes.PassResult(model, bool(anchors))

    def _take(self, layer: Chain | BodyLayer, key: str, builder: Builder, constants: Constants) -> None:
        self.found[key] = layer.title
        name = f"{layer.weights.cell.kind.lower()}_{len(self.found) - 1}"
        if isinstance(layer, Chain):
            rewrite_chain(layer, builder, constants, name)
        else:
            rewrite_body(layer, builder, constants, name)


def _observe(model: ir.Model, feeds: Sequence[dict[str, Array]]) -> list[dict[ir.Value, Any]]:
    """Returns what the graph's own values are in some calls."""
    values = {str(v.name): v for node in model.graph for v in node.outputs if v.name}
    values |= {str(v.name): v for v in real_inputs(model)}
    computed = [name for name, value in values.items() if value.producer() is not None]
    reference = Reference(model, also=computed)
    return [
        {values[name]: array for name, array in {**reference.run(each), **each}.items() if name in values}
        for each in feeds
    ]


@dataclass(frozen=True)
class Recognised:
    """A model whose written-out layers have become nodes.

    Attributes:
        model: the graph, the same object where nothing was found.
        layers: what was found, in words.
        faults: what looks like a layer and is left, and why.
    """

    model: ir.Model
    layers: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a report has to say."""
        counts = Counter((*(f"recognised: {text}" for text in self.layers), *self.faults))
        return tuple(text if count == 1 else f"{text} ({count} times)" for text, count in counts.items())


def recognise(model: ir.Model) -> Recognised:
    """Returns a copy whose branches, int8 layers and written-out LSTMs and GRUs are plain nodes.

    Branches that every call takes become part of the graph, int8 layers floats. Outputs are equal on
    random inputs; after int8, as near as its rounding allows.

    Args:
        model: the graph, which stays as it is.
    """
    plain = take_branches(model)
    floats = float_layers(plain.model)
    found = _written_out(floats.model)
    # A layer that has become a node tells the next one how many steps it has.
    while found.faults and (more := _written_out(found.model)).layers:
        found = Recognised(more.model, (*found.layers, *more.layers), more.faults)
    layers = (*plain.layers, *floats.layers, *found.layers)
    return Recognised(found.model, layers, (*plain.faults, *floats.faults, *found.faults))


def take_branches(model: ir.Model) -> Recognised:
    """Returns a copy in which the branches that every call takes are part of the graph.

    Args:
        model: the graph, which stays as it is.
    """
    if not any(node.op_type == "If" for node in model.graph.all_nodes()):
        return Recognised(model)
    job = TakenBranches()
    try:
        folded = rewrite(model, FoldedWeights())
        candidate = rewrite(folded, job)
        fault = Proof(folded).fault(candidate) if job.found else ""
    except LstmoptError as error:
        fault = error.fault
    if fault:
        return Recognised(model, faults=(f"branches are left as they are: {fault}",))
    if not job.found:
        return Recognised(model)
    title = f"{job.found} If of which one branch is always taken, unless inputs are empty"
    return Recognised(candidate, (title,))


def float_layers(model: ir.Model) -> Recognised:
    """Returns a copy whose int8 layers are floats.

    Args:
        model: the graph, which stays as it is.
    """
    if not has_quantised(model):
        return Recognised(model)
    job = FloatLayers()
    try:
        floats = rewrite(model, job)
        fault = _loose_fault(model, floats) if job.found else ""
    except LstmoptError as error:
        fault = error.fault
    if fault:
        return Recognised(model, faults=(f"int8 layers are left: {fault}",))
    if not job.found:
        return Recognised(model)
    title = f"{job.title}, optimised as floats; the model to beat is the int8 one as it was given"
    return Recognised(floats, (title,))


def _loose_fault(model: ir.Model, floats: ir.Model) -> str:
    """Returns what is wrong with the float model beyond rounding: each layer was compared by itself."""
    expected, got = Proof(model), Reference(floats, seeded=True)
    for feeds, outputs in expected.calls:
        for name, array in got.run(feeds).items():
            if name not in outputs or array.dtype.kind != "f":
                continue
            scale = float(np.abs(outputs[name]).max(initial=0.0))
            if array.shape != outputs[name].shape or not np.isfinite(array).all():
                return f"output {name} changed its form"
            if float(np.sqrt(np.mean((array - outputs[name]) ** 2))) > LOOSE * max(scale, 1e-6):
                return f"output {name} changed by more than rounding to int8 explains"
    return ""


def _written_out(model: ir.Model) -> Recognised:
    if not _has_cells(model):
        return Recognised(model)
    prepared = model.clone()
    try:
        ShapeInferencePass()(prepared)
    except Exception:  # noqa: BLE001 - a graph with types that the inference does not know
        prepared = model.clone()
    try:
        proof = Proof(prepared, lengths=True)
        prepared = rewrite(prepared, LeanLoops())
    except LstmoptError as error:
        return Recognised(model, faults=(f"written-out cells are left: {error.fault}",))
    left: set[str] = set()
    faults: tuple[str, ...] = ()
    for _ in range(8):
        job = WrittenOutCells(proof.feeds, left)
        try:
            candidate = rewrite(prepared, job)
        except LstmoptError as error:
            return Recognised(model, faults=(f"written-out cells are left: {error.fault}",))
        faults = (*faults, *(fault for fault in job.faults if fault not in faults))
        if not job.found:
            return Recognised(model, faults=faults)
        refused = job.leftovers
        if not refused:
            fault = proof.fault(candidate)
            if not fault:
                return Recognised(candidate, tuple(job.found.values()), faults)
            refused = {sorted(job.found)[-1]} if len(job.found) > 1 else set(job.found)
            faults = (*faults, *(f"{job.found[key]} is left: {fault}" for key in refused))
        else:
            faults = (*faults, *(f"{job.found[key]} is left: its inner values are read" for key in refused))
        left |= refused
    return Recognised(model, faults=faults)


def _has_cells(model: ir.Model) -> bool:
    """Whether something looks like a cell: most models hold none, and need no proof."""
    kinds = {node.op_type for node in model.graph.all_nodes()}
    if not {"Sigmoid", "Tanh", "Mul"} <= kinds:
        return False
    ordered = model.clone()
    ordered.graph.sort()
    constants = Constants(ordered)
    graphs = [ordered.graph, *(node.attributes["body"].as_graph() for node in loops(ordered))]
    return any(True for graph in graphs for _ in find_cells(graph, constants))


def loops(model: ir.Model) -> list[ir.Node]:
    """Returns the Scan and Loop nodes of the main graph."""
    return [
        node for node in model.graph if node.op_type in ("Scan", "Loop") and node.domain in ("", "ai.onnx")
    ]
