"""Every ONNX operator that the bridge executes, by name."""

from __future__ import annotations

from collections.abc import Mapping

from lstmopt.bridge.attention import ATTENTION
from lstmopt.bridge.elementwise import ELEMENTWISE
from lstmopt.bridge.linear import LINEAR
from lstmopt.bridge.movement import MOVEMENT
from lstmopt.bridge.node import Op
from lstmopt.bridge.quantised import QUANTISED
from lstmopt.bridge.recurrent import RECURRENT
from lstmopt.bridge.reductions import REDUCTIONS
from lstmopt.bridge.sequences import SEQUENCES

OPS: Mapping[str, Op] = {
    **ELEMENTWISE, **MOVEMENT, **REDUCTIONS, **LINEAR, **RECURRENT, **ATTENTION, **QUANTISED, **SEQUENCES,
}  # fmt: skip

CONTROL = frozenset({"If", "Loop", "Scan"})
"""Operators with bodies, which the program runs itself."""
