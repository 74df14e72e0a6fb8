"""Every ONNX operator that the bridge executes, by name."""

from __future__ import annotations

from collections.abc import Mapping

from lstmopt.bridge.elementwise import ELEMENTWISE
from lstmopt.bridge.linear import LINEAR
from lstmopt.bridge.movement import MOVEMENT
from lstmopt.bridge.node import Op
from lstmopt.bridge.recurrent import RECURRENT
from lstmopt.bridge.reductions import REDUCTIONS

OPS: Mapping[str, Op] = {**ELEMENTWISE, **MOVEMENT, **REDUCTIONS, **LINEAR, **RECURRENT}

CONTROL = frozenset({"If", "Loop"})
"""Operators with bodies, which the program runs itself."""
