"""What `manifest.json` holds: a contract, changed only with a new schema number."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Self

from pydantic import Field, model_validator

from lstmopt.measure.fingerprint import Fingerprint
from lstmopt.report.document import Document, Frozen
from lstmopt.runtimes.base import Deployment


class StateRecord(Frozen):
    """A state: the input that takes what an output of the call before gave."""

    input: str
    output: str


class Manifest(Document):
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
        return tuple(entry.inside(folder) for entry in self.deploy)
