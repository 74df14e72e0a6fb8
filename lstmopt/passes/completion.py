"""Completes an artifact's report: what ran after it was written, and how long its own writing took."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lstmopt.passes import reporting
from lstmopt.report.folder import manifest_files, write_artifact_folder
from lstmopt.report.html import render_html
from lstmopt.report.schema import Manifest, Report

if TYPE_CHECKING:
    from lstmopt.pipeline import State

REPORTS = ("report.json", "report.html")


def complete(state: State) -> State:
    """Returns the state with a report that lists every stage that ran; so does the artifact's.

    The stage that writes the report cannot hold its own time, nor that of the stages after it. The
    artifact is exchanged whole, as when it was written; nothing happens where nothing is missing.

    Args:
        state: after the last stage.

    Raises:
        LstmoptError: the output cannot be written.
    """
    if state.report is None:
        return state
    report = Report.load(state.output / "report.json")
    if report.passes == state.records:
        return replace(state, report=report)
    report = report.model_copy(update={"passes": state.records})
    manifest = Manifest.load(state.output / "manifest.json")

    def fill(folder: Path) -> None:
        for name in manifest.files:
            if (state.output / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(state.output / name, folder / name)
        report.save(folder / "report.json")
        page = render_html(report, reporting.curves(state.tables))
        (folder / "report.html").write_text(page, encoding="utf-8")
        # The other files keep the hashes that they were written with: one that was changed stays found out.
        written = {name: digest for name, digest in manifest_files(folder).items() if name in REPORTS}
        changed = manifest.model_copy(update={"files": {**manifest.files, **written}})
        changed.save(folder / "manifest.json")

    write_artifact_folder(fill, state.output)
    return replace(state, report=report)
