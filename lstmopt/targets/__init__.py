"""Targets: what machine, runtimes, precisions and shapes an artifact is made for. They are data."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lstmopt.errors import LstmoptError

Precision = Literal[
    "f32", "bf16", "f16", "int8",
    "sparse-f32", "sparse-i16", "sparse-i16-bank64", "sparse-i8", "sparse-i8-planes2", "sparse-i8-shared",
]  # fmt: skip


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RuntimeTarget(_Frozen):
    """One runtime and the precisions in which it may deploy."""

    runtime: str
    precisions: tuple[Precision, ...] = Field(min_length=1)


class Shape(_Frozen):
    """One call as the caller makes it.

    Attributes:
        batch: sequences a call.
        sequence: steps a call.
        weight: share of the calls that have this shape (normalised over a target's shapes).
        inputs: whole shapes of inputs by name, where batch and sequence do not tell them (a chunk of
            samples, the size of an image).
    """

    batch: int = Field(default=1, ge=1)
    sequence: int = Field(default=35, ge=1)
    weight: float = Field(default=1.0, gt=0)
    inputs: dict[str, tuple[int, ...]] = {}


class Target(_Frozen):
    """A machine as the artifact will meet it.

    Attributes:
        name: what reports call it.
        device: "cpu" or "cuda".
        runtimes: runtimes and precisions that may be deployed; each is measured.
        threads: threads that one inference may use.
        shapes: the calls that latency is measured on.
        patterns: sparsity patterns allowed, "unstructured" among them where the runtime runs zeros; none
            where zeros buy nothing: hidden sizes shrink, and what is left is trained dense.
    """

    name: str
    device: Literal["cpu", "cuda"] = "cpu"
    runtimes: tuple[RuntimeTarget, ...] = Field(min_length=1)
    threads: int = Field(default=1, ge=1)
    shapes: tuple[Shape, ...] = Field(default=(Shape(),), min_length=1)
    patterns: tuple[str, ...] = ("unstructured",)

    @property
    def pattern(self) -> str:
        """The one that is taken where none is asked for."""
        return self.patterns[0] if self.patterns else "unstructured"


def shipped_targets() -> tuple[str, ...]:
    """Returns the names of the targets that come with the package."""
    folder = files("lstmopt.targets")
    return tuple(sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".toml")))


def with_shapes(target: Target, inputs: dict[str, tuple[int, ...]]) -> Target:
    """Returns a target whose calls have these shapes of inputs."""
    if not inputs:
        return target
    shapes = tuple(shape.model_copy(update={"inputs": {**shape.inputs, **inputs}}) for shape in target.shapes)
    return target.model_copy(update={"shapes": shapes})


def load_target(name: str | Path | Target) -> Target:
    """Returns a shipped target by name, or the one in a TOML file; a target is returned as it is.

    Raises:
        LstmoptError: no such target or file, or the file's content is not a target.
    """
    if isinstance(name, Target):
        return name
    path = Path(name)
    if path.suffix == ".toml":
        if not path.is_file():
            raise LstmoptError(str(name), "no such target file", "check the path")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise LstmoptError(str(name), "is not UTF-8 text", "save the TOML as UTF-8") from error
    elif str(name) in shipped_targets():
        text = files("lstmopt.targets").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    else:
        known = ", ".join(shipped_targets())
        raise LstmoptError(
            f"--target {name}", "unknown target", f"use one of {known}, or the path of a .toml file"
        )
    try:
        return Target.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise LstmoptError(str(name), f"not TOML ({error})", "mend the file") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise LstmoptError(str(name), f"{field}: {first['msg']}", "mend that field") from error
