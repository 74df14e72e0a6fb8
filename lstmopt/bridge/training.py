"""The training loop of grow-and-prune: resumable, within a number of steps or seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lstmopt.bridge import checkpoint
from lstmopt.bridge.frozen import cut_loss
from lstmopt.bridge.pace import Pace
from lstmopt.bridge.pruning import Pruner
from lstmopt.bridge.rounding import Rounding
from lstmopt.bridge.runner import Stream
from lstmopt.bridge.schedule import Schedule
from lstmopt.errors import LstmoptError

if TYPE_CHECKING:
    from lstmopt.tasks.base import Batch, Task
    from lstmopt.tasks.data import Dataset

CHECKPOINT_SECONDS = 20.0
TELL_SECONDS = 2.0
VALIDATED_AT = (0.7, 0.85)
"""Progress at which the model is validated, besides the end, once the target density is reached."""

FINISH_SHARE = 0.08
"""Share of a time budget that is kept for what follows the last step."""

MOST_DIVERGENCES = 3
EXPLODED = 1e3
"""A loss so many times the first one (or 1, where that is less) has diverged, as NaN has."""

MOST_DROPOUT, DROPOUT_PER_DENSITY = 0.2, 1.6
"""Dropout where it is left open: few weights learn little by heart."""

ROUND_EVERY = 4
"""Steps between roundings. At the end of a training a step moves few weights to another rounded value, and
rounding at each would take 8 to 15% of its time (measured: 2 x 400 units at 6%, batch 20, 35 steps)."""

FULL_RATE_STEPS = 500
"""In shorter trainings the learning rate is less in proportion: what is moved far has to settle again."""

RENEWALS = 8
"""Least number of renewals of the masks on the ramp of a short training."""


@dataclass(frozen=True)
class Settings:
    """How the weights are moved.

    Attributes:
        batch: sequences a step.
        sequence: steps of time a window.
        optimizer: "adam" or "sgd".
        learning_rate: at the start.
        clip: bound on the norm of the gradient.
        dropout: probability; None lets it follow the density, see `Trainer`.
        alpha: share of the distillation.
        temperature: of the distillation.
        mask_every: training steps between renewals of the masks.
        seed: of every random choice.
        amp: whether products are computed in bfloat16; None measures which is faster.
        unroll: calls in a row that one step's gradient goes through, their states carried.
        cautious: whether the learning rate is less in a short training.
    """

    batch: int = 32
    sequence: int = 64
    unroll: int = 1
    cautious: bool = False
    optimizer: str = "adam"
    learning_rate: float = 2e-3
    clip: float = 5.0
    dropout: float | None = 0.0
    alpha: float = 0.5
    temperature: float = 1.0
    mask_every: int = 50
    seed: int = 0
    amp: bool | None = None


@dataclass(frozen=True)
class Length:
    """How long to train: steps, or seconds, of which progress is then a share."""

    steps: int | None = None
    seconds: float | None = None


@dataclass
class Position:
    """Where a training stands, as its checkpoint keeps it.

    Attributes:
        step: steps done.
        epoch: passes over the data that are done.
        index: batches of this pass that are done.
        seconds: spent so far, over all calls.
        rate: the learning rate at the start, halved by each divergence.
        divergences: how often the loss became NaN.
        validated: validations done before the end.
        reached: whether the masks have their last density.
        amp: whether products are computed in bfloat16.
        best: the lowest validation loss.
        first: the loss of the first step.
    """

    rate: float
    amp: bool
    step: int = 0
    epoch: int = 0
    index: int = 0
    seconds: float = 0.0
    divergences: int = 0
    validated: int = 0
    reached: bool = False
    best: float | None = None
    first: float | None = None


class Diverged(Exception):
    """The loss is not a number, or has exploded."""


class Trainer:
    """One training of one module.

    Args:
        task: loss and batches.
        train: training data.
        student: the module that is trained, with its states.
        teacher: the module to distil from, or None.
        pruner: the masks.
        rounding: what the weights are rounded to: every validation and what comes out is of rounded
            weights; None leaves them full.
        schedule: density, rate, dropout, regrowth and rounding over time.
        settings: how weights are moved.
        length: how long.
        epoch_steps: steps of a pass over the data. What is not seen twice cannot be learnt by heart: a
            dropout that is left open grows from the first pass to the third.
        validate: returns the validation loss of the student.
        path: the checkpoint file.
        key: what led here; a checkpoint of another key is not used.
        progress: called with a line and a fraction.
        pace: finds out how many threads are the fastest; None keeps torch's setting.
    """

    def __init__(
        self,
        *,
        task: Task,
        train: Dataset,
        student: Stream,
        teacher: Stream | None,
        pruner: Pruner,
        rounding: Rounding | None = None,
        schedule: Schedule,
        settings: Settings,
        length: Length,
        epoch_steps: int,
        validate: Callable[[], float],
        path: Path,
        key: str,
        progress: Callable[[str, float], None],
        pace: Pace | None = None,
    ) -> None:
        self._task, self._train = task, train
        self._student, self._teacher = student, teacher
        self._pruner, self._schedule, self._settings = pruner, schedule, settings
        self._rounding = rounding
        self._length, self._epoch_steps = length, max(1, epoch_steps)
        self._validate, self._path, self._key = validate, path, key
        self._progress, self._pace = progress, pace
        module = student.module
        self._device = module.device
        self._weights = dict(module.weights)
        # Keyed by name: an optimiser of torch numbers its parameters, a checkpoint names them.
        self._optimizer = _optimizer(settings, list(self._weights.values()))
        self._at = Position(rate=settings.learning_rate, amp=bool(settings.amp))
        self._best: dict[str, Tensor] = {}
        self._recent = math.nan
        self._kept = 1.0

    def run(self) -> float:
        """Trains to the end and leaves the best weights in the module.

        Returns:
            Their validation loss.

        Raises:
            LstmoptError: the loss diverged again and again.
        """
        devices = [] if self._device.type == "cpu" else [self._device]
        with torch.random.fork_rng(devices=devices), _flushed_denormals():
            torch.manual_seed(self._settings.seed)
            self._student.module.train()
            if not self._resume():
                self._choose_precision()
                self._save()
            while True:
                try:
                    self._train_to_the_end()
                    break
                except Diverged:
                    self._back()
            if not self._at.reached:
                self._renew(1.0)  # a budget of time can end within one step
            self._keep_best()
            with torch.no_grad():
                for name, weight in self._weights.items():
                    weight.copy_(self._best[name])
            if self._rounding is not None:
                self._rounding.stop()
            self._save()
        self._student.module.eval()
        assert self._at.best is not None
        return self._at.best

    def _train_to_the_end(self) -> None:
        began = saved = told = stepped = time.monotonic()
        before = self._at.seconds
        while self._fraction < 1:
            for window in self._windows():
                if self._renewal_is_due():
                    self._renew(self._fraction)
                self._recent = self._train_step(window)
                self._at.step += 1
                self._at.index += len(window)
                now = time.monotonic()
                self._at.seconds = before + now - began
                if self._pace is not None:
                    self._pace.step(now - stepped)
                self._validate_when_due()
                if now - told > TELL_SECONDS:
                    told = now
                    self._tell()
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self._save()
                    saved = time.monotonic()
                if self._fraction >= 1:
                    break
                stepped = time.monotonic()
            else:
                if self._at.index == 0:
                    raise LstmoptError("data", "give no training batch", "give more data, or a smaller batch")
                self._at.epoch, self._at.index = self._at.epoch + 1, 0

    @property
    def _fraction(self) -> float:
        """Progress: the share of the steps, or of the time, that is done."""
        if self._length.seconds is not None:
            # Time itself: a number of steps found from the first ones is wrong once the load changes.
            return min(1.0, self._at.seconds / (self._length.seconds * (1 - FINISH_SHARE)))
        assert self._length.steps is not None
        return min(1.0, self._at.step / self._length.steps)

    @property
    def _rounds(self) -> bool:
        """Whether training is done on rounded weights now; masks are final before it is."""
        return (
            self._rounding is not None and self._at.reached and self._schedule.is_rounded_at(self._fraction)
        )

    def _renewal_is_due(self) -> bool:
        """Whether the masks are renewed before this step: at intervals, and at once where the ramp ends."""
        if self._at.reached:
            return False
        if self._fraction >= self._schedule.ramp or self._at.step == 0:
            return True
        expected = self._at.step / self._fraction if self._fraction > 0 else self._at.step
        every = min(self._settings.mask_every, max(1, int(expected * self._schedule.ramp / RENEWALS)))
        return self._at.step % every == 0

    def _epoch_batches(self) -> Iterator[Batch]:
        """Yields what is left of the epoch; each has its own generator, so that it can be found again."""
        rng = np.random.default_rng((self._settings.seed, self._at.epoch))
        batches = self._task.batches(
            self._train, batch=self._settings.batch, sequence=self._settings.sequence, rng=rng
        )
        return islice(batches, self._at.index, None)

    def _windows(self) -> Iterator[list[Batch]]:
        """Yields what is left of the epoch, as many calls at a time as a gradient goes through."""
        batches = self._epoch_batches()
        while window := list(islice(batches, self._settings.unroll)):
            yield window

    def _renew(self, progress: float) -> None:
        course = self._schedule
        self._at.reached = progress >= course.ramp
        densities = [
            replace(course, density=group.density).density_at(progress) for group in self._pruner.groups
        ]
        self._pruner.renew(densities, course.regrow_at(progress))
        self._kept = self._student.module.density
        for name, mask in self._student.module.masks.items():
            for value in self._optimizer.state.get(self._weights[name], {}).values():
                if isinstance(value, Tensor) and value.shape == mask.shape:
                    value.mul_(mask)  # a moment left behind would move a weight that is masked

    def _train_step(self, window: list[Batch]) -> float:
        settings, module = self._settings, self._student.module
        progress = self._fraction
        for group in self._optimizer.param_groups:
            group["lr"] = self._at.rate * self._schedule.rate_at(progress) * self._caution(progress)
        if self._rounds and (not module.rounded or self._at.step % ROUND_EVERY == 0):
            assert self._rounding is not None
            self._rounding.renew()
        module.dropout = self._dropout(progress) if settings.dropout is None else settings.dropout
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss(window)
        value = float(loss.detach())
        if self._at.first is None:
            self._at.first = value
        if not value < EXPLODED * max(1.0, self._at.first):
            raise Diverged
        loss.backward()  # type: ignore[no-untyped-call]
        self._pruner.collect()
        module.mask_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self._weights.values(), settings.clip)
        if not math.isfinite(float(norm)):
            raise Diverged
        self._optimizer.step()
        return value

    def _expected(self, progress: float) -> int:
        """Returns the steps that the training will have; 0 while a budget of time does not tell."""
        if self._length.steps is not None:
            return self._length.steps
        return int(self._at.step / progress) if self._at.step >= RENEWALS and progress > 0 else 0

    def _caution(self, progress: float) -> float:
        """Returns the factor on a rate that nobody has chosen."""
        if not self._settings.cautious:
            return 1.0
        return min(1.0, max(self._expected(progress), RENEWALS) / FULL_RATE_STEPS)

    def _dropout(self, progress: float) -> float:
        """Returns the dropout now; none in the first steps of a budget of time."""
        steps = self._expected(progress)
        repeated = min(1.0, max(0.0, (steps / self._epoch_steps - 1.0) / 2.0))
        return repeated * min(MOST_DROPOUT, DROPOUT_PER_DENSITY * self._kept)

    def _loss(self, window: list[Batch]) -> Tensor:
        """Returns the mean loss of some calls in a row, in which states carry gradients."""
        losses = [self._loss_of_call(batch) for batch in window]
        self._student.cut()
        return sum(losses[1:], losses[0]) / len(losses)

    def _loss_of_call(self, batch: Batch) -> Tensor:
        feeds = self._student.module.placed_feeds(batch.feeds)
        with self._autocast():
            known = None
            if self._teacher is not None:
                with torch.no_grad():
                    known = self._teacher(batch, feeds)
            outputs = self._student(batch, feeds)
            loss = self._task.loss(outputs, batch, known, self._settings.alpha, self._settings.temperature)
        if self._teacher is not None:
            at_cuts = cut_loss(self._student.module.captured, self._teacher.module.captured)
            loss = loss if at_cuts is None else loss + at_cuts
        if not loss.requires_grad:
            raise LstmoptError(
                "training",
                "no gradient reaches the recurrent layers: all that reads them cannot be trained through",
                "export the model without those operators, or optimise without training",
            )
        return loss

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, dtype=torch.bfloat16) if self._at.amp else nullcontext()

    def _choose_precision(self) -> None:
        """Takes bfloat16 where the CPU computes in it and a step is faster for it."""
        if self._settings.amp is not None or self._device.type != "cpu" or not has_native_bfloat16():
            return
        batches = list(islice(self._epoch_batches(), 3))
        seconds = {}
        for amp in (True, False):
            self._at.amp = amp
            times = []
            for batch in batches:
                began = time.perf_counter()
                self._loss([batch]).backward()  # type: ignore[no-untyped-call]
                times.append(time.perf_counter() - began)
            seconds[amp] = min(times)
        self._optimizer.zero_grad(set_to_none=True)
        self._student.states = {}
        if self._teacher is not None:
            self._teacher.states = {}
        self._at.amp = seconds[True] < 0.9 * seconds[False]

    def _validate_when_due(self) -> None:
        due = [place for place in VALIDATED_AT if place > self._schedule.ramp][self._at.validated :]
        if due and self._at.reached and due[0] <= self._fraction < 1:
            self._keep_best()
            self._at.validated += 1

    def _keep_best(self) -> None:
        """Validates what would ship now, and keeps it where nothing was better."""
        module = self._student.module
        if self._rounding is not None:
            self._rounding.renew()
        loss = self._validate()
        module.train()
        if self._at.best is None or not math.isfinite(self._at.best) or loss <= self._at.best:
            self._at.best = loss
            used = {name: module.rounded.get(name, weight) for name, weight in self._weights.items()}
            self._best = {name: weight.detach().clone() for name, weight in used.items()}
        if self._rounding is not None and not self._rounds:
            self._rounding.stop()

    def _tell(self) -> None:
        total = "" if self._length.steps is None else f" of {self._length.steps}"
        density = f", density {self._kept:.1%}" if self._student.module.masks else ""
        self._progress(
            f"training step {self._at.step}{total}, loss {self._recent:.3f}{density}", self._fraction
        )

    def _back(self) -> None:
        """Returns to the last checkpoint, with half the rate."""
        rate, count, spent = self._at.rate / 2, self._at.divergences + 1, self._at.seconds
        if count > MOST_DIVERGENCES:
            raise LstmoptError(
                "training",
                f"the loss diverged {count} times, at last with a learning rate of {self._at.rate:g}",
                "lower the learning rate, or check the data",
            )
        if not self._resume():
            raise LstmoptError("training", "the loss diverged and the checkpoint is gone", "start again")
        self._at.rate, self._at.divergences, self._at.seconds = rate, count, spent
        self._progress(f"the loss diverged: back to step {self._at.step} with half the rate", self._fraction)
        self._save()

    def _save(self) -> None:
        tensors: dict[str, Tensor] = {"rng": torch.get_rng_state()}
        if self._device.type == "cuda":
            tensors["device-rng"] = torch.cuda.get_rng_state(self._device)
        for name, weight in self._weights.items():
            tensors[f"weight/{name}"] = weight
            for key, value in self._optimizer.state.get(weight, {}).items():
                tensors[f"optimizer/{key}/{name}"] = value
        for name, mask in self._student.module.masks.items():
            tensors[f"mask/{name}"] = mask
        for name, total in self._pruner.gradients.items():
            tensors[f"gradient/{name}"] = total
        for kind, stream in (("student", self._student), ("teacher", self._teacher)):
            for name, state in ({} if stream is None else stream.states).items():
                tensors[f"{kind}/{name}"] = state
        # Rounded some steps ago: what the weights are now would be rounded to something else.
        tensors.update({f"rounded/{name}": weight for name, weight in self._student.module.rounded.items()})
        tensors.update({f"best/{name}": weight for name, weight in self._best.items()})
        checkpoint.save(self._path, tensors, {"key": self._key, **asdict(self._at)})

    @torch.no_grad()
    def _resume(self) -> bool:
        """Goes back to the checkpoint, if there is one of this training."""
        found = checkpoint.load(self._path)
        if found is None or found[1].get("key") != self._key:
            return False
        tensors, document = found
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            parts.setdefault(kind, {})[rest] = tensor.to(self._device)
        for name, weight in self._weights.items():
            weight.copy_(parts["weight"][name])
            moments = {}
            for key, value in parts.get("optimizer", {}).items():
                moment, _, owner = key.partition("/")
                if owner == name:
                    moments[moment] = value
            self._optimizer.state[weight] = moments
        masks = {name: mask.cpu().numpy() for name, mask in parts.get("mask", {}).items()}
        self._student.module.set_masks(masks)
        self._kept = self._student.module.density
        for name, total in self._pruner.gradients.items():
            total.copy_(parts["gradient"][name])
        self._student.states = parts.get("student", {})
        if self._teacher is not None:
            self._teacher.states = parts.get("teacher", {})
        self._student.module.rounded = parts.get("rounded", {})
        self._best = parts.get("best", {})
        self._at = Position(**{name: value for name, value in document.items() if name != "key"})
        torch.set_rng_state(tensors["rng"])
        if self._device.type == "cuda" and "device-rng" in tensors:
            torch.cuda.set_rng_state(tensors["device-rng"], self._device)
        return True


def _optimizer(settings: Settings, weights: list[Any]) -> torch.optim.Optimizer:
    if settings.optimizer == "adam":
        return torch.optim.Adam(weights, lr=settings.learning_rate, fused=True)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=settings.learning_rate, fused=True)
    raise LstmoptError(f"optimizer {settings.optimizer!r}", "is unknown", "use adam or sgd")


def has_native_bfloat16() -> bool:
    """Returns whether this CPU multiplies bfloat16 itself."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, check, lambda: False)()) for check in checks)


@contextmanager
def _flushed_denormals() -> Iterator[None]:
    """Weights and gradients near 0 would otherwise be computed a hundred times slower."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
