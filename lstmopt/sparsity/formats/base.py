"""What a format is, and what all of them share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from lstmopt.sparsity.formats.blob import Parts

Array = npt.NDArray[Any]

LANES = 16
"""Units of a panel: the 32-bit lanes of a 512-bit register."""

MOST_GATES = 4

LARGEST = 2.0**100
"""Largest magnitude of a weight: scales and products of larger ones would leave the range of f32."""

SMALLEST = 2.0**-100
"""What is smaller becomes zero, for the same reason: a weight of f32, a row of the others."""


class Format(Protocol):
    """One way to pack a matrix."""

    @property
    def name(self) -> str:
        """What the formats are called everywhere."""

    @property
    def width(self) -> int:
        """Columns of a bank."""

    @property
    def step(self) -> int:
        """Entries of a row and bank are stored in multiples of it."""

    @property
    def bytes_per_nonzero(self) -> float:
        """Where the mask fits the pattern."""

    @property
    def error(self) -> float:
        """Bound on a layer's error, root mean square over the output's, against the unrounded weights."""

    def round_weights(self, matrix: Array, columns: Array | None = None) -> Array:
        """Returns the nearest weights, f32, that the packed form stands for exactly.

        Rounding twice changes nothing, so packing a model's rounded weights packs those very weights.

        Args:
            matrix: ``[gates, units, columns]``, its zeros the mask; or, ten times as fast at a density
                of 6%, only what each row keeps, ``[gates, units, kept]``, zeros where a row keeps less.
            columns: of each entry, ascending in a row, where the matrix is not whole.
        """

    def pack(self, matrix: Array) -> bytes:
        """Returns the packed form of the rounded weights.

        Args:
            matrix: ``[gates, units, columns]``, its zeros the mask.
        """

    def packed_bytes(self, mask: Array) -> int:
        """Returns how many bytes a mask costs, padding included."""

    def owns(self, parts: Parts) -> bool:
        """Whether packed weights are of this format."""

    def decode(self, parts: Parts) -> Array:
        """Returns the dense weights, ``[gates, units, columns]``."""


def checked(matrix: Array) -> Array:
    """Returns a matrix in f32.

    Raises:
        ValueError: its shape, or a weight is not finite or too large.
    """
    if matrix.ndim != 3 or not 1 <= matrix.shape[0] <= MOST_GATES or not matrix.size:
        raise ValueError(f"a matrix of shape {matrix.shape}, expected [1 to {MOST_GATES}, units, columns]")
    values = np.array(matrix, dtype=np.float32)
    if not in_range(values):
        raise ValueError("a weight is not finite, or above 2^100")
    return values


def in_range(values: Array) -> bool:
    """Whether the native ops take numbers: all are finite, and none is above `LARGEST`."""
    return bool((np.abs(values) <= LARGEST).all())


def columns_of(values: Array, columns: Array | None) -> Array:
    """Returns the column of each entry, in the shape of the values: counted where none are given."""
    if columns is None:
        return np.broadcast_to(np.arange(values.shape[2]), values.shape)
    return columns


def significant(values: Array, bits: int) -> Array:
    """Rounds to so many significant bits.

    Scales are rounded so that scale times word is exact in f32: the dense weights then stand for the
    packed ones to the last bit, and the scale can be found again from them.
    """
    mantissa, exponent = np.frexp(values.astype(np.float64))
    rounded: Array = np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits)
    return rounded
