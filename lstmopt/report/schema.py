"""What `report.json` and `manifest.json` hold: a contract, changed only with a new schema number."""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    computed_field,
    model_validator,
)

from lstmopt.errors import LstmoptError
from lstmopt.measure.fingerprint import Fingerprint
from lstmopt.runtimes.base import Deployment
from lstmopt.targets import Target

UNLABELLED = "not checked against labels"
MADE_INPUTS = "trained on inputs that it made itself"


def _finite(value: Any) -> Any:
    """Turns what is not a number, such as the loss of a broken candidate, into None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Measured = Annotated[float | None, BeforeValidator(_finite)]
"""A number, or None where it was not measured or is not finite."""


class _Frozen(BaseModel):
    # `from_attributes`: a Timing, Ratio or Degradation of another room can be given as it is.
    model_config = ConfigDict(frozen=True, from_attributes=True, allow_inf_nan=False)


class _Document(_Frozen):
    """A JSON file of an artifact.

    Attributes:
        schema_version: the number of this contract, ``schema`` in the file.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_version: Literal[1] = Field(default=1, alias="schema")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads the file.

        Raises:
            LstmoptError: it is missing, is not JSON, or its content is not of this schema.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise LstmoptError(
                str(path), f"cannot be read ({error.strerror})", "name a folder that lstmopt wrote"
            ) from error
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            fault = f"{field}: {first['msg']}" if field else first["msg"]
            raise LstmoptError(str(path), f"is damaged ({fault})", "make the artifact again") from error

    def text(self) -> str:
        """Returns the file's content, UTF-8 JSON."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"

    def save(self, path: Path) -> None:
        """Writes the file beside its place and moves it there."""
        beside = path.with_name(path.name + ".tmp")
        with beside.open("w", encoding="utf-8", newline="\n") as file:
            file.write(self.text())
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)


class Interval(_Frozen):
    """A value with its 95% interval."""

    value: float
    low: float
    high: float


class Latency(_Frozen):
    """Latency of one call in microseconds: median, percentiles of single calls, number of calls."""

    median: float = Field(gt=0)
    p10: float
    p90: float
    p99: float
    samples: int = Field(ge=1)


class Peer(_Frozen):
    """The original as a user would deploy it today.

    Attributes:
        runtime: such as "onnxruntime".
        precision: such as "int8".
        latency_us: of one call.
        degradation: against the original in f32, a fraction.
        within_contract: whether it could be shipped.
        bytes: size of what the runtime loads, where known.
    """

    runtime: str
    precision: str
    latency_us: Latency
    degradation: Measured = None
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


class Metric(_Frozen):
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


class Size(_Frozen):
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


class Ratios(_Frozen):
    """Original over optimised.

    Attributes:
        latency_over_f32: latency of the fastest f32 peer over the artifact's.
        latency_over_best_peer: latency of the fastest peer within the contract over the artifact's.
        parameters: of the recurrent layers.
        nonzero_parameters: of the recurrent layers; None where nothing is left to divide by.
        model_parameters: of the whole model.
        model_nonzero_parameters: of the whole model.
    """

    latency_over_f32: Interval
    latency_over_best_peer: Interval
    parameters: float | None
    nonzero_parameters: float | None
    model_parameters: float | None = None
    model_nonzero_parameters: float | None = None

    @classmethod
    def of(cls, over_f32: Any, over_best_peer: Any, original: Size, optimized: Size) -> Ratios:
        """Returns the ratios of two models.

        Args:
            over_f32: value, low and high of the latency over the fastest f32 peer.
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


class HiddenSize(_Frozen):
    """Hidden units of one direction of a layer."""

    before: int
    after: int


class LstmRecord(_Frozen):
    """What became of one LSTM layer.

    Attributes:
        name: of its node.
        hidden_size: before and after.
        pattern: which weights may be non-zero, "dense" where all.
        density: share of W and R that is not zero.
        input_size: before and after, where known.
    """

    name: str
    hidden_size: HiddenSize
    pattern: str = "dense"
    density: float = Field(1.0, ge=0, le=1)
    input_size: HiddenSize | None = None


class Contract(_Frozen):
    """What was promised about accuracy, and what came of it.

    Attributes:
        kind: "labels", or "fidelity" to the original's outputs where there are none.
        metric: what the degradation is a relative increase of, such as "cross-entropy".
        max_degradation: what was allowed, a fraction.
        degradation: what was measured in the deployed file, on data that training never saw.
        met: whether it holds.
        data: which data, and how many.
        made_inputs: whether the data were made, none having been given.
        too_few: whether the interval is too wide to tell on which side of the limit the value is.
    """

    kind: Literal["labels", "fidelity"]
    metric: str
    max_degradation: float = Field(ge=0)
    degradation: Interval
    met: bool
    data: str
    made_inputs: bool = False

    @computed_field  # type: ignore[prop-decorator]
    @property
    def too_few(self) -> bool:
        """Whether the limit lies inside the interval."""
        return self.degradation.low <= self.max_degradation < self.degradation.high


class PassRecord(_Frozen):
    """One stage that ran: its name, seconds, and whether it changed the model."""

    name: str
    seconds: float = Field(ge=0)
    modified: bool


