"""The shapes that a recurrent cell's update takes when it is written out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, permutations

import numpy as np
import onnx_ir as ir

from lstmopt.rnn.cells import GRU, LSTM, CellSpec
from lstmopt.rnn.recognition.regions import Constants
from lstmopt.rnn.recognition.tracing import activation, leaves, origin


@dataclass(frozen=True, eq=False)
class Cell:
    """An update of states that looks like one step of a recurrent cell.

    Attributes:
        spec: its kind.
        states: the new states, in the order of the spec.
        before: the old states; of an LSTM's h it is not known yet.
        gates: what is computed of each gate, the activation included, by its name.
        activations: the node of each gate's activation.
        negated: gates of which the graph has one minus the gate.
        product: of a GRU r * e, where the reset gate acts.
        reset: of a GRU e: the old state, or its product with R.
    """

    spec: CellSpec
    states: tuple[ir.Value, ...]
    before: tuple[ir.Value | None, ...]
    gates: dict[str, ir.Value]
    activations: dict[str, ir.Node]
    negated: frozenset[str] = frozenset()
    product: ir.Value | None = None
    reset: ir.Value | None = None

    @property
    def reset_after(self) -> bool:
        """Whether the reset gate comes after the product with R."""
        return self.reset is not None and origin(self.reset) is not self.h_before

    @property
    def h_before(self) -> ir.Value | None:
        """Where the old h comes from, whatever its shape."""
        return None if self.before[0] is None else origin(self.before[0])


def find_cells(graph: ir.Graph, constants: Constants) -> Iterator[Cell]:
    """Yields what could be cells among a graph's own nodes, in their order; some twice, in two readings."""
    for node in graph:
        if node.op_type in ("Add", "Sum") and len(node.inputs) == 2:
            yield from _lstm(node)
        if node.op_type in ("Add", "Sum", "Sub") and len(node.inputs) == 2:
            yield from _gru(node, constants)


def _producer(value: ir.Value | None, *kinds: str) -> ir.Node | None:
    """Returns the node behind a value, aliases left out, where it is of such a kind."""
    node = None if value is None else origin(value).producer()
    return node if node is not None and node.op_type in kinds and node.domain in ("", "ai.onnx") else None


def _orders(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yields the two inputs of a node that commutes, both ways round."""
    if len(node.inputs) == 2 and None not in node.inputs:
        yield from permutations([value for value in node.inputs if value is not None], 2)


def _lstm(node: ir.Node) -> Iterator[Cell]:
    """C' = f . C + i . g, H' = o . tanh(C')."""
    c_new = node.outputs[0]
    for new, old in _orders(node):
        written, kept = _producer(new, "Mul"), _producer(old, "Mul")
        if written is None or kept is None:
            continue
        for (i, g), (f, c) in ((one, two) for one in _orders(written) for two in _orders(kept)):
            acts = {"i": activation(i, "Sigmoid"), "c": activation(g, "Tanh"), "f": activation(f, "Sigmoid")}
            if None in acts.values():
                continue
            for product, o in _outputs(c_new):
                acts["o"] = activation(o, "Sigmoid")
                if acts["o"] is not None:
                    yield Cell(
                        LSTM, (product, c_new), (None, c), {"i": i, "o": o, "f": f, "c": g},
                        {name: act for name, act in acts.items() if act is not None},
                    )  # fmt: skip


def _outputs(c_new: ir.Value) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yields the products with tanh(C'), and their other factor."""
    for tanh in (user for user, _ in _users(c_new) if user.op_type == "Tanh"):
        for product, position in _users(tanh.outputs[0]):
            if product.op_type == "Mul" and (other := product.inputs[1 - position]) is not None:
                yield product.outputs[0], other


def _users(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    for node, position in value.uses():
        if node.op_type == "Identity":
            yield from _users(node.outputs[0])
        else:
            yield node, position


def _gru(node: ir.Node, constants: Constants) -> Iterator[Cell]:
    """H' = (1 - z) . n + z . H, n + z . (H - n) or n - z . (n - H), and each with 1 - z in the place of z."""
    h_new = node.outputs[0]
    less = node.op_type == "Sub"
    for first, second in islice(_orders(node), 1 if less else None):
        product = _producer(second, "Mul")
        if product is None:
            continue
        for gate, difference in _orders(product):
            spread = _producer(difference, "Sub")
            if spread is None or activation(gate, "Sigmoid") is None:
                continue
            a, b = reversed(spread.inputs) if less else spread.inputs
            if a is not None and b is not None and origin(b) is origin(first):
                # first + gate . (a - first), or first - gate . (first - a)
                yield from _with_candidate(h_new, n=first, h=a, z=gate, negated=False, constants=constants)
                yield from _with_candidate(h_new, n=a, h=first, z=gate, negated=True, constants=constants)
        written = None if less else _producer(first, "Mul")
        if written is None:
            continue
        for (one, x), (gate, y) in ((left, right) for left in _orders(written) for right in _orders(product)):
            rest = _producer(one, "Sub")
            if rest is None or activation(gate, "Sigmoid") is None:
                continue
            unit = constants.of(rest.inputs[0])
            if unit is None or not np.all(unit == 1) or rest.inputs[1] is None:
                continue
            if origin(rest.inputs[1]) is origin(gate):
                # (1 - gate) . x + gate . y
                yield from _with_candidate(h_new, n=x, h=y, z=gate, negated=False, constants=constants)
                yield from _with_candidate(h_new, n=y, h=x, z=gate, negated=True, constants=constants)


def _with_candidate(
    h_new: ir.Value, n: ir.Value, h: ir.Value, z: ir.Value, negated: bool, constants: Constants
) -> Iterator[Cell]:
    tanh, sigmoid = activation(n, "Tanh"), activation(z, "Sigmoid")
    if tanh is None or sigmoid is None or tanh.inputs[0] is None:
        return
    for product in _products(leaves(tanh.inputs[0], (), constants), constants):
        for r, e in _orders(product):
            gate = activation(r, "Sigmoid")
            if gate is not None:
                yield Cell(
                    GRU, (h_new,), (h,), {"z": z, "r": r, "h": n}, {"z": sigmoid, "r": gate, "h": tanh},
                    frozenset({"z"} if negated else ()), product.outputs[0], e,
                )  # fmt: skip


def _products(ends: Iterable[ir.Value], constants: Constants) -> Iterator[ir.Node]:
    """Yields what could be r * e among what a candidate is an affine function of.

    In a first step from zeros e is constant, so that the walk has gone on to the reset gate.
    """
    for value in ends:
        node = value.producer()
        if node is not None and node.op_type == "Mul":
            yield node
        elif activation(value, "Sigmoid") is not None:
            for user, position in _users(value):
                if user.op_type == "Mul" and constants.of(user.inputs[1 - position]) is not None:
                    yield user
