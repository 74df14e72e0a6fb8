"""An artifact as a session, for who has lstmopt where it is deployed; ``run.py`` is for who has not."""

from __future__ import annotations

from pathlib import Path

from lstmopt.errors import LstmoptError
from lstmopt.report.schema import Manifest
from lstmopt.runtimes import Session, open_session
from lstmopt.runtimes import runtime as runtime_named


def open_artifact(folder: str | Path, runtime: str | None = None) -> Session:
    """Loads the best of an artifact's files that runs here.

    Args:
        folder: the artifact, or what ``lstmopt export`` wrote.
        runtime: takes the file of this one.

    Returns:
        A session: ``run`` takes arrays by the inputs' names and returns all outputs by theirs.

    Raises:
        LstmoptError: there is no manifest, or nothing in it that loads here; all that was tried is named.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder / "manifest.json")
    faults = []
    for deployment in manifest.deployments(folder):
        if runtime not in (None, deployment.runtime):
            continue
        status = runtime_named(deployment.runtime).status()
        if not status.usable:
            faults.append(f"{deployment.runtime}: {status.reason}")
            continue
        try:
            return open_session(deployment, manifest.threads)
        except LstmoptError as error:
            faults.append(f"{deployment.runtime} {deployment.precision}: {error.fault}")
    wanted = f"for {runtime}" if runtime else "that a runtime loads"
    raise LstmoptError(
        f"{folder}",
        "; ".join(dict.fromkeys(faults)) or f"holds no file {wanted}",
        "name another runtime, or install it: see lstmopt doctor",
    )
