"""A latency table: what one layer costs by hidden size, on one machine, executed in one way."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lstmopt.errors import LstmoptError
from lstmopt.measure.fingerprint import Fingerprint, fingerprint
from lstmopt.measure.kind import DENSE, Kind
from lstmopt.sparsity.precisions import sparse_format


class LatencyTable(BaseModel):
    """Latency of a bare recurrent layer against its hidden size; a portable JSON file.

    Attributes:
        schema_version: of this file's form, ``schema`` in the file.
        fingerprint: the machine.
        runtime: its name.
        version: the runtime's version.
        precision: such as "f32"; "sparse-i8" is the format i8 of the native ops.
        pattern: of the masks that were measured; "dense" where all weights are there.
        density: share of the weights that the pattern was asked to keep.
        threads: of one inference.
        batch: sequences a call.
        sequence: steps a call.
        layer: the layer's name in its model, or "bare".
        input_size: features of a step; None where it is the hidden size (a layer over another one).
        directions: 1 or 2.
        cell: the layer's kind, as ONNX calls it.
        reset_after: of a GRU, whether its reset comes after the product with R.
        dimensions: hidden sizes that may be chosen, ascending.
        samples: microseconds by hidden size, those measured.
        curve: microseconds by hidden size, those not measured interpolated.
        hysteresis_points: largest first.
        hysteresis_bins: smallest and largest hidden size of each bin.
        resolution: smallest relative difference that the samples can tell.
        measurements: how many were taken.
        exhaustive: how many a sweep over every hidden size takes.
        confidence: share of the decisions that are beyond noise.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = Field(default=1, alias="schema")
    fingerprint: Fingerprint
    runtime: str
    version: str
    precision: str
    pattern: str = DENSE
    density: float = Field(default=1.0, gt=0, le=1)
    threads: int = Field(ge=1)
    batch: int = Field(ge=1)
    sequence: int = Field(ge=1)
    layer: str
    input_size: int | None = Field(ge=1)
    directions: Literal[1, 2]
    cell: str = Field(default="LSTM", pattern="^(LSTM|GRU)$")
    reset_after: bool = False
    dimensions: tuple[int, ...] = Field(min_length=1)
    samples: dict[int, tuple[float, ...]]
    curve: dict[int, float]
    hysteresis_points: tuple[int, ...] = Field(min_length=1)
    hysteresis_bins: tuple[tuple[int, int], ...]
    resolution: float = Field(ge=0)
    measurements: int = Field(ge=1)
    exhaustive: int = Field(ge=1)
    confidence: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if set(self.curve) != set(self.dimensions):
            raise ValueError("curve has other hidden sizes than dimensions")
        if any(value <= 0 for value in self.curve.values()):
            raise ValueError("a latency is not positive")
        if not set(self.hysteresis_points) <= set(self.dimensions):
            raise ValueError("a point is not among the dimensions")
        if (sparse_format(self.precision) is None) is not (self.pattern == DENSE):
            raise ValueError(f"precision {self.precision} with pattern {self.pattern}")
        if self.pattern == DENSE and self.density != 1:
            raise ValueError(f"a dense layer of density {self.density:g}")
        return self

    @property
    def kind(self) -> Kind:
        """As what the layer was executed."""
        return Kind(self.runtime, self.precision, self.pattern, self.density)

    def latency(self, hidden_size: int) -> float:
        """Returns the latency of one call in microseconds.

        Args:
            hidden_size: between two sizes of the table the straight line, beyond them the nearest one's.
        """
        import numpy as np

        sizes = sorted(self.curve)
        return float(np.interp(hidden_size, sizes, [self.curve[size] for size in sizes]))

    def points(self) -> tuple[int, ...]:
        """Returns the hysteresis points, largest first."""
        return self.hysteresis_points

    def bins(self) -> tuple[tuple[int, int], ...]:
        """Returns the smallest and largest hidden size of each bin."""
        return self.hysteresis_bins

    def foreign(self) -> tuple[str, ...]:
        """Returns in what the machine of the table differs from this one."""
        return self.fingerprint.difference(fingerprint())

    def save(self, path: Path) -> None:
        """Writes the table beside its place and moves it there.

        Args:
            path: the file; its folder is made.

        Raises:
            OSError: it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".tmp")
        with beside.open("w", encoding="utf-8") as file:
            file.write(self.model_dump_json(by_alias=True, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a table.

        Args:
            path: what `save` wrote, here or elsewhere.

        Raises:
            LstmoptError: the file is missing, or is not a whole table of this schema.
        """
        path = Path(path)
        try:
            document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
            return cls.model_validate(document)
        except OSError as error:
            raise LstmoptError(
                f"latency table {path}", f"cannot be read ({error.strerror})", "check the path"
            ) from error
        except (ValidationError, ValueError) as error:
            fault = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise LstmoptError(
                f"latency table {path}", f"is damaged or of another schema ({fault})", "measure it again"
            ) from error


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a latency")


def stems(tables: Sequence[LatencyTable], taken: set[str] | None = None) -> list[str]:
    """Returns the stem of a file's name for each table: no two are alike, whatever layers are called.

    Args:
        tables: to be written into one folder.
        taken: stems that are in use there; the new ones are added.
    """
    taken = set() if taken is None else taken
    found = []
    for table in tables:
        name = "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in table.layer)
        stem = first = f"{name.strip('-')}-{table.kind.stem}"
        count = 2
        while stem in taken:
            stem, count = f"{first}-{count}", count + 1
        taken.add(stem)
        found.append(stem)
    return found
