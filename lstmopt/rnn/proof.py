"""Proves on random calls that a rewritten graph computes what it did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lstmopt.errors import LstmoptError
from lstmopt.rnn.constants import RANDOM_OPS, Array
from lstmopt.rnn.examples import axis_roles, dynamic_axes, example_inputs, sizes_for, switches
from lstmopt.rnn.execution import Reference
from lstmopt.rnn.reader import find_rnns

if TYPE_CHECKING:
    import onnx_ir as ir

TOLERANCE = 1e-5
"""Of an output's range: two correct runs of one f32 graph differ by no more (FACTS.md)."""

SHAPES = ((2, 3), (1, 7))
"""Batch and sequence of the calls on which outputs are compared."""


class Proof:
    """Outputs of a model on random calls, to compare others with.

    Args:
        model: the graph as it was.
        lengths: whether dynamic axes that are neither batch nor sequence by name get several sizes too.

    Raises:
        LstmoptError: no inputs were found on which it runs.
    """

    def __init__(self, model: ir.Model, lengths: bool = False) -> None:
        reference = Reference(model, seeded=True)
        self._layers = sum(layer.resizable for layer in find_rnns(model))
        self._calls: list[tuple[Mapping[str, Array], dict[str, Array]]] = []
        names: set[str] = set()
        repeats = _repeats(model)
        for feeds in (*(_lengths(model) if lengths else ()), *random_calls(model)):
            try:
                outputs = reference.run(feeds)
            except LstmoptError:
                continue
            # What is not the same twice, such as a custom operator's random numbers, cannot be compared.
            again = outputs if repeats else reference.run(feeds)
            fixed = {
                k: v for k, v in outputs.items() if np.array_equal(v, again[k], equal_nan=v.dtype.kind == "f")
            }
            names |= set(outputs)
            self._calls.append((feeds, fixed))
        if not self._calls:
            raise LstmoptError("model", "no inputs were found on which the model runs", "go on without")
        self._unknown = sorted(names - {name for _, fixed in self._calls for name in fixed})

    @property
    def calls(self) -> list[tuple[dict[str, Array], dict[str, Array]]]:
        """The calls' inputs, and the outputs that can be compared."""
        return [(dict(feeds), outputs) for feeds, outputs in self._calls]

    @property
    def feeds(self) -> list[dict[str, Array]]:
        """The calls' inputs."""
        return [dict(feeds) for feeds, _ in self._calls]

    def fault(self, model: ir.Model) -> str:
        """Returns what is wrong with a candidate, or nothing."""
        if self._unknown:
            return f"output {self._unknown[0]} is random and cannot be compared"
        try:
            if sum(layer.resizable for layer in find_rnns(model)) < self._layers:
                return "recurrent layers were lost"
            return changed(model, self._calls)
        except LstmoptError as error:
            return error.fault


def _repeats(model: ir.Model) -> bool:
    """Whether two runs are known to give the same: ONNX's own operators, none of them random."""
    random = RANDOM_OPS | {"Dropout"}
    return all(
        node.domain in ("", "ai.onnx") and node.op_type not in random for node in model.graph.all_nodes()
    )


def changed(model: ir.Model, calls: Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]]) -> str:
    """Returns which output of a model is not what was expected in some calls, or nothing.

    Raises:
        LstmoptError: it does not run.
    """
    reference = Reference(model, seeded=True)
    for feeds, expected in calls:
        outputs = reference.run(feeds)
        for name, array in expected.items():
            if name not in outputs or not _same(outputs[name], array):
                return f"output {name} changed"
    return ""


def random_calls(model: ir.Model, shapes: Sequence[tuple[int, int]] = SHAPES) -> Iterator[dict[str, Array]]:
    """Yields random calls of some shapes, with every branch of a switch that is known.

    Args:
        model: the graph.
        shapes: batch and sequence of each.
    """
    roles = axis_roles(model)
    # Where there is nothing but batches to choose, a call does not have to be tried for its sizes.
    plain = set(roles.values()) <= {"batch"}
    for seed, (batch, sequence) in enumerate(shapes):
        try:
            sizes = dict.fromkeys(roles, batch) if plain else sizes_for(model, batch, sequence)
        except LstmoptError:
            continue
        feeds = example_inputs(model, seed, sizes)
        yield feeds
        for name, value in switches(model).items():
            yield {**feeds, name: np.full_like(feeds[name], value // 2)}


def _same(got: Array, expected: Array) -> bool:
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return False
    if got.dtype.kind != "f":
        return bool(np.array_equal(got, expected))
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(got)):
        return False
    if not finite.any():
        return True
    wide, exact = got[finite].astype(np.float64), expected[finite].astype(np.float64)
    scale = max(float(np.abs(exact).max()), float(np.finfo(expected.dtype).tiny))
    tolerance = max(
        TOLERANCE, 8 * float(np.finfo(expected.dtype).eps) if expected.dtype == np.float16 else 0.0
    )
    return bool(np.abs(wide - exact).max() <= tolerance * scale)


def _lengths(model: ir.Model) -> Iterator[dict[str, Array]]:
    """Yields random calls whose dynamic axes all have sizes of their own."""
    axes = list(dynamic_axes(model))
    for seed, factor in enumerate((1, 2) if axes else ()):
        yield example_inputs(model, seed, {key: factor * (index + 2) for index, key in enumerate(axes)})
