"""The usual chain: what `lstmopt optimize` runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lstmopt.pipeline.chain import Pipeline
from lstmopt.pipeline.state import Stage, State
from lstmopt.rnn.files import load_model

if TYPE_CHECKING:
    from lstmopt.passes.grow_prune import GrowPrune


def standard_stages(
    compression: float, scales: tuple[float, ...] | None = None, train: GrowPrune | None = None
) -> tuple[Stage, ...]:
    """Returns the stages of `lstmopt optimize`.

    Args:
        compression: times fewer non-zero recurrent weights to aim for.
        scales: hidden sizes to try, as shares of the original's; None takes the usual ones.
        train: the recipe; None takes the usual one.
    """
    from lstmopt.passes import BackOff, Export, GrowPrune, Peers, Probe, Simplify, Verify
    from lstmopt.passes.back_off import SCALES

    back_off = BackOff(SCALES if scales is None else scales, compression, train or GrowPrune())
    return Simplify(), Peers(), Probe(step=16, smallest=0.5), back_off, Export(), Verify()


def optimize(
    model: str | Path,
    *,
    output: str | Path,
    compression: float = 4.0,
    scales: tuple[float, ...] | None = None,
    train: GrowPrune | None = None,
    **options: Any,
) -> State:
    """Optimises a model with the standard stages; see `Pipeline.run` for the other options.

    Args:
        model: the ONNX file.
        output: the artifact folder.
        compression: times fewer non-zero recurrent weights to aim for.
        scales: hidden sizes to try, as shares of the original's, smallest first.
        train: the recipe of training; its density and time are set for each size.
        options: of `Pipeline.run`.

    Returns:
        The last stage's state.

    Raises:
        LstmoptError: bad input.
        ContractError: nothing holds the contract.
    """
    from lstmopt.rnn.reader import require_rnns

    require_rnns(load_model(model), str(model))
    return Pipeline(*standard_stages(compression, scales, train)).run(model, output=output, **options)
