"""A node of an ONNX graph as the bridge executes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lstmopt.errors import LstmoptError

Op = Callable[..., Any]
"""``op(node, *inputs)`` returns a tensor, or a sequence of one tensor an output."""


@dataclass
class Run:
    """What all nodes of a module share while it runs.

    Attributes:
        dtype: the type in which floats are computed.
        training: whether dropout is applied.
        dropout: probability with which an LSTM's inputs and outputs are dropped.
        wanted: slots whose values are captured, with the values' names.
        captured: what they were, by name, one tensor each time.
    """

    dtype: torch.dtype = torch.float32
    training: bool = False
    dropout: float = 0.0
    wanted: dict[int, str] = field(default_factory=dict)
    captured: dict[str, list[Tensor]] = field(default_factory=dict)


@dataclass(eq=False)
class Node:
    """One operator, its attributes as Python values, its inputs and outputs as slots.

    Attributes:
        op: ONNX's operator name.
        name: the node's name, or its first output's.
        opset: version of the operator set.
        attributes: Python numbers, strings, tuples and numpy arrays.
        inputs: slot of each input, None where absent.
        outputs: slot of each output, None where absent.
        run: what all nodes share.
        release: slots that nothing reads after this node.
        drop_input: whether an LSTM's X is dropped while fine-tuning.
    """

    op: str
    name: str
    opset: int
    attributes: Mapping[str, Any]
    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]
    run: Run
    release: tuple[int, ...] = field(default=())
    drop_input: bool = False

    def get(self, name: str, default: Any = None) -> Any:
        """Returns an attribute or its default."""
        return self.attributes.get(name, default)

    def error(self, fault: str) -> LstmoptError:
        """Returns the error of a node that cannot be trained through."""
        return LstmoptError(
            f"node {self.name} ({self.op})",
            fault,
            "export the model without it, or optimise without training",
        )


def ints(value: Tensor | tuple[int, ...]) -> list[int]:
    """Returns an operand that holds sizes or axes as Python integers."""
    return [int(item) for item in (value.flatten().tolist() if isinstance(value, Tensor) else value)]


def operand(node: Node, name: str, value: Tensor | None) -> list[int] | None:
    """Returns axes or sizes that are an input in newer operator sets and an attribute in older ones."""
    if value is not None:
        return ints(value)
    attribute = node.get(name)
    if attribute is None:
        return None
    return [attribute] if isinstance(attribute, int) else ints(attribute)
