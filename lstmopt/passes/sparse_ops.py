"""Graph rewrites: weights that hold zeros go to the sparse ops, or are rounded as those would have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from lstmopt.rnn.constants import constant_value
from lstmopt.rnn.reader import INITIAL_H, SEQUENCE_LENS, RnnLayer, X, find_rnns
from lstmopt.rnn.weights import RnnWeights
from lstmopt.rnn.writer import clear_unused, free_name, replace_constant, write_weights
from lstmopt.runtimes.ops import DOMAIN, VERSION, sparse_layer, sparse_matmul
from lstmopt.runtimes.ops.nodes import constants_of
from lstmopt.sparsity.formats import FORMATS, Format, format_named
from lstmopt.sparsity.formats.base import in_range
from lstmopt.sparsity.formats.layers import layer_bytes, layer_formats, pack_layer
from lstmopt.sparsity.formats.shared import I8Shared

Array = npt.NDArray[np.floating]
Formats = Mapping[str, str]
"""The format of each place, by its name; of a layer, see `lstmopt.sparsity.formats.layers`."""

DENSEST = 0.5
"""Density up to which it is worth measuring whether a format is faster than the runtimes' dense kernels."""

MOST_COLUMNS = 2**16 - 2**8
"""Columns of a matrix up to which no row, padding included, has more entries than the kernels add: 65,536."""


@dataclass(frozen=True, eq=False)
class Place:
    """A node whose weights could be packed.

    Attributes:
        name: of the layer, or of the product's node.
        node: the node.
        layer: of a recurrent node; None for a product.
        matrices: ``[gates, units, columns]``: W and R of each direction, or the one of a product.
    """

    name: str
    node: ir.Node
    layer: RnnLayer | None
    matrices: tuple[Array, ...]

    @property
    def density(self) -> float:
        """Share of the weights that are not zero: of a layer in W or R, whichever is less."""
        parts = [self.matrices] if self.layer is None else [self.matrices[0::2], self.matrices[1::2]]
        return min(sum(map(np.count_nonzero, part)) / sum(matrix.size for matrix in part) for part in parts)

    @property
    def formats(self) -> tuple[Format, ...]:
        """What the weights can be packed in: all formats, but for a product the one that gates share."""
        return tuple(f for f in FORMATS.values() if self.layer is not None or not isinstance(f, I8Shared))

    def packed_bytes(self, item: Format) -> tuple[int, ...]:
        """Returns how many bytes W and R of a layer take in a format, or the matrix of a product."""
        if self.layer is None:
            return (item.packed_bytes(self.matrices[0] != 0),)
        assert self.layer.weights is not None
        return layer_bytes(item, self.layer.weights)

    @property
    def form(self) -> tuple[str, bool]:
        """What its latency depends on beside shapes and density: the operator, and a GRU's reset form."""
        weights = None if self.layer is None else self.layer.weights
        return self.node.op_type, weights is not None and weights.reset_after

    @property
    def input(self) -> ir.Value:
        """What is multiplied: ``[steps, batch, input]`` of a layer, any rank of a product."""
        value = self.node.inputs[X]
        assert value is not None
        return value


def sparse_places(model: ir.Model, densest: float = DENSEST) -> tuple[Place, ...]:
    """Returns the nodes that a sparse op could replace: at most half of W, of R or of the matrix is not zero.

    They are the layers that `lstmopt.rnn` supports, those in bodies included; and of the main graph MatMul
    with a constant matrix on the right, and Gemm of plain form with one. Numbers that the ops refuse, and
    sizes, leave a node as it is.

    Args:
        model: the graph; weights in f32.
        densest: density up to which a place counts; 1 for all of them.
    """
    layers = {layer.node: layer for layer in find_rnns(model) if layer.supported}
    found, taken = [], {layer.name for layer in layers.values()}
    inside = [layer.node for layer in layers.values() if layer.in_body]
    for index, node in enumerate((*model.graph, *inside)):
        if node in layers:
            weights = layers[node].weights
            assert weights is not None
            if not all(map(in_range, _numbers(weights))):
                continue
            # Direction by direction, W before R.
            matrices = tuple(each for pair in zip(*weights.matrices, strict=True) for each in pair)
            place = Place(layers[node].name, node, layers[node], matrices)
        else:
            matrix = _product(node)
            if matrix is None:
                continue
            name = node.name or f"{node.op_type}_{index}"
            if name in taken:
                name = f"{name}_{index}"
            place = Place(name, node, None, (matrix,))
        taken.add(place.name)
        if place.density <= densest and all(m.shape[-1] <= MOST_COLUMNS for m in place.matrices):
            found.append(place)
    return tuple(found)


def _numbers(weights: RnnWeights) -> list[Array]:
    return [array for array in (weights.w, weights.r, weights.b, weights.p) if array is not None]


def _product(node: ir.Node) -> Array | None:
    """Returns the matrix of a product as ``[1, units, columns]``, or None where no op of ours does it."""
    if node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx") or len(node.inputs) < 2:
        return None
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    if any(attributes.get(name, value) != value for name, value in plain.items()):
        return None
    matrix = None if node.inputs[1] is None else constant_value(node.inputs[1])
    if matrix is None or matrix.ndim != 2 or matrix.dtype != np.float32 or not in_range(matrix):
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = constant_value(node.inputs[2])
        units = matrix.shape[0] if attributes.get("transB") else matrix.shape[1]
        if (
            bias is None
            or bias.size not in (1, units)
            or bias.shape[:-1] not in ((), (1,))
            or not in_range(bias)
        ):
            return None
    return (matrix if attributes.get("transB") else matrix.T)[None]


