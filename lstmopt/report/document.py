"""A JSON file of an artifact: read with one clear line for what is wrong, written whole."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lstmopt.errors import LstmoptError


def _finite(value: Any) -> Any:
    """Turns what is not a number, such as the loss of a broken candidate, into None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Measured = Annotated[float | None, BeforeValidator(_finite)]
"""A number, or None where it was not measured or is not finite."""


class Frozen(BaseModel):
    """A part of a document: frozen, its numbers finite."""

    # `from_attributes`: a Timing, Ratio or Degradation of another room can be given as it is.
    model_config = ConfigDict(frozen=True, from_attributes=True, allow_inf_nan=False)


class Document(Frozen):
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
