"""Checkpoints of the reference trainings: one safetensors file, moved into place whole."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Writes the model, the optimiser's moments and the step."""
    tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    tensors["step"] = torch.tensor(step)
    beside = path.with_suffix(".tmp")
    save_file(tensors, beside)
    beside.replace(path)


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """Reads what `save` wrote, if it is there, and returns the step to go on from."""
    if not path.exists():
        return 0
    saved = load_file(path)
    model.load_state_dict({k[6:]: v for k, v in saved.items() if k.startswith("model.")})
    if optimizer is not None:
        for name, parameter in model.named_parameters():
            state = {
                k.split(".")[1]: v
                for k, v in saved.items()
                if k.startswith("optimizer.") and k.split(".", 2)[2] == name
            }
            if state:
                optimizer.state[parameter] = state
    return int(saved["step"])
