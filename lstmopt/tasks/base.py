"""What "as accurate" means: a task's data, loss, metric and degradation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from lstmopt.runtimes.base import TensorInfo
from lstmopt.tasks.data import Dataset

if TYPE_CHECKING:
    from torch import Tensor

    from lstmopt.tasks.interface import Interface

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
RESAMPLES = 1000
DRAWN = 1_000_000
"""Block numbers that the bootstrap draws together: 8 MB of them."""


class Runner(Protocol):
    """A loaded model: a runtime's session, or a torch module made to look like one."""

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The inputs; a dynamic size is None."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Returns all outputs by name."""


@dataclass(frozen=True, eq=False)
class Batch:
    """One call's inputs, states left out.

    Attributes:
        feeds: arrays by input name.
        labels: what the outputs should be, or None.
        fresh: whether states start at zero before this call; otherwise they are carried.
        width: sequences that count; those after them only fill up a fixed batch. None: all count.
    """

    feeds: Mapping[str, Array]
    labels: Array | None
    fresh: bool
    width: int | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model made of some data, block by block (a block is what the bootstrap draws).

    Attributes:
        losses: summed loss of each block.
        weights: tokens or numbers in each block.
        metric: the task's metric over all of it.
        scale: for squared errors, the standard deviation of the original's outputs; None for losses of
            which the relative increase counts.
        agreement: share of steps with the same top class as the original, where outputs are categorical.
    """

    losses: FloatArray
    weights: FloatArray
    metric: float
    scale: float | None = None
    agreement: float | None = None

    @property
    def loss(self) -> float:
        """Mean loss."""
        return float(self.losses.sum() / self.weights.sum())


def save_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Writes an evaluation beside its place and moves it there."""
    from safetensors.numpy import save_file

    numbers = {name: getattr(evaluation, name) for name in ("metric", "scale", "agreement")}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    tensors = {"losses": evaluation.losses, "weights": evaluation.weights}
    save_file(tensors, beside, {"numbers": json.dumps(numbers)})
    beside.replace(path)


def load_evaluation(path: Path) -> Evaluation | None:
    """Reads an evaluation; None where it is not there or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            numbers = json.loads(file.metadata()["numbers"])
            return Evaluation(file.get_tensor("losses"), file.get_tensor("weights"), **numbers)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


class Degradation(BaseModel):
    """How much worse a model is than the original, with its 95% interval.

    Attributes:
        value: 0 for the original, larger is worse, a fraction.
        low: lower end of the paired bootstrap interval over blocks.
        high: its upper end.
        n: number of blocks.
    """

    # A broken candidate's loss is infinite or no number: written and read again as it is.
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    value: float
    low: float
    high: float
    n: int


class Task(Protocol):
    """One kind of accuracy."""

    @property
    def name(self) -> str:
        """Name on the command line."""

    @property
    def interface(self) -> Interface:
        """The original's inputs and outputs."""

    @property
    def metric(self) -> str:
        """What `Evaluation.metric` is; lower is better for all of them."""

    def batches(
        self, part: Dataset, *, batch: int, sequence: int, rng: np.random.Generator
    ) -> Iterator[Batch]:
        """Yields one epoch of training calls."""

    def loss(
        self,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        teacher: Mapping[str, Tensor] | None,
        alpha: float,
        temperature: float,
    ) -> Tensor:
        """Returns ``(1 - alpha) * task + alpha * T^2 * distillation``, or one alone without the other."""

    def evaluate(
        self, session: Runner, part: Dataset, *, reference: Runner | None = None, limit: int | None = None
    ) -> Evaluation:
        """Returns losses and metric of a loaded model.

        Args:
            session: the model.
            part: the data.
            reference: the original, which tasks without labels compare with.
            limit: most tokens or examples to look at.
        """


def with_interface(task: Task, interface: Interface) -> Task:
    """Returns a task (all of them are dataclasses) for another interface of the same model."""
    return cast("Task", replace(cast("Any", task), interface=interface))


def degradation(original: Evaluation, candidate: Evaluation, seed: int = 0) -> Degradation:
    """Returns how much worse a candidate is, by a paired bootstrap over blocks.

    The relative increase of the loss, or, where outputs are compared, the root mean square error over
    the standard deviation of the original's outputs. Over an original without any loss, a candidate
    without any is no worse, and any other one infinitely; losses that are no numbers give none.
    """
    rng = np.random.default_rng(seed)
    n = len(candidate.losses)
    if len(original.losses) != n:
        raise ValueError(f"degradation: {len(original.losses)} blocks of the original, {n} of the candidate")

    def value(index: Any) -> FloatArray:
        losses = candidate.losses[index].sum(axis=-1)
        if candidate.scale is not None:
            return np.asarray(np.sqrt(losses / candidate.weights[index].sum(axis=-1)) / candidate.scale)
        base = original.losses[index].sum(axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(losses == base, 0.0, losses / base - 1)

    each = max(1, DRAWN // n)
    sizes = [min(each, RESAMPLES - start) for start in range(0, RESAMPLES, each)]
    draws = np.concatenate([value(rng.integers(0, n, (size, n))) for size in sizes])
    # Between an infinite draw and a finite one nothing can be interpolated.
    low, high = np.percentile(draws, 2.5, method="lower"), np.percentile(draws, 97.5, method="higher")
    return Degradation(value=float(value(slice(None))), low=float(low), high=float(high), n=n)
