"""Which input of a graph is the state that an output of the call before gave."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from lstmopt.rnn.examples import axis_roles, dynamic_axes, real_inputs
from lstmopt.rnn.reader import INITIAL_C, INITIAL_H, Y_C, Y_H, recurrent_nodes, value_at

if TYPE_CHECKING:
    import onnx_ir as ir

MOVERS = frozenset(
    {"Identity", "Cast", "Squeeze", "Unsqueeze", "Transpose", "Reshape", "Slice", "Split", "Gather", "Concat"}
)
"""Operators that may stand between a state input and the layer, or the layer and a state output."""


@dataclass(frozen=True)
class StatePair:
    """A state: its input's name and the name of the output that the next call feeds to it."""

    input: str
    output: str


def state_pairs(model: ir.Model) -> tuple[StatePair, ...]:
    """Returns the states of a model in the order of its inputs.

    First by structure: the input that reaches a layer's initial state and the output that the same
    layer's last state reaches, both through data movement alone, where there is one such output and not
    two, as where two layers start from one input. Then, also for decomposed cells and for layers in
    subgraphs, by type, shape and name (state and stateN, h_in and h_out) where exactly one fits.
    """
    outputs = {str(value.name): value for value in model.graph.outputs if value.name}
    reached: dict[str, list[str]] = {}
    for node in recurrent_nodes(model):
        for position, result in ((INITIAL_H, Y_H), (INITIAL_C, Y_C)):
            source = _source(value_at(node.inputs, position))
            if source is not None:
                last = value_at(node.outputs, result)
                found = [name for name in _reached(last) if _same_form(source, outputs[name])]
                reached.setdefault(str(source.name), []).extend(found)
    pairs = _only_pairs(reached)
    left = [value for value in real_inputs(model) if str(value.name) not in pairs]
    free = {name: output for name, output in outputs.items() if name not in pairs.values()}
    alike = {
        str(value.name): [
            name
            for name, output in free.items()
            if _same_form(value, output)
            and _named_alike(str(value.name), name)
            and name in (reached.get(str(value.name)) or free)
        ]
        for value in left
        if value.dtype is not None and value.dtype.is_floating_point()
    }
    pairs |= _only_pairs(alike)
    order = [str(value.name) for value in model.graph.inputs]
    return tuple(StatePair(name, pairs[name]) for name in order if name in pairs)


def fixed_batch(model: ir.Model, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, tuple[int, ...]]:
    """Returns the inputs' shapes with the batch of a call; other dynamic axes are -1, but of states.

    Args:
        model: the graph.
        feeds: inputs of the call.
    """
    states = {pair.input for pair in state_pairs(model)}
    axes, roles = dynamic_axes(model), axis_roles(model)
    shapes = {name: list(array.shape) for name, array in feeds.items()}
    for key, places in axes.items():
        if roles[key] != "batch" and not any(name in states for name, _ in places):
            for name, axis in places:
                shapes[name][axis] = -1
    return {name: tuple(shape) for name, shape in shapes.items()}


def _only_pairs(found: dict[str, list[str]]) -> dict[str, str]:
    """Returns the inputs for which one output was found that was found for no other input."""
    sets = {name: set(outputs) for name, outputs in found.items()}
    counts = Counter(output for outputs in sets.values() for output in outputs)
    return {
        name: next(iter(outputs))
        for name, outputs in sets.items()
        if len(outputs) == 1 and counts[next(iter(outputs))] == 1
    }


def _source(value: ir.Value | None) -> ir.Value | None:
    """Returns the graph input that a layer's initial state is moved from."""
    while value is not None and not value.is_graph_input():
        node = value.producer()
        if node is None or node.op_type not in MOVERS or node.op_type == "Concat":
            return None
        value = node.inputs[0]
    return value


def _reached(value: ir.Value | None) -> list[str]:
    """Returns the graph outputs that a value is moved to."""
    if value is None:
        return []
    found = [str(value.name)] if value.is_graph_output() else []
    for node, index in value.uses():
        if node.op_type in MOVERS and (index == 0 or node.op_type == "Concat"):
            for output in node.outputs:
                found += _reached(output)
    return list(dict.fromkeys(found))


def _same_form(one: ir.Value, other: ir.Value) -> bool:
    """Whether two values have one type and no two fixed sizes that differ."""
    if one.dtype != other.dtype:
        return False
    if one.shape is None or other.shape is None:
        return True
    if len(one.shape) != len(other.shape):
        return False
    return all(
        a == b
        for a, b in zip(one.shape, other.shape, strict=True)
        if isinstance(a, int) and isinstance(b, int)
    )


_STATE = r"h|c|hx|cx|hs|cs|hc|hidden|cell|state|states|mem|memory|cache|ctx|context|rnn"
_GLUED = re.compile(rf"^({_STATE})(n|in|out|new|next|t)$")
_BEFORE = frozenset({"in", "input", "init", "initial", "prev", "previous", "last", "old", "i"})
_AFTER = frozenset({"out", "output", "new", "next", "n", "final", "last", "updated", "o"})


def _stems(name: str, roles: frozenset[str], numbers: tuple[str, ...]) -> set[str]:
    """Returns what names a state is known by, without the words that say which side of a call it is on.

    Args:
        name: of an input or output.
        roles: words for that side.
        numbers: digits for that side where there is no such word: h_0 before a call and h_1 after it.
    """
    words: list[str] = []
    for word in re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])N$", "n", name).lower()):
        glued = _GLUED.match(word)
        words += [glued.group(1), glued.group(2)] if glued else [word] if word else []
    rest = [word for word in words if word not in roles]
    if not any(re.fullmatch(rf"(?:{_STATE})\d*", word) for word in rest):
        return set()
    stems = {"".join(rest)}
    if len(rest) == len(words):
        for number in numbers:
            if stems and (whole := "".join(rest)).endswith(number):
                stems.add(whole[: -len(number)])
    return stems


def _named_alike(before: str, after: str) -> bool:
    """Whether names such as state and stateN, h_in and h_out, h0 and hn, c_0 and c_1 are of one state."""
    return bool(_stems(before, _BEFORE, ("0",)) & _stems(after, _AFTER, ("1",)))
