"""How a stage's result is kept in the run folder: ONNX, safetensors and JSON, never pickle.

``state.json`` is moved into place last, so a folder without it is an unfinished stage. It holds the hashes of
the files beside it, so what a full disk or a failing one has damaged is not taken for a result.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter

from lstmopt.errors import LstmoptError
from lstmopt.measure.table import LatencyTable
from lstmopt.passes.candidates import Candidate
from lstmopt.report.folder import check_files
from lstmopt.report.schema import Manifest, PassRecord, Report
from lstmopt.rnn.files import load_model, save_model

if TYPE_CHECKING:
    from lstmopt.pipeline import State

_DOCUMENTS: Mapping[str, TypeAdapter[Any]] = {
    "tables": TypeAdapter(tuple[LatencyTable, ...]),
    "peers": TypeAdapter(tuple[Candidate, ...]),
    "candidates": TypeAdapter(tuple[Candidate, ...]),
    "records": TypeAdapter(tuple[PassRecord, ...]),
    "report": TypeAdapter(Report | None),
    "notes": TypeAdapter(tuple[str, ...]),
    "pattern": TypeAdapter(str),
    "rounding": TypeAdapter(str | None),
}
_MODELS = ("model", "teacher")


def save(folder: Path, before: State, after: State) -> None:
    """Writes what a stage has changed.

    Args:
        folder: the stage's own folder.
        before: the state that the stage was given.
        after: the state that it returned.
    """
    from safetensors.numpy import save_file

    document: dict[str, Any] = {}
    files: list[str] = []
    for field, adapter in _DOCUMENTS.items():
        if getattr(after, field) is not getattr(before, field):
            document[field] = json.loads(adapter.dump_json(getattr(after, field), by_alias=True))
    models = {field: getattr(after, field) for field in _MODELS}
    for field, model in models.items():
        if model is not None and model is not getattr(before, field):
            save_model(model, folder / f"{field}.onnx")
            document[field] = f"{field}.onnx"
            files.append(f"{field}.onnx")
    if after.trained is not before.trained:
        document["trained"] = sorted(after.trained)
        for name, model in after.trained.items():
            save_model(model, folder / f"trained-{name}.onnx")
            files.append(f"trained-{name}.onnx")
    if after.masks is not before.masks:
        document["masks"] = "masks.safetensors"
        save_file({k: np.ascontiguousarray(v) for k, v in after.masks.items()}, folder / "masks.safetensors")
        files.append("masks.safetensors")
    document["files"] = {name: _sha256(folder / name) for name in files}
    beside = folder / "state.json.tmp"
    with beside.open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(folder / "state.json")


def load(folder: Path, before: State) -> State | None:
    """Reads what `save` wrote.

    Args:
        folder: the stage's own folder.
        before: the state that the stage is given.

    Returns:
        The state after the stage, or None where the stage has not finished, its files are damaged or its
        artifact is no longer in place: it then runs again.
    """
    from safetensors.numpy import load_file

    path = folder / "state.json"
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if any(_sha256(folder / name) != digest for name, digest in document["files"].items()):
            return None
        changes: dict[str, Any] = {
            field: adapter.validate_python(document[field])
            for field, adapter in _DOCUMENTS.items()
            if field in document
        }
        for field in _MODELS:
            if field in document:
                changes[field] = load_model(folder / document[field])
        if "trained" in document:
            changes["trained"] = {
                name: load_model(folder / f"trained-{name}.onnx") for name in document["trained"]
            }
        if "masks" in document:
            changes["masks"] = load_file(folder / document["masks"])
    except (OSError, ValueError, KeyError, AttributeError, TypeError, LstmoptError):
        return None
    candidates = (*changes.get("peers", ()), *changes.get("candidates", ()))
    if not all(candidate.deployment.file.exists() for candidate in candidates):
        return None
    if changes.get("report") is not None and not _in_place(before.output, changes["report"]):
        return None
    return replace(before, **changes)


def digest(folder: Path) -> str:
    """Returns a hash of a finished stage's result, hexadecimal: what later stages depend on.

    How long the stages took is no part of it: one that runs again and gives the same changes nothing.

    Args:
        folder: the stage's own folder.
    """
    document = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    document.pop("records", None)
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _in_place(output: Path, report: Report) -> bool:
    """Whether the artifact folder holds this report's artifact, as it was written.

    Another call on the same folder may have replaced it, or its user changed it.
    """
    try:
        manifest = Manifest.load(output / "manifest.json")
        # The passes are completed after the stage that wrote the report: they do not tell artifacts apart.
        here, there = (
            item.model_copy(update={"passes": ()}) for item in (report, Report.load(output / "report.json"))
        )
        return here == there and not check_files(output, manifest)
    except LstmoptError:
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
