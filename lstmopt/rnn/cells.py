"""What a recurrent cell is, as data: a new cell is a new `CellSpec`, not a branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Part = TypeVar("Part")


@dataclass(frozen=True)
class CellSpec:
    """The layout of one kind of recurrent cell; the one place that knows an order of gates.

    Attributes:
        kind: ONNX's operator name.
        gates: names of the gates in ONNX's order, which is the canonical order here.
        torch_gates: the same names in the order of torch's packed weights.
        peepholes: gates that have a peephole weight, in the order of ONNX's input P.
        states: names of the carried states, in the order of the operator's outputs after Y.
        activations: ONNX's default activations, in the order of its attribute, for one direction.
        reset: gates that see the state through another gate: it multiplies either the state or, where the
            layer says ``reset_after``, the product with R and its bias.
    """

    kind: str
    gates: tuple[str, ...]
    torch_gates: tuple[str, ...]
    peepholes: tuple[str, ...]
    states: tuple[str, ...]
    activations: tuple[str, ...]
    reset: tuple[str, ...] = ()

    @property
    def to_torch(self) -> tuple[int, ...]:
        """Positions in ONNX's order of torch's gates: ``torch_w = onnx_w[list(to_torch)]``."""
        return tuple(self.gates.index(gate) for gate in self.torch_gates)

    def by_gate(self, parts: Sequence[Part]) -> dict[str, Part]:
        """Returns the parts of a tensor that was cut into gates, in ONNX's order, by the gates' names."""
        return dict(zip(self.gates, parts, strict=True))

    def by_peephole(self, parts: Sequence[Part]) -> dict[str, Part]:
        """Returns the parts of P by the names of the gates that they belong to."""
        return dict(zip(self.peepholes, parts, strict=True))


# i = f(X Wi' + H Ri' + Pi . C + Wbi + Rbi)      f = f(X Wf' + H Rf' + Pf . C + Wbf + Rbf)
# c = g(X Wc' + H Rc' + Wbc + Rbc)               C = f . C + i . c
# o = f(X Wo' + H Ro' + Po . C + Wbo + Rbo)      H = o . h(C)
LSTM = CellSpec(
    kind="LSTM",
    gates=("i", "o", "f", "c"),
    torch_gates=("i", "f", "c", "o"),
    peepholes=("i", "o", "f"),
    states=("h", "c"),
    activations=("Sigmoid", "Tanh", "Tanh"),
)

# z = f(X Wz' + H Rz' + Wbz + Rbz)               r = f(X Wr' + H Rr' + Wbr + Rbr)
# h = g(X Wh' + Wbh + (r . H) Rh' + Rbh), or with the reset after the product, r . (H Rh' + Rbh)
# H = (1 - z) . h + z . H
GRU = CellSpec(
    kind="GRU",
    gates=("z", "r", "h"),
    torch_gates=("r", "z", "h"),
    peepholes=(),
    states=("h",),
    activations=("Sigmoid", "Tanh"),
    reset=("h",),
)

CELLS = (LSTM, GRU)
"""The cells that are read, resized and pruned. In both, a unit is known to others by its column of R and by
what reads Y alone: it can go where those are zero, and where they are zero for it it can come."""
