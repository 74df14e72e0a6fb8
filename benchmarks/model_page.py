"""The page of `benchmarks.models`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.real_models import MODELS, RealModel
from benchmarks.rows import made_by

Records = Mapping[str, Mapping[str, dict[str, Any] | None]]

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

| name | inspect, s | ONNX Runtime | OpenVINO | sparse, ONNX Runtime | sparse, OpenVINO |
|---|---|---|---|---|---|
"""

OPTIMIZED = """
## Optimised

Latency ratios are those of the report, original over optimised, with 95% intervals: over the fastest f32
peer, and over the best peer, the fastest of any precision within the contract. `?`: the machine was not quiet
enough to publish a speed. Contract: the degradation that was measured, and what was allowed.

| name | layers found | hidden sizes | density | contract | over f32 | over best peer | ships | took |
|---|---|---|---|---|---|---|---|---|
"""

VARIANTS = ("onnxruntime", "openvino", "onnxruntime sparse-f32", "openvino sparse-f32")


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


def _optimized(name: str, parts: Mapping[str, dict[str, Any] | None]) -> str:
    inspect, found = parts["inspect"], parts["optimize"]
    layers = _layers(inspect["result"]["inspection"]) if inspect and "result" in inspect else "?"
    assert found is not None
    if "result" not in found:
        return f"| {name} | {layers} | refused: see below | | | | | | {found['seconds']:.0f} s |"
    report = found["result"]
    contract, best = report["contract"], report["optimized"]
    value = contract["degradation"]["value"]
    return (
        f"| {name} | {layers} | {_sizes(report)} | {_density(report)} "
        f"| {'labels' if contract['kind'] == 'labels' else 'fidelity'} {100 * value:+.2f}% of "
        f"{100 * contract['max_degradation']:g}% "
        f"| {_ratio(report['ratios']['latency_over_f32'])} "
        f"| {_ratio(report['ratios']['latency_over_best_peer'])} "
        f"| {best['name']}, {best['runtime']} {best['precision']} "
        f"| {found['seconds']:.0f} s, {found['peak_mb']} MB |"
    )


def _refusals(records: Records) -> list[str]:
    """Returns a line for all that was refused, and what was said."""
    lines = []
    for name, parts in records.items():
        for step, found in parts.items():
            if found and "refused" in found:
                lines.append(f"- {name}, {step}: `{found['refused']}`")
        identity = parts["identity"]
        if identity and "result" in identity:
            lines += [
                f"- {name}, {variant}: `{entry['refused']}`"
                for variant, entry in identity["result"].items()
                if "refused" in entry
            ]
    return lines


def _model(model: RealModel) -> str:
    return (
        f"| {model.name} | `{model.package}`, `{model.file}` | {model.licence} | {model.what} "
        f"| {model.special} |\n"
    )


def page(records: Records) -> str:
    """Returns docs/models.md; without results it is the list of models alone."""
    text = HEAD + "".join(map(_model, MODELS))
    checked = {name: parts for name, parts in records.items() if parts["identity"] and parts["inspect"]}
    if checked:
        text += IDENTITY
        for name, parts in checked.items():
            inspect, identity = parts["inspect"], parts["identity"]
            assert inspect is not None and identity is not None
            seconds = inspect["result"]["seconds"] if "result" in inspect else "refused"
            variants = identity.get("result", {})
            cells = [_share(variants[key]) if key in variants else "refused" for key in VARIANTS]
            text += f"| {name} | {seconds} | {' | '.join(cells)} |\n"
    optimized = {name: parts for name, parts in records.items() if parts["optimize"]}
    if optimized:
        text += OPTIMIZED + "".join(_optimized(name, parts) + "\n" for name, parts in optimized.items())
    refused = _refusals(records)
    if refused:
        text += "\n## Refused, and why\n\n" + "\n".join(refused) + "\n"
    if checked or optimized:
        text += f"\n{made_by('make models')}\n"
    return text
