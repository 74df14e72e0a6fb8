"""Checks an artifact as it lies in its folder: files, outputs, contract, and speed against another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from lstmopt import measure
from lstmopt.errors import ContractError, LstmoptError
from lstmopt.measure.fingerprint import fingerprint
from lstmopt.passes.candidates import NOISE, evaluate, original_deployment, timing_calls
from lstmopt.report.folder import check_files, write_artifact_folder
from lstmopt.report.golden import play, read_golden
from lstmopt.report.run import TOLERANCES, difference
from lstmopt.report.schema import Manifest, Report
from lstmopt.rnn.files import load_model
from lstmopt.runtimes import open_session, runtime, stand_in
from lstmopt.runtimes.base import Deployment
from lstmopt.tasks.base import degradation

if TYPE_CHECKING:
    from lstmopt.pipeline import State

Progress = Callable[[str, float], None]


class Check(BaseModel):
    """One thing that was checked."""

    model_config = ConfigDict(frozen=True)

    name: str
    passed: bool
    detail: str


class Verification(BaseModel):
    """What `lstmopt verify` has found."""

    model_config = ConfigDict(frozen=True)

    artifact: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check has passed."""
        return all(check.passed for check in self.checks)

    @property
    def fault(self) -> str:
        """Returns the first check that has not passed, in one line."""
        return next((f"{check.name}: {check.detail}" for check in self.checks if not check.passed), "")

    def render(self) -> Any:
        """Returns the shell's table."""
        from rich.table import Table

        table = Table("check", "", "detail", title=self.artifact, title_justify="left")
        for check in self.checks:
            table.add_row(check.name, "passed" if check.passed else "FAILED", check.detail)
        return table


@dataclass(frozen=True)
class Verify:
    """Stage: checks the artifact that `Export` has put in place, loaded the way a user loads it.

    Raises:
        ContractError: a check has failed; the artifact is taken away again.
    """

    name: ClassVar[str] = "verify"
    needs: ClassVar[tuple[str, ...]] = ("artifact", "report")
    gives: ClassVar[tuple[str, ...]] = ("verified",)

    def run(self, state: State) -> State:
        """Returns the state; a failed check raises."""
        manifest = Manifest.load(state.output / "manifest.json")
        deployment = manifest.deployments(state.output)[0]
        checks = (*artifact_checks(state.output, manifest), contract_check(state, deployment))
        result = Verification(artifact=str(state.output), checks=checks)
        if not result.passed:
            write_artifact_folder(lambda folder: None, state.output)
            raise ContractError(
                str(state.output), result.fault, "run again with --fresh; report this if it stays"
            )
        return replace(state)


def contract_check(state: State, deployment: Deployment) -> Check:
    """Checks the contract on a written file: loaded and run over the validation data anew."""
    baseline = original_deployment(state)
    original = evaluate(baseline, state, state.data.valid, baseline)
    found = evaluate(deployment, state, state.data.valid, baseline, cached=False)
    worse = degradation(original, found, state.seed)
    return Check(
        name="contract on the written file",
        passed=worse.value <= state.max_degradation + NOISE,
        detail=f"{worse.value:+.3%} [{worse.low:+.3%}, {worse.high:+.3%}], "
        f"{state.max_degradation:.2%} allowed",
    )


def artifact_checks(folder: Path, manifest: Manifest) -> list[Check]:
    """Checks files against the manifest and every deployment's outputs against the golden ones.

    Args:
        folder: the artifact.
        manifest: its manifest.

    Returns:
        The check of the files, then one a deployment, best first. One whose runtime is not usable here is
        not checked: that passes, but for the best.

    Raises:
        LstmoptError: the golden file is missing or damaged.
    """
    faults = check_files(folder, manifest)
    detail = faults[0] if faults else f"{len(manifest.files)} files as written"
    checks = [Check(name="files", passed=not faults, detail=detail)]
    golden = read_golden(folder / "golden.safetensors")
    pairs = [(state.input, state.output) for state in manifest.states]
    for index, deployment in enumerate(manifest.deployments(folder)):
        name = f"outputs, {deployment.runtime} {deployment.precision}"
        standing = stand_in(deployment)
        if standing.runtime != deployment.runtime:
            name += f" in {standing.runtime}, since it does not run here"
        status = runtime(standing.runtime).status()
        if not status.usable:
            checks.append(Check(name=name, passed=index > 0, detail=f"not checked: {status.reason}"))
            continue
        try:
            windows = play(open_session(standing, manifest.threads).run, golden.inputs, pairs)
        except LstmoptError as refused:
            checks.append(Check(name=name, passed=False, detail=refused.fault))
            continue
        recorded = golden.optimized[index]
        error = max(
            (difference([w[name] for w in recorded], [w.get(name) for w in windows]) for name in recorded[0]),
            default=0.0,
        )
        limit = TOLERANCES.get(deployment.precision, TOLERANCES["int8"])
        checks.append(
            Check(
                name=name,
                passed=error <= limit,
                detail=f"relative difference {error:.1e}, {limit:.0e} allowed",
            )
        )
    return checks


