"""What `report.json` is made of."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, computed_field

from lstmopt.report.document import Frozen, Measured
from lstmopt.report.titles import deployment_title

LEAST_BLOCKS = 20
"""Blocks below which a bootstrap interval says little: of one block it is that block's own value."""


class Interval(Frozen):
    """A value with its 95% interval; an end that is not finite is None."""

    value: float
    low: Measured
    high: Measured


class Speedup(Frozen):
    """One latency over another with its 95% interval; all None where no speed is published."""

    value: Measured = None
    low: Measured = None
    high: Measured = None


class Latency(Frozen):
    """Latency of one call in microseconds: median, percentiles of single calls, number of calls.

    Of 0 calls it was not measured: it is what latency tables predict for the layers that can change.
    """

    median: float = Field(gt=0)
    p10: float
    p90: float
    p99: float
    samples: int = Field(ge=0)


class Peer(Frozen):
    """The original as a user would deploy it today.

    Attributes:
        runtime: such as "onnxruntime".
        precision: such as "int8".
        latency_us: of one call.
        degradation: against the original in f32, a fraction.
        within_contract: whether it could be shipped.
        bytes: size of what the runtime loads, where known.
        agreement: share of steps with the same top class as the original's, where that was compared.
    """

    runtime: str
    precision: str
    latency_us: Latency
    degradation: Measured = None
    agreement: Measured = None
    within_contract: bool
    bytes: int | None = None

    @property
    def title(self) -> str:
        """Runtime and precision as people write them."""
        return deployment_title(self.runtime, self.precision)


class CandidateRecord(Peer):
    """One model in one runtime and precision that could have been shipped.

    Attributes:
        name: "original", "resized", "pruned" and the like.
        degradation_interval: its 95% interval, where there is one.
        hidden_sizes: hidden size of each recurrent layer, by name.
        density: share of the recurrent weights that is not zero.
        shipped: whether it is the artifact's best file.
    """

    name: str
    degradation_interval: Interval | None = None
    hidden_sizes: dict[str, int] = {}
    density: float = Field(1.0, ge=0, le=1)
    shipped: bool = False


class Metric(Frozen):
    """The task's metric before and after.

    Attributes:
        name: such as "perplexity".
        original: of the original.
        optimized: of the file that ships, in its runtime and precision.
        lower_is_better: which way is better.
    """

    name: str
    original: Measured
    optimized: Measured
    lower_is_better: bool = True


class Size(Frozen):
    """How large a model is.

    Attributes:
        parameters: entries of W and R of the recurrent layers; biases are not counted.
        nonzero_parameters: those that are not zero.
        bytes: size of what the runtime loads.
        model_parameters: entries of all weights of the model.
        model_nonzero_parameters: those that are not zero.
    """

    parameters: int = Field(ge=0)
    nonzero_parameters: int = Field(ge=0)
    bytes: int = Field(ge=0)
    model_parameters: int | None = None
    model_nonzero_parameters: int | None = None


class Optimized(Size):
    """What ships.

    Attributes:
        name: which candidate it is.
        runtime: of the best file.
        precision: of the best file.
        file: path in the artifact.
        latency_us: of one call.
        metric: on validation data.
    """

    name: str = "optimized"
    runtime: str
    precision: str
    file: str
    latency_us: Latency
    metric: Metric | None = None

    @property
    def title(self) -> str:
        """Runtime and precision as people write them."""
        return deployment_title(self.runtime, self.precision)


