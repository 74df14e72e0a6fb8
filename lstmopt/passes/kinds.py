"""As what a target may execute a layer: runtime and precision, and if sparse, pattern and density."""

from __future__ import annotations

from collections.abc import Sequence

from lstmopt.measure.kind import DENSE, Kind
from lstmopt.runtimes import runtime
from lstmopt.runtimes.ops import available
from lstmopt.sparsity.patterns import parse_pattern
from lstmopt.sparsity.precisions import sparse_format, suits
from lstmopt.targets import Target

DENSITIES = (0.125,)
"""Densities at which sparse layers are measured where none are asked for."""


def asked_kinds(target: Target, patterns: Sequence[str] | None, densities: Sequence[float]) -> list[Kind]:
    """Returns what a target may execute a layer as, whether or not this machine can.

    Args:
        target: its runtimes and precisions; each sparse one with every pattern that its format suits, at
            every density.
        patterns: of sparse layers; None takes the target's.
        densities: of sparse layers.

    Raises:
        LstmoptError: an unknown pattern.
    """
    found = []
    for wanted in target.runtimes:
        for precision in wanted.precisions:
            item = sparse_format(precision)
            if item is None:
                found.append(Kind(wanted.runtime, precision))
                continue
            among = target.patterns if patterns is None else patterns
            fitting = [pattern for pattern in among if suits(item, parse_pattern(pattern))]
            # Rounded: 3.1% and 0.031 are one density.
            shares = [float(f"{density:.6g}") for density in densities]
            found += [Kind(wanted.runtime, precision, p, d) for p in fitting for d in shares]
    return list(dict.fromkeys(found))


def usable_kinds(kinds: Sequence[Kind]) -> list[Kind]:
    """Returns those kinds that this machine runs: a sparse one needs nothing but the native ops' library.

    Args:
        kinds: of any runtimes.
    """
    return [
        kind
        for kind in kinds
        if runtime(kind.runtime).status().usable
        and (
            kind.precision in runtime(kind.runtime).precisions()
            if kind.pattern == DENSE
            else available(kind.runtime)
        )
    ]
