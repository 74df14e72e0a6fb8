"""Operators that move, select, repeat or make values without computing on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lstmopt.bridge.elementwise import torch_dtype
from lstmopt.bridge.node import Node, Op, ints, operand


def shape(node: Node, x: Tensor) -> Tensor:
    """Sizes from ``start`` to ``end``."""
    return torch.tensor(x.shape[node.get("start", 0) : node.get("end")], dtype=torch.int64)


def size(node: Node, x: Tensor) -> Tensor:
    """Number of elements."""
    return torch.tensor(x.numel(), dtype=torch.int64)


def constant_of_shape(node: Node, sizes: Tensor) -> Tensor:
    """One value everywhere; a float is made in the module's type."""
    value = node.get("value")
    fill = torch.zeros(1) if value is None else torch.from_numpy(value.reshape(-1).copy())
    dtype = node.run.dtype if fill.is_floating_point() else fill.dtype
    return torch.full(ints(sizes), fill[0].item(), dtype=dtype)


def range_(node: Node, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """``start, start + delta, ...`` below ``limit``."""
    count = max(0, math.ceil((limit.item() - start.item()) / delta.item()))
    return start + torch.arange(count, dtype=start.dtype) * delta


def reshape(node: Node, x: Tensor, sizes: Tensor | None = None) -> Tensor:
    """0 keeps an axis unless ``allowzero``, -1 takes the rest."""
    wanted = operand(node, "shape", sizes) or []
    if not node.get("allowzero", 0):
        wanted = [x.shape[axis] if item == 0 else item for axis, item in enumerate(wanted)]
    return x.reshape(wanted)


def flatten(node: Node, x: Tensor) -> Tensor:
    """Two axes, split at ``axis``."""
    axis = node.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), -1)


def transpose(node: Node, x: Tensor) -> Tensor:
    """Axes in the order of ``perm``, reversed where absent."""
    return x.permute(node.get("perm") or tuple(reversed(range(x.ndim))))


def squeeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Removes the axes, all of size 1 where absent."""
    wanted = operand(node, "axes", axes)
    if wanted is None:
        return x.squeeze()
    gone = {axis % x.ndim for axis in wanted}
    return x.reshape([item for axis, item in enumerate(x.shape) if axis not in gone])


def unsqueeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Adds axes of size 1 at places counted in the result."""
    wanted = operand(node, "axes", axes) or []
    rank = x.ndim + len(wanted)
    for axis in sorted(axis % rank for axis in wanted):
        x = x.unsqueeze(axis)
    return x


def concat(node: Node, *inputs: Tensor) -> Tensor:
    """Joins along ``axis``."""
    return torch.cat(inputs, dim=node.get("axis", 0))


