"""A torch module and the ONNX graph that it was exported as: which weight went where, and back again."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lstmopt.errors import LstmoptError
from lstmopt.rnn.cells import GRU, LSTM, CellSpec
from lstmopt.rnn.constants import constant_value
from lstmopt.rnn.reader import find_rnns
from lstmopt.rnn.weights import RnnWeights

Array = npt.NDArray[Any]
Recurrent = nn.LSTM | nn.GRU
CELLS: Mapping[type[nn.Module], CellSpec] = {nn.LSTM: LSTM, nn.GRU: GRU}

SIZES: Mapping[type[nn.Module], Mapping[str, tuple[str, int]]] = {
    nn.Linear: {"in_features": ("weight", 1), "out_features": ("weight", 0)},
    nn.Conv1d: {"in_channels": ("weight", 1), "out_channels": ("weight", 0)},
    nn.Conv2d: {"in_channels": ("weight", 1), "out_channels": ("weight", 0)},
    nn.BatchNorm1d: {"num_features": ("weight", 0)},
    nn.BatchNorm2d: {"num_features": ("weight", 0)},
    nn.PReLU: {"num_parameters": ("weight", 0)},
    nn.LayerNorm: {},
}
"""Modules whose weights may change their shape, and which axis each of their sizes is."""


@dataclass(frozen=True)
class Place:
    """Where a parameter is in a graph: an operand of a node.

    Attributes:
        node: the node's name.
        position: of the operand.
        transposed: whether the graph holds the parameter's transpose.
    """

    node: str
    position: int
    transposed: bool


@dataclass(frozen=True)
class Places:
    """Where a module's weights are in the graph that it was exported as.

    Attributes:
        layers: names of the graph's layers, by the recurrent module's name and the layer's number.
        parameters: places of every other parameter and buffer that was found, by its name.
    """

    layers: Mapping[tuple[str, int], tuple[str, ...]]
    parameters: Mapping[str, tuple[Place, ...]]

    @property
    def together(self) -> tuple[tuple[str, ...], ...]:
        """Names of layers that one recurrent module holds: they have one hidden size."""
        found: dict[str, list[str]] = {}
        for (name, _), layers in self.layers.items():
            found.setdefault(name, []).extend(layers)
        return tuple(tuple(names) for names in found.values() if len(names) > 1)


class Mask(nn.Module):
    """A parametrisation that keeps masked weights at 0 while the module is trained on.

    Args:
        mask: 1 where a weight may differ from 0.
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the weight without what is masked."""
        return weight * self.mask  # type: ignore[operator]

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Returns what is kept for a weight that is assigned."""
        return weight


def recurrent_modules(module: nn.Module) -> dict[str, Recurrent]:
    """Returns the recurrent modules by name.

    Raises:
        LstmoptError: there is none, or one that has no form in ONNX.
    """
    found: dict[str, Recurrent] = {}
    for name, each in module.named_modules():
        if type(each) in CELLS:
            assert isinstance(each, nn.LSTM | nn.GRU)
            if each.proj_size:
                raise LstmoptError(
                    f"module {name}", f"proj_size={each.proj_size} has no form in ONNX's LSTM",
                    "put the projection into an nn.Linear behind it",
                )  # fmt: skip
            if parametrize.is_parametrized(each):
                raise LstmoptError(
                    f"module {name}", "its weights are parametrised",
                    "remove the parametrisations first (torch.nn.utils.parametrize.remove_parametrizations)",
                )  # fmt: skip
            found[name] = each
    if not found:
        raise LstmoptError("module", "holds no nn.LSTM or nn.GRU", "give a module that does")
    return found


def marked(module: nn.Module, seed: int = 0) -> nn.Module:
    """Returns a copy whose weights are all different numbers, by which they are found in its export."""
    made = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in _tensors(made).values():
            # Positive, since a buffer may be a variance; small, so that nothing overflows.
            tensor.copy_(0.05 + 0.1 * torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))
    return made


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def torch_weights(weights: RnnWeights, direction: int) -> dict[str, Array]:
    """Returns the weights of one direction as torch names and orders them, without the layer's suffix."""
    order = list(weights.cell.to_torch)
    arrays = {
        "weight_ih": weights.w[direction][order].reshape(-1, weights.input_size),
        "weight_hh": weights.r[direction][order].reshape(-1, weights.hidden_size),
    }
    if weights.b is not None:
        arrays |= {
            name: weights.b[direction, half][order].reshape(-1)
            for half, name in enumerate(("bias_ih", "bias_hh"))
        }
    return arrays


