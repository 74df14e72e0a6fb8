"""The page of `benchmarks.models`: a row is made where a model has run, and kept until it runs again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.real_models import MODELS, RealModel

Records = Mapping[str, Mapping[str, dict[str, Any] | None]]
Rows = Mapping[str, Mapping[str, Mapping[str, str]]]
"""By table and model: the cells of a row by column."""

HEAD = """# Models that others trained

Each of these files lies in a package on the registry, is none of ours, and goes through `lstmopt inspect`,
`simplify + export`, `optimize` and `verify` in `make models` (one of them: `make models ONLY=nsnet2`). What
they are, how they are called and with which options each is optimised stands in `benchmarks/real_models.py`.

| name | package, file | licence | what it does | what is special |
|---|---|---|---|---|
"""

IDENTITY = """
## The unmodified model

Simplified and exported, the outputs of a model are those of the original: the error of each output against a
run in float64 (`benchmarks/float64.py`) is at most 4 times that of ONNX Runtime on the original file, plus
1e-6 of the output's range. Models with states run over 100 chunks, states fed back; the others make 3 calls
of growing length. The sparse ops run with no weight pruned. A number is the largest error over what is
allowed; up to 1 holds. Of a quantised model, the float64 run has the weights that its whole numbers stand
for and inputs that are not rounded: what it approximates. `*`: the sparse op holds against a float64 run of
the weights as they are packed, whose lowest 5 bits are an index.
"""

OPTIMIZED = """
## Optimised

Latency ratios are those of the report, original over optimised, with 95% intervals: over the fastest f32
peer, and over the best peer, the fastest of any precision within the contract. `?`: the machine was not quiet
enough to publish a speed. Contract: the degradation that was measured, and what was allowed.
"""

PURPOSE = """
## At what they are for

