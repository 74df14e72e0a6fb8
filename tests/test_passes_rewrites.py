"""Graph rewrites work on a copy, and say what is wrong in one line."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from lstmopt.errors import LstmoptError
from lstmopt.passes.rewrites import FixShapes, FoldWeights
from lstmopt.rnn.examples import dynamic_axes, example_inputs
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.rewriting import rewrite
from lstmopt.rnn.writer import rnn_model
from tests.test_rnn_reader import random_weights


@pytest.fixture
def model() -> ir.Model:
    return rnn_model(random_weights(np.random.default_rng(0)), states=True)


def shape(model: ir.Model, name: str) -> list[int | None]:
    value = next(v for v in (*model.graph.inputs, *model.graph.outputs) if v.name == name)
    return [size if isinstance(size, int) else None for size in value.shape or ()]


def test_fixed_shapes_reach_every_axis_of_the_same_name(model: ir.Model) -> None:
    fixed = rewrite(model, FixShapes({"x": (7, 2, 3)}))
    assert shape(fixed, "x") == [7, 2, 3]
    assert shape(fixed, "y") == [7, 1, 2, 4] and shape(fixed, "h_n") == [1, 2, 4]
    assert set(dynamic_axes(model)) == {"sequence", "batch"}
    feeds = example_inputs(model, 0, {"sequence": 7, "batch": 2})
    for name, array in run_model(model, feeds).items():
        np.testing.assert_array_equal(run_model(fixed, feeds)[name], array)


class Breaks(ir.passes.InPlacePass):
    """A pass that stops half-way."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        model.graph.inputs[0].name = "spoilt"
        raise KeyError("no such node")


def test_a_pass_that_fails_is_named_and_leaves_the_model(model: ir.Model) -> None:
    before = ir.to_proto(model)
    with pytest.raises(LstmoptError, match=r"pass Breaks: failed on this graph \(KeyError: 'no such node'\)"):
        rewrite(model, Breaks())
    assert ir.to_proto(model) == before
    poisoned = model.clone()
    weights = poisoned.graph.initializers["R"]
    weights.const_value = ir.Tensor(np.full((1, 16, 4), np.nan, np.float32), name="R")
    with pytest.raises(
        LstmoptError, match=r"pass FoldWeights, rnn, tensor 'R': 64 weights are NaN.*; export"
    ):
        rewrite(poisoned, FoldWeights())