class Ratios(Frozen):
    """Original over optimised.

    Attributes:
        latency_over_f32: latency of the fastest f32 peer over the artifact's; empty where the measurement
            is not trusted.
        latency_over_best_peer: the same of the fastest peer within the contract.
        parameters: of the recurrent layers.
        nonzero_parameters: of the recurrent layers; None where nothing is left to divide by.
        model_parameters: of the whole model.
        model_nonzero_parameters: of the whole model.
    """

    latency_over_f32: Speedup
    latency_over_best_peer: Speedup
    parameters: float | None
    nonzero_parameters: float | None
    model_parameters: float | None = None
    model_nonzero_parameters: float | None = None

    @classmethod
    def of(cls, over_f32: Any, over_best_peer: Any, original: Size, optimized: Size) -> Ratios:
        """Returns the ratios of two models.

        Args:
            over_f32: value, low and high of the latency over the fastest f32 peer; an empty `Speedup`
                where it is not published.
            over_best_peer: the same over the best peer.
            original: sizes of the original.
            optimized: sizes of what ships.
        """

        def over(field: str) -> float | None:
            before, after = getattr(original, field), getattr(optimized, field)
            return before / after if before is not None and after else None

        return cls(
            latency_over_f32=over_f32,
            latency_over_best_peer=over_best_peer,
            parameters=over("parameters"),
            nonzero_parameters=over("nonzero_parameters"),
            model_parameters=over("model_parameters"),
            model_nonzero_parameters=over("model_nonzero_parameters"),
        )


class HiddenSize(Frozen):
    """Hidden units of one direction of a layer."""

    before: int
    after: int


class LstmRecord(Frozen):
    """What became of one LSTM layer.

    Attributes:
        name: of its node.
        hidden_size: before and after.
        pattern: which weights may be non-zero, "dense" where all.
        density: share of W and R that is not zero.
        input_size: before and after, where known.
        format: how its weights are packed for the sparse op: "i8", or "i8-shared+i8" where W and R differ;
            "dense" where it runs as a dense one.
    """

    name: str
    hidden_size: HiddenSize
    pattern: str = "dense"
    density: float = Field(1.0, ge=0, le=1)
    input_size: HiddenSize | None = None
    format: str = "dense"


class Contract(Frozen):
    """What was promised about accuracy, and what came of it.

    Attributes:
        kind: "labels", or "fidelity" to the original's outputs where there are none.
        metric: what the degradation is a relative increase of, such as "cross-entropy".
        max_degradation: what was allowed, a fraction.
        degradation: what was measured in the deployed file, on data that training never saw.
        met: whether it holds.
        data: which data, and how many.
        made_inputs: whether the data were made, none having been given.
        n: blocks of data that the interval was drawn from.
        agreement: share of steps with the same top class as the original's, where that was compared.
        too_few: whether the data are too few to tell on which side of the limit the value is.
    """

    kind: Literal["labels", "fidelity"]
    metric: str
    max_degradation: float = Field(ge=0)
    degradation: Interval
    met: bool
    data: str
    made_inputs: bool = False
    n: int | None = None
    agreement: Measured = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def too_few(self) -> bool:
        """Whether the limit lies inside the interval, or the blocks are too few to have one."""
        if self.n is not None and self.n < LEAST_BLOCKS:
            return True
        low, high = self.degradation.low, self.degradation.high
        return (low is None or low <= self.max_degradation) and (high is None or self.max_degradation < high)


class PassRecord(Frozen):
    """One stage that ran: its name, seconds, and whether it changed the model.

    Stages that ran inside another one have records of their own: no second counts twice.
    """

    name: str
    seconds: float = Field(ge=0)
    modified: bool


class Measurement(Frozen):
    """How far the latencies can be trusted.

    Attributes:
        aa: one candidate's latency over its own, measured like any two.
        trusted: whether that lies in 0.98..1.02.
        discarded: rounds that were interrupted and measured again.
        kept_interrupted: whether interrupted rounds had to be kept.
    """

    aa: Interval
    trusted: bool
    discarded: int = 0
    kept_interrupted: bool = False


class Cold(Frozen):
    """Latency of calls that find empty caches, as those of a stream between other work do.

    Attributes:
        optimized: of what ships.
        best_peer: of the best peer.
        ratio: the best peer's over that of what ships.
        trusted: whether a model was as fast as itself, within 2%.
    """

    optimized: Latency
    best_peer: Latency
    ratio: Interval
    trusted: bool
