"""What a layer is executed as: runtime, precision, and the pattern and density of its weights."""

from __future__ import annotations

import re
from typing import NamedTuple

DENSE = "dense"
"""The pattern of weights that are all kept."""


class Kind(NamedTuple):
    """One way to execute a layer; latencies of different kinds are never mixed.

    Attributes:
        runtime: its name.
        precision: such as "int8", or "sparse-i8": a format of the native ops.
        pattern: of the masks, such as "bank64:step4"; "dense" for a dense precision.
        density: share of the weights that the pattern was asked to keep; 1 for a dense precision.
    """

    runtime: str
    precision: str
    pattern: str = DENSE
    density: float = 1.0

    @property
    def title(self) -> str:
        """The kind in one line."""
        axes = "" if self.pattern == DENSE else f", {self.pattern} at {100 * self.density:g}%"
        return f"{self.runtime} {self.precision}{axes}"

    @property
    def stem(self) -> str:
        """The kind as a part of a file's name."""
        axes = (
            () if self.pattern == DENSE else (re.sub(r"[^a-z0-9]+", "-", self.pattern), f"{self.density:g}")
        )
        return "-".join((self.runtime, self.precision, *axes))
