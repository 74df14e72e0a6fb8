"""Training on a GPU: where there is one, and where the graph computes there what it computes on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lstmopt.bridge.exact import exact_products
from lstmopt.bridge.module import OnnxModule
from lstmopt.errors import LstmoptError

TOLERANCE = 1e-3
"""Of an output's largest value: sums in another order."""

Trial = tuple[OnnxModule, Callable[[], Mapping[str, Any]]]
"""A module, and what makes an array for each of its inputs."""


@contextmanager
def placed_for_training(modules: Sequence[Trial]) -> Iterator[tuple[str, ...]]:
    """Has modules on the GPU of this machine, if all of them run there; otherwise they stay on the CPU.

    That is tried: a call, and its gradients. Within it f32 is f32: the weights end in runtimes that do not
    round products to TF32.

    Args:
        modules: each with inputs to try it on.

    Yields:
        A note on where training is done, where there is a GPU.
    """
    if not torch.cuda.is_available():
        yield ()
        return
    with exact_products(), warnings.catch_warnings():
        # Weights are parameters of the graph, not of torch's layers: they are gathered at each call.
        warnings.filterwarnings("ignore", "RNN module weights are not part")
        yield (_place(modules),)
    torch.cuda.empty_cache()  # other processes measure there next


def _place(modules: Sequence[Trial]) -> str:
    name = torch.cuda.get_device_name()
    for module, inputs in modules:
        if fault := _fault(module, inputs, "cuda"):
            for moved, _ in modules:
                moved.place("cpu")
            return f"trained on the CPU: on the {name} {fault}"
    return f"trained on the {name}"


def _fault(module: OnnxModule, inputs: Callable[[], Mapping[str, Any]], device: str) -> str:
    """Moves a module to a device and says what is wrong with it there; empty if nothing is."""
    module.eval()
    try:
        feeds = inputs()
        with torch.no_grad():
            expected = module(module.placed_feeds(feeds))
        module.place(device)
        found = module(module.placed_feeds(feeds))
        reals = [value.float().square().sum() for value in found.values() if value.requires_grad]
        if reals:
            torch.stack(reals).sum().backward()  # type: ignore[no-untyped-call]
        differing = [key for key in expected if not _same(expected[key], found[key].detach().cpu())]
    except (LstmoptError, RuntimeError, TypeError) as error:
        said = str(error).partition("\n")[0][:120] or type(error).__name__
        return f"the graph does not run ({said})"
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