class Measurement(_Frozen):
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


class Cold(_Frozen):
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


class DenseBaseline(_Frozen):
    """A dense model trained with the same recipe, the fair thing to compare a pruned one with."""

    name: str
    metric: Measured
    degradation: Measured = None


class Report(_Document):
    """`report.json`.

    Attributes:
        target: the target as it was used: runtimes, threads, shapes.
        fingerprint: the machine on which everything was measured.
        versions: of lstmopt, the runtimes, Python.
        peers: the original in every runtime and precision.
        fastest_f32: index of the fastest f32 peer.
        best_peer: index of the fastest peer within the contract.
        original: sizes of the original.
        optimized: what ships.
        ratios: original over optimised.
        lstms: each LSTM layer.
        contract: the accuracy contract.
        passes: the stages that ran.
        candidates: everything that could have been shipped.
        dense_baseline: the same recipe without pruning, where it was trained.
        test: the metric on test data, where given; it decided nothing.
        measurement: how far the latencies can be trusted.
        cold: latency with empty caches, for a model that carries states.
        notes: what the user should know, most important first.
        seed: of every random choice.
        command: the call that repeats the run.
        source: name of the user's file.
        created: when, ISO 8601 in UTC.
    """

    target: Target
    fingerprint: Fingerprint
    versions: dict[str, str] = {}
    peers: tuple[Peer, ...] = Field(min_length=1)
    fastest_f32: int = Field(ge=0)
    best_peer: int = Field(ge=0)
    original: Size
    optimized: Optimized
    ratios: Ratios
    lstms: tuple[LstmRecord, ...]
    contract: Contract
    passes: tuple[PassRecord, ...] = ()
    candidates: tuple[CandidateRecord, ...] = ()
    dense_baseline: DenseBaseline | None = None
    test: Metric | None = None
    measurement: Measurement | None = None
    cold: Cold | None = None
    notes: tuple[str, ...] = ()
    seed: int = 0
    command: str = ""
    source: str = ""
    created: str = ""

    @model_validator(mode="after")
    def _indices(self) -> Self:
        if max(self.fastest_f32, self.best_peer) >= len(self.peers):
            raise ValueError("fastest_f32 and best_peer are indices into peers")
        return self

    @computed_field  # type: ignore[prop-decorator]
    @property
    def lines(self) -> tuple[str, ...]:
        """What a reader has to know before any figure, most important first."""
        told: list[str] = []
        if self.contract.kind == "fidelity":
            told.append(UNLABELLED)
        if self.contract.made_inputs:
            told.append(MADE_INPUTS)
        if not self.contract.met:
            told.append("does not meet the accuracy contract")
        elif self.contract.too_few:
            told.append("meets the accuracy contract, but the data are too few to be sure")
        if self.measurement is not None and not self.measurement.trusted:
            told.append("the machine was too busy: latencies are not to be trusted")
        return tuple(told)


class StateRecord(_Frozen):
    """A state: the input that takes what an output of the call before gave."""

    input: str
    output: str


class Manifest(_Document):
    """`manifest.json`.

    Attributes:
        files: SHA-256 of every file of the artifact but this one, by path.
        versions: of lstmopt and the runtimes that the files were checked with.
        fingerprint: the machine on which they were measured.
        deploy: what to load, best first; paths are relative to the artifact.
        states: inputs that take outputs of the call before.
        threads: that one inference was measured with.
    """

    files: dict[str, str] = {}
    versions: dict[str, str] = {}
    fingerprint: Fingerprint
    deploy: tuple[Deployment, ...] = Field(min_length=1)
    states: tuple[StateRecord, ...] = ()
    threads: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _inside(self) -> Self:
        paths = [*self.files]
        for entry in self.deploy:
            paths += [entry.file.as_posix(), *(library.as_posix() for library in entry.libraries)]
        for path in paths:
            pure = PurePosixPath(path)
            if pure.is_absolute() or ".." in pure.parts or not pure.parts:
                raise ValueError(f"{path!r} is not a path inside the artifact")
        return self

    def deployments(self, folder: Path) -> tuple[Deployment, ...]:
        """Returns the entries of ``deploy`` with paths that open from anywhere.

        Args:
            folder: the artifact.
        """
        return tuple(
            entry.model_copy(
                update={
                    "file": folder / entry.file,
                    "libraries": tuple(folder / library for library in entry.libraries),
                }
            )
            for entry in self.deploy
        )


_NAMES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT"}


def runtime_title(runtime: str) -> str:
    """Returns a runtime's name as its makers write it."""
    return _NAMES.get(runtime, runtime)


def deployment_title(runtime: str, precision: str) -> str:
    """Returns runtime and precision as people write them."""
    return f"{runtime_title(runtime)} {precision}"


def json_schemas() -> dict[str, dict[str, Any]]:
    """Returns the JSON schema of each file, as a reader of the artifact finds it."""
    return {
        "report.json": Report.model_json_schema(by_alias=True, mode="serialization"),
        "manifest.json": Manifest.model_json_schema(by_alias=True, mode="serialization"),
    }
