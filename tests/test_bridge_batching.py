"""A batch that a model fixes is set free for training where the model computes any, and only there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from lstmopt.bridge.batching import free_batch
from lstmopt.bridge.module import OnnxModule
from lstmopt.bridge.runner import ModuleRunner
from lstmopt.passes import GrowPrune
from lstmopt.rnn.files import load_model, save_model
from lstmopt.tasks.interface import read_interface
from tests.training import state_for

FLOAT = TensorProto.FLOAT
HIDDEN = 12


def chunk_model(mix: bool = False, cut: bool = False) -> ir.Model:
    """One number a chunk of 6 values, batch 1 throughout: x [1, 6], h and c [1, 1, 12] to y [1, 1].

    Args:
        mix: sequences see each other: their mean is taken away.
        cut: a Reshape names the batch.
    """
    rng = np.random.default_rng(3)
    shapes = {"W": (1, 48, 6), "R": (1, 48, HIDDEN), "B": (1, 96), "M": (HIDDEN, 1)}
    tensors = [
        numpy_helper.from_array(rng.uniform(-0.5, 0.5, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    tensors += [
        numpy_helper.from_array(np.array(value, np.int64), name)
        for name, value in {"zero": [0], "row": [1, HIDDEN]}.items()
    ]
    make = helper.make_node
    nodes = [
        make("Unsqueeze", ["x", "zero"], ["steps"]),
        make("LSTM", ["steps", "W", "R", "B", "", "h", "c"], ["", "h_n", "c_n"], name="rnn", hidden_size=12),
        make("Reshape", ["h_n", "row"], ["flat"]) if cut else make("Squeeze", ["h_n", "zero"], ["flat"]),
    ]
    last = "flat"
    if mix:
        nodes += [
            make("ReduceMean", ["flat"], ["mean"], axes=[0]),
            make("Sub", ["flat", "mean"], ["centred"]),
            make("Add", ["flat", "centred"], ["mixed"]),
        ]
        last = "mixed"
    nodes += [make("MatMul", [last, "M"], ["z"]), make("Sigmoid", ["z"], ["y"])]
    info = helper.make_tensor_value_info
    state = [1, 1, HIDDEN]
    graph = helper.make_graph(
        nodes, "chunks",
        [info("x", FLOAT, [1, 6]), info("h", FLOAT, state), info("c", FLOAT, state)],
        [info("y", FLOAT, [1, 1]), info("h_n", FLOAT, state), info("c_n", FLOAT, state)], tensors,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(proto)


def test_a_fixed_batch_is_set_free() -> None:
    model = chunk_model()
    interface = read_interface(model)
    assert interface.batch == 1
    module = OnnxModule(model)
    freed = free_batch(interface, model, module)
    assert freed.batch is None and freed.state_batch == {"h": 1, "c": 1}
    runner = ModuleRunner(model, module)
    states = freed.zero_states(runner.inputs, 5)
    assert states["h"].shape == (1, 5, HIDDEN)
    x = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    together = runner.run({"x": x, **states})
    for row in range(5):
        one = interface.zero_states(runner.inputs, 1)
        alone = runner.run({"x": x[row : row + 1], **one})
        np.testing.assert_allclose(together["y"][row : row + 1], alone["y"], atol=1e-6)


@pytest.mark.parametrize("fault", ["mix", "cut"])
def test_a_batch_that_matters_stays(fault: str) -> None:
    model = chunk_model(**{fault: True})
    interface = read_interface(model)
    assert free_batch(interface, model, OnnxModule(model)) is interface


def test_what_has_no_fixed_batch_is_left_alone() -> None:
    model = chunk_model()
    for value in model.graph.inputs:
        value.shape = ir.Shape(
            ["batch" if n == len(value.shape) - 2 else s for n, s in enumerate(value.shape)]
        )
    interface = read_interface(model)
    assert interface.batch is None and free_batch(interface, model, OnnxModule(model)) is interface


@pytest.mark.parametrize("cut", [False, True])
def test_one_number_a_call_is_distilled(cut: bool, tmp_path: Path) -> None:
    """Its variance is that of many calls, not of one; what is learnt is close to the original."""
    save_model(chunk_model(cut=cut), tmp_path / "model.onnx")
    rng = np.random.default_rng(1)
    data, val = ({"x": rng.standard_normal((count, 6)).astype(np.float32)} for count in (600, 80))
    start = state_for(load_model(tmp_path / "model.onnx"), tmp_path / "work", data, val)
    tune = GrowPrune(density=0.5, pattern="unstructured", steps=120, batch=8, learning_rate=2e-3)
    losses = []
    for stage in (GrowPrune(density=0.5, pattern="unstructured", steps=4, batch=8, learning_rate=1e-6), tune):
        state = stage.run(start)
        losses.append(
            state.task.evaluate(
                ModuleRunner(state.model, OnnxModule(state.model)),
                start.data.valid,
                reference=ModuleRunner(start.original, OnnxModule(start.original)),
            ).loss
        )
    assert losses[1] < 0.5 * losses[0]
