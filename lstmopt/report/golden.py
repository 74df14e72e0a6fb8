"""`golden.safetensors`: inputs, and what the original and the optimised files answered to them.

Tensors are named ``input.<window>.<name>``, ``original.<window>.<name>``, ``optimized.<window>.<name>``, and
``optimized-<k>.<window>.<name>`` for the k-th further entry of the manifest's ``deploy``. The metadata hold
``steps`` (how many windows), ``names`` and ``optimized`` (the prefix of each entry), as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmopt.errors import LstmoptError

Arrays = Mapping[str, npt.NDArray[Any]]
Windows = tuple[Arrays, ...]


@dataclass(frozen=True, eq=False)
class Golden:
    """What is recorded; each tuple has one mapping a window.

    Attributes:
        inputs: by name; the states of later windows are zero or arbitrary, since those fed back count.
        original: outputs of the original.
        optimized: outputs of each entry of the manifest's ``deploy``, in its order.
    """

    inputs: Windows
    original: Windows
    optimized: tuple[Windows, ...]


def play(
    run: Callable[[Arrays], Arrays], windows: Sequence[Arrays], states: Sequence[tuple[str, str]]
) -> Windows:
    """Runs windows one after the other, each with the states that the one before left.

    Args:
        run: returns all outputs by name.
        windows: the inputs of each.
        states: pairs of the name of a state input and of the output that feeds it.
    """
    played: list[Arrays] = []
    for feeds in windows:
        carried = {source: played[-1][result] for source, result in states} if played else {}
        played.append(run({**feeds, **carried}))
    return tuple(played)


def write_golden(path: Path, golden: Golden) -> None:
    """Writes the file.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.numpy import save

    prefixes = [f"optimized-{index}" if index else "optimized" for index in range(len(golden.optimized))]
    groups = {"input": golden.inputs, "original": golden.original}
    groups |= dict(zip(prefixes, golden.optimized, strict=True))
    tensors = {
        f"{prefix}.{step}.{name}": np.asarray(array, order="C")
        for prefix, windows in groups.items()
        for step, arrays in enumerate(windows)
        for name, array in arrays.items()
    }
    metadata = {
        "steps": str(len(golden.inputs)),
        "names": json.dumps({"inputs": list(golden.inputs[0]), "outputs": list(golden.original[0])}),
        "optimized": json.dumps(prefixes),
    }
    # Not safetensors' own `save_file`, whose files nobody but their owner can read.
    path.write_bytes(save(tensors, metadata))


def read_golden(path: Path) -> Golden:
    """Reads the file.

    Raises:
        LstmoptError: it is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        steps, prefixes = int(metadata["steps"]), json.loads(metadata["optimized"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise LstmoptError(str(path), f"cannot be read ({error})", "make the artifact again") from error

    def windows(prefix: str) -> Windows:
        heads = [f"{prefix}.{step}." for step in range(steps)]
        return tuple(
            {name.removeprefix(head): array for name, array in tensors.items() if name.startswith(head)}
            for head in heads
        )

    return Golden(windows("input"), windows("original"), tuple(windows(prefix) for prefix in prefixes))
