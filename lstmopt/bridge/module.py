"""An ONNX graph as a torch module, and a trained module's weights back in the graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, nn

from lstmopt.bridge.frozen import Freezer, frozen_note, reach
from lstmopt.bridge.node import Run
from lstmopt.bridge.program import Env, Slots, compile_graph, named_values, value_names
from lstmopt.bridge.weights import held_constants, trained_values
from lstmopt.errors import LstmoptError

Array = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Weight:
    """A trained tensor of the graph.

    Attributes:
        name: the value's name in the graph, made unique (see `named_values`).
        key: the parameter's name in the module.
        dtype: the type that the graph holds it in.
    """

    name: str
    key: str
    dtype: np.dtype[Any]


class OnnxModule(nn.Module):
    """Runs an ONNX graph in torch, one small function an operator, so that it can be trained.

    Weights are parameters, other constants buffers. Half precision is computed in float32 (`notes`
    says so). While training, `dropout` is applied to the input of each LSTM that is not the dropped
    output of another, and to each LSTM's output; the states that are carried are not dropped.

    Args:
        model: the graph; it is not changed.

    Attributes:
        dropout: probability, 0 unless set.
        weights: the parameters by the name that the graph gives them.
        input_names: names of the inputs to feed.
        output_names: names of the outputs.
        notes: what was done differently than the graph says.
        cuts: values that recurrent layers hand to nodes which ONNX Runtime runs (see `frozen`).
        compute_dtype: the type in which a graph without weights is computed.
        program: the nodes as they run.
        masks: see `set_masks`.
        rounded: what is computed with in the place of a weight, by the weight's name. The weight gets
            the gradient (the straight-through estimator: Bengio, Leonard and Courville, arXiv 1308.3432).

    Nodes that the bridge does not have are run by ONNX Runtime, without gradients.

    Raises:
        LstmoptError: an operator with a body or a tensor type that cannot be trained through.
    """

    def __init__(self, model: ir.Model) -> None:
        super().__init__()
        graph = model.graph
        self._run, slots = Run(), Slots()
        self._device = torch.device("cpu")
        names = value_names(model)
        trained = trained_values(model, names)
        held = held_constants(model, trained)
        self._entries: list[Weight] = []
        self._constants: list[tuple[int, str]] = []
        self._slots: dict[str, int] = {}
        halves = 0
        for index, (value, array) in enumerate({**trained, **held}.items()):
            halves += value in trained and array.dtype.itemsize == 2
            tensor = _tensor(array, str(value.name))
            if value in trained:
                key = f"weight_{index}"
                self.register_parameter(key, nn.Parameter(tensor))
                self._entries.append(Weight(names[value], key, array.dtype))
                self._slots[names[value]] = slots.of(value)
            else:
                key = f"constant_{index}"
                self.register_buffer(key, tensor, persistent=False)
            self._constants.append((slots.of(value), key))
        constants = frozenset((*trained, *held))
        opset = int(model.opset_imports.get("", 17))
        freeze = Freezer(model, frozenset(trained))
        self.program = compile_graph(graph, slots, self._run, opset, constants, freeze)
        found = reach(model, frozenset(trained))
        self._named = {name: slots.of(value) for value, name in names.items() if value.producer() is not None}
        self.cuts = tuple(names[value] for value in found.cuts)
        self.capture(self.cuts)
        for value in found.without:
            self.weights[names[value]].requires_grad_(False)
        self._inputs = {
            str(value.name): (slots.of(value), value.dtype is not None and value.dtype.is_floating_point())
            for value in graph.inputs
            if value not in constants
        }
        self.input_names = tuple(self._inputs)
        self.output_names = tuple(str(value.name) for value in graph.outputs)
        half = (f"{halves} half-precision weights are trained in float32",) if halves else ()
        self.notes: tuple[str, ...] = (*half, *frozen_note(found))
        self.compute_dtype = torch.float32
        self.masks: dict[str, Tensor] = {}
        self.rounded: dict[str, Tensor] = {}

    @property
    def held(self) -> dict[int, Tensor]:
        """Weights and other constants by the slots in which programs read them."""
        return {slot: getattr(self, key) for slot, key in self._constants}

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    def place(self, device: str | torch.device, dtype: torch.dtype | None = None) -> None:
        """Moves it to a device. Sizes and axes stay where Python reads them.

        Args:
            device: such as "cuda".
            dtype: what its weights and its other real constants become; None leaves their types.
        """
        self._device = torch.device(device)
        for parameter in self.parameters():
            parameter.data = parameter.data.to(self._device, dtype)
        for key, buffer in dict(self.named_buffers()).items():
            if buffer.is_floating_point():
                setattr(self, key, buffer.to(self._device, dtype))
        self.masks = {name: mask.to(self._device) for name, mask in self.masks.items()}
        self.rounded = {name: weight.to(self._device) for name, weight in self.rounded.items()}

    def placed(self, array: Array) -> Tensor:
        """Returns an array as a tensor where the module computes."""
        return torch.from_numpy(np.asarray(array, order="C")).to(self._device)

    def placed_feeds(self, feeds: Mapping[str, Array]) -> dict[str, Tensor]:
        """Returns the inputs of a call as tensors where the module computes."""
        return {name: self.placed(array) for name, array in feeds.items()}

    @property
    def dropout(self) -> float:
        """Probability with which LSTM inputs and outputs are dropped while training."""
        return self._run.dropout

    @dropout.setter
    def dropout(self, probability: float) -> None:
        self._run.dropout = probability

    @property
    def entries(self) -> tuple[Weight, ...]:
        """What is trained, in the order of the parameters."""
        return tuple(self._entries)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters by the name that the graph gives them."""
        return {entry.name: self._parameters[entry.key] for entry in self._entries}  # type: ignore[misc]

    def forward(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Runs the graph.

        Args:
            feeds: a tensor for each of `input_names`, of the graph's shapes.

        Returns:
            The outputs by name, in the graph's order.

        Raises:
            LstmoptError: an input is missing, or an operator meets what it cannot do.
        """
        run = self._run
        run.training = self.training
        run.captured = {}
        run.dtype = next((p.dtype for p in self.parameters()), self.compute_dtype)
        env: Env = self.held
        for name, rounded in self.rounded.items():
            slot = self._slots[name]
            env[slot] = _StraightThrough.apply(env[slot], rounded)  # type: ignore[no-untyped-call]
        for name, (slot, is_float) in self._inputs.items():
            if name not in feeds:
                raise LstmoptError(f"input {name}", "is missing", "feed every input of the model")
            env[slot] = feeds[name].to(run.dtype) if is_float else feeds[name]
        return dict(zip(self.output_names, self.program.execute(env), strict=True))

    def capture(self, names: Iterable[str]) -> None:
        """Sets the values whose activations each run keeps.

        Args:
            names: of values that nodes compute (see `named_values`).

        Raises:
            LstmoptError: there is no such value.
        """
        for name in names:
            if name not in self._named:
                raise LstmoptError(
                    f"value {name}", "is not in the original", "train it from the simplified model"
                )
        self._run.wanted = {self._named[name]: name for name in names}

    @property
    def captured(self) -> dict[str, list[Tensor]]:
        """What the values of `capture` were in the last run, one tensor each time."""
        return self._run.captured

    def set_masks(self, masks: Mapping[str, BoolArray]) -> None:
        """Sets which weights may differ from 0, and zeroes the others.

        A masked weight stays exactly 0 as long as its gradient is masked before each step
        (`mask_gradients`); until then ``.grad`` is the dense gradient, dL/dw at w = 0, from which
        regrowth can choose.

        Args:
            masks: by weight name, True where the weight may differ from 0, in the initializer's layout.
        """
        weights = self.weights
        for name, mask in masks.items():
            if name not in weights:
                raise KeyError(f"no weight {name!r}")
            if tuple(mask.shape) != tuple(weights[name].shape):
                raise ValueError(f"mask of {name}: shape {mask.shape}, weight {tuple(weights[name].shape)}")
        self.masks = {name: self.placed(mask) for name, mask in masks.items()}
        self.apply_masks()

    @property
    def density(self) -> float:
        """Share of the masked weights' entries that may differ from 0; 1 where there are no masks."""
        size = sum(mask.numel() for mask in self.masks.values())
        return sum(int(mask.sum()) for mask in self.masks.values()) / size if size else 1.0

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Zeroes the masked weights."""
        weights = self.weights
        for name, mask in self.masks.items():
            weights[name].masked_fill_(~mask, 0.0)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zeroes the gradients of masked weights."""
        weights = self.weights
        for name, mask in self.masks.items():
            gradient = weights[name].grad
            if gradient is not None:
                gradient.mul_(mask)


class _StraightThrough(torch.autograd.Function):
    """Gives one tensor, and its gradient to another."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rounded: Tensor) -> Tensor:
        """Returns the rounded weights."""
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Hands the gradient on to the weight."""
        return gradients[0], None


def _tensor(array: Array, name: str) -> Tensor:
    if array.dtype.name in ("float16", "bfloat16"):
        array = array.astype(np.float32)
    if array.dtype in (np.uint16, np.uint32, np.uint64):
        array = array.astype(np.int64)
    try:
        return torch.from_numpy(np.array(array))
    except TypeError as error:
        raise LstmoptError(
            f"tensor {name}", f"type {array.dtype} cannot be trained through", "optimise without training"
        ) from error


def write_back(model: ir.Model, module: OnnxModule) -> ir.Model:
    """Returns a copy of a model with a module's weights.

    Names, types and every other node stay; masked weights are exactly 0. A weight that was a constant
    expression becomes an initializer of the same name.

    Args:
        model: the model that the module was made of.
        module: the trained module.
    """
    copy = model.clone()
    values = named_values(copy)
    for entry in module.entries:
        array = module.weights[entry.name].detach().cpu().numpy().astype(entry.dtype)
        mask = module.masks.get(entry.name)
        if mask is not None:
            array = np.where(mask.cpu().numpy(), array, np.zeros((), array.dtype))
        array = np.asarray(array, order="C")
        value = values[entry.name]
        if value.is_initializer():
            value.const_value = ir.Tensor(array, name=value.name)
        else:
            _make_initializer(value, array)
    return copy


def _make_initializer(value: ir.Value, array: Array) -> None:
    """Replaces what a constant expression computes by an initializer of its name."""
    node = value.producer()
    assert node is not None and node.graph is not None
    graph, name = node.graph, value.name
    value.name = f"{name}.expression"
    tensor = ir.Tensor(array, name=name)
    made = ir.Value(
        name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype)
    )
    graph.register_initializer(made)
    value.replace_all_uses_with(made)
    stale = [node]
    while stale:
        gone = stale.pop()
        if gone.graph is None or any(output.uses() or output.is_graph_output() for output in gone.outputs):
            continue
        sources = [item.producer() for item in gone.inputs if item is not None]
        gone.graph.remove(gone, safe=True)
        stale += [source for source in sources if source is not None]
