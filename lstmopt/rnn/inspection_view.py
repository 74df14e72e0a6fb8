"""The tables of `lstmopt inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lstmopt.rnn.inspection import Inspection, Interface, LayerInfo


def view(inspection: Inspection) -> Any:
    """Returns a rich renderable: interface, layers, unit groups, states and notes."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Text(
        f"{inspection.source}: opset {inspection.opset}, {inspection.parameters:,} parameters, "
        f"{inspection.rnn_parameters:,} of them W and R of recurrent layers"
    )
    parts: list[Any] = [head]
    interface = Table("", "name", "type", "shape", title="Interface", title_justify="left")
    for kind, values in (("input", inspection.inputs), ("output", inspection.outputs)):
        for value in values:
            interface.add_row(kind, value.name, value.dtype, _shape(value))
    parts.append(interface)
    if inspection.layers:
        table = Table(title="Recurrent layers", title_justify="left")
        for column in ("name", "kind", "direction"):
            table.add_column(column, overflow="fold")
        for column in ("input", "hidden", "W and R", "density"):
            table.add_column(column, justify="right")
        table.add_column("with", overflow="fold")
        table.add_column("optimised", overflow="fold")
        for layer in inspection.layers:
            having = [
                name
                for name, there in (
                    ("biases", layer.biases),
                    ("peepholes", layer.peepholes),
                    ("clip", layer.clip is not None),
                    ("initial states", layer.initial_states),
                    ("lengths", layer.sequence_lens),
                )
                if there
            ]
            density = layer.nonzero_parameters / layer.parameters if layer.parameters else 0
            table.add_row(
                layer.name, layer.kind, layer.direction, str(layer.input_size), str(layer.hidden_size),
                f"{layer.parameters:,}", f"{density:.1%}", ", ".join(having), _optimised(layer),
            )  # fmt: skip
        parts.append(table)
    if inspection.groups:
        table = Table(
            "layers", "hidden", "resizable", "read by", "states", title="Unit groups", title_justify="left"
        )
        for group in inspection.groups:
            table.add_row(
                ", ".join(group.layers), str(group.hidden_size),
                f"no: {group.reason}" if not group.resizable else "yes" if group.exact else "approximately",
                ", ".join(group.readers), ", ".join(group.interface),
            )  # fmt: skip
        parts.append(table)
    if inspection.states:
        parts.append(
            Text("States: " + ", ".join(f"{pair.output} -> {pair.input}" for pair in inspection.states))
        )
    operators = ", ".join(f"{name} {count}" for name, count in inspection.operators.items())
    parts.append(Text(f"Operators: {operators}"))
    parts += [Text(f"Note: {note}") for note in inspection.notes]
    return Group(*parts)


def _shape(value: Interface) -> str:
    return "\\[" + ", ".join(str(size) for size in value.shape) + "]"


def _optimised(layer: LayerInfo) -> str:
    """Returns whether a layer is changed, and why not or how little."""
    if layer.supported:
        return f"pruned; {layer.reason}" if layer.reason else "yes"
    return layer.reason
