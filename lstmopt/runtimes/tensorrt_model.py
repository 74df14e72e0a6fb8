"""The ONNX that TensorRT's parser accepts and reads rightly.

What it refuses or misreads was found by parsing with TensorRT-RTX 1.7 and computing what the parsed network
says (`tests/trt_network.py`): layout 1 is read as 0; the clip of an LSTM bounds the cell state too, which
ONNX Runtime's does not; Softplus loses its factors; alphas that are not given become others; an f16 layer
with sequence lengths, coupled gates, Affine and directions of different activations are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lstmopt.errors import LstmoptError
from lstmopt.rnn.branches import SettleBranches
from lstmopt.rnn.half import Half
from lstmopt.rnn.layout import TimeFirst
from lstmopt.rnn.reader import SEQUENCE_LENS, RnnLayer, find_rnns
from lstmopt.rnn.rewriting import rewrite
from lstmopt.rnn.scan import AsScan, is_special

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.runtimes.base import Feeds

UNSUPPORTED = frozenset(
    {
        "DynamicQuantizeLSTM", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger",
        "MatMulIntegerToFloat", "ConvInteger", "QLinearConv", "QLinearMatMul",
    }
)  # fmt: skip
"""Operators of quantised models that its parser does not have."""

READ_RIGHTLY = frozenset({"Sigmoid", "Tanh", "Relu", "Softsign", "HardSigmoid", "LeakyRelu", "Elu"})
"""Activations that the parser gets right without parameters, as ONNX Runtime does."""

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model for TensorRT.

    Attributes:
        model: the graph.
        switches: inputs that have to have these values: they decided which branches are in it.
    """

    model: ir.Model
    switches: dict[str, int]


def prepare(model: ir.Model, precision: str, calls: Sequence[Feeds], where: str) -> Prepared:
    """Returns a model that computes the same and that the parser reads rightly.

    Args:
        model: the graph.
        precision: "f32" or "f16".
        calls: inputs of the calls that it is made for; where branches depend on switches, theirs are taken.
        where: what errors call the model.

    Raises:
        LstmoptError: an operator that TensorRT has not, a weight beyond f16, or a branch that depends on
            sizes which are not fixed.
    """
    for node in model.graph.all_nodes():
        if node.op_type in UNSUPPORTED or node.domain not in ("", "ai.onnx"):
            domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
            raise LstmoptError(
                where, f"holds {domain}{node.op_type}, which TensorRT has not", "give the float model"
            )
    settled = SettleBranches(calls)
    normal = rewrite(model, TimeFirst(), settled, AsScan(lambda layer: needs_scan(layer, precision)))
    if settled.shaped:
        raise LstmoptError(
            f"{where}, If {settled.shaped[0]}",
            "inputs of other shapes may take another branch, and TensorRT builds one",
            "make the model for one shape first: lstmopt fix MODEL --shape INPUT=SIZES -o FIXED.onnx",
        )
    _check_left(normal, precision, where)
    if precision == "f16":
        normal = rewrite(normal, Half())
    return Prepared(normal, dict(settled.relied_on))


def needs_scan(layer: RnnLayer, precision: str) -> bool:
    """Whether the parser refuses or misreads a layer.

    Args:
        layer: with its weights.
        precision: "f32" or "f16".
    """
    weights = layer.weights
    if weights is None:
        return False
    return (
        is_special(weights, READ_RIGHTLY)
        or (weights.clip is not None and weights.cell.kind == "LSTM")
        or (precision == "f16" and layer.input(SEQUENCE_LENS) is not None)
    )


def _check_left(model: ir.Model, precision: str, where: str) -> None:
    """Refuses recurrent nodes that would be misread and that could not be rewritten.

    Raises:
        LstmoptError: there is one, such as a layer whose weights are computed.
    """
    readable = {layer.node for layer in find_rnns(model) if layer.weights is not None}
    told = ("clip", "input_forget", "activations", "activation_alpha", "activation_beta")
    for node in model.graph.all_nodes():
        if node.op_type not in RECURRENT or node in readable:
            continue
        fault = next((name for name in told if name in node.attributes), "")
        lengths = len(node.inputs) > SEQUENCE_LENS and node.inputs[SEQUENCE_LENS] is not None
        if precision == "f16" and lengths:
            fault = "sequence_lens in f16"
        if fault:
            raise LstmoptError(
                f"{where}, {node.name or node.op_type}",
                f"{node.op_type} with {fault} is not rewritten for TensorRT",
                "export the model without it, or use --runtime onnxruntime",
            )
