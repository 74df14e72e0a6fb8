"""What inspect says, of drawn graphs, of graphs without an LSTM and of decomposed cells."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper
from rich.console import Console

from lstmopt.errors import LstmoptError
from lstmopt.passes.simplify import simplify
from lstmopt.rnn.examples import example_inputs, sizes_for
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.inspection import Inspection, inspect_model
from lstmopt.rnn.reader import find_rnns, require_rnns
from lstmopt.rnn.states import StatePair, state_pairs
from lstmopt.rnn.writer import rnn_model
from tests.graphs import Drawn, lstm_graphs
from tests.test_real_models import RUNTIMES, exported, in_onnxruntime, stream
from tests.test_rnn_reader import random_weights


def shown(inspection: Inspection) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(inspection.render())
    return console.file.getvalue()


def test_a_bare_layer() -> None:
    model = rnn_model(random_weights(np.random.default_rng(0), 6, 3), states=True)
    inspection = inspect_model(model, "bare.onnx")
    (layer,) = inspection.layers
    assert (layer.hidden_size, layer.input_size, layer.parameters) == (6, 3, 4 * 6 * 9)
    assert layer.biases and layer.peepholes and layer.initial_states and not layer.sequence_lens
    assert inspection.rnn_parameters == 216 and inspection.parameters == 216 + 48 + 18
    assert [(pair.input, pair.output) for pair in inspection.states] == [("h_0", "h_n"), ("c_0", "c_n")]
    (group,) = inspection.groups
    assert not group.resizable and "output y" in group.reason
    text = shown(inspection)
    assert "bare.onnx" in text and "[sequence, batch, 3]" in text and "no: they reach the output y" in text


@settings(
    deadline=None, derandomize=True, database=None, max_examples=25, suppress_health_check=list(HealthCheck)
)
@given(lstm_graphs())
def test_drawn_graphs_are_described_and_shown(drawn: Drawn) -> None:
    inspection = inspect_model(drawn.model, "drawn")
    assert tuple(layer.name for layer in inspection.layers) == drawn.layers
    assert all(layer.supported for layer in inspection.layers)
    assert Inspection.model_validate_json(inspection.model_dump_json()) == inspection
    inputs = {value.name for value in inspection.inputs}
    for pair in inspection.states:
        assert pair.output.startswith(pair.input)
    # Every state input of the generator is paired, whatever was drawn around it.
    states = {name for name in inputs if name not in ("x", "tokens", "lengths", "state")}
    assert states <= {pair.input for pair in inspection.states}
    text = shown(inspection)
    assert all(layer in text for layer in drawn.layers)


def test_a_model_without_a_layer_is_described_and_refused() -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "plain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )  # fmt: skip
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    inspection = inspect_model(model, "plain.onnx")
    assert not inspection.layers and not inspection.groups
    assert "no LSTM or GRU node" in shown(inspection)
    with pytest.raises(LstmoptError, match=r"plain.onnx: holds no LSTM or GRU node"):
        require_rnns(model, "plain.onnx")


EXPORT = """
import sys, torch

class Cell(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = torch.nn.LSTMCell(5, 7)
        self.out = torch.nn.Linear(7, 3)
    def forward(self, x, h, c):
        ys = []
        for step in range(4):
            h, c = self.cell(x[step], (h, c))
            ys.append(self.out(h))
        return torch.stack(ys), h, c

torch.manual_seed(0)
args = (torch.zeros(4, 2, 5), torch.zeros(2, 7), torch.zeros(2, 7))
program = torch.onnx.export(Cell().eval(), args, dynamo=True, input_names=["x", "h_in", "c_in"],
                            output_names=["y", "h_out", "c_out"], verbose=False)
program.save(sys.argv[1])
"""


@pytest.fixture(scope="module")
def decomposed(tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    """An unrolled LSTMCell by torch's newer exporter, in a process of its own."""
    path = tmp_path_factory.mktemp("decomposed") / "cell.onnx"
    subprocess.run(
        [sys.executable, "-c", EXPORT, str(path)], check=True, capture_output=True, cwd=path.parent
    )
    return load_model(path)


def test_decomposed_cells_are_recognised(decomposed: ir.Model) -> None:
    inspection = inspect_model(decomposed, "cell.onnx")
    (layer,) = inspection.layers
    assert (layer.kind, layer.input_size, layer.hidden_size) == ("LSTM", 5, 7) and layer.supported
    assert inspection.decomposed_cells == 0 and "LSTM" not in inspection.operators
    assert "recognised: LSTM of 7 units written out over 4 steps" in shown(inspection)
    assert state_pairs(decomposed) == (StatePair("h_in", "h_out"), StatePair("c_in", "c_out"))
    with pytest.raises(LstmoptError, match="holds no LSTM or GRU node"):
        require_rnns(decomposed, "cell.onnx")  # the graph itself is as it was


def test_decomposed_cells_survive_simplify_with_states_fed_back(decomposed: ir.Model) -> None:
    simple, notes = simplify(decomposed)
    assert notes == ("recognised: LSTM of 7 units written out over 4 steps",)
    assert len(find_rnns(simple)) == 1
    feeds = example_inputs(decomposed, 0, sizes_for(decomposed, 2, 4))
    other = dict(feeds)
    for _ in range(20):
        expected, got = run_model(decomposed, feeds), run_model(simple, other)
        for name, array in expected.items():
            np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-5 * np.abs(array).max())
        for pair in state_pairs(decomposed):
            feeds[pair.input], other[pair.input] = expected[pair.output], got[pair.output]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_decomposed_cells_are_exported_as_they_are(
    decomposed: ir.Model, runtime: str, tmp_path: Path
) -> None:
    path = tmp_path / "cell.onnx"
    save_model(decomposed, path)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((4, 2, 5)).astype(np.float32)} for _ in range(20)]
    runs = in_onnxruntime(path), exported(path, runtime, tmp_path / "out")
    heard = stream(runs, feeds, {"h_in": "h_out", "c_in": "c_out"}, np.zeros((2, 7), np.float32))
    assert len({float(value[0]) for value in heard}) > 10


def test_json_is_plain(tmp_path: Path) -> None:
    model = rnn_model(random_weights(np.random.default_rng(0)))
    assert json.loads(inspect_model(model).model_dump_json())["layers"][0]["kind"] == "LSTM"
