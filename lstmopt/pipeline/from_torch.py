"""`optimize_module`: for people who have the `nn.Module`, which comes back smaller and can be trained on."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmopt.errors import LstmoptError
from lstmopt.pipeline.chain import Pipeline
from lstmopt.pipeline.standard import check_torch, optimize
from lstmopt.pipeline.state import Stage
from lstmopt.rnn.execution import first_line, run_model
from lstmopt.rnn.files import load_model

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

    from lstmopt.passes.back_off import BackOff

OPSET = 17
TOLERANCE = 1e-4
"""Of an output's largest value: torch and ONNX Runtime run the same weights."""


def optimize_module(
    module: nn.Module,
    example_inputs: Any,
    *,
    output: str | Path,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_axes: Mapping[str, Any] | None = None,
    back_off: BackOff | None = None,
    stages: Sequence[Stage] | None = None,
    **options: Any,
) -> tuple[nn.Module, Path]:
    """Exports a module, optimises it, and gives back a module with the artifact's weights.

    Each `nn.LSTM` and `nn.GRU` has its new sizes, the modules that read it too, and pruned weights have
    masks as parametrisations: training can go on from there.

    Args:
        module: on the CPU; it is not changed.
        example_inputs: a tensor, or a tuple of the forward's arguments.
        output: the artifact folder; the export is written beside it, with ``.module.onnx`` behind its name.
        input_names: of the ONNX model; the forward's parameter names where None.
        output_names: of the ONNX model; "output" or "output_0" and so on where None.
        dynamic_axes: as `torch.onnx.export` takes them; without them the shapes are those of the example.
        back_off: sizes, compression and recipe, see `lstmopt.optimize`.
        stages: a chain of one's own in place of the usual one; it ends with `Export`.
        options: of `Pipeline.run`: target, data, budget and so on.

    Returns:
        The new module, and the artifact's folder; the module's outputs are those of its ``model.onnx``.

    Raises:
        LstmoptError: bad input, or the result has no form as this module.
        ContractError: nothing holds the contract.
    """
    check_torch()
    # Before minutes are spent: what `Pipeline.run` does not know is a slip of the pen.
    inspect.signature(Pipeline.run).bind_partial(**options)
    from lstmopt.bridge.modules import (
        check_single,
        find_places,
        marked,
        rebuilt,
        recurrent_modules,
        tensors_in,
    )
    from lstmopt.passes import BackOff
    from lstmopt.passes.simplify import simplify

    recurrent_modules(module)
    arguments = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    names = list(input_names or _parameter_names(module, len(list(tensors_in(arguments)))))
    out = Path(output)
    source = out.with_name(f"{out.name}.module.onnx")
    source.parent.mkdir(parents=True, exist_ok=True)
    form = _Form(names, output_names, dynamic_axes)
    _export(module, arguments, source, form)
    with tempfile.TemporaryDirectory(prefix="lstmopt-") as folder:
        marks, path = marked(module), Path(folder) / "marked.onnx"
        _export(marks, arguments, path, form)
        simple = simplify(load_model(path))[0]
        places = find_places(marks, simple)
    if stages is None:
        check_single(module, places, simple)
        plan = replace(back_off or BackOff(), together=places.together)
        optimize(source, output=out, back_off=plan, **options)
    else:
        Pipeline(*stages).run(source, output=out, **options)
    graph = load_model(out / "model.onnx")
    new = rebuilt(module, places, graph)
    _compare(new, arguments, graph, names)
    return new, out


def _parameter_names(module: nn.Module, count: int) -> list[str]:
    """Returns names for the inputs: the forward's, where each takes one tensor."""
    names = [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return names[:count] if len(names) >= count else [f"input_{index}" for index in range(count)]


@dataclass(frozen=True)
class _Form:
    """Names of inputs and outputs and their dynamic axes, as torch's exporter takes them."""

    inputs: list[str]
    outputs: Sequence[str] | None
    axes: Mapping[str, Any] | None


def _export(module: nn.Module, arguments: tuple[Any, ...], path: Path, form: _Form) -> None:
    """Exports a module as it is for inference, every weight in a tensor of its own."""
    import torch
    from torch.onnx import TrainingMode

    from lstmopt.bridge.modules import tensors_in

    training = module.training
    module.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            count = len(list(tensors_in(module(*arguments))))
            names = ["output"] if count == 1 else [f"output_{index}" for index in range(count)]
            torch.onnx.export(
                module,
                arguments,
                str(path),
                input_names=form.inputs,
                output_names=list(form.outputs or names),
                dynamic_axes=form.axes,
                opset_version=OPSET,
                dynamo=False,
                # Otherwise a BatchNorm is merged into the convolution before it, and cannot come back.
                training=TrainingMode.PRESERVE,
                do_constant_folding=False,
            )
    except Exception as error:  # the module's own code, and torch's exporter, raise anything
        raise LstmoptError(
            "module", f"torch cannot export it ({type(error).__name__}: {first_line(error)})",
            "export it to ONNX by yourself, and use lstmopt.optimize",
        ) from error  # fmt: skip
    finally:
        module.train(training)


def _compare(module: nn.Module, arguments: tuple[Any, ...], graph: ir.Model, names: list[str]) -> None:
    """Runs the new module and the artifact on the example.

    Raises:
        LstmoptError: the module does not run, or gives something else.
    """
    import torch

    from lstmopt.bridge.modules import tensors_in

    given = list(tensors_in(arguments))
    shapes = {
        str(value.name): [size if isinstance(size, int) else None for size in value.shape or ()]
        for value in graph.graph.inputs
    }
    feeds, moved = {}, {}
    for name, tensor in zip(names, given, strict=True):
        if name not in shapes:
            continue  # the graph does not read it
        # A state's units may be fewer: the first ones are as good as any for a comparison.
        cut = tuple(slice(size) for size in shapes[name])
        moved[id(tensor)] = tensor[cut] if tensor.ndim else tensor
        feeds[name] = moved[id(tensor)].detach().numpy()
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            outputs = list(tensors_in(module(*_moved(arguments, moved))))
    except Exception as error:  # the module's own code raises anything
        raise LstmoptError(
            "module", f"its forward does not run at the new sizes ({first_line(error)})",
            "take sizes from the tensors or from the layers there; the artifact itself is whole",
        ) from error  # fmt: skip
    finally:
        module.train(training)
    expected = run_model(graph, feeds)
    for (name, truth), tensor in zip(expected.items(), outputs, strict=True):
        array = tensor.detach().numpy()
        scale = float(np.abs(truth).max(initial=1e-6))
        if array.shape != truth.shape or not np.allclose(array, truth, rtol=0, atol=TOLERANCE * scale):
            raise LstmoptError(
                "module",
                f"its output {name} is not the artifact's: some weights have no place in the module",
                "use the artifact, or write the weights' use as plain nn.Linear, nn.Conv1d or nn.LSTM",
            )  # fmt: skip


def _moved(value: Any, moved: Mapping[int, Any]) -> Any:
    """Returns nested arguments with some tensors replaced."""
    if isinstance(value, tuple | list):
        return type(value)(_moved(item, moved) for item in value)
    return moved.get(id(value), value)
