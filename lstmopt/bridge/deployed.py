"""A graph as torch runs it fastest on a GPU: recurrent layers in torch's modules, weights laid out once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import onnx_ir as ir
import torch
from torch import Tensor, nn

from lstmopt.bridge.cudnn_rnn import CudnnLayer
from lstmopt.bridge.exact import exact_products
from lstmopt.bridge.module import OnnxModule
from lstmopt.bridge.node import Node
from lstmopt.bridge.program import Program
from lstmopt.bridge.recurrent import is_default, reorder
from lstmopt.errors import LstmoptError
from lstmopt.rnn.cells import CELLS, CellSpec
from lstmopt.rnn.half import check_half
from lstmopt.rnn.reader import INITIAL_H, SEQUENCE_LENS, B, P, R, W, X

FORMS = ("apart", "stacked", "padded", "persistent")
"""How layers in a row are run.

apart: each by itself. stacked: as one module of several layers, which cuDNN overlaps. padded: each by itself,
with zeros to multiples of 8 rows and 128 inputs, for which torch takes cuDNN's persistent kernels in f16.
persistent: each in cuDNN's persistent kernel, whatever its sizes, in f16 on a GPU. In f32 that kernel is
further from float64 (1.2e-5 of the output's range, measured) than f32 may be here.
"""

ROWS, WIDTH = 8, 128
MOST_BUFFERS = 256
"""Of some layers in a row; a call of a new shape takes a few."""

MODULES = {"LSTM": nn.LSTM, "GRU": nn.GRU}
Parts = tuple[Tensor, Tensor, Tensor | None]
"""W ``[directions, gates * hidden, input]``, R and B of a layer, gates in ONNX's order."""


class DeployedModule:
    """Runs a graph on a device; layers that torch's modules do not compute stay as the bridge has them.

    Args:
        model: the graph.
        precision: "f32" or "f16", in which everything is computed.
        device: "cuda", or "cpu" for its numerics.
        forms: those of `FORMS` that are made.

    Attributes:
        forms: those of `FORMS` that differ for this graph.
        form: the one in which it runs.
        dtype: in which it computes: that of its real inputs.

    Raises:
        LstmoptError: the graph holds what the bridge does not compute; in f16, a constant that is beyond it
            or would be 0 in it, or sizes that are computed in floats.
    """

    def __init__(self, model: ir.Model, precision: str, device: str, forms: Sequence[str] = FORMS) -> None:
        module = OnnxModule(model)
        if module.cuts or any(not weight.requires_grad for weight in module.weights.values()):
            raise LstmoptError(
                "torch", "the model has operators that the bridge does not compute", "use another runtime"
            )
        dtype = torch.float16 if precision == "f16" else torch.float32
        module.compute_dtype = dtype
        module.eval().requires_grad_(False)
        held = module.held
        if precision == "f16":
            for name, weight in module.weights.items():  # also those that the graph computes
                if weight.numel() and float(weight.abs().max()) > torch.finfo(dtype).max:
                    raise LstmoptError(f"weight {name}", "is beyond f16", "use f32")
            check_half(model)
        runs = _runs(module.program, held)
        self._programs: dict[str, Program] = {}
        self._runs: list[_Run] = []
        for form in forms:
            if form == "persistent" and (device == "cpu" or precision != "f16"):
                continue
            try:
                made = [_Run(run, held, form, device, dtype) for run in runs]
            except LstmoptError:
                if form != "persistent":
                    raise
                continue  # cuDNN has no such kernel for these layers
            if form == "stacked" and all(len(each.layers) == len(each.run.nodes) for each in made):
                continue  # no layers that could be stacked
            self._programs[form] = _with_linears(_replaced(module.program, made), held)
            self._runs += made
        self.forms = tuple(self._programs) if runs else tuple(forms[:1])
        self.form = self.forms[0]
        self.dtype = dtype
        module.place(device, dtype)
        self._module = module
        self.output_names = module.output_names

    def __call__(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the outputs by name, on the device.

        Args:
            feeds: tensors on the device by the inputs' names.
        """
        self._module.program = self._programs[self.form]
        with exact_products():
            return self._module(feeds)  # type: ignore[no-any-return]

    def buffers(self) -> list[Any]:
        """Returns what calls read and write beside their inputs and outputs: a CUDA graph needs it kept."""
        return [buffer for run in self._runs for buffer in run.buffers_held()]


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


def _with_linears(program: Program, held: Mapping[int, Tensor]) -> Program:
    """Returns a program in which a product with a weight and its bias are one step, one kernel."""
    made = Program(program.inputs, program.outputs)
    for number, step in enumerate(program.steps):
        node = step[0]
        before = made.steps[-1][0] if made.steps else None
        if before is not None and node.op == "Add" and before.op == "MatMul" and len(node.inputs) == 2:
            product = before.outputs[0]
            bias = next((slot for slot in node.inputs if slot != product), None)
            weight = before.inputs[1]
            later = [other for other, _, _ in program.steps[number + 1 :]]
            if (
                product in node.inputs
                and weight in held
                and bias in held
                and held[weight].ndim == 2  # type: ignore[index]
                and held[bias].shape == held[weight].shape[1:]  # type: ignore[index]
                and product not in program.outputs
                and not any(product in other.inputs for other in later)
            ):
                one = replace(
                    node,
                    inputs=(*before.inputs, bias),
                    release=tuple({*before.release, *node.release} - {product}),
                )
                made.steps[-1] = (one, _linear, {})
                continue
        made.steps.append(step)
    return made


def _linear(_: Node, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight).reshape(*x.shape[:-1], -1)


class _Run(nn.Module):
    """Layers in a row in one form."""

    def __init__(
        self, run: _Layers, held: Mapping[int, Tensor], form: str, device: str, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.run, self._padded = run, form == "padded"
        parts: list[Parts] = []
        for node in run.nodes:
            w, r, b = (held[slot] if slot is not None else None for slot in (*node.inputs, None)[W : B + 1])
            assert w is not None and r is not None
            parts.append((w, r, b))
        together = form == "stacked" and len({r.shape[-1] for _, r, _ in parts}) == 1
        rows = [parts] if together else [[part] for part in parts]
        if form == "persistent":
            made: list[nn.Module] = [CudnnLayer(run.cell, *part) for part in parts]
        else:
            made = [_module(run.cell, row, self._padded).to(device, dtype) for row in rows]
        self.layers = nn.ModuleList(made)
        self._rows = [(len(row), *row[0][1].shape[::2]) for row in rows]
        self._buffers_by_shape: dict[tuple[int | str, ...], Tensor] = {}

    def buffers_held(self) -> list[Any]:
        """Returns its buffers, and those of its layers."""
        inner = [module.buffers_held() for module in self.layers if isinstance(module, CudnnLayer)]
        return [*self._buffers_by_shape.values(), *(buffer for each in inner for buffer in each)]

    def step(self, _: Node, x: Tensor, *given: Tensor | None) -> tuple[Tensor, ...]:
        """The operator: see `_Layers.merged`."""
        batch, states = x.shape[1], self._states(x, given)
        lasts: list[Tensor] = []
        y = x
        for place, (module, own, (depth, directions, _)) in enumerate(
            zip(self.layers, states, self._rows, strict=True)
        ):
            if isinstance(module, CudnnLayer):
                y, *last = module(y.contiguous(), *own)
            else:
                y = self._widened(y, place, own[0].shape[1], cast(nn.RNNBase, module).input_size)
                y, last = module(y, tuple(own) if len(own) > 1 else own[0])
                last = last if len(own) > 1 else (last,)
            for k in range(depth):
                lasts += [state[k * directions : (k + 1) * directions, :batch] for state in last]
        return (y[:, :batch].view(len(y), batch, directions, -1).transpose(1, 2), *lasts)

    def _states(self, x: Tensor, given: Sequence[Tensor | None]) -> list[list[Tensor]]:
        """Returns each module's initial states, ``[layers * directions, rows, hidden]``, zeros behind."""
        batch, count = x.shape[1], len(self.run.cell.states)
        rows = -(-batch // ROWS) * ROWS if self._padded else batch
        found: list[list[Tensor]] = []
        copies: list[tuple[Tensor, Tensor]] = []
        taken = iter(given)
        for place, (depth, directions, hidden) in enumerate(self._rows):
            # What a graph makes of zeros is made where Python is.
            own = [
                None if state is None or (state.device != x.device and not bool(state.any())) else state
                for state in (next(taken) for _ in range(depth * count))
            ]
            found.append([])
            for kind in range(count):
                pieces = own[kind::count]
                if depth == 1 and rows == batch and pieces[0] is not None:
                    found[-1].append(pieces[0].to(x).contiguous())
                    continue
                there = "".join("-" if piece is None else "x" for piece in pieces)
                whole = self._buffer(x, f"{place} {kind} {there}", depth * directions, rows, hidden)
                found[-1].append(whole)
                for piece, part in zip(pieces, whole.chunk(depth), strict=True):
                    if piece is not None:
                        copies.append((part[:, :batch], piece))
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
            if len(self._buffers_by_shape) >= MOST_BUFFERS:
                self._buffers_by_shape.clear()  # who still needs one holds it
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
