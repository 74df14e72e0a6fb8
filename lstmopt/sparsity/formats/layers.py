"""How a recurrent layer's matrices are packed: W whole, R in the parts that are multiplied with one vector.

R of a GRU whose reset comes before the product has two: {z, r} reads the state, {h} what the reset leaves
of it.
"""

from __future__ import annotations

from lstmopt.rnn.weights import RnnWeights
from lstmopt.sparsity.formats.base import Array, Format
from lstmopt.sparsity.formats.i8 import I8
from lstmopt.sparsity.formats.shared import I8Shared


def pack_layer(item: Format, weights: RnnWeights) -> tuple[list[bytes], list[bytes]]:
    """Returns W and R of each direction as the native ops take them.

    Args:
        item: the format; a part of one gate, which has no index list to share, is packed as i8 in the place
            of i8-shared. Both round alike.
        weights: of a layer, zeros where nothing is kept.
    """
    packed_w = [item.pack(each) for each in weights.w]
    packed_r = [b"".join(_of(item, part).pack(part) for part in _parts(weights, each)) for each in weights.r]
    return packed_w, packed_r


def layer_bytes(item: Format, weights: RnnWeights) -> int:
    """Returns how many bytes a layer takes in a format; see `pack_layer`."""
    total = sum(item.packed_bytes(each != 0) for each in weights.w)
    parts = [part for each in weights.r for part in _parts(weights, each)]
    return total + sum(_of(item, part).packed_bytes(part != 0) for part in parts)


def _parts(weights: RnnWeights, r: Array) -> list[Array]:
    """Returns R of a direction, ``[gates, units, columns]``, cut between gates."""
    direct = [index for index, adds in enumerate(weights.adds_state) if adds]
    others = [index for index in range(len(r)) if index not in direct]
    return [r[gates] for gates in (direct, others) if gates]


def _of(item: Format, part: Array) -> Format:
    return I8(1) if isinstance(item, I8Shared) and len(part) == 1 else item
