"""Runs graph rewrites: passes of `onnx_ir` that see a model and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lstmopt.errors import LstmoptError
from lstmopt.rnn.execution import first_line

if TYPE_CHECKING:
    import onnx_ir as ir


def rewrite(model: ir.Model, *passes: ir.passes.PassBase) -> ir.Model:
    """Returns a copy of a model after some passes; the model that was given is as it was.

    An in-place pass that is interrupted leaves a half-changed model: here it is the copy that is lost.

    Args:
        model: the graph.
        passes: in the order in which they run.

    Raises:
        LstmoptError: a pass has failed; the line names it.
    """
    result = model.clone()
    for item in passes:
        name = f"pass {type(item).__name__}"
        try:
            result = item(result).model
        except LstmoptError as error:
            raise LstmoptError(f"{name}, {error.where}", error.fault, error.mend) from error
        except Exception as error:  # a graph that nobody has thought of
            cause = error.__cause__ or error
            raise LstmoptError(
                name,
                f"failed on this graph ({type(cause).__name__}: {first_line(cause)})",
                "report the model",
            ) from error
    return result