def find_places(module: nn.Module, graph: ir.Model) -> Places:
    """Finds the weights of a marked module in its export.

    Args:
        module: what `marked` returned.
        graph: its export, simplified as the other one is.

    Raises:
        LstmoptError: a recurrent module is not there as a layer.
    """
    layers: dict[tuple[str, int], list[str]] = {}
    found = [(layer.name, layer.weights) for layer in find_rnns(graph) if layer.weights is not None]
    inside: set[str] = set()
    for name, each in recurrent_modules(module).items():
        inside |= {f"{name}.{key}" if name else key for key, _ in each.named_parameters()}
        for number in range(each.num_layers):
            wanted = getattr(each, f"weight_ih_l{number}").detach().numpy()
            for layer, weights in found:
                if np.array_equal(torch_weights(weights, 0)["weight_ih"], wanted):
                    layers.setdefault((name, number), []).append(layer)
            if (name, number) not in layers:
                raise LstmoptError(
                    f"module {name or type(each).__name__}",
                    f"its layer {number} is not in the exported graph",
                    "leave it out of the forward's control flow, or export to ONNX by yourself",
                )  # fmt: skip
    tensors = {
        name: tensor.detach().numpy() for name, tensor in _tensors(module).items() if name not in inside
    }
    places: dict[str, list[Place]] = {}
    for node in graph.graph:
        for position, value in enumerate(node.inputs):
            array = constant_value(value)
            if array is None or array.dtype.kind != "f":
                continue
            for name, tensor in tensors.items():
                if array.shape == tensor.shape and np.array_equal(array, tensor):
                    places.setdefault(name, []).append(Place(str(node.name), position, False))
                elif array.shape == tensor.shape[::-1] and np.array_equal(array, tensor.T):
                    places.setdefault(name, []).append(Place(str(node.name), position, True))
    return Places(
        {key: tuple(names) for key, names in layers.items()},
        {name: tuple(where) for name, where in places.items()},
    )


def rebuilt(module: nn.Module, places: Places, graph: ir.Model) -> nn.Module:
    """Returns a copy of a module with the weights and sizes of a graph that was made of its export.

    Args:
        module: the module that was exported.
        places: where its weights are.
        graph: the optimised graph.

    Raises:
        LstmoptError: the module cannot have these weights.
    """
    made = copy.deepcopy(module)
    weights = {layer.name: layer.weights for layer in find_rnns(graph) if layer.weights is not None}
    for name, each in recurrent_modules(made).items():
        parts = []
        for number in range(each.num_layers):
            candidates = [weights[item] for item in places.layers[name, number] if item in weights]
            parts.append(_one(name, candidates))
        _replace(made, name, _recurrent(name, each, parts))
    nodes = {str(node.name): node for node in graph.graph}
    current = {**dict(made.named_parameters()), **dict(made.named_buffers())}
    for name, where in places.parameters.items():
        found = [_fetched(nodes[place.node], place) for place in where if place.node in nodes]
        arrays = [array for array in found if array is not None]
        if not arrays:
            continue
        if any(array.shape != arrays[0].shape or not np.array_equal(array, arrays[0]) for array in arrays):
            raise _used_often(name)
        _assign(made, name, current[name], arrays[0])
    return made


def check_single(module: nn.Module, places: Places, graph: ir.Model) -> None:
    """Checks, before it is trained, that nothing of a module would be trained at several places apart.

    Args:
        module: the module that was exported.
        places: where its weights are.
        graph: its export, simplified.

    Raises:
        LstmoptError: a layer is called several times, or the graph holds a weight several times.
    """
    for (name, _), layers in places.layers.items():
        if len(layers) > 1:
            raise _called_often(name)
    nodes = {str(node.name): node for node in graph.graph}
    trained = dict(module.named_parameters())
    for name, where in places.parameters.items():
        # What several nodes read from one value has one gradient.
        held = {nodes[place.node].inputs[place.position] for place in where}
        if name in trained and len(held) > 1:
            raise _used_often(name)


