"""Sequences of tensors, as exporters write loops that append: they are Python lists here."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lstmopt.bridge.node import Node, Op, ints

Sequence = list[Tensor]


def empty(node: Node) -> tuple[Sequence]:
    """No tensors."""
    return ([],)


def construct(node: Node, *inputs: Tensor) -> tuple[Sequence]:
    """The inputs in their order."""
    return (list(inputs),)


def insert(node: Node, sequence: Sequence, item: Tensor, position: Tensor | None = None) -> tuple[Sequence]:
    """One more, at the end or before a position."""
    place = len(sequence) if position is None else int(position)
    place += len(sequence) if place < 0 else 0
    return ([*sequence[:place], item, *sequence[place:]],)


def erase(node: Node, sequence: Sequence, position: Tensor | None = None) -> tuple[Sequence]:
    """One less, the last or that of a position."""
    place = (len(sequence) - 1 if position is None else int(position)) % len(sequence)
    return ([*sequence[:place], *sequence[place + 1 :]],)


def at(node: Node, sequence: Sequence, position: Tensor) -> Tensor:
    """The tensor of a position."""
    return sequence[int(position)]


def length(node: Node, sequence: Sequence) -> Tensor:
    """How many there are."""
    return torch.tensor(len(sequence))


def concat(node: Node, sequence: Sequence) -> Tensor:
    """All in one, along an axis or along a new one."""
    axis = node.get("axis")
    return torch.stack(sequence, axis) if node.get("new_axis", 0) else torch.cat(sequence, axis)


def split(node: Node, x: Tensor, sizes: Tensor | None = None) -> tuple[Sequence]:
    """Parts of given sizes along an axis; each of 1, with or without that axis, where no size is given."""
    axis = node.get("axis", 0)
    if sizes is None:
        parts = torch.split(x, 1, axis)
        return ([part if node.get("keepdims", 1) else part.squeeze(axis) for part in parts],)
    return (list(torch.split(x, int(sizes) if sizes.ndim == 0 else ints(sizes), axis)),)


SEQUENCES: Mapping[str, Op] = {
    "ConcatFromSequence": concat, "SequenceAt": at, "SequenceConstruct": construct, "SequenceEmpty": empty,
    "SequenceErase": erase, "SequenceInsert": insert, "SequenceLength": length, "SplitToSequence": split,
}  # fmt: skip
