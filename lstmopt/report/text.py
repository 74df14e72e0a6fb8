"""The result table for a terminal: the figures that the page shows first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lstmopt.report import html
from lstmopt.report.schema import Manifest, Report

if TYPE_CHECKING:
    from rich.console import RenderableType


def result_table(report: Report) -> RenderableType:
    """Returns what `lstmopt optimize` prints at its end: warnings, headline, ratios, table."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    if report.lines:
        parts.append(Text("; ".join(report.lines), style="bold yellow"))
    parts += [Text(html.headline(report), style="bold"), Text()]
    tiles = Table(box=None, show_header=False, padding=(0, 1))
    tiles.add_column(justify="right", style="bold")
    for tile in html.tiles(report):
        state = f" - contract {tile['state']}" if tile["state"] else ""
        tiles.add_row(tile["value"], f"{tile['name']} ({tile['detail']}){state}")
    parts += [tiles, Text()]
    content = html.result_rows(report)
    table = Table()
    table.add_column("")
    for name in content["columns"]:
        table.add_column(name, justify="right")
    for name, cells in content["rows"]:
        table.add_row(name, *cells)
    parts.append(table)
    return Group(*parts)


def state_lines(manifest: Manifest) -> tuple[str, ...]:
    """Returns a line for each state whose shape is not what callers of the original know."""

    def said(shape: tuple[int | str, ...]) -> str:
        return f"[{', '.join(map(str, shape))}]"

    return tuple(
        f"state {state.input} -> {state.output}: {said(state.shape)}, was {said(state.original_shape)}"
        for state in manifest.states
        if state.changed
    )