class SparseOps(ir.passes.InPlacePass):
    """Puts our ops in the place of LSTM, GRU, MatMul and Gemm.

    Args:
        formats: the format of each place; those that are not named stay as they are.
        threads: tasks that a step is divided into.
        densest: see `sparse_places`.
    """

    def __init__(self, formats: Formats, threads: int = 1, densest: float = DENSEST) -> None:
        self._formats, self._threads, self._densest = formats, threads, densest

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the model."""
        found = sparse_places(model, self._densest)
        places = [place for place in found if place.name in self._formats]
        _tell_shapes(model, places)
        for place in places:
            name, form = free_name(model.graph, f"{place.name}.sparse"), self._formats[place.name]
            node = self._layer(place.layer, form, name) if place.layer else self._matmul(place, form, name)
            _replace(place.node, node)
        if places:
            model.graph.opset_imports[DOMAIN] = VERSION
            clear_unused(model)
        return ir.passes.PassResult(model, bool(places))

    def _layer(self, layer: RnnLayer, form: str, name: str) -> ir.Node:
        weights, x = layer.weights, layer.input(X)
        assert weights is not None and x is not None
        w, r = layer_formats(form)
        return sparse_layer(
            weights,
            *pack_layer(w, weights, r),
            x,
            lengths=layer.input(SEQUENCE_LENS),
            initial=[layer.input(INITIAL_H + index) for index in range(len(weights.cell.states))],
            name=name,
            threads=self._threads,
        )

    def _matmul(self, place: Place, form: str, name: str) -> ir.Node:
        bias = place.node.inputs[2] if len(place.node.inputs) > 2 else None
        values = None if bias is None else constant_value(bias)
        units = place.matrices[0].shape[1]
        if values is not None:
            values = np.ascontiguousarray(np.broadcast_to(values.reshape(-1), units))
        blob = format_named(form).pack(place.matrices[0])
        return sparse_matmul(blob, place.input, bias=values, name=name, threads=self._threads)


class RoundWeights(ir.passes.InPlacePass):
    """Gives the places the weights that their packed forms stand for, in standard ops.

    Args:
        formats: the format of each place; those that are not named stay as they are.
        densest: see `sparse_places`.
    """

    def __init__(self, formats: Formats, densest: float = DENSEST) -> None:
        self._formats, self._densest = formats, densest

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the model."""
        places = [place for place in sparse_places(model, self._densest) if place.name in self._formats]
        for place in places:
            # Matrices of a layer are W and R in turn.
            items = cycle(layer_formats(self._formats[place.name]))
            rounded = [
                item.round_weights(matrix) for matrix, item in zip(place.matrices, items, strict=False)
            ]
            if place.layer is None:
                transposed = "transB" in place.node.attributes and place.node.attributes["transB"].value
                matrix = rounded[0][0] if transposed else rounded[0][0].T
                replace_constant(model, place.node, 1, np.ascontiguousarray(matrix))
            else:
                assert place.layer.weights is not None
                write_weights(model, place.layer, _with_matrices(place.layer.weights, rounded))
        if places:
            clear_unused(model)
        return ir.passes.PassResult(model, bool(places))


def _with_matrices(weights: RnnWeights, matrices: list[Array]) -> RnnWeights:
    return replace(weights, w=np.stack(matrices[0::2]), r=np.stack(matrices[1::2]))


def _tell_shapes(model: ir.Model, places: Sequence[Place]) -> None:
    """Gives the places' outputs the shapes that the graph leaves out: the rank, and the sizes of the weights.

    ONNX Runtime infers no shapes of an op that is not its own, and so none of what follows it. A Scan,
    however, only runs if the rank of all that its body gives is known.
    """
    ranks = _product_ranks(model, places)
    for place in places:
        for value, shape in zip(place.node.outputs, _known_shapes(place, ranks), strict=False):
            if value.shape is None:
                value.shape, value.type = ir.Shape(shape), value.type or ir.TensorType(ir.DataType.FLOAT)


def _known_shapes(place: Place, ranks: Mapping[ir.Node, int]) -> Sequence[Sequence[int | None]]:
    """Returns the shapes of a place's outputs; none of a product without a rank."""
    if place.layer is None:
        rank, units = ranks.get(place.node), place.matrices[0].shape[1]
        return [] if rank is None else [(*[None] * (rank - 1), units)]
    weights = place.layer.weights
    assert weights is not None
    state = (weights.num_directions, None, weights.hidden_size)
    return [(None, *state), state, state]


def _product_ranks(model: ir.Model, places: Sequence[Place]) -> dict[ir.Node, int]:
    """Returns the ranks of the products' outputs that the graph leaves out, as far as ONNX infers them."""
    untold = {place.node for place in places if place.layer is None and place.node.outputs[0].shape is None}
    if not untold:
        return {}
    copy = model.clone()
    # Not strict: it goes on behind a node that it does not know.
    ShapeInferencePass(check_type=False, strict_mode=False)(copy)
    twins = ((node, twin) for node, twin in zip(model.graph, copy.graph, strict=True) if node in untold)
    shapes = {node: twin.outputs[0].shape for node, twin in twins}
    return {node: len(shape) for node, shape in shapes.items() if shape is not None}


def _replace(old: ir.Node, new: ir.Node) -> None:
    """Puts one node in the place of another; its outputs take over names, types and shapes.

    Its constants are those of the graph or body that holds it: ONNX Runtime shows an op no others.
    """
    graph = old.graph
    assert isinstance(graph, ir.Graph)
    for value in constants_of(new):
        graph.register_initializer(value)
    for before, after in zip(old.outputs, new.outputs, strict=False):
        after.type, after.shape = before.type, before.shape
    ir.convenience.replace_nodes_and_values(
        graph, old, [old], [new], old.outputs, new.outputs[: len(old.outputs)]
    )
