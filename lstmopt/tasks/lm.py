"""Language models: the next token, states carried from window to window."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lstmopt.errors import LstmoptError
from lstmopt.tasks.base import Array, Batch, Evaluation, FloatArray, Runner
from lstmopt.tasks.data import Dataset
from lstmopt.tasks.interface import Interface, Port, check_classes, log_probabilities

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_TOKENS = 500
"""Tokens of one bootstrap block: long enough that neighbouring blocks hardly depend on each other."""

EVALUATION_BATCH, EVALUATION_WINDOW = 16, 64


@dataclass(frozen=True, eq=False)
class LanguageModelling:
    """Task `lm`.

    With labels (a text, whose next token is known) the loss is the cross-entropy in nats a token and the
    metric is the perplexity. Without, the text is the model's own and the loss is the cross-entropy under
    the original's distribution: its increase over the original's entropy is the KL divergence over it.

    Args:
        interface: of the original.
        labelled: whether the tokens are a real text.
    """

    interface: Interface
    labelled: bool
    name: str = "lm"
    metric: str = "perplexity"

    @property
    def port(self) -> Port:
        """The tokens' input."""
        return next(port for port in self.interface.inputs if port.name in self.interface.vocabulary)

    def columns(self, part: Dataset, batch: int) -> tuple[Array, Array | None]:
        """Returns tokens and their labels cut into columns, each ``[batch, n]``."""
        tokens, labels = part.inputs[self.port.name], part.labels
        if tokens.ndim == 2 and len(tokens) % batch == 0:
            # Streams of their own: several of them follow each other in a column.
            form = (batch, -1)
            return tokens.reshape(form), None if labels is None else labels.reshape(form)
        tokens, labels = tokens.reshape(-1), None if labels is None else labels.reshape(-1)
        length = len(tokens) // batch
        if length < 2:
            raise LstmoptError("data", f"{len(tokens)} tokens are too few for {batch} sequences", "give more")
        cut = batch * length
        return tokens[:cut].reshape(batch, length), None if labels is None else labels[:cut].reshape(
            batch, length
        )

    def windows(self, part: Dataset, batch: int, sequence: int) -> Iterator[Batch]:
        """Yields the windows of the columns in order; labels are ``[sequence, batch]``.

        Where the original's own scores are the truth there are none, and the last step counts too.
        """
        batch = self.interface.batch or batch
        fixed = self.port.fixed_steps
        sequence = fixed or sequence
        columns, labels = self.columns(part, batch)
        if self.labelled and labels is None:
            columns, labels = columns[:, :-1], columns[:, 1:]
        last = columns.shape[1]
        for start in range(0, last, sequence):
            end = min(start + sequence, last)
            if fixed is not None and end - start < sequence:
                return
            window = columns[:, start:end]
            target = None if labels is None else labels[:, start:end].T.astype(np.int64)
            feed = window if self.port.batch_axis == 0 else window.T
            yield Batch(
                {self.port.name: np.ascontiguousarray(feed.astype(self.port.dtype))},
                None if target is None else np.ascontiguousarray(target),
                fresh=start == 0,
            )

    def batches(
        self, part: Dataset, *, batch: int, sequence: int, rng: np.random.Generator
    ) -> Iterator[Batch]:
        """Yields one epoch: the windows in order, from a random place on: epochs cut it differently."""
        tokens = part.inputs[self.port.name]
        shift = int(rng.integers(0, max(1, min(sequence, tokens.shape[-1] // 4))))
        labels = None if part.labels is None else part.labels[..., shift:]
        yield from self.windows(Dataset({self.port.name: tokens[..., shift:]}, labels), batch, sequence)

    def loss(
        self,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        teacher: Mapping[str, Tensor] | None,
        alpha: float,
        temperature: float,
    ) -> Tensor:
        """Returns the mean over tokens of the mixed loss (Hinton et al., arXiv 1503.02531, section 2)."""
        from lstmopt.tasks.losses import mixed_categorical_loss

        width = batch.feeds[self.port.name].shape[self.port.batch_axis or 0]
        port = self.interface.outputs[0]
        scores = port.steps_first(outputs[port.name], width)
        other = None if teacher is None else port.steps_first(teacher[port.name], width)
        return mixed_categorical_loss(scores, batch.labels, other, self.interface.scale, alpha, temperature)

    def evaluate(
        self, session: Runner, part: Dataset, *, reference: Runner | None = None, limit: int | None = None
    ) -> Evaluation:
        """Returns the cross-entropy of blocks of at least 500 tokens, and the perplexity.

        Raises:
            LstmoptError: fewer tokens than one window, or labels that are not one for each step.
        """
        if not self.labelled and reference is None:
            raise ValueError("lm without labels: evaluate needs the original")
        found: list[tuple[FloatArray, FloatArray]] = []
        seen = 0
        for group, batch in self._groups(part):
            losses: list[FloatArray] = []
            for loss in self._losses(session, None if self.labelled else reference, group, batch):
                losses.append(loss)
                seen += loss.size
                if limit is not None and seen >= limit:
                    break
            if losses:
                lengths = np.array([len(loss) for loss in losses])
                found.append(_blocks(np.stack([loss.sum(axis=0) for loss in losses]), lengths))
            if limit is not None and seen >= limit:
                break
        if not found:
            count = part.inputs[self.port.name].size
            raise LstmoptError("data", f"{count} tokens are too few for one window of the model", "give more")
        blocks, weights = (np.concatenate(items) for items in zip(*found, strict=True))
        return Evaluation(blocks, weights, float(np.exp(blocks.sum() / weights.sum())))

    def _losses(
        self, session: Runner, reference: Runner | None, part: Dataset, batch: int
    ) -> Iterator[FloatArray]:
        """Yields the loss of each step of each window, ``[steps, batch]``, states carried."""
        port, scale = self.interface.outputs[0], self.interface.scale
        states: dict[str, Array] = {}
        original: dict[str, Array] = {}
        for window in self.windows(part, batch, EVALUATION_WINDOW):
            if window.fresh:
                states = self.interface.zero_states(session.inputs, batch)
                original = {} if reference is None else self.interface.zero_states(reference.inputs, batch)
            outputs = session.run({**window.feeds, **states})
            states = self.interface.next_states(outputs)
            scores = log_probabilities(port.steps_first(outputs[port.name], batch), scale)
            if reference is None:
                assert window.labels is not None
                check_classes(window.labels, scores)
                yield -np.take_along_axis(scores, window.labels[..., None], axis=-1)[..., 0]
            else:
                truth = reference.run({**window.feeds, **original})
                original = self.interface.next_states(truth)
                known = log_probabilities(port.steps_first(truth[port.name], batch), scale)
                yield -(np.exp(known) * scores).sum(axis=-1)

    def _groups(self, part: Dataset) -> Iterator[tuple[Dataset, int]]:
        """Yields the data in parts with the batch that each is evaluated in: a few streams together."""
        tokens = part.inputs[self.port.name]
        if self.interface.batch is not None:
            yield part, self.interface.batch
        elif tokens.ndim == 2:
            for start in range(0, len(tokens), EVALUATION_BATCH):
                group = part.part(slice(start, start + EVALUATION_BATCH))
                yield group, len(group)
        else:
            yield part, int(np.clip(len(tokens) // (4 * BLOCK_TOKENS), 1, EVALUATION_BATCH))


def _blocks(losses: FloatArray, lengths: npt.NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
    """Joins neighbouring windows of a column to blocks of `BLOCK_TOKENS`; losses are ``[windows, batch]``."""
    number, count, held = np.zeros(len(lengths), dtype=np.int64), 0, 0
    for index, length in enumerate(lengths):
        number[index] = count
        held += int(length)
        if held >= BLOCK_TOKENS:
            count, held = count + 1, 0
    if held and count:
        number[number == count] = count - 1  # what is left at the end belongs to the last whole block
    count = int(number[-1]) + 1
    sums, weights = np.zeros((count, losses.shape[1])), np.zeros(count)
    np.add.at(sums, number, losses)
    np.add.at(weights, number, lengths)
    return sums.reshape(-1), np.repeat(weights, losses.shape[1])
