"""Says what this machine can do, and what to install for the rest."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from pydantic import BaseModel, ConfigDict

from lstmopt.measure.fingerprint import Fingerprint, fingerprint
from lstmopt.runtimes import GPU_RUNTIMES, RUNTIMES, ops
from lstmopt.runtimes.base import RuntimeStatus

OTHERS = (("torch", "needed by optimize: pip install torch"),)


class Finding(BaseModel):
    """A runtime or package."""

    model_config = ConfigDict(frozen=True)

    name: str
    usable: bool
    version: str
    precisions: tuple[str, ...]
    remark: str


class Diagnosis(BaseModel):
    """What `lstmopt doctor` has found."""

    model_config = ConfigDict(frozen=True)

    fingerprint: Fingerprint
    findings: tuple[Finding, ...]

    def render(self) -> Any:
        """Returns the shell's table."""
        from rich.console import Group
        from rich.markup import escape
        from rich.table import Table
        from rich.text import Text

        machine = self.fingerprint
        caches = ", ".join(f"{name} {size // 1024} KiB" for name, size in machine.caches.items())
        lines = [
            Text(f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib} GiB, {machine.system}"),
            Text(f"instruction sets: {', '.join(machine.isa) or 'unknown'}; caches: {caches or 'unknown'}"),
        ]
        table = Table("", "usable", "version", "precisions", "remark")
        for item in self.findings:
            usable, precisions = "yes" if item.usable else "no", ", ".join(item.precisions) or "-"
            table.add_row(item.name, usable, item.version or "-", precisions, escape(item.remark))
        return Group(*lines, table)


def _ops(status: RuntimeStatus) -> str:
    """Returns why a runtime that could run the sparse ops does not, or nothing."""
    return ops.absent(status.name) if status.usable and status.name in ops.NAMES else ""


def doctor() -> Diagnosis:
    """Returns which runtimes, precisions and packages are usable here."""
    findings = []
    for runtime in (*RUNTIMES, *GPU_RUNTIMES):
        status = runtime.status()
        findings.append(
            Finding(
                name=status.name,
                usable=status.usable,
                version=status.version,
                precisions=status.precisions,
                remark="; ".join(part for part in (status.reason, _ops(status)) if part),
            )
        )
    for package, remark in OTHERS:
        usable = find_spec(package) is not None
        findings.append(
            Finding(
                name=package,
                usable=usable,
                version=_version(package) if usable else "",
                precisions=(),
                remark="" if usable else remark,
            )
        )
    return Diagnosis(fingerprint=fingerprint(), findings=tuple(findings))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a build of one's own on the path
        return ""
