"""Loops that were unrolled, and single steps: cells of one graph that hand their states on."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from lstmopt.rnn.recognition.building import Builder, rnn_node
from lstmopt.rnn.recognition.cells import Cell, find_cells
from lstmopt.rnn.recognition.reading import Frame, Reader
from lstmopt.rnn.recognition.regions import Constants, Unfit
from lstmopt.rnn.recognition.sequences import joined, stacked, whole
from lstmopt.rnn.recognition.tracing import origin
from lstmopt.rnn.weights import RnnWeights


@dataclass(frozen=True, eq=False)
class Chain:
    """Steps of one cell, first to last.

    Attributes:
        frames: one a step.
        weights: of all of them, float64.
    """

    frames: tuple[Frame, ...]
    weights: RnnWeights

    @property
    def title(self) -> str:
        """What it is, in words."""
        steps = f"{len(self.frames)} steps" if len(self.frames) > 1 else "one step"
        return f"{self.weights.cell.kind} of {self.weights.hidden_size} units written out over {steps}"


def find_chains(
    graph: ir.Graph, reader: Reader, state_inputs: frozenset[str]
) -> tuple[list[Chain], list[str]]:
    """Returns the chains of a graph that are proved to be layers, and why others are none."""
    chains: list[Chain] = []
    faults: list[str] = []
    for cells in _linked(find_cells(graph, reader.constants)):
        try:
            chains.append(_read(cells, reader, state_inputs))
        except Unfit as fault:
            faults.append(f"{len(cells)} steps of a written-out {cells[0].spec.kind} are left: {fault}")
    # Steps with the same weights that do not hand their states on are a loop with something between.
    for chain in list(chains):
        if len(chain.frames) == 1 and any(other is not chain and _same(chain, other) for other in chains):
            faults.append(f"{chain.title} is left: other steps with its weights do not follow it directly")
            chain_index = chains.index(chain)
            chains[chain_index] = replace(chain, frames=())
    return [chain for chain in chains if chain.frames], faults


def _same(one: Chain, other: Chain) -> bool:
    a, b = one.weights, other.weights
    return a.cell is b.cell and a.r.shape == b.r.shape and np.allclose(a.r, b.r, rtol=0, atol=1e-9)


def _linked(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Returns cells in runs in which each reads the carried state of the one before."""
    found: dict[ir.Value, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.states[-1], []).append(cell)
    single: dict[ir.Value, Cell] = {}
    for value, readings in found.items():
        # Of several readings of one update that is right whose old state is one.
        carried = [cell for cell in readings if _before(cell) in found]
        single[value] = (carried or readings)[0]
    after: dict[ir.Value, list[Cell]] = {}
    for cell in single.values():
        after.setdefault(_before(cell), []).append(cell)
    runs = []
    for cell in single.values():
        if _before(cell) in single and len(after[_before(cell)]) == 1:
            continue
        run = [cell]
        while len(after.get(run[-1].states[-1], [])) == 1:
            run.append(after[run[-1].states[-1]][0])
        runs.append(run)
    return runs


def _before(cell: Cell) -> ir.Value:
    value = cell.before[-1]
    assert value is not None
    return origin(value)


def _read(cells: list[Cell], reader: Reader, state_inputs: frozenset[str]) -> Chain:
    leaves = [list(reader.leaves(cell)) for cell in cells]
    model = 1 if len(cells) > 1 else 0
    if len(cells) > 1:
        hidden: list[ir.Value | None] = [cells[k - 1].states[0] for k in range(len(cells))]
        place = (
            leaves[1].index(origin(cells[0].states[0])) if origin(cells[0].states[0]) in leaves[1] else None
        )
        if place is None:
            raise Unfit("what a step gives is changed before the next one reads it")
        fits = len(leaves[0]) == len(leaves[1])
        hidden[0] = leaves[0][place] if fits else None
        if not fits and len(leaves[0]) != len(leaves[1]) - 1:
            raise Unfit("the first step reads something else")
        hidden = [hidden[0], *(None if h is None else origin(h) for h in hidden[1:])]
    else:
        hidden = [_state_leaf(cells[0], reader, state_inputs)]
    frames = [reader.frame(cell, h) for cell, h in zip(cells, hidden, strict=True)]
    weights = reader.weights(frames[model])
    proved: set[Hashable] = set()
    for index, frame in (*enumerate(frames[1:], 1), (0, frames[0])):
        if frame.hidden_size != weights.hidden_size or frame.input_size != weights.w.shape[-1]:
            raise Unfit("steps of several sizes")
        form = reader.form(frame)
        if form in proved:
            continue
        try:
            reader.prove(frame, weights, index)
            proved.add(form)
        except Unfit as fault:
            if index == model:
                raise
            if index == 0 and len(frames) > 2:  # a layer all the same, from the state that the first gives
                cells, frames = cells[1:], frames[1:]
                break
            start = "" if index else ", or the first starts from constants that are not zero"
            raise Unfit(f"its steps have different weights{start}") from fault
    made = {value for cell in cells for value in cell.states}
    if len(cells) > 1 and _descends([v for f in frames for o in f.inputs for v in o.values], made):
        raise Unfit("the input of a step depends on the one before")
    first = frames[0]
    for operand in (first.h, first.c):
        if (
            operand is not None
            and operand.batch != first.new[0].batch
            and not _zero(operand.value, reader.constants)
        ):
            raise Unfit("initial states for another batch")
    return Chain(tuple(frames), weights)


