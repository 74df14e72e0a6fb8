"""Runs a graph as it stands in ONNX Runtime, every optimisation off: the reference of all checks here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lstmopt.errors import LstmoptError

if TYPE_CHECKING:
    import onnx_ir as ir

Array = npt.NDArray[Any]


class Reference:
    """A session over a model, optionally with intermediate values as further outputs.

    Args:
        model: the graph.
        also: names of intermediate values to return as well.

    Raises:
        LstmoptError: ONNX Runtime cannot load the graph.
    """

    def __init__(self, model: ir.Model, also: Sequence[str] = ()) -> None:
        import onnx
        import onnx_ir as ir
        import onnxruntime as ort

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
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # noqa: BLE001 - ONNX Runtime raises classes of its own without a common base
            raise LstmoptError(
                "model",
                f"ONNX Runtime cannot load it ({first_line(error)})",
                "export it again, or with an older opset",
            ) from error
        self.outputs = tuple(output.name for output in self._session.get_outputs())

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Returns all outputs by name.

        Raises:
            LstmoptError: the inputs do not fit the model.
        """
        try:
            results = self._session.run(None, dict(feeds))
        except Exception as error:  # noqa: BLE001 - as above
            raise LstmoptError(
                "model",
                f"does not run on these inputs ({first_line(error)})",
                "check the inputs' shapes and values",
            ) from error
        return {name: np.asarray(result) for name, result in zip(self.outputs, results, strict=True)}


def run_model(model: ir.Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Returns a model's outputs by name on some inputs."""
    return Reference(model).run(feeds)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text that says something, without a trailing full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".")[:300] if lines else type(error).__name__
