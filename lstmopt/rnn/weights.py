"""The one form in which every other room sees a recurrent layer's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmopt.rnn.cells import CellSpec

FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class RnnWeights:
    """Weights of one recurrent layer in the canonical gate order of its cell.

    Attributes:
        cell: the kind of cell.
        direction: "forward", "reverse" or "bidirectional".
        w: input weights, ``[directions, gates, hidden, input]``.
        r: recurrent weights, ``[directions, gates, hidden, hidden]``.
        b: input and recurrent biases, ``[directions, 2, gates, hidden]``, or None for zeros.
        p: peephole weights, ``[directions, peepholes, hidden]``, or None.
        activations: one name an activation, all directions in a row, as ONNX orders them.
        activation_alpha: alphas of those activations that take one, in order.
        activation_beta: betas of those activations that take one, in order.
        clip: bound on the activations' inputs, or None.
        input_forget: ONNX's coupling of the input and forget gates of an LSTM.
        reset_after: whether a GRU's reset gate comes after the product with R (ONNX's
            linear_before_reset, torch's form) instead of before it.
    """

    cell: CellSpec
    direction: str
    w: FloatArray
    r: FloatArray
    b: FloatArray | None = None
    p: FloatArray | None = None
    activations: tuple[str, ...] = ()
    activation_alpha: tuple[float, ...] = ()
    activation_beta: tuple[float, ...] = ()
    clip: float | None = None
    input_forget: bool = False
    reset_after: bool = False

    def __post_init__(self) -> None:
        directions, gates, hidden = self.num_directions, len(self.cell.gates), self.hidden_size
        expected = {
            "w": (directions, gates, hidden, self.input_size),
            "r": (directions, gates, hidden, hidden),
            "b": (directions, 2, gates, hidden),
            "p": (directions, len(self.cell.peepholes), hidden),
        }
        for name, shape in expected.items():
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise ValueError(f"RnnWeights.{name}: shape {array.shape}, expected {shape}")

    @property
    def num_directions(self) -> int:
        """1, or 2 where bidirectional."""
        return 2 if self.direction == "bidirectional" else 1

    @property
    def hidden_size(self) -> int:
        """Hidden units of one direction."""
        return int(self.w.shape[2])

    @property
    def input_size(self) -> int:
        """Features of one input step."""
        return int(self.w.shape[3])

    @property
    def matrices(self) -> tuple[FloatArray, ...]:
        """W and R: what is pruned and what a density counts."""
        return self.w, self.r

    @property
    def parameters(self) -> int:
        """Entries of W and R (the convention of every table here; biases are not counted)."""
        return sum(array.size for array in self.matrices)

    @property
    def nonzero_parameters(self) -> int:
        """Entries of W and R that are not zero."""
        return sum(int(np.count_nonzero(array)) for array in self.matrices)

    @property
    def adds_state(self) -> tuple[bool, ...]:
        """For each gate whether a constant part of the state adds a constant to its sum, as Rb does.

        Not where the state is multiplied by another gate first.
        """
        return tuple(self.reset_after or gate not in self.cell.reset for gate in self.cell.gates)

    @property
    def has_default_activations(self) -> bool:
        """Whether the activations are the cell's defaults, named or not."""
        return self.activations in ((), self.cell.activations * self.num_directions)
