"""Checks a resize: without its removed units the graph computes what it did with them silenced."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lstmopt.errors import LstmoptError
from lstmopt.rnn.constants import constant_value
from lstmopt.rnn.examples import example_inputs, sizes_for
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.plan import Plan, take_lines
from lstmopt.rnn.writer import replace_constant, write_weights

if TYPE_CHECKING:
    import onnx_ir as ir

Array = npt.NDArray[Any]

TOLERANCE = 1e-4
"""Of an output's largest value: sums over fewer terms are rounded otherwise, and states feed back."""

SAME_LABELS = 0.99
"""Share of an output's integers that have to be the same."""


def silence(model: ir.Model, plan: Plan) -> None:
    """Sets to zero everything that reads a unit which the plan removes, in place."""
    removed = plan.removed()
    for name, layer in plan.analysis.layers.items():
        weights = layer.weights
        assert weights is not None
        w, r = weights.w.copy(), weights.r.copy()
        w[..., np.isin(plan.analysis.inputs[name], removed)] = 0
        for lane in plan.analysis.flow.lanes:
            if lane.layer == name:
                r[lane.direction][..., np.isin(lane.codes(), removed)] = 0
        if not (np.array_equal(w, weights.w) and np.array_equal(r, weights.r)):
            write_weights(model, layer, replace(weights, w=w, r=r))
    for member in plan.analysis.flow.members:
        dead = np.isin(member.codes, removed)
        if member.role == "consumer" and dead.any():
            array = constant_value(member.node.inputs[member.position])
            assert array is not None
            silent = array.copy()
            np.moveaxis(silent, member.axis, 0)[dead] = 0
            replace_constant(model, member.node, member.position, silent)


class Check:
    """What a graph should compute after a plan is carried out.

    Args:
        model: the graph before; its removed units are silenced in place.
        plan: what is kept and added.
        keep_states: whether states keep their shapes, with zeros where a unit is gone.
    """

    def __init__(self, model: ir.Model, plan: Plan, keep_states: bool = False) -> None:
        self._plan = plan
        self._keep_states = keep_states
        self._sizes = sizes_for(model, 2, 5)
        feeds = example_inputs(model, 1, self._sizes)
        silence(model, plan)
        self._feeds = {name: self._carried(model, name, array) for name, array in feeds.items()}
        expected = run_model(model, feeds, seeded=True)
        again = run_model(model, feeds, seeded=True)
        self._expected = {
            name: self._carried(model, name, array)
            for name, array in expected.items()
            if np.array_equal(array, again[name], equal_nan=True)
        }
        self._unknown = sorted(set(expected) - set(self._expected))
        self._known = {
            name: self._carried(model, name, np.ones(array.shape, np.float32)) > (-1 if keep_states else 0)
            for name, array in expected.items()
        }
        touched = set(plan.order)
        self._exact = all(
            group.exact
            for group in plan.analysis.groups
            if any(lane.base in touched for bundle in group.bundles for lane in bundle)
        )

    def _carried(self, model: ir.Model, name: str, array: Array) -> Array:
        """Returns an input or output in the form that it has after the plan, zeros at added units."""
        for value in (*model.graph.inputs, *model.graph.outputs):
            codes = self._plan.analysis.flow.labels.get(value)
            if value.name != name or codes is None:
                continue
            axis = self._plan.analysis.flow.unit_axis(codes)
            line = None if axis is None else self._plan.sized(codes, axis, array.shape)
            if self._keep_states:
                gone = None if line is None else np.isin(line, self._plan.removed())
                return array if gone is None or value.is_graph_input() else np.where(gone, 0, array)
            if axis is not None and line is not None:
                taken = take_lines(array, line, axis, self._plan)
                return array if taken is None else taken
        return array

    def compare(self, model: ir.Model) -> None:
        """Runs the graph after the plan.

        Raises:
            LstmoptError: it does not run, or an output differs or cannot be compared.
        """
        try:
            outputs = run_model(model, self._feeds, seeded=True)
        except LstmoptError as error:
            raise LstmoptError(
                "resize",
                f"the resized model does not run ({error.fault})",
                "leave the hidden sizes as they are",
            ) from error
        if not self._exact:
            return
        if self._unknown:
            raise LstmoptError(
                "resize",
                f"output {self._unknown[0]} is random, so that it cannot be checked",
                "leave the hidden sizes as they are",
            )
        for name, expected in self._expected.items():
            if not _agree(outputs[name], expected, self._known[name]):
                raise LstmoptError(
                    "resize",
                    f"output {name} is not what it is with the removed units silenced",
                    "leave the hidden sizes as they are, and report the model",
                )


def _agree(got: Array, expected: Array, known: npt.NDArray[np.bool_]) -> bool:
    """Whether two outputs are the same but for rounding, where the expected one is known."""
    if got.shape != expected.shape:
        return False
    if not np.issubdtype(got.dtype, np.floating):
        # An index of the largest of nearly equal values may flip, but not many do.
        return bool(np.mean(got[known] == expected[known]) >= SAME_LABELS) if known.any() else True
    scale = float(np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected)))
    tolerance = TOLERANCE * max(scale, 1e-3)
    return bool(np.allclose(got[known], expected[known], rtol=0, atol=tolerance, equal_nan=True))
