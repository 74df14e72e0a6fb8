"""Which weights of a module are pruned, and the renewal of their masks: magnitude, and growth by gradient."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from lstmopt.bridge.module import OnnxModule
from lstmopt.bridge.program import value_names
from lstmopt.rnn.reader import R, RnnLayer, W, find_rnns
from lstmopt.sparsity.patterns import Pattern

Array = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]

OPAQUE = frozenset({"LSTM", "GRU", "RNN", "Loop", "If", "Scan"})


@dataclass(frozen=True)
class Matrix:
    """A pruned weight, seen as matrices ``[gates, hidden, input]``.

    Attributes:
        weight: the weight's name.
        gates: gates in a recurrent weight ``[directions, gates * hidden, input]``; 0 for a plain matrix.
        transposed: whether a plain matrix is ``[input, output]``.
    """

    weight: str
    gates: int = 0
    transposed: bool = False

    def views(self, array: Array) -> dict[str, Array]:
        """Returns the matrices of the weight, one a direction, as views."""
        if self.gates:
            shape = (array.shape[0], self.gates, array.shape[1] // self.gates, array.shape[2])
            return {f"{self.weight}/{d}": part for d, part in enumerate(array.reshape(shape))}
        return {self.weight: (array.T if self.transposed else array)[None]}


@dataclass(frozen=True, eq=False)
class Group:
    """Weights that share one budget.

    Attributes:
        matrices: the weights.
        pattern: which masks are legal.
        density: the density at the end.
    """

    matrices: tuple[Matrix, ...]
    pattern: Pattern
    density: float


def results_in_bodies(model: ir.Model) -> dict[str, str | None]:
    """Returns a value that each layer in a body computes, by its name; None in a branch that is out."""
    names = value_names(model)
    return {
        layer.name: next((names[value] for value in layer.node.outputs if value in names), None)
        for layer in find_rnns(model)
        if layer.in_body
    }


def recurrent_matrices(
    model: ir.Model, module: OnnxModule, unreached: Collection[str] = ()
) -> dict[str, tuple[Matrix, ...]]:
    """Returns W and R of each LSTM that can be pruned, by the layer's name.

    A weight of several layers stands under the first of them.

    Args:
        model: the graph.
        module: made of it.
        unreached: layers that are left out, with the weights that no other layer reads.
    """
    weights = module.weights
    found: dict[str, tuple[Matrix, ...]] = {}
    seen: set[str] = set()
    for layer, names in read_weights(model).items():
        if layer.name in unreached:
            continue
        fresh = [name for name in names if name in weights and name not in seen]
        seen.update(fresh)
        if fresh:
            found[layer.name] = tuple(Matrix(name, gates=len(layer.cell.gates)) for name in fresh)
    return found


def read_weights(model: ir.Model) -> dict[RnnLayer, tuple[str, ...]]:
    """Returns the names of W and R of each layer that can be changed."""
    names = value_names(model)
    return {
        layer: tuple(
            names[value]
            for position in (W, R)
            if (value := layer.input(position)) is not None and value in names
        )
        for layer in find_rnns(model)
        if layer.supported
    }


def decoder_matrices(model: ir.Model, module: OnnxModule) -> tuple[Matrix, ...]:
    """Returns the MatMul and Gemm weights that read what the LSTMs gave."""
    weights = module.weights
    reached = {value for layer in find_rnns(model) for value in layer.node.outputs}
    found: dict[str, Matrix] = {}
    for node in model.graph:
        if not any(value in reached for value in node.inputs) or node.op_type in OPAQUE:
            continue
        reached.update(node.outputs)
        operand = node.inputs[1] if node.op_type in ("MatMul", "Gemm") else None
        name = "" if operand is None else str(operand.name)
        if name in weights and weights[name].ndim == 2:
            by_rows = (
                node.op_type == "Gemm"
                and "transB" in node.attributes
                and node.attributes["transB"].as_int() == 1
            )
            found.setdefault(name, Matrix(name, transposed=not by_rows))
    return tuple(found.values())


class Pruner:
    """Renews the masks of a module.

    Args:
        module: what is pruned.
        groups: its pruned weights, group by group.
        regrow: whether gradients are collected for regrowth.
    """

    def __init__(self, module: OnnxModule, groups: Sequence[Group], regrow: bool) -> None:
        self.module = module
        self.groups = tuple(groups)
        self._weights: dict[str, Tensor] = {
            matrix.weight: module.weights[matrix.weight] for group in groups for matrix in group.matrices
        }
        self.gradients: dict[str, Tensor] = (
            {name: torch.zeros_like(weight) for name, weight in self._weights.items()} if regrow else {}
        )

    @torch.no_grad()
    def collect(self) -> None:
        """Adds the dense gradients of this step, before they are masked."""
        for name, total in self.gradients.items():
            gradient = self._weights[name].grad
            if gradient is not None:
                total.add_(gradient)

    def renew(self, densities: Sequence[float], exchanged: float) -> None:
        """Sets masks of new densities.

        The largest weights are kept; a share of the budget, `exchanged`, goes to the weights with the
        largest summed gradient among all others (Evci et al., arXiv 1911.11134, with the sum of
        gradients since the last renewal in the place of one), which start at 0.

        Args:
            densities: one a group.
            exchanged: share of each budget that goes to regrowth.
        """
        masks: dict[str, BoolArray] = {}
        for group, density in zip(self.groups, densities, strict=True):
            weights = {m.weight: self._weights[m.weight].detach().cpu().numpy() for m in group.matrices}
            scores = _views(group, {name: np.abs(array) for name, array in weights.items()})
            kept = group.pattern.masks(scores, density * (1 - exchanged) if self.gradients else density)
            if self.gradients and exchanged > 0:
                totals = {m.weight: np.abs(self.gradients[m.weight].cpu().numpy()) for m in group.matrices}
                kept = group.pattern.masks(_with_growth(scores, kept, _views(group, totals)), density)
            for matrix in group.matrices:
                whole = np.zeros(weights[matrix.weight].shape, dtype=np.bool_)
                for key, view in matrix.views(whole).items():
                    view[...] = kept[key]
                masks[matrix.weight] = whole
        self.module.set_masks(masks)
        for total in self.gradients.values():
            total.zero_()


def _views(group: Group, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {
        key: view for matrix in group.matrices for key, view in matrix.views(arrays[matrix.weight]).items()
    }


def _with_growth(
    scores: Mapping[str, Array], kept: Mapping[str, BoolArray], growth: Mapping[str, Array]
) -> dict[str, Array]:
    """Returns scores in which every kept weight comes before every other, and these go by their gradient."""
    largest = max((float(array.max(initial=0.0)) for array in growth.values()), default=0.0) or 1.0
    top = max((float(array.max(initial=0.0)) for array in scores.values()), default=0.0) or 1.0
    return {
        name: np.where(kept[name], 1e3 * (1.0 + array.astype(np.float64) / top), growth[name] / largest)
        for name, array in scores.items()
    }
