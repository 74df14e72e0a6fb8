"""The variance of numbers that come array by array."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

EPSILON = float(np.finfo(np.float64).eps)


@dataclass
class Variance:
    """Count, mean and variance so far: the outputs of a whole data set need not fit in memory.

    Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances"
    (1979), eq. 2.1.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, array: npt.NDArray[np.float64]) -> None:
        """Takes further numbers in."""
        if not array.size:
            return
        apart, count = float(array.mean()) - self.mean, self.count + array.size
        self.squares += array.size * (float(array.var()) + apart**2 * self.count / count)
        self.mean += apart * array.size / count
        self.count = count

    @property
    def variance(self) -> float:
        """Variance of all of them; 0 of none, and where nothing but the mean's rounding is left."""
        found = self.squares / self.count if self.count else 0.0
        return 0.0 if found <= (4 * EPSILON * self.mean) ** 2 else found  # NaN stays NaN
