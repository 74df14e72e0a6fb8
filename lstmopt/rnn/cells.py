"""What a recurrent cell is, as data: a new cell is a new `CellSpec`, not a branch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CellSpec:
    """The layout of one kind of recurrent cell.

    Attributes:
        kind: ONNX's operator name.
        gates: names of the gates in ONNX's order, which is the canonical order here.
        torch_gates: the same names in the order of torch's packed weights.
        peepholes: gates that have a peephole weight, in the order of ONNX's input P.
        states: names of the carried states, in the order of the operator's outputs after Y.
        activations: ONNX's default activations, in the order of its attribute, for one direction.
        equations: one step in the names of the ONNX specification.
    """

    kind: str
    gates: tuple[str, ...]
    torch_gates: tuple[str, ...]
    peepholes: tuple[str, ...]
    states: tuple[str, ...]
    activations: tuple[str, ...]
    equations: tuple[str, ...]

    @property
    def to_torch(self) -> tuple[int, ...]:
        """Positions in ONNX's order of torch's gates: ``torch_w = onnx_w[list(to_torch)]``."""
        return tuple(self.gates.index(gate) for gate in self.torch_gates)

    @property
    def from_torch(self) -> tuple[int, ...]:
        """Positions in torch's order of ONNX's gates: ``onnx_w = torch_w[list(from_torch)]``."""
        return tuple(self.torch_gates.index(gate) for gate in self.gates)


LSTM = CellSpec(
    kind="LSTM",
    gates=("i", "o", "f", "c"),
    torch_gates=("i", "f", "c", "o"),
    peepholes=("i", "o", "f"),
    states=("h", "c"),
    activations=("Sigmoid", "Tanh", "Tanh"),
    equations=(
        "i = f(X Wi' + H Ri' + Pi . C + Wbi + Rbi)",
        "f = f(X Wf' + H Rf' + Pf . C + Wbf + Rbf)",
        "c = g(X Wc' + H Rc' + Wbc + Rbc)",
        "C = f . C + i . c",
        "o = f(X Wo' + H Ro' + Po . C + Wbo + Rbo)",
        "H = o . h(C)",
    ),
)

CELLS = (LSTM,)
