"""A graph as torch runs it fastest on a GPU: recurrent layers in torch's modules, weights laid out once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from lstmopt.bridge.module import OnnxModule
from lstmopt.bridge.node import Node
from lstmopt.bridge.program import Program
from lstmopt.bridge.recurrent import is_default, reorder
from lstmopt.errors import LstmoptError
from lstmopt.rnn.cells import CELLS, CellSpec
from lstmopt.rnn.half import check_half
from lstmopt.rnn.reader import INITIAL_H, SEQUENCE_LENS, B, P, R, W, X

FORMS = ("apart", "stacked", "padded")
"""How layers in a row are run.

apart: each by itself. stacked: as one module of several layers, which cuDNN overlaps. padded: each by itself,
with zeros to multiples of 8 rows and 128 inputs, for which torch takes cuDNN's persistent kernels in f16.
"""

ROWS, WIDTH = 8, 128
MODULES = {"LSTM": nn.LSTM, "GRU": nn.GRU}
Parts = tuple[Tensor, Tensor, Tensor | None]
"""W ``[directions, gates * hidden, input]``, R and B of a layer, gates in ONNX's order."""


class DeployedModule:
    """Runs a graph on a device; layers that torch's modules do not compute stay as the bridge has them.

    Args:
        model: the graph.
        precision: "f32" or "f16", in which everything is computed.
        device: "cuda", or "cpu" for its numerics.

    Attributes:
        forms: those of `FORMS` that differ for this graph.
        form: the one in which it runs.

    Raises:
        LstmoptError: the graph holds what the bridge does not compute; in f16, a constant that is beyond it
            or would be 0 in it, or sizes that are computed in floats.
    """

    def __init__(self, model: ir.Model, precision: str, device: str) -> None:
        module = OnnxModule(model)
        if module.cuts or any(not weight.requires_grad for weight in module.weights.values()):
            raise LstmoptError(
                "cudnn", "the model has operators that torch is not given", "use another runtime"
            )
        dtype = torch.float16 if precision == "f16" else torch.float32
        module.compute_dtype = dtype
        module.eval().requires_grad_(False)
        held = module.held
        for name, weight in module.weights.items():
            if weight.numel() and float(weight.abs().max()) > torch.finfo(dtype).max:
                raise LstmoptError(f"weight {name}", "is beyond f16", "use f32")
        if precision == "f16":
            check_half(model)
        runs = _runs(module.program, held)
        self._programs = {}
        for form in FORMS:
            made = [_Run(run, held, form).to(device, dtype) for run in runs]
            if form == "stacked" and all(len(each.layers) == len(each.run.nodes) for each in made):
                continue  # no layers that could be stacked
            self._programs[form] = _replaced(module.program, made)
        self.forms = tuple(self._programs) if runs else FORMS[:1]
        self.form = self.forms[0]
        # Sizes and axes stay where Python reads them: what waits for the device cannot be captured.
        for key, parameter in dict(module.named_parameters()).items():
            setattr(module, key, nn.Parameter(parameter.to(device, dtype), requires_grad=False))
        for key, buffer in dict(module.named_buffers()).items():
            if buffer.is_floating_point():
                setattr(module, key, buffer.to(device, dtype))
        self._module = module
        self.output_names = module.output_names

    def __call__(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the outputs by name, on the device.

        Args:
            feeds: tensors on the device by the inputs' names.
        """
        self._module.program = self._programs[self.form]
        return self._module(feeds)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Layers:
    """Plain layers in a row, each of which only the next one reads.

    Attributes:
        nodes: their nodes.
        steps: positions in the program of the nodes, and of what lies between.
        cell: of all of them.
    """

    nodes: tuple[Node, ...]
    steps: tuple[int, ...]
    cell: CellSpec

    def states(self, node: Node) -> tuple[int | None, ...]:
        """Returns the slots of a node's initial states."""
        given = (*node.inputs, *(None for _ in range(P)))
        return given[INITIAL_H : INITIAL_H + len(self.cell.states)]

    @property
    def merged(self) -> Node:
        """One node in the place of all: X and each layer's states; Y of the last and each layer's states."""
        first, last = self.nodes[0], self.nodes[-1]
        count = len(self.cell.states)
        outputs = [(*node.outputs, None, None)[1 : 1 + count] for node in self.nodes]
        return replace(
            first,
            attributes={},
            inputs=(first.inputs[X], *(slot for node in self.nodes for slot in self.states(node))),
            outputs=(last.outputs[0], *(slot for slots in outputs for slot in slots)),
        )


def _plain(node: Node, held: Mapping[int, Tensor]) -> CellSpec | None:
    """Returns the cell of a node that torch's module computes, or None."""
    cell = next((cell for cell in CELLS if cell.kind == node.op), None)
    if cell is None or node.get("direction", "forward") == "reverse" or node.get("layout", 0):
        return None
    given = (*node.inputs, *(None for _ in range(P + 1)))
    directions = 2 if node.get("direction", "forward") == "bidirectional" else 1
    special = (
        node.get("clip") is not None
        or node.get("input_forget", 0)
        or (cell.reset and not node.get("linear_before_reset", 0))
        or given[SEQUENCE_LENS] is not None
        or given[P] is not None
        or not is_default(node, cell, directions)
    )
    weights = all(slot in held for slot in (given[W], given[R])) and (given[B] is None or given[B] in held)
    return cell if weights and not special else None


def _runs(program: Program, held: Mapping[int, Tensor]) -> list[_Layers]:
    """Returns the plain layers of a program, in rows as long as they are."""
    steps = [node for node, _, _ in program.steps]
    found: list[_Layers] = []
    for index, node in enumerate(steps):
        cell = _plain(node, held)
        if cell is None:
            continue
        before = found[-1] if found and found[-1].cell is cell else None
        mover = None if before is None else _mover(before, index, steps, program, held)
        if before is not None and mover is not None:
            found[-1] = _Layers((*before.nodes, node), (*before.steps, mover, index), cell)
        else:
            found.append(_Layers((node,), (index,), cell))
    return found


def _mover(
    before: _Layers, index: int, steps: Sequence[Node], program: Program, held: Mapping[int, Tensor]
) -> int | None:
    """Returns the position of what hands the Y of a layer on to the next, without its axis of one direction.

    None where it does more than that, or others read what they share.
    """
    last, node = before.nodes[-1], steps[index]
    between = range(before.steps[-1] + 1, index)
    mover = next((k for k in between if node.inputs[X] in steps[k].outputs), None)
    if mover is None or steps[mover].op != "Squeeze" or steps[mover].inputs[0] != last.outputs[0]:
        return None
    axes = steps[mover].get("axes")
    if axes is None and len(steps[mover].inputs) > 1 and steps[mover].inputs[1] in held:
        axes = held[steps[mover].inputs[1]].tolist()  # type: ignore[index]
    if list(axes or ()) != [1]:
        return None
    own = {slot for step in before.nodes for slot in step.outputs if slot is not None}
    passed = {last.outputs[0], node.inputs[X]}
    # All run where the last one does: nothing may read their results before, or free what they read.
    read = {slot for layer in before.nodes for slot in layer.inputs}
    elsewhere = [step for k, step in enumerate(steps) if k not in (*before.steps, mover, index)]
    early = [steps[k] for k in between if k != mover]
    alone = (
        not passed & set(program.outputs)
        and not any(passed & set(step.inputs) for step in elsewhere)
        and not any(own & set(step.inputs) or read & set(step.release) for step in early)
    )
    return mover if alone else None


def _replaced(program: Program, runs: Sequence[_Run]) -> Program:
    """Returns a program with one step in the place of each run."""
    gone = {index: run for run in runs for index in run.run.steps}
    made = Program(program.inputs, program.outputs)
    for index, step in enumerate(program.steps):
        if index not in gone:
            made.steps.append(step)
        elif index == gone[index].run.steps[-1]:
            run = gone[index].run
            release = tuple(slot for k in run.steps for slot in program.steps[k][0].release)
            made.steps.append((replace(run.merged, release=release), gone[index].step, {}))
    return made


class _Run(nn.Module):
    """Layers in a row in one form."""

    def __init__(self, run: _Layers, held: Mapping[int, Tensor], form: str) -> None:
        super().__init__()
        self.run, self._padded = run, form == "padded"
        parts: list[Parts] = []
        for node in run.nodes:
            w, r, b = (held[slot] if slot is not None else None for slot in (*node.inputs, None)[W : B + 1])
            assert w is not None and r is not None
            parts.append((w, r, b))
        sizes = {r.shape[-1] for _, r, _ in parts}
        rows = [parts] if form == "stacked" and len(sizes) == 1 else [[part] for part in parts]
        self.layers = nn.ModuleList(_module(run.cell, row, self._padded) for row in rows)
        self._sizes = [r.shape[::2] for _, r, _ in parts for _ in run.cell.states]
        self._buffers_by_shape: dict[tuple[int | str, ...], Tensor] = {}

    def step(self, _: Node, x: Tensor, *given: Tensor | None) -> tuple[Tensor, ...]:
        """The operator: see `_Layers.merged`."""
        batch, count = x.shape[1], len(self.run.cell.states)
        states = self._states(x, given)
        lasts: list[Tensor] = []
        y = x
        for place, module in enumerate(self.layers):
            assert isinstance(module, nn.RNNBase)
            depth, directions = module.num_layers, 2 if module.bidirectional else 1
            own, states = states[: depth * count], states[depth * count :]
            hx = tuple(own[k] if depth == 1 else torch.cat(own[k::count]) for k in range(count))
            y = self._widened(y, place, own[0].shape[1], module.input_size)
            y, last = module(y, hx if count > 1 else hx[0])
            last = last if count > 1 else (last,)
            for k in range(depth):
                lasts += [state[k * directions : (k + 1) * directions, :batch] for state in last]
        return (y[:, :batch].view(len(y), batch, directions, -1).transpose(1, 2), *lasts)

    def _states(self, x: Tensor, given: Sequence[Tensor | None]) -> list[Tensor]:
        """Returns each layer's initial states, ``[directions, rows, hidden]``: zeros behind those given."""
        batch = x.shape[1]
        rows = -(-batch // ROWS) * ROWS if self._padded else batch
        found: list[Tensor] = []
        copies: list[tuple[Tensor, Tensor]] = []
        for place, (state, (directions, hidden)) in enumerate(zip(given, self._sizes, strict=True)):
            # What a graph makes of zeros is made where Python is.
            if state is None or (state.device != x.device and not bool(state.any())):
                found.append(self._buffer(x, place, directions, rows, hidden))
            elif rows == batch:
                found.append(state.to(x.dtype).contiguous())
            else:
                found.append(self._buffer(x, place, directions, rows, hidden))
                copies.append((found[-1][:, :batch], state))
        if copies:  # all in one kernel
            torch._foreach_copy_([to for to, _ in copies], [value for _, value in copies])
        return found

    def _widened(self, x: Tensor, place: int, rows: int, width: int) -> Tensor:
        """Returns a tensor with zeros behind its rows and columns."""
        if x.shape[1:] == (rows, width):
            return x.contiguous()
        wide = self._buffer(x, f"x{place}", len(x), rows, width)
        wide[:, : x.shape[1], : x.shape[2]] = x
        return wide

    def _buffer(self, x: Tensor, *key: int | str) -> Tensor:
        """Returns zeros that are kept from call to call, so that what is behind is written once."""
        shape = [size for size in key[1:] if isinstance(size, int)]
        if key not in self._buffers_by_shape:
            self._buffers_by_shape[key] = x.new_zeros(shape)
        return self._buffers_by_shape[key]


def _module(cell: CellSpec, parts: Sequence[Parts], padded: bool) -> Any:
    """Returns torch's module of layers in a row."""
    w, r, _ = parts[0]
    width = -(-w.shape[-1] // WIDTH) * WIDTH if padded else w.shape[-1]
    directions, hidden = r.shape[0], r.shape[-1]
    module = MODULES[cell.kind](width, hidden, len(parts), bidirectional=directions == 2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        for layer, (w, r, b) in enumerate(parts):
            kinds = {"weight_ih": w, "weight_hh": r}
            if b is not None:
                kinds |= {"bias_ih": b[:, : b.shape[1] // 2], "bias_hh": b[:, b.shape[1] // 2 :]}
            for kind, tensor in kinds.items():
                for direction, suffix in zip(range(directions), ("", "_reverse"), strict=False):
                    values = reorder(tensor[direction], cell.to_torch)
                    parameter = getattr(module, f"{kind}_l{layer}{suffix}")
                    parameter[..., : values.shape[-1]].copy_(values)
    return module.eval().requires_grad_(False)
