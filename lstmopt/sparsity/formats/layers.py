"""How a recurrent layer's matrices are packed: W whole, R in the parts that are multiplied with one vector.

R of a GRU whose reset comes before the product has two: {z, r} reads the state, {h} what the reset leaves
of it. W and R each have a format: the name of a layer's is one for both, or two as in "i16+i8".
"""

from __future__ import annotations

from lstmopt.rnn.weights import RnnWeights
from lstmopt.sparsity.formats import format_named
from lstmopt.sparsity.formats.base import Array, Format
from lstmopt.sparsity.formats.i8 import I8
from lstmopt.sparsity.formats.shared import I8Shared

_AND = "+"


def layer_formats(name: str) -> tuple[Format, Format]:
    """Returns the formats of W and R that the name of a layer's format stands for.

    Raises:
        LstmoptError: it stands for none.
    """
    w, _, r = name.partition(_AND)
    return format_named(w), format_named(r or w)


def layer_format_name(w: Format, r: Format) -> str:
    """Returns what a layer's format is called everywhere, of W and R in formats of their own."""
    return w.name if w.name == r.name else f"{w.name}{_AND}{r.name}"


def pack_layer(item: Format, weights: RnnWeights, r: Format | None = None) -> tuple[list[bytes], list[bytes]]:
    """Returns W and R of each direction as the native ops take them.

    Args:
        item: the format; a part of one gate, which has no index list to share, is packed as i8 in the place
            of i8-shared. Both round alike.
        weights: of a layer, zeros where nothing is kept.
        r: the format of R, where it is not that of W.
    """
    packed_w = [item.pack(each) for each in weights.w]
    of_r = r or item
    packed_r = [b"".join(_of(of_r, part).pack(part) for part in _parts(weights, each)) for each in weights.r]
    return packed_w, packed_r


def layer_bytes(item: Format, weights: RnnWeights) -> tuple[int, int]:
    """Returns how many bytes W and R of a layer take in a format; see `pack_layer`."""
    parts = [part for each in weights.r for part in _parts(weights, each)]
    return (
        sum(item.packed_bytes(each != 0) for each in weights.w),
        sum(_of(item, part).packed_bytes(part != 0) for part in parts),
    )


def _parts(weights: RnnWeights, r: Array) -> list[Array]:
    """Returns R of a direction, ``[gates, units, columns]``, cut between gates."""
    direct = [index for index, adds in enumerate(weights.adds_state) if adds]
    others = [index for index in range(len(r)) if index not in direct]
    return [r[gates] for gates in (direct, others) if gates]


def _of(item: Format, part: Array) -> Format:
    return I8(1) if isinstance(item, I8Shared) and len(part) == 1 else item