def _called_often(name: str) -> LstmoptError:
    return LstmoptError(
        f"module {name}", "is called several times, and its calls are trained apart",
        "give each call a module of its own, or use lstmopt.optimize on the exported model",
    )  # fmt: skip


def _used_often(name: str) -> LstmoptError:
    return LstmoptError(
        f"weight {name}", "is used at several places, which are trained apart",
        "give the module weights of their own there, or use lstmopt.optimize on the exported model",
    )  # fmt: skip


def _one(name: str, candidates: list[RnnWeights]) -> RnnWeights:
    """Returns the weights of a layer, which may be called several times."""
    first = candidates[0] if candidates else None
    if first is None or any(
        other.w.shape != first.w.shape
        or not (np.array_equal(other.w, first.w) and np.array_equal(other.r, first.r))
        for other in candidates
    ):
        raise _called_often(name)
    return first


def _recurrent(name: str, old: Recurrent, parts: list[RnnWeights]) -> Recurrent:
    """Returns a module of the same kind with new sizes, weights and masks."""
    sizes = [part.hidden_size for part in parts]
    if len(set(sizes)) > 1:
        raise LstmoptError(
            f"module {name}",
            f"its layers would have {', '.join(map(str, sizes))} units, and it has one size",
            "give Resize one hidden_size, or the module one layer",
        )  # fmt: skip
    biases = any(part.b is not None for part in parts)
    made = type(old)(
        parts[0].input_size,
        sizes[0],
        num_layers=old.num_layers,
        bias=biases,
        batch_first=old.batch_first,
        dropout=old.dropout,
        bidirectional=old.bidirectional,
    )
    with torch.no_grad():
        for number, part in enumerate(parts):
            for direction in range(part.num_directions):
                suffix = f"_l{number}" + ("_reverse" if direction else "")
                arrays = torch_weights(part, direction)
                for key, parameter in _named(made, suffix).items():
                    array = arrays.get(key)
                    if array is None:
                        parameter.zero_()
                    else:
                        parameter.copy_(torch.from_numpy(np.ascontiguousarray(array)))
    made.train(old.training)
    for key, parameter in list(made.named_parameters()):
        if key.startswith("weight") and not bool((parameter != 0).all()):
            mask = (parameter.detach() != 0).to(parameter.dtype)
            parametrize.register_parametrization(made, key, Mask(mask))
    return made


def _named(module: Recurrent, suffix: str) -> dict[str, Tensor]:
    keys = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return {key: getattr(module, key + suffix) for key in keys if hasattr(module, key + suffix)}


def _fetched(node: ir.Node, place: Place) -> Array | None:
    array = constant_value(node.inputs[place.position]) if place.position < len(node.inputs) else None
    return None if array is None else array.T if place.transposed else array


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    """Puts a module in another's place, wherever it stands."""
    old = module.get_submodule(name)
    if old is module:
        raise LstmoptError("module", "is a bare recurrent module", "put it into a module of your own")
    for path, each in list(module.named_modules(remove_duplicate=False)):
        if each is old:
            parent, _, key = path.rpartition(".")
            setattr(module.get_submodule(parent), key, new)


def _assign(module: nn.Module, name: str, old: Tensor, array: Array) -> None:
    """Gives a parameter or buffer a new value, of another shape where its module can have it."""
    path, _, key = name.rpartition(".")
    owner = module.get_submodule(path)
    value = torch.from_numpy(np.array(array)).to(old.dtype)
    if value.shape == old.shape:
        with torch.no_grad():
            old.copy_(value)
        return
    if type(owner) not in SIZES:
        raise LstmoptError(
            f"module {path or type(owner).__name__}",
            f"{type(owner).__name__} has {key} of shape {list(old.shape)}, which cannot become "
            f"{list(value.shape)}",
            "put an nn.Linear between, or leave the hidden size as it is",
        )
    if isinstance(old, nn.Parameter):
        setattr(owner, key, nn.Parameter(value, requires_grad=old.requires_grad))
    else:
        setattr(owner, key, value)
    for size, (weight, axis) in SIZES[type(owner)].items():
        if weight == key:
            setattr(owner, size, value.shape[axis])
    if isinstance(owner, nn.LayerNorm) and key == "weight":
        owner.normalized_shape = tuple(value.shape)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yields the tensors of nested tuples, lists and mappings in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
