"""OpenVINO models that keep their states inside, as variables which `reset_state` sets to zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lstmopt.errors import LstmoptError
from lstmopt.runtimes.base import Array, Deployment, StatefulDeployment
from lstmopt.runtimes.openvino import imported, telling_line

STATEFUL = "stateful.xml"
CHUNKS = 8
"""Calls in a row on which a stateful model is compared with the one that it was made of."""

TOLERANCES = {"f32": 1e-3, "sparse-f32": 1e-3, "sparse-i16": 1e-2}
ROUGH = 5e-2
"""Of an output's largest value, by precision: what computes in less than f32 keeps its variables in less."""


def make_stateful(
    deployment: Deployment,
    states: Sequence[tuple[str, str]],
    feeds: Mapping[str, Array],
    shapes: Mapping[str, Sequence[int]],
    threads: int,
) -> StatefulDeployment:
    """Writes ``stateful.xml`` beside an OpenVINO model, and checks it by streaming.

    Args:
        deployment: the model, its states inputs and outputs.
        states: names of each state's input and output.
        feeds: a call.
        shapes: of the inputs, see `fixed_batch`. With variables of one batch and others of any, the CPU's
            layers compute no step at all.
        threads: that one inference may use.

    Returns:
        The deployment of the new file, which takes the other inputs alone.

    Raises:
        LstmoptError: it has no states, OpenVINO cannot keep them, or what it computes is something else.
    """
    ov = imported()
    from openvino.passes import MakeStateful, Manager

    file = deployment.file.with_name(STATEFUL)
    if not states:
        raise LstmoptError(
            str(deployment.file), "has no states that could be kept inside", "export it without --stateful"
        )
    try:
        core = ov.Core()
        for library in deployment.libraries:
            core.add_extension(str(library))
        model = core.read_model(str(deployment.file))
        model.reshape({name: list(shape) for name, shape in shapes.items()})
        manager = Manager()
        manager.register_pass(MakeStateful(dict(states)))
        manager.run_passes(model)
        ov.save_model(model, str(file), compress_to_fp16=False)
    except Exception as error:  # noqa: BLE001 - OpenVINO raises RuntimeError and others
        raise LstmoptError(
            str(deployment.file), f"OpenVINO cannot keep its states ({telling_line(error)})",
            "export it without --stateful",
        ) from error  # fmt: skip
    sources = {source for source, _ in states}
    others = {name: shape for name, shape in deployment.input_shapes.items() if name not in sources}
    kept = {source: feeds[source].shape for source in sources}
    changed = {"file": file, "input_shapes": others, "states": kept}
    made = StatefulDeployment.model_validate({**deployment.model_dump(), **changed})
    _compare(made, deployment, states, feeds, threads)
    return made


def _compare(
    made: Deployment,
    explicit: Deployment,
    states: Sequence[tuple[str, str]],
    feeds: Mapping[str, Array],
    threads: int,
) -> None:
    """Streams the same chunks through both, twice over, with a reset between."""
    from lstmopt.runtimes.openvino import OpenVinoSession

    ours, theirs = OpenVinoSession(made, threads), OpenVinoSession(explicit, threads)
    tolerance = TOLERANCES.get(explicit.precision, ROUGH)
    sources = {source for source, _ in states}
    inputs = {name: array for name, array in feeds.items() if name not in sources}
    for _ in range(2):
        ours.reset()
        carried = {source: np.zeros_like(feeds[source]) for source in sources}
        for chunk in range(CHUNKS):
            call = {name: np.roll(array, chunk) for name, array in inputs.items()}
            expected = theirs.run({**call, **carried})
            carried = {source: expected[result] for source, result in states}
            got = ours.run(call)
            for name, array in got.items():
                limit = tolerance * float(np.abs(expected[name]).max(initial=1e-6))
                same = array.shape == expected[name].shape
                if not (same and np.allclose(array, expected[name], rtol=0, atol=limit, equal_nan=True)):
                    raise LstmoptError(
                        str(made.file), f"output {name} differs from that of the model with explicit states",
                        "export it without --stateful, and report the model",
                    )  # fmt: skip


def stateful_deployments(
    deployments: Sequence[Deployment],
    states: Sequence[tuple[str, str]],
    feeds: Mapping[str, Array],
    shapes: Mapping[str, Sequence[int]],
    threads: int,
) -> tuple[StatefulDeployment, ...]:
    """Returns stateful forms of the OpenVINO models among some: the first of each file.

    ONNX Runtime has no variables: ``Stream`` in ``run.py`` carries the states there.
    """
    files: dict[Path, Deployment] = {}
    for deployment in deployments:
        if deployment.runtime == "openvino":
            files.setdefault(deployment.file, deployment)
    return tuple(make_stateful(item, states, feeds, shapes, threads) for item in files.values())