What the artifacts above do at their own task, beside the original: `benchmarks/vad.py` (speech of AN4's test
part, frames in one stream; 99% of decisions the same are wanted), `benchmarks/captchas.py` (500 drawn
pictures; no fewer characters and texts than the original are wanted).
"""

REFUSED = """
## Refused, and why
"""

TABLES = {"identity": IDENTITY, "optimized": OPTIMIZED, "purpose": PURPOSE, "refused": REFUSED}
"""What stands above each table."""

VARIANTS = {
    "ONNX Runtime": "onnxruntime", "OpenVINO": "openvino",
    "sparse, ONNX Runtime": "onnxruntime sparse-f32", "sparse, OpenVINO": "openvino sparse-f32",
}  # fmt: skip
MADE = "CPU, commit"


def _ratio(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return "?"
    return f"{found['value']:.2f}x [{found['low']:.2f}, {found['high']:.2f}]"


def _share(entry: Mapping[str, Any]) -> str:
    """Returns the largest error over what is allowed."""
    if "refused" in entry:
        return "refused"
    shares = []
    for found in entry["outputs"].values():
        allowed = 4 * found["own"] + 1e-6 * found["range"]
        shares.append(found["error"] / allowed if allowed else float(found["error"] > 0) * float("inf"))
    worst = max((0.0 if share != share else share) for share in shares)
    if entry["holds"]:
        return f"{worst:.2f}"
    return f"**{worst:.2f}**" + ("\\*" if entry.get("as_packed") else "")


def _layers(inspection: Mapping[str, Any]) -> str:
    layers = inspection["layers"]
    kinds = {layer["kind"] for layer in layers}
    found = [f"{sum(layer['kind'] == kind for layer in layers)} {kind}" for kind in sorted(kinds)]
    if inspection["decomposed_cells"]:
        found.append(f"{inspection['decomposed_cells']} cells")
    return ", ".join(found) or "none"


def _sizes(report: Mapping[str, Any]) -> str:
    pairs = [(each["hidden_size"]["before"], each["hidden_size"]["after"]) for each in report["lstms"]]
    return ", ".join(f"{before} to {after}" if before != after else str(before) for before, after in pairs)


def _density(report: Mapping[str, Any]) -> str:
    size = report["optimized"]
    return f"{100 * size['nonzero_parameters'] / max(1, size['parameters']):.0f}%"


def _identity(parts: Mapping[str, dict[str, Any] | None]) -> dict[str, str]:
    inspect, identity = parts["inspect"], parts["identity"]
    if not inspect or not identity:
        return {}
    seconds = str(inspect["result"]["seconds"]) if "result" in inspect else "refused"
    variants = identity.get("result", {})
    cells = {
        title: _share(variants[key]) if key in variants else "refused" for title, key in VARIANTS.items()
    }
    return {"inspect, s": seconds, **cells}


def _optimized(parts: Mapping[str, dict[str, Any] | None]) -> dict[str, str]:
    inspect, found = parts["inspect"], parts["optimize"]
    if not found or "result" not in found:
        return {}
    layers = _layers(inspect["result"]["inspection"]) if inspect and "result" in inspect else "?"
    report = found["result"]
    contract, best = report["contract"], report["optimized"]
    kind = "labels" if contract["kind"] == "labels" else "fidelity"
    value, most = contract["degradation"]["value"], contract["max_degradation"]
    return {
        "layers found": layers,
        "hidden sizes": _sizes(report),
        "density": _density(report),
        "contract": f"{kind} {100 * value:+.2f}% of {100 * most:g}%",
        "over f32": _ratio(report["ratios"]["latency_over_f32"]),
        "over best peer": _ratio(report["ratios"]["latency_over_best_peer"]),
        "ships": f"{best['name']}, {best['runtime']} {best['precision']}",
        "took": f"{found['seconds']:.0f} s, {found['peak_mb']} MB",
    }


def _purpose(parts: Mapping[str, dict[str, Any] | None]) -> dict[str, str]:
    found = parts["purpose"]
    if not found or "result" not in found:
        return {}
    return {"": "; ".join(found["result"]["said"]), "holds": "yes" if found["result"]["holds"] else "**no**"}


def _refused(parts: Mapping[str, dict[str, Any] | None]) -> dict[str, str]:
    """Returns what was said, by the step or variant that was refused."""
    told = {step: found["refused"] for step, found in parts.items() if found and "refused" in found}
    variants = (parts["identity"] or {}).get("result", {})
    told |= {name: entry["refused"] for name, entry in variants.items() if "refused" in entry}
    return {"": "; ".join(f"{where}: `{why}`" for where, why in told.items())} if told else {}


MAKERS = {
    "identity": (_identity, ("identity",)),
    "optimized": (_optimized, ("optimize",)),
    "purpose": (_purpose, ("purpose",)),
    "refused": (_refused, ("inspect", "identity", "optimize", "purpose")),
}
"""By table: what makes a row, and the steps with whose results an earlier row is out of date."""


def rows(records: Records, before: Rows | None = None) -> dict[str, dict[str, dict[str, str]]]:
    """Returns the rows of every table.

    Args:
        records: what the steps have found, and where each was made, by model; None where one has not run.
        before: rows of earlier calls; a model with records replaces its own.
    """
    found: dict[str, dict[str, dict[str, str]]] = {}
    for table, (make, steps) in MAKERS.items():
        kept = (before or {}).get(table, {})
        found[table] = {}
        for name, parts in records.items():
            cells = make(parts)
            if cells:
                (made, *_) = dict.fromkeys(each["made"] for step in steps if (each := parts[step]))
                found[table][name] = {**cells, MADE: made}
            elif name in kept and not any(parts[step] for step in steps):
                found[table][name] = dict(kept[name])
    return found


def _model(model: RealModel) -> str:
    return (
        f"| {model.name} | `{model.package}`, `{model.file}` | {model.licence} | {model.what} "
        f"| {model.special} |\n"
    )


def _table(cells: Mapping[str, Mapping[str, str]]) -> str:
    columns = list(next(iter(cells.values())))
    lines = [f"| name | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(row[column] for column in columns)} |" for name, row in cells.items()]
    return "\n".join(lines) + "\n"


def page(found: Rows, versions: str = "") -> str:
    """Returns docs/models.md; without rows it is the list of models alone.

    Args:
        found: of `rows`.
        versions: a line on the packages.
    """
    text = HEAD + "".join(map(_model, MODELS))
    for table, head in TABLES.items():
        if found[table]:
            text += f"{head}\n{_table(found[table])}"
    return text + (f"\n{versions}\n" if versions else "")
