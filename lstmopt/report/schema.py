"""What `report.json` holds: a contract, changed only with a new schema number.

Its parts and `manifest.json`'s schema are found here too.
"""

from __future__ import annotations

import math
from typing import Self

from pydantic import Field, computed_field, model_validator

from lstmopt.measure.fingerprint import Fingerprint
from lstmopt.report.document import Document, Measured
from lstmopt.report.manifest import Manifest, StateRecord
from lstmopt.report.parts import (
    CandidateRecord,
    Cold,
    Contract,
    HiddenSize,
    Interval,
    Latency,
    LstmRecord,
    Measurement,
    Metric,
    Optimized,
    PassRecord,
    Peer,
    Ratios,
    Size,
    Speedup,
)
from lstmopt.report.titles import deployment_title, runtime_title
from lstmopt.targets import Target

__all__ = [
    "CandidateRecord",
    "Cold",
    "Contract",
    "HiddenSize",
    "Interval",
    "Latency",
    "LstmRecord",
    "MADE_INPUTS",
    "Manifest",
    "Measured",
    "Measurement",
    "Metric",
    "Optimized",
    "PassRecord",
    "Peer",
    "Ratios",
    "Report",
    "Size",
    "Speedup",
    "StateRecord",
    "UNLABELLED",
    "deployment_title",
    "runtime_title",
]

UNLABELLED = "not checked against labels"
MADE_INPUTS = "trained on inputs that it made itself"

SMALLER = 0.99
"""Share of the original's density below which a model counts as pruned."""


class Report(Document):
    """`report.json`.

    Attributes:
        target: the target as it was used: runtimes, threads, shapes.
        calls: the inputs of a measured call of each shape, as "x [35, 1, 8]"; states are left out.
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
    calls: tuple[str, ...] = ()
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

    @property
    def predicted(self) -> bool:
        """Whether latencies are what latency tables predict, the target being another machine."""
        return self.optimized.latency_us.samples == 0

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
        if closest := self._closest_smaller():
            told.append(closest)
        if self.predicted:
            told.append("no speed was measured: the target's runtimes do not run here")
        elif self.measurement is not None and not self.measurement.trusted:
            told.append("the machine was too busy: no speed is published")
        return tuple(told)

    def _closest_smaller(self) -> str:
        """Returns what to do where smaller models were trained and none of them holds the contract."""
        original = next((each for each in self.candidates if each.name == "original"), None)
        if original is None:
            return ""
        smaller = [
            each
            for each in self.candidates
            if each.hidden_sizes != original.hidden_sizes or each.density < SMALLER * original.density
        ]
        known = [each for each in smaller if each.degradation is not None and math.isfinite(each.degradation)]
        if not known or any(each.shipped or each.within_contract for each in smaller):
            return ""
        best = min(known, key=lambda each: each.degradation or 0.0)
        return (
            f"no smaller model holds the contract: the closest, {best.name}, degrades by "
            f"{best.degradation:.1%}; train longer (--budget), or allow more (--max-degradation)"
        )
