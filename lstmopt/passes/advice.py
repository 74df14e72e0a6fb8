"""What `lstmopt advise` has measured, and how the shell shows it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Option(BaseModel):
    """One thing that could be done.

    Attributes:
        name: what it is.
        runtime: where it was measured.
        precision: in which precision.
        threads: of one inference.
        latency_us: median of one call.
        speedup: latency of the model as it is in ONNX Runtime f32, over this one's.
        low: lower end of its 95% interval.
        high: upper end.
        error: relative error of the outputs against f32, or the degradation on the data where given; None
            where training has to follow.
        training: whether it needs training.
        command: what to type for it.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    runtime: str
    precision: str
    threads: int
    latency_us: float
    speedup: float
    low: float
    high: float
    error: float | None
    training: bool
    command: str


class Advice(BaseModel):
    """What `lstmopt advise` has measured.

    Attributes:
        source: the model.
        cpu: the machine.
        target: the target's name.
        calls: shapes that were timed.
        error: what `Option.error` is.
        options: fastest first.
        notes: what could not be measured, and why.
        trusted: whether a model was as fast as itself within 2%.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    cpu: str
    target: str
    calls: str
    error: str
    options: tuple[Option, ...]
    notes: tuple[str, ...]
    trusted: bool

    def render(self) -> Any:
        """Returns the shell's table."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(title_justify="left")
        table.add_column("option", overflow="fold")
        table.add_column("runtime")
        for column in ("threads", "latency", "speed", self.error):
            table.add_column(column, justify="right")
        table.add_column("command", overflow="fold")
        for option in self.options:
            error = (
                "after training"
                if option.training
                else "-"
                if option.error is None
                else f"{option.error:.2%}"
            )
            table.add_row(
                option.name,
                f"{option.runtime} {option.precision}",
                str(option.threads),
                f"{option.latency_us:.0f} us",
                f"{option.speedup:.2f}x ({option.low:.2f}..{option.high:.2f})",
                error,
                option.command,
            )
        head = Text(f"{self.source} on {self.cpu}, target {self.target}, {self.calls}")
        notes = [Text(f"Note: {note}") for note in self.notes]
        if not self.trusted:
            notes.insert(0, Text("The machine is too busy: these latencies are not to be trusted"))
        return Group(head, table, *notes)
