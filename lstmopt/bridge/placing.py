"""Training on a GPU: where there is one, and where the graph computes there what it computes on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from lstmopt.bridge.module import OnnxModule
from lstmopt.errors import LstmoptError
from lstmopt.rnn.examples import example_inputs

TOLERANCE = 1e-3
"""Of an output's largest value: sums in another order."""


def place_for_training(modules: Sequence[tuple[ir.Model, OnnxModule]]) -> tuple[str, ...]:
    """Moves modules to the GPU of this machine, if all of them run there; otherwise they stay on the CPU.

    That is tried: a call on random inputs, and its gradients.

    Args:
        modules: with the graphs that they were made of.

    Returns:
        A note on where training is done, where there is a GPU.
    """
    if not torch.cuda.is_available():
        return ()
    name = torch.cuda.get_device_name()
    # Weights are parameters of the graph, not of torch's layers: they are gathered at each call.
    warnings.filterwarnings("ignore", "RNN module weights are not part")
    # f32 is f32: the weights end in runtimes that do not round products to TF32.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for model, module in modules:
        if fault := _fault(model, module, "cuda"):
            for _, moved in modules:
                moved.place("cpu")
            return (f"trained on the CPU: on the {name} {fault}",)
    return (f"trained on the {name}",)


def _fault(model: ir.Model, module: OnnxModule, device: str) -> str:
    """Moves a module to a device and says what is wrong with it there; empty if nothing is."""
    feeds = example_inputs(model, 0)
    module.eval()
    with torch.no_grad():
        expected = module({name: module.placed(array) for name, array in feeds.items()})
    try:
        module.place(device)
        found = module({name: module.placed(array) for name, array in feeds.items()})
        reals = [value.float().square().sum() for value in found.values() if value.requires_grad]
        if reals:
            torch.stack(reals).sum().backward()  # type: ignore[no-untyped-call]
        differing = [key for key in expected if not _same(expected[key], found[key].detach().cpu())]
    except (LstmoptError, RuntimeError, TypeError) as error:
        return f"the graph does not run ({str(error).splitlines()[0][:120]})"
    finally:
        module.zero_grad(set_to_none=True)
    return f"{differing[0]} differs" if differing else ""


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return bool((a == b).all())
    largest = float(a.abs().max()) if a.numel() else 0.0
    return bool((a.float() - b.float()).abs().le(TOLERANCE * largest + 1e-6).all())