def verify_artifact(
    artifact: Path,
    *,
    baseline: Path | None = None,
    max_slowdown: float = 0.05,
    progress: Progress | None = None,
) -> Verification:
    """Checks an artifact on this machine; torch is not needed.

    Args:
        artifact: its folder.
        baseline: an earlier artifact's folder; the new one must not be slower than it.
        max_slowdown: by how much it may be, a fraction.
        progress: told how far it is.

    Raises:
        LstmoptError: one of the folders is no artifact, or is damaged beyond reading.
    """
    artifact = Path(artifact)
    manifest = Manifest.load(artifact / "manifest.json")
    if not (artifact / "report.json").exists():
        raise LstmoptError(
            str(artifact), "is an export, which has nothing recorded to check", "try lstmopt bench"
        )
    report = Report.load(artifact / "report.json")
    checks = artifact_checks(artifact, manifest)
    contract = report.contract
    checks.append(
        Check(
            name="contract, as recorded",
            passed=contract.met,
            detail=f"{contract.degradation.value:+.3%}, {contract.max_degradation:.2%} allowed, "
            f"{contract.data}",
        )
    )
    differing = manifest.fingerprint.difference(fingerprint())
    if differing:
        checks.append(
            Check(
                name="machine",
                passed=True,
                detail=f"made for another one ({', '.join(differing)} differ): its speed is not known here",
            )
        )
    if baseline is not None:
        checks.append(_speed(artifact, manifest, Path(baseline), max_slowdown, progress))
    return Verification(artifact=str(artifact), checks=tuple(checks))


def _speed(
    artifact: Path, manifest: Manifest, baseline: Path, max_slowdown: float, progress: Progress | None
) -> Check:
    """Times two artifacts' best files against each other on all calls of the target.

    Raises:
        LstmoptError: the baseline is no artifact, or takes other calls.
    """
    old = Manifest.load(baseline / "manifest.json")
    reports = [Report.load(folder / "report.json") for folder in (artifact, baseline)]
    target = reports[0].target

    def candidate(name: str, folder: Path, entry: Deployment) -> measure.Candidate:
        return measure.Candidate(name, entry, timing_calls(load_model(folder / "model.onnx"), target, 0))

    same = [(report.target.shapes, report.target.threads) for report in reports]
    pair = [
        candidate("new", artifact, manifest.deployments(artifact)[0]),
        candidate("old", baseline, old.deployments(baseline)[0]),
    ]
    shapes = [
        [{name: array.shape for name, array in feeds.items()} for _, feeds in item.calls] for item in pair
    ]
    states = {state.input for state in (*manifest.states, *old.states)}
    differing = any(
        ours.get(name) != theirs.get(name)
        for ours, theirs in zip(*shapes, strict=True)
        for name in {*ours, *theirs} - states
    )
    if same[0] != same[1] or differing:
        raise LstmoptError(
            f"--baseline {baseline}",
            "was made for other input shapes or threads",
            "compare artifacts of one model and target",
        )
    comparison = measure.compare(pair, threads=manifest.threads, progress=progress)
    ratio = comparison.ratio("new", "old")
    detail = f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] of the baseline's latency"
    if not comparison.trusted:
        detail += (
            f"; the machine is too busy to tell (a model is {comparison.aa.value:.3f} as fast as itself)"
        )
    return Check(
        name="speed against the baseline",
        passed=comparison.trusted and ratio.value <= 1 + max_slowdown,
        detail=f"{detail}, {1 + max_slowdown:.3f} allowed",
    )
