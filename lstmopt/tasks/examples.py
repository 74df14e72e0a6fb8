"""Tasks on examples: `classify`, `regress`, and `distill` without labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lstmopt.errors import LstmoptError
from lstmopt.tasks.base import Array, Batch, Evaluation, FloatArray, Runner
from lstmopt.tasks.data import Dataset
from lstmopt.tasks.interface import Interface, Port, check_answers, check_classes, log_probabilities
from lstmopt.tasks.variance import Variance

if TYPE_CHECKING:
    from torch import Tensor

EVALUATION_BATCH = 16


@dataclass(frozen=True, eq=False)
class _Examples:
    """What the tasks on examples share: how examples become calls.

    Examples of a model with states are consecutive chunks of streams: they are dealt into as many
    streams as the batch is wide, and the states are carried along each.
    """

    interface: Interface

    @property
    def output(self) -> Port:
        """The output that labels are compared with."""
        return self.interface.outputs[0]

    def calls(self, part: Dataset, batch: int, rng: np.random.Generator | None) -> Iterator[Batch]:
        """Yields one epoch of calls, in random order where there are no states and a generator is given."""
        batch = self.interface.batch or batch
        count = len(part)
        steps = max(1, count // batch) if self.interface.states or rng is not None else -(-count // batch)
        order = np.arange(count)
        if self.interface.states:
            streams = min(batch, count)
            order = np.arange(streams * (count // streams)).reshape(streams, -1).T.reshape(-1)
            steps = len(order) // streams
        elif rng is not None:
            order = rng.permutation(count)
        for step in range(steps):
            index = order[step * batch : (step + 1) * batch]
            width = len(index)
            if self.interface.batch is not None and len(index) < batch:
                index = np.resize(index, batch)  # a fixed batch is filled up with examples seen already
            feeds = {port.name: self._feed(port, part, index) for port in self.interface.inputs}
            labels = None if part.labels is None else part.labels[index]
            yield Batch(feeds, labels, fresh=step == 0 or not self.interface.states, width=width)

    def _feed(self, port: Port, part: Dataset, index: Array) -> Array:
        array = part.inputs[port.name]
        if port.name not in part.shared:
            # Without an axis of sequences a call takes one.
            array = (
                array[index[0]] if port.batch_axis is None else np.moveaxis(array[index], 0, port.batch_axis)
            )
        return np.ascontiguousarray(array).astype(port.dtype).reshape(array.shape)

    def batches(
        self, part: Dataset, *, batch: int, sequence: int, rng: np.random.Generator
    ) -> Iterator[Batch]:
        """Yields one epoch of training calls; the sequence is that of the examples."""
        del sequence
        yield from self.calls(part, batch, rng)

    def _runs(
        self, session: Runner, reference: Runner | None, part: Dataset, limit: int | None
    ) -> Iterator[tuple[Batch, dict[str, Array], dict[str, Array] | None]]:
        """Yields calls with the outputs of a model and of the original, states carried in both."""
        states: dict[str, Array] = {}
        original: dict[str, Array] = {}
        seen = 0
        for call in self.calls(part, EVALUATION_BATCH, None):
            width = self.interface.batch or min(EVALUATION_BATCH, len(part))
            if call.fresh:
                width = self._width(call, width)
                states = self.interface.zero_states(session.inputs, width)
                original = {} if reference is None else self.interface.zero_states(reference.inputs, width)
            outputs = session.run({**call.feeds, **states})
            states = self.interface.next_states(outputs)
            truth = None
            if reference is not None:
                truth = reference.run({**call.feeds, **original})
                original = self.interface.next_states(truth)
            yield call, outputs, truth
            seen += call.width or width
            if limit is not None and seen >= limit:
                return

    def _width(self, call: Batch, default: int) -> int:
        for port in self.interface.inputs:
            if port.batch_axis is not None:
                return int(call.feeds[port.name].shape[port.batch_axis])
        return default

    def _batch_first(self, output: Any, call: Batch) -> Any:
        """Returns the first output with its sequences on axis 0."""
        return self.output.batch_first(output, self._width(call, 1))

    def _counted(self, array: Array, call: Batch) -> Array:
        """Returns the part of an array, sequences first, that is not there only to fill up the batch."""
        return array[: call.width] if len(array) == self._width(call, 1) else array


@dataclass(frozen=True, eq=False)
class Distillation(_Examples):
    """Task `distill`: the original's outputs are the truth.

    The degradation is the root mean square error of the outputs over their standard deviation; of several
    outputs, each one's square error counts over its own variance.

    Attributes:
        variances: of the original's outputs by name, for the loss of a training; that of a batch, which
            may be a single number, where one is not given.
    """

    name: str = "distill"
    metric: str = "relative error"
    variances: Mapping[str, float] = field(default_factory=dict)

    @property
    def compared(self) -> tuple[Port, ...]:
        """The outputs that are numbers, not indices.

        Raises:
            LstmoptError: there is none.
        """
        found = tuple(port for port in self.interface.outputs if port.dtype.kind == "f")
        if not found:
            raise LstmoptError(
                "model", "has no output of floating point numbers to compare", "give data with labels"
            )
        return found

    def loss(
        self,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        teacher: Mapping[str, Tensor] | None,
        alpha: float,
        temperature: float,
    ) -> Tensor:
        """Returns the square error over the variance, summed over the real outputs."""
        from lstmopt.tasks.losses import normalised_square_error

        if teacher is None:
            raise ValueError("distill: needs a teacher")
        losses = [
            normalised_square_error(outputs[port.name], teacher[port.name], self.variances.get(port.name))
            for port in self.compared
        ]
        total = losses[0]
        for loss in losses[1:]:
            total = total + loss
        return total

    def evaluate(
        self, session: Runner, part: Dataset, *, reference: Runner | None = None, limit: int | None = None
    ) -> Evaluation:
        """Returns the squared error of each sequence, and where the outputs' top class is the original's."""
        if reference is None:
            raise ValueError("distill: evaluate needs the original")
        compared = self.compared
        errors: dict[str, list[FloatArray]] = {port.name: [] for port in compared}
        spreads = {port.name: Variance() for port in compared}
        agreed: list[npt.NDArray[np.bool_]] = []
        for call, outputs, truth in self._runs(session, reference, part, limit):
            assert truth is not None
            width = self._width(call, 1)
            for port in compared:
                ours, theirs = (
                    self._counted(port.batch_first(item[port.name], width), call).astype(np.float64)
                    for item in (outputs, truth)
                )
                errors[port.name].append(_each((ours - theirs) ** 2, call.width or width))
                spreads[port.name].add(theirs)
                if port is self.output and ours.ndim > 1 and ours.shape[-1] > 2:
                    agreed.append((ours.argmax(-1) == theirs.argmax(-1)).reshape(-1))
        total = np.zeros(sum(len(array) for array in errors[compared[0].name]))
        for port in compared:
            total += np.concatenate(errors[port.name]) / (spreads[port.name].variance or 1.0)
        count = np.full(len(total), float(len(compared)))
        return Evaluation(
            total,
            count,
            metric=float(np.sqrt(total.sum() / count.sum())),
            scale=1.0,
            agreement=float(np.concatenate(agreed).mean()) if agreed else None,
        )


def _each(errors: FloatArray, width: int) -> FloatArray:
    """Returns the mean error of each of so many sequences; all have the same where no axis counts them."""
    if len(errors) == width:
        return np.asarray(errors.reshape(width, -1).mean(axis=1))
    return np.full(width, errors.mean())


@dataclass(frozen=True, eq=False)
class Classification(_Examples):
    """Task `classify`: one class a sequence (labels ``[n]``) or a step (``[n, steps]``, -1 is ignored)."""

    name: str = "classify"
    metric: str = "error"

    def loss(
        self,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        teacher: Mapping[str, Tensor] | None,
        alpha: float,
        temperature: float,
    ) -> Tensor:
        """Returns the mixed cross-entropy over all labels that are not -1."""
        from lstmopt.tasks.losses import mixed_categorical_loss

        assert batch.labels is not None
        scores = self._batch_first(outputs[self.output.name], batch)
        other = None if teacher is None else self._batch_first(teacher[self.output.name], batch)
        used = batch.labels.reshape(-1) >= 0
        scores = scores.reshape(-1, scores.shape[-1])[used]
        other = None if other is None else other.reshape(-1, other.shape[-1])[used]
        labels = batch.labels.reshape(-1)[used].astype(np.int64)
        return mixed_categorical_loss(scores, labels, other, self.interface.scale, alpha, temperature)

    def evaluate(
        self, session: Runner, part: Dataset, *, reference: Runner | None = None, limit: int | None = None
    ) -> Evaluation:
        """Returns the cross-entropy of each sequence, and the error rate."""
        losses, weights, wrong = [], [], 0.0
        for call, outputs, _ in self._runs(session, None, part, limit):
            assert call.labels is not None
            scores = log_probabilities(
                self._batch_first(outputs[self.output.name], call), self.interface.scale
            )
            scores = self._counted(scores, call)
            labels = self._counted(call.labels, call).astype(np.int64)
            if labels.size == scores[..., 0].size:
                labels = labels.reshape(scores.shape[:-1])
            check_classes(labels, scores)
            used = labels >= 0
            loss = -np.take_along_axis(scores, np.maximum(labels, 0)[..., None], axis=-1)[..., 0] * used
            losses.extend(loss.reshape(len(loss), -1).sum(axis=1))
            weights.extend(used.reshape(len(used), -1).sum(axis=1))
            wrong += float(((scores.argmax(-1) != labels) & used).sum())
        count = np.array(weights, dtype=np.float64)
        return Evaluation(np.array(losses, dtype=np.float64), count, metric=wrong / float(count.sum()))


@dataclass(frozen=True, eq=False)
class Regression(_Examples):
    """Task `regress`: the mean square error against labels of the output's shape, batch axis first."""

    name: str = "regress"
    metric: str = "rmse"

    def loss(
        self,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        teacher: Mapping[str, Tensor] | None,
        alpha: float,
        temperature: float,
    ) -> Tensor:
        """Returns the mixed mean square error."""
        import torch
        from torch.nn.functional import mse_loss

        assert batch.labels is not None
        ours = self._batch_first(outputs[self.output.name], batch)
        labels = torch.from_numpy(np.ascontiguousarray(batch.labels)).to(ours).reshape(ours.shape)
        loss = mse_loss(ours, labels)
        if teacher is None:
            return loss
        return (1 - alpha) * loss + alpha * mse_loss(
            ours, self._batch_first(teacher[self.output.name], batch)
        )

    def evaluate(
        self, session: Runner, part: Dataset, *, reference: Runner | None = None, limit: int | None = None
    ) -> Evaluation:
        """Returns the squared error of each sequence, and its root mean."""
        losses, weights = [], []
        for call, outputs, _ in self._runs(session, None, part, limit):
            assert call.labels is not None
            ours = self._counted(self._batch_first(outputs[self.output.name], call), call).astype(np.float64)
            labels = self._counted(call.labels, call)
            if labels.size != ours.size:
                check_answers(labels.shape, ours.shape)
            errors = ((ours - labels.reshape(ours.shape)) ** 2).reshape(len(ours), -1)
            losses.extend(errors.sum(axis=1))
            weights.extend([errors.shape[1]] * len(errors))
        total, count = np.array(losses, dtype=np.float64), np.array(weights, dtype=np.float64)
        return Evaluation(total, count, metric=float(np.sqrt(total.sum() / count.sum())))