def split(node: Node, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """Cuts along ``axis`` into given sizes, or into as many equal parts as there are outputs.

    Where the parts cannot be equal the last ones are shorter, or empty.
    """
    axis = node.get("axis", 0)
    parts = operand(node, "split", sizes)
    if parts is None:
        count, length = node.get("num_outputs", len(node.outputs)), x.shape[axis]
        each = math.ceil(length / count)
        parts = [min(each, max(0, length - each * place)) for place in range(count)]
    return torch.split(x, parts, dim=axis)


def slice_(
    node: Node,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Cuts ranges; a negative step reads backwards."""
    begin, stop = operand(node, "starts", starts) or [], operand(node, "ends", ends) or []
    where = operand(node, "axes", axes) or list(range(len(begin)))
    stride = [1] * len(begin) if steps is None else ints(steps)
    for first, last, axis, step in zip(begin, stop, where, stride, strict=True):
        places = range(*slice(first, last, step).indices(x.shape[axis]))
        if not places:
            x = x.narrow(axis, 0, 0)
            continue
        low, high = min(places[0], places[-1]), max(places[0], places[-1])
        index: list[Any] = [slice(None)] * x.ndim
        index[axis % x.ndim] = slice(low, high + 1, abs(step))
        x = x[tuple(index)]
        if step < 0:
            x = x.flip(axis)
    return x


def gather(node: Node, x: Tensor, index: Tensor) -> Tensor:
    """Takes entries along ``axis``; a negative index counts from the end."""
    axis = node.get("axis", 0) % x.ndim
    index = _from_start(index, x.shape[axis])
    if index.ndim == 0:
        return x.select(axis, int(index))
    if axis == 0 and x.ndim == 2 and x.is_floating_point():
        return F.embedding(index, x)
    taken = x.index_select(axis, index.flatten())
    return taken.reshape(x.shape[:axis] + index.shape + x.shape[axis + 1 :])


def _from_start(index: Tensor, length: int) -> Tensor:
    index = index.long()
    return torch.add(index, index < 0, alpha=length)


def gather_elements(node: Node, x: Tensor, index: Tensor) -> Tensor:
    """Takes one entry along ``axis`` for each entry of the index."""
    axis = node.get("axis", 0) % x.ndim
    return torch.gather(x, axis, _from_start(index, x.shape[axis]))


def gather_nd(node: Node, x: Tensor, index: Tensor) -> Tensor:
    """Takes slices at the coordinates along the index's last axis."""
    batch = node.get("batch_dims", 0)
    depth = index.shape[-1]
    coordinates: list[Tensor] = []
    for axis in range(batch):
        grid = torch.arange(x.shape[axis])
        coordinates.append(grid.reshape([-1 if axis == i else 1 for i in range(index.ndim - 1)]))
    for position in range(depth):
        coordinates.append(_from_start(index[..., position], x.shape[batch + position]))
    return x[tuple(coordinates)]


REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_elements(node: Node, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    """Writes or reduces entries along ``axis``."""
    axis = node.get("axis", 0) % x.ndim
    index, how = _from_start(index, x.shape[axis]), node.get("reduction", "none")
    if how == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, REDUCTIONS[how])


def scatter_nd(node: Node, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    """Writes or adds slices at the coordinates along the index's last axis."""
    how = node.get("reduction", "none")
    if how not in ("none", "add"):
        raise node.error(f"reduction {how!r} is not supported")
    places = tuple(_from_start(index[..., i], x.shape[i]) for i in range(index.shape[-1]))
    return x.index_put(places, updates, accumulate=how == "add")


def expand(node: Node, x: Tensor, sizes: Tensor) -> Tensor:
    """Broadcasts both ways."""
    wanted = torch.broadcast_shapes(x.shape, torch.Size(ints(sizes)))  # type: ignore[no-untyped-call]
    return x.expand(wanted)


def tile(node: Node, x: Tensor, repeats: Tensor) -> Tensor:
    """Repeats along each axis."""
    return x.repeat(ints(repeats))


def pad(
    node: Node, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    """Adds (or, where negative, cuts) entries at both ends of axes: constant, edge, reflect or wrap."""
    amounts = operand(node, "pads", pads) or []
    where = [axis % x.ndim for axis in ints(axes)] if axes is not None else list(range(len(amounts) // 2))
    fill = node.get("value", 0.0) if value is None else value.item()
    mode = node.get("mode", "constant")
    for axis, before, after in zip(where, amounts[: len(where)], amounts[len(where) :], strict=True):
        if before == after == 0:
            continue
        if mode == "constant":
            x = F.pad(x, [0, 0] * (x.ndim - 1 - axis) + [before, after], value=fill)
        else:
            x = x.index_select(axis, _source(node, mode, x.shape[axis], before, after))
    return x


def _source(node: Node, mode: str, length: int, before: int, after: int) -> Tensor:
    places = torch.arange(-before, length + after)
    if mode == "edge":
        return places.clamp(0, length - 1)
    if mode == "wrap":
        return places % length
    if mode == "reflect":
        period = max(1, 2 * (length - 1))
        places = places % period
        return torch.where(places < length, places, period - places)
    raise node.error(f"mode {mode!r} is not supported")


def trilu(node: Node, x: Tensor, k: Tensor | None = None) -> Tensor:
    """Upper or lower triangle."""
    diagonal = 0 if k is None else int(k)
    return torch.triu(x, diagonal) if node.get("upper", 1) else torch.tril(x, diagonal)


def one_hot(node: Node, index: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """``values[1]`` at the index along a new ``axis``, ``values[0]`` elsewhere."""
    count = int(depth.item())
    places = torch.arange(count)
    hit = (_from_start(index, count).unsqueeze(-1) == places).movedim(-1, node.get("axis", -1))
    return torch.where(hit, values[1], values[0])


def non_zero(node: Node, x: Tensor) -> Tensor:
    """Coordinates of the entries that are not zero, ``[rank, count]``."""
    return torch.nonzero(x).t()


def eye_like(node: Node, x: Tensor) -> Tensor:
    """Ones on diagonal ``k``."""
    number = node.get("dtype")
    made = torch.zeros(x.shape, dtype=x.dtype if number is None else torch_dtype(node, number))
    made.diagonal(node.get("k", 0)).fill_(1)
    return made


def depth_to_space(node: Node, x: Tensor) -> Tensor:
    """Channels become blocks of the plane, depth first or column first."""
    each = node.get("blocksize")
    batch, channels, rows, columns = x.shape
    kept = channels // each**2
    if node.get("mode", "DCR") == "DCR":
        x = x.reshape(batch, each, each, kept, rows, columns).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(batch, kept, each, each, rows, columns).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, kept, rows * each, columns * each)


def space_to_depth(node: Node, x: Tensor) -> Tensor:
    """Blocks of the plane become channels."""
    each = node.get("blocksize")
    batch, channels, rows, columns = x.shape
    order = (0, 3, 5, 1, 2, 4) if node.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    x = x.reshape(batch, channels, rows // each, each, columns // each, each).permute(order)
    return x.reshape(batch, channels * each**2, rows // each, columns // each)


def reverse_sequence(node: Node, x: Tensor, lengths: Tensor) -> Tensor:
    """Reverses the first entries of each sequence, as many as its length."""
    time, batch = node.get("time_axis", 0) % x.ndim, node.get("batch_axis", 1) % x.ndim
    moved = x.movedim((time, batch), (0, 1))
    steps = torch.arange(moved.shape[0]).unsqueeze(1)
    places = torch.where(steps < lengths, lengths - 1 - steps, steps)
    taken = moved[places, torch.arange(moved.shape[1])]
    return taken.movedim((0, 1), (time, batch))


def compress(node: Node, x: Tensor, condition: Tensor) -> Tensor:
    """Takes the entries along ``axis`` for which the condition holds, of the flat tensor without one."""
    axis = node.get("axis")
    places = torch.nonzero(condition).flatten()
    return x.flatten()[places] if axis is None else x.index_select(axis, places)


MOVEMENT: Mapping[str, Op] = {
    "Compress": compress, "Concat": concat, "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space, "Expand": expand, "EyeLike": eye_like,
    "Flatten": flatten, "Gather": gather, "GatherElements": gather_elements, "GatherND": gather_nd,
    "NonZero": non_zero, "OneHot": one_hot, "Pad": pad, "Range": range_, "Reshape": reshape,
    "ReverseSequence": reverse_sequence,
    "Scatter": scatter_elements, "ScatterElements": scatter_elements, "ScatterND": scatter_nd,
    "Shape": shape, "Size": size, "Slice": slice_, "SpaceToDepth": space_to_depth,
    "Split": split, "Squeeze": squeeze, "Tile": tile,
    "Transpose": transpose, "Trilu": trilu, "Unsqueeze": unsqueeze,
}  # fmt: skip
