"""The page of `benchmarks.patterns`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.rows import made_by

TITLES = {
    "ptb": "Penn Treebank words (Mikolov's preparation), 2 layers of 200",
    "char_lm": "The reference model: characters of Python's standard library, 2 layers of 392",
}


def fastest(row: Mapping[str, Any]) -> str:
    """Returns the format in which a row's layer is fastest."""
    us = row["latency"]["us"]
    return str(min((name for name in us if not name.startswith("dense")), key=us.get))


def front(rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Returns which rows no other one is both as fast and as accurate as, and better in one of the two.

    Only rows that were made on one machine are compared.
    """
    points = [(row["latency"]["us"][fastest(row)], row["degradation"]["value"], row["made"]) for row in rows]
    return [
        not any(
            other[:2] != point[:2] and other[0] <= point[0] and other[1] <= point[1]
            for other in points
            if other[2] == point[2]
        )
        for point in points
    ]


def _percent(worse: Mapping[str, float]) -> str:
    value, low, high = (f"{100 * worse[name]:+.2f}" for name in ("value", "low", "high"))
    return f"{value}% [{low}, {high}]"


def _model(name: str, part: Mapping[str, Any]) -> list[str]:
    dense = part["peers"][0]
    lines = [
        f"## {TITLES[name]}",
        "",
        f"Dense: perplexity {dense['valid']:.2f} (validation), {dense['test']:.2f} (test). Recipe of a row:",
        f"`{part['recipe']}`.",
        "",
    ]
    if part["missing"]:
        lines += [f"Not trained yet: {', '.join(part['missing'])}.", ""]
    lines += [
        "| pattern | density | non-zeros | valid | degradation | test | layer, us | over int8 | CPU |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = sorted(part["rows"], key=lambda row: (-row["row"]["density"], row["degradation"]["value"]))
    for row, best in zip(rows, front(rows), strict=True):
        form, latency = fastest(row), row["latency"]
        doubt = "" if latency["trusted"] else "?"
        mark = "**" if best else ""
        lines.append(
            f"| {mark}{row['row']['pattern']}{mark} | {100 * row['row']['density']:.3g}% "
            f"| {row['nonzero']:,} "
            f"| {row['valid']:.2f} | {_percent(row['degradation'])} | {row['test']:.2f} "
            f"| {latency['us'][form]:.0f}{doubt} ({form}) | {latency['over int8'][form]:.1f} "
            f"| {row['made']} |"
        )
    if part["formats"]:
        lines += [
            "",
            "Number formats, computed by the ops in ONNX Runtime; dense: in the runtimes' own precisions.",
            "",
            "| model | training ends on | computed in | valid | degradation | test |",
            "|---|---|---|---|---|---|",
        ]
    for line in part["formats"]:
        row = line["row"]
        lines.append(
            f"| {row['pattern']}, {100 * row['density']:.3g}% | {row['rounding'] or 'full weights'} "
            f"| {line['format']} | {line['valid']:.3f} | {_percent(line['degradation'])} "
            f"| {line['test']:.3f} |"
        )
    if part["formats"]:
        lines += [
            f"| dense | | {peer['peer']} | {peer['valid']:.3f} | {_percent(peer['degradation'])} "
            f"| {peer['test']:.3f} |"
            for peer in part["peers"]
        ]
    return [*lines, ""]


def page(document: Mapping[str, Any], command: str) -> str:
    """Returns the Markdown page."""
    lines = [
        "# Sparsity patterns and number formats",
        "",
        made_by(command),
        "",
        "Each row starts from the dense model, which is its teacher too. Degradation: relative increase of",
        "the validation loss over the dense model's in ONNX Runtime f32, with its 95% interval (paired",
        "bootstrap over blocks of text; it tells nothing of other seeds). One seed (0): differences within",
        "an interval are ties. Validation chooses, test data are only reported. Layer: the model's last",
        "LSTM alone, with its trained masks, batch 1, 35 steps, one thread, in the format in which it is",
        "fastest in ONNX Runtime, and over dense int8 there; `?`: the machine was too busy. Bold: no other",
        "row of the model from the same machine is as fast and as accurate, and better in one of the two.",
        "",
    ]
    for name, part in document.items():
        lines += _model(name, part)
    return "\n".join(lines)