def _state_leaf(cell: Cell, reader: Reader, state_inputs: frozenset[str]) -> ir.Value:
    """Returns which of a lone step's operands is the old hidden state."""
    grouped = reader.leaves(cell)
    if cell.h_before is not None:
        if cell.h_before not in grouped:
            raise Unfit("the hidden state is not read")
        return cell.h_before
    values = [value for value, group in grouped.items() if any(through for _, through in group)]
    units = reader.shapes([cell.states[0]])[cell.states[0]][-1]
    shapes = reader.shapes([group[0][0] for group in grouped.values()])
    fitting = [v for v in values if shapes[grouped[v][0][0]][-1:] == (units,)]
    if len(grouped) < 2 or not fitting:
        raise Unfit("no hidden state is read through a matrix")
    fed = [value for value in fitting if _source(value) in state_inputs]
    return (fed or fitting)[-1]


def _source(value: ir.Value) -> str:
    """Returns the name of the graph's input that a value is a part of."""
    while (node := value.producer()) is not None:
        if node.op_type not in ("Slice", "Split", "Gather", "Squeeze", "Unsqueeze", "Reshape", "Identity"):
            return ""
        assert node.inputs[0] is not None
        value = node.inputs[0]
    return str(value.name)


def _descends(values: Sequence[ir.Value], ancestors: set[ir.Value]) -> bool:
    seen, pending = set(values), list(values)
    while pending:
        value = pending.pop()
        if value in ancestors:
            return True
        node = value.producer()
        new = {item for item in (node.inputs if node else ()) if item is not None} - seen
        seen |= new
        pending += new
    return False


def _zero(value: ir.Value, constants: Constants) -> bool:
    array = constants.of(value)
    return array is not None and not np.any(array)


def rewrite_chain(chain: Chain, builder: Builder, constants: Constants, name: str) -> None:
    """Puts one recurrent node in the place of a chain; what it replaced is left without readers."""
    frames, graph = chain.frames, builder.graph
    count = len(frames)
    places = [whole([f.inputs[k].value for f in frames], constants) for k in range(len(frames[0].inputs))]
    reverse = count > 1 and all(place is not None and place[2] for place in places)
    order = frames[::-1] if reverse else frames
    sequences = [
        stacked(builder, [frame.inputs[k] for frame in order], constants)
        for k in range(len(frames[0].inputs))
    ]
    x = sequences[0] if len(sequences) == 1 else builder.add("Concat", sequences, axis=2).outputs[0]
    first = frames[0]
    initial: list[ir.Value | None] = []
    for operand in (first.h, first.c) if len(chain.weights.cell.states) == 2 else (first.h,):
        if operand is None or _zero(operand.value, constants):
            initial.append(None)
        else:
            initial.append(builder.move("Unsqueeze", builder.flat(operand.value, operand.shape), [0]))
    weights = replace(chain.weights, direction="reverse" if reverse else "forward")
    layer = rnn_node(builder, weights, x, initial, name, graph)
    units = [frame.new[0] for frame in order]
    together = joined([unit.value for unit in units], constants) if len(units[0].shape) == 2 else None
    if together is not None:
        builder.replace(together[0], builder.transpose(layer.y, (0, 1, 2) if together[1] == 0 else (1, 0, 2)))
    last = frames[-1]
    for operand, value in zip(last.new, layer.last, strict=True):
        builder.replace(operand.value, builder.shaped(builder.move("Squeeze", value, [0]), operand.shape))
    for index, unit in enumerate(units):
        if unit is not last.new[0] and unit.value.uses():
            one = builder.add("Gather", [layer.y, builder.constant(index)], axis=0).outputs[0]
            builder.replace(unit.value, builder.shaped(one, unit.shape))
