"""The usual chain: what `lstmopt optimize` runs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lstmopt.errors import LstmoptError
from lstmopt.pipeline.chain import Pipeline
from lstmopt.pipeline.state import Stage, State
from lstmopt.rnn.files import load_model
from lstmopt.rnn.states import state_pairs

if TYPE_CHECKING:
    from lstmopt.passes.back_off import BackOff

BELOW = 0.85
"""Share of the smallest hidden size that is tried down to which latency is measured."""


def standard_stages(
    back_off: BackOff | None = None, trained: str | Path | None = None, stateful: bool = False
) -> tuple[Stage, ...]:
    """Returns the stages of `lstmopt optimize`.

    Args:
        back_off: sizes, compression and recipe to try; None takes the usual ones.
        trained: a model that was trained before, in the place of training one.
        stateful: whether models that keep their states inside are written as well, see `Export`.
    """
    from lstmopt.passes import BackOff, Export, Peers, Probe, Simplify, Trained, Verify
    from lstmopt.passes.probe import LARGEST

    if trained is not None:
        return Simplify(), Trained(str(trained)), Peers(), Export(stateful=stateful), Verify()
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
    return Simplify(), Peers(), probe, back_off, Export(stateful=stateful), Verify()


def optimize(
    model: str | Path,
    *,
    output: str | Path,
    back_off: BackOff | None = None,
    trained: str | Path | None = None,
    stateful: bool = False,
    **options: Any,
) -> State:
    """Optimises a model with the standard stages; see `Pipeline.run` for the other options.

    Args:
        model: the ONNX file.
        output: the artifact folder.
        back_off: sizes, compression and recipe to try; None takes the usual ones.
        trained: a model that was trained before, in the place of training one: torch is not needed.
        stateful: whether models that keep their states inside are written as well, see `Export`.
        options: of `Pipeline.run`.

    Returns:
        The last stage's state.

    Raises:
        LstmoptError: bad input, or torch is missing.
        ContractError: nothing holds the contract.
    """
    from lstmopt.rnn.reader import require_rnns
    from lstmopt.rnn.recognition.recognise import recognise

    if trained is None:
        check_torch()
    original = load_model(model)
    require_rnns(recognise(original).model, str(model))
    if stateful and not state_pairs(original):
        raise LstmoptError(str(model), "has no states that could be kept inside", "leave --stateful out")
    return Pipeline(*standard_stages(back_off, trained, stateful)).run(model, output=output, **options)


def check_torch() -> None:
    """Checks, before anything is measured, that training will be possible.

    Raises:
        LstmoptError: torch is not installed.
    """
    if find_spec("torch") is None:
        raise LstmoptError(
            "torch", "not installed, and training needs it", "pip install torch, or see lstmopt doctor"
        )
