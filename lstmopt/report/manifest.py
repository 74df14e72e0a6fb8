"""What `manifest.json` holds: a contract, changed only with a new schema number."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from lstmopt.measure.fingerprint import Fingerprint
from lstmopt.report.document import Document, Frozen
from lstmopt.rnn.states import state_pairs
from lstmopt.runtimes.base import Deployment, StatefulDeployment

if TYPE_CHECKING:
    import onnx_ir as ir


class StateRecord(Frozen):
    """A state: the input that takes what an output of the call before gave.

    Attributes:
        input: the input's name.
        output: the output's name.
        shape: of the input; a name or "?" where a size is dynamic.
        original_shape: the same in the original model; another one where its units are fewer.
    """

    input: str
    output: str
    shape: tuple[int | str, ...] = ()
    original_shape: tuple[int | str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether callers have to know of a new shape."""
        return self.shape != self.original_shape


class Manifest(Document):
    """`manifest.json`.

    Attributes:
        files: SHA-256 of every file of the artifact but this one, by path.
        versions: of lstmopt and the runtimes that the files were checked with.
        fingerprint: the machine on which they were measured.
        deploy: what to load, best first; paths are relative to the artifact.
        states: inputs that take outputs of the call before.
        threads: that one inference was measured with.
        stateful: OpenVINO models that keep these states inside, where they were asked for.
    """

    files: dict[str, str] = {}
    versions: dict[str, str] = {}
    fingerprint: Fingerprint
    deploy: tuple[Deployment, ...] = Field(min_length=1)
    states: tuple[StateRecord, ...] = ()
    threads: int = Field(1, ge=1)
    stateful: tuple[StatefulDeployment, ...] = ()

    @model_validator(mode="after")
    def _inside(self) -> Self:
        paths = [*self.files]
        for entry in (*self.deploy, *self.stateful):
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
        return tuple(entry.inside(folder) for entry in self.deploy)


def state_records(model: ir.Model, original: ir.Model) -> tuple[StateRecord, ...]:
    """Returns a model's states with their shapes, and those that they had in the original."""
    ours, before = (
        {
            str(value.name): tuple(
                size if isinstance(size, int) else size.value or "?" for size in value.shape or ()
            )
            for value in graph.graph.inputs
        }
        for graph in (model, original)
    )
    return tuple(
        StateRecord(
            input=pair.input,
            output=pair.output,
            shape=ours[pair.input],
            original_shape=before.get(pair.input, ours[pair.input]),
        )
        for pair in state_pairs(model)
    )
