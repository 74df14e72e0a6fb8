"""The usual chain: what `lstmopt optimize` runs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lstmopt.errors import LstmoptError
from lstmopt.pipeline.chain import Pipeline
from lstmopt.pipeline.state import Stage, State
from lstmopt.rnn.files import load_model

if TYPE_CHECKING:
    from lstmopt.passes.back_off import BackOff

BELOW = 0.85
"""Share of the smallest hidden size that is tried down to which latency is measured."""


def standard_stages(back_off: BackOff | None = None, trained: str | Path | None = None) -> tuple[Stage, ...]:
    """Returns the stages of `lstmopt optimize`.

    Args:
        back_off: sizes, compression and recipe to try; None takes the usual ones.
        trained: a model that was trained before, in the place of training one.
    """
    from lstmopt.passes import BackOff, Export, Peers, Probe, Simplify, Trained, Verify
    from lstmopt.passes.probe import LARGEST

    if trained is not None:
        return Simplify(), Peers(), Trained(str(trained)), Export(), Verify()
    back_off = back_off or BackOff()
    # Below the smallest size that is tried no point is looked for, but for the bin that this size lies in.
    smallest = BELOW * min(1.0, *back_off.scales)
    probe = Probe(
        step=16,
        smallest=smallest,
        largest=max(LARGEST, *back_off.scales),
        densities=(1 / back_off.compression,),
        patterns=None if back_off.train.pattern is None else (back_off.train.pattern,),
    )
    return Simplify(), Peers(), probe, back_off, Export(), Verify()


def optimize(
    model: str | Path,
    *,
    output: str | Path,
    back_off: BackOff | None = None,
    trained: str | Path | None = None,
    **options: Any,
) -> State:
    """Optimises a model with the standard stages; see `Pipeline.run` for the other options.

    Args:
        model: the ONNX file.
        output: the artifact folder.
        back_off: sizes, compression and recipe to try; None takes the usual ones.
        trained: a model that was trained before, in the place of training one: torch is not needed.
        options: of `Pipeline.run`.

    Returns:
        The last stage's state.

    Raises:
        LstmoptError: bad input, or torch is missing.
        ContractError: nothing holds the contract.
    """
    from lstmopt.rnn.reader import require_rnns

    if trained is None:
        check_torch()
    require_rnns(load_model(model), str(model))
    return Pipeline(*standard_stages(back_off, trained)).run(model, output=output, **options)


def check_torch() -> None:
    """Checks, before anything is measured, that training will be possible.

    Raises:
        LstmoptError: torch is not installed.
    """
    if find_spec("torch") is None:
        raise LstmoptError(
            "torch", "not installed, and training needs it", "pip install torch, or see lstmopt doctor"
        )
