"""Runs a graph as it stands in ONNX Runtime, every optimisation off: the reference of all checks here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lstmopt.errors import LstmoptError
from lstmopt.rnn.constants import RANDOM_OPS

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    import onnxruntime as ort

Array = npt.NDArray[Any]


class Reference:
    """A session over a model, optionally with intermediate values as further outputs.

    Args:
        model: the graph.
        also: names of intermediate values to return as well.
        seeded: whether random operators draw the same in every run, and in every model.

    Raises:
        LstmoptError: ONNX Runtime cannot load the graph.
    """

    def __init__(self, model: ir.Model, also: Sequence[str] = (), seeded: bool = False) -> None:
        import onnx
        import onnx_ir as ir

        try:
            proto = ir.to_proto(model)
        except ir.serde.SerdeError as error:
            raise LstmoptError(
                "model",
                "damaged: a part of its graph has no form in ONNX",
                "export it again or copy it whole",
            ) from error
        there = {output.name for output in proto.graph.output}
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in also if name not in there)
        # A session goes on with the numbers that follow: where there are such nodes each run has its own.
        self._fresh = seeded and _seed(proto)
        self._file = proto.SerializeToString()
        self._session = self._open()
        self.outputs = tuple(output.name for output in self._session.get_outputs())
        if not self._fresh:
            self._file = b""

    def _open(self) -> ort.InferenceSession:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            return ort.InferenceSession(self._file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - ONNX Runtime raises classes of its own without a common base
            raise LstmoptError(
                "model",
                f"ONNX Runtime cannot load it ({first_line(error)})",
                "export it again, or with an older opset",
            ) from error

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Returns all outputs by name.

        Raises:
            LstmoptError: the inputs do not fit the model.
        """
        session = self._open() if self._fresh else self._session
        try:
            results = session.run(None, dict(feeds))
        except Exception as error:  # noqa: BLE001 - as above
            raise LstmoptError(
                "model",
                f"does not run on these inputs ({first_line(error)})",
                "check the inputs' shapes and values",
            ) from error
        return {name: np.asarray(result) for name, result in zip(self.outputs, results, strict=True)}


def run_model(model: ir.Model, feeds: Mapping[str, Array], seeded: bool = False) -> dict[str, Array]:
    """Returns a model's outputs by name on some inputs; ``seeded``: as in ``Reference``."""
    return Reference(model, seeded=seeded).run(feeds)


def _seed(proto: onnx.ModelProto) -> bool:
    """Gives every random operator that has no seed the same one; returns whether there are random ones."""
    from onnx import helper

    found = False
    pending = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    while pending:
        node = pending.pop()
        for attribute in node.attribute:
            pending += [*attribute.g.node, *(inner for graph in attribute.graphs for inner in graph.node)]
        if node.op_type in RANDOM_OPS and node.domain in ("", "ai.onnx"):
            found = True
            if not any(attribute.name == "seed" for attribute in node.attribute):
                node.attribute.append(helper.make_attribute("seed", 1.0))
    return found


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text that says something, without a trailing full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".")[:300] if lines else type(error).__name__
