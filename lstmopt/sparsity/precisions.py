"""Formats of the native ops on the precision axis: their names there, and the patterns that suit each."""

from __future__ import annotations

from lstmopt.precision import SPARSE, is_sparse
from lstmopt.sparsity.formats import FORMATS, Format, format_named
from lstmopt.sparsity.formats.base import LANES
from lstmopt.sparsity.formats.shared import I8Shared
from lstmopt.sparsity.patterns import Bank, GateShared, Pattern, Unstructured


def sparse_format(precision: str) -> Format | None:
    """Returns the format that a precision names, such as ``sparse-i8``, or None for a dense precision."""
    return FORMATS.get(precision.removeprefix(SPARSE)) if is_sparse(precision) else None


def allowed_formats(precision: str) -> tuple[str, ...]:
    """Returns the formats that are at least as exact as a precision says, such as "sparse-i8".

    Raises:
        LstmoptError: it names no format.
    """
    name = precision.removeprefix(SPARSE)
    kin = [item for item in FORMATS.values() if item.name == name or item.name.startswith(f"{name}-")]
    bound = max((item.error for item in kin), default=format_named(name).error)
    return tuple(item.name for item in FORMATS.values() if item.error <= bound)


def suits(item: Format, pattern: Pattern) -> bool:
    """Whether a format is worth packing masks of a pattern with.

    It is where such masks cost no padding, which is what the format was made for. Unstructured masks cost
    padding in every format, so every format suits them.

    Args:
        item: the format.
        pattern: the pattern.
    """
    if isinstance(pattern, Unstructured):
        return True
    if not isinstance(pattern, (Bank, GateShared)):
        return False
    if isinstance(pattern, GateShared) is not isinstance(item, I8Shared):
        return False
    # Slots are shared by the rows of a panel of `LANES` units: within one they need equal numbers.
    even = pattern.k == "one" or pattern.panel % LANES == 0
    return even and pattern.width == item.width and pattern.step % item.step == 0
