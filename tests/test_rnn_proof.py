"""A proof compares outputs that random operators reach, and proves nothing where it cannot."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from lstmopt.errors import LstmoptError
from lstmopt.rnn import check, proof
from lstmopt.rnn.execution import Reference, run_model
from lstmopt.rnn.proof import Proof
from lstmopt.rnn.surgery import resize
from tests.recurrent import recurrent


def noisy(factor: float = 1.0) -> ir.Model:
    """A layer whose only output has noise on it."""
    model = recurrent()
    y = model.graph.output[0].name
    del model.graph.output[1:]
    model.graph.output[0].name = "z"
    model.graph.initializer[0].CopyFrom(
        helper.make_tensor(
            model.graph.initializer[0].name, 1, model.graph.initializer[0].dims,
            factor * np.frombuffer(model.graph.initializer[0].raw_data, np.float32),
        )
    )  # fmt: skip
    model.graph.node.extend(
        [helper.make_node("MatMul", [y, "head"], ["top"]),
         helper.make_node("RandomNormalLike", ["top"], ["noise"], scale=1e-3),
         helper.make_node("Add", ["top", "noise"], ["z"])]
    )  # fmt: skip
    model.graph.initializer.append(numpy_helper.from_array(np.eye(8, 2, dtype=np.float32), "head"))
    model.graph.output[0].type.tensor_type.shape.dim[3].dim_value = 2
    return ir.from_proto(model)


def test_random_outputs_are_compared() -> None:
    proof_of = Proof(noisy())
    assert all(set(outputs) == {"z"} for _, outputs in proof_of.calls)
    assert proof_of.fault(noisy()) == ""
    assert proof_of.fault(noisy(2.0)) == "output z changed"
    assert not any("seed" in node.attributes for node in noisy().graph)  # models stay as they are


def test_what_cannot_be_compared_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "Reference", lambda model, seeded: Reference(model))
    assert Proof(noisy()).fault(noisy()) == "output z is random and cannot be compared"


def test_resizes_are_checked_through_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    model = noisy()
    (layer,) = (node for node in model.graph if node.op_type == "LSTM")
    sizes = {str(layer.name): 4}
    assert resize(model, sizes).model is not model
    rng = np.random.default_rng(0)
    monkeypatch.setattr(
        check, "run_model", lambda model, feeds, seeded: {"z": run_model(model, feeds)["z"] + rng.random()}
    )
    with pytest.raises(LstmoptError, match="output z is random"):
        resize(model, sizes)
