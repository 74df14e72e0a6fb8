"""Training on the rounded weights that ship: forward and backward see them, the optimiser moves full ones."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from lstmopt.bridge.module import OnnxModule
from lstmopt.bridge.pruning import Array, Matrix
from lstmopt.sparsity.formats import Format


class Rounding:
    """Rounds pruned matrices of a module to a format, whenever asked to.

    Only what the masks keep is looked at: a whole matrix at 6% density would take ten times as long.

    Args:
        module: what is trained.
        matrices: its matrices that are rounded; each has a mask by the time of `renew`.
        item: the format.
    """

    def __init__(self, module: OnnxModule, matrices: Iterable[Matrix], item: Format) -> None:
        self._module, self._format = module, item
        self._matrices = tuple(matrices)
        self._masks: object = None
        self._places: dict[str, list[tuple[Array, Array]]] = {}

    def renew(self) -> None:
        """Lets the module compute with what its weights are rounded to now."""
        module = self._module
        if self._masks is not module.masks:
            self._masks, module.rounded = module.masks, {}
            self._places = {
                matrix.weight: _places(matrix, module.masks[matrix.weight].cpu().numpy())
                for matrix in self._matrices
            }
        weights = module.weights
        for name, places in self._places.items():
            if name not in module.rounded:
                module.rounded[name] = torch.zeros_like(weights[name], requires_grad=False)
            held = [tensor.detach().cpu() for tensor in (weights[name], module.rounded[name])]
            exact, rounded = (tensor.numpy().reshape(-1) for tensor in held)
            for columns, entries in places:
                rounded[entries] = self._format.round_weights(exact[entries], columns)
            if module.device.type != "cpu":
                module.rounded[name].copy_(held[1])

    def stop(self) -> None:
        """Lets the module compute with its weights themselves."""
        self._module.rounded = {}


def _places(matrix: Matrix, mask: Array) -> list[tuple[Array, Array]]:
    """Returns what a mask keeps, row by row, of each direction.

    Rows that keep less than the fullest end with entries that are masked: they are 0 and stay so.

    Returns:
        Columns and entries of the flat weight, both ``[gates, hidden, kept]``.
    """
    numbers = matrix.views(np.arange(mask.size).reshape(mask.shape))
    found = []
    for key, view in matrix.views(mask).items():
        kept = max(1, int(view.sum(axis=2).max()))
        columns = np.argsort(~view, axis=2, kind="stable")[..., :kept]
        found.append((columns, np.take_along_axis(numbers[key], columns, axis=2)))
    return found
