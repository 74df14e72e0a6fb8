"""A report with everything in it, and curves, for the tests of report/."""

from __future__ import annotations

import math

from lstmopt.measure.fingerprint import Fingerprint
from lstmopt.report.plots import Curve
from lstmopt.report.schema import (
    CandidateRecord,
    Cold,
    Contract,
    HiddenSize,
    Interval,
    Latency,
    LstmRecord,
    Manifest,
    Measurement,
    Metric,
    Optimized,
    PassRecord,
    Peer,
    Ratios,
    Report,
    Size,
    Speedup,
    StateRecord,
)
from lstmopt.runtimes.base import Deployment
from lstmopt.targets import load_target

MACHINE = Fingerprint(
    cpu="AMD EPYC-Milan Processor (family 25, model 1)",
    isa=("avx", "avx2", "fma", "f16c"),
    caches={"L1d": 32768, "L2": 524288, "L3": 33554432},
    cores=2,
    memory_gib=23.5,
    system="Linux x86_64",
)


def latency(median: float) -> Latency:
    return Latency(median=median, p10=0.98 * median, p90=1.05 * median, p99=1.3 * median, samples=4210)


def report(**changes: object) -> Report:
    peers = (
        Peer(
            runtime="openvino",
            precision="f32",
            latency_us=latency(1432.1),
            degradation=1e-7,
            within_contract=True,
        ),
        Peer(
            runtime="onnxruntime",
            precision="f32",
            latency_us=latency(1391.4),
            degradation=0.0,
            within_contract=True,
            bytes=7874803,
        ),
        Peer(
            runtime="onnxruntime",
            precision="int8",
            latency_us=latency(611.8),
            degradation=0.0009,
            within_contract=True,
            bytes=2107311,
        ),
    )
    hidden = {"lstm_0": 392, "lstm_1": 392}
    candidates = [
        CandidateRecord(**peer.model_dump(), name="original", hidden_sizes=hidden) for peer in peers
    ]
    for name, units, density, times, loss in (
        ("resized", 256, 1.0, (702.0, 688.0, 301.0), 0.0131),
        ("pruned", 224, 0.5, (561.0, 533.0, 252.4), 0.0162),
        ("pruned-small", 160, 0.4, (330.0, 318.0, 160.0), 0.0874),
    ):
        for (runtime, precision), median in zip(
            (("openvino", "f32"), ("onnxruntime", "f32"), ("onnxruntime", "int8")), times, strict=True
        ):
            worse = loss + (0.001 if precision == "int8" else 0)
            candidates.append(
                CandidateRecord(
                    name=name,
                    runtime=runtime,
                    precision=precision,
                    latency_us=latency(median),
                    degradation=worse,
                    degradation_interval=Interval(value=worse, low=worse - 0.002, high=worse + 0.002),
                    within_contract=worse <= 0.02,
                    hidden_sizes={"lstm_0": units, "lstm_1": units},
                    density=density,
                    shipped=name == "pruned" and precision == "int8",
                )
            )
    original = Size(
        parameters=1_945_000,
        nonzero_parameters=1_945_000,
        bytes=7_874_803,
        model_parameters=1_990_000,
        model_nonzero_parameters=1_990_000,
    )
    optimized = Optimized(
        name="pruned",
        runtime="onnxruntime",
        precision="int8",
        file="onnxruntime/model.onnx",
        latency_us=latency(252.4),
        parameters=645_120,
        nonzero_parameters=322_560,
        bytes=721_104,
        model_parameters=690_120,
        model_nonzero_parameters=367_560,
        metric=Metric(name="perplexity", original=3.412, optimized=3.484),
    )
    fields: dict[str, object] = {
        "target": load_target("xeon"),
        "fingerprint": MACHINE,
        "versions": {"lstmopt": "0.1.0", "onnxruntime": "1.32.0", "openvino": "2026.4.0", "python": "3.11.7"},
        "peers": peers,
        "fastest_f32": 1,
        "best_peer": 2,
        "original": original,
        "optimized": optimized,
        "ratios": Ratios.of(
            Speedup(value=5.513, low=5.47, high=5.56),
            Speedup(value=2.424, low=2.40, high=2.45),
            original,
            optimized,
        ),
        "lstms": tuple(
            LstmRecord(
                name=name, hidden_size=HiddenSize(before=392, after=224), pattern="unstructured", density=0.5
            )
            for name in hidden
        ),
        "contract": Contract(
            kind="labels",
            metric="cross-entropy",
            max_degradation=0.02,
            degradation=Interval(value=0.0172, low=0.0149, high=0.0196),
            met=True,
            data="the last tenth of train.npz, 110,592 tokens",
        ),
        "passes": (
            PassRecord(name="simplify", seconds=1.8, modified=True),
            PassRecord(name="peers", seconds=24.1, modified=False),
            PassRecord(name="probe", seconds=61.0, modified=False),
            PassRecord(name="back-off", seconds=301.7, modified=True),
            PassRecord(name="export", seconds=3.9, modified=False),
            PassRecord(name="verify", seconds=33.0, modified=False),
        ),
        "candidates": tuple(candidates),
        "test": Metric(name="perplexity", original=3.44, optimized=3.51),
        "measurement": Measurement(
            aa=Interval(value=1.001, low=0.996, high=1.005), trusted=True, discarded=3
        ),
        "cold": Cold(
            optimized=latency(341.7),
            best_peer=latency(902.4),
            ratio=Interval(value=2.641, low=2.5, high=2.8),
            trusted=True,
        ),
        "notes": (
            "OpenVINO bf16 was left out: this CPU does not have it",
            "validation data: <script>alert(1)</script>",
        ),
        "seed": 0,
        "command": "lstmopt optimize char_lm.onnx --target xeon --data train.npz --max-degradation 2% -o out",
        "source": "char_lm.onnx",
        "created": "2026-11-24T10:30:00+00:00",
    }
    return Report(**{**fields, **changes})


def manifest(files: dict[str, str] | None = None) -> Manifest:
    return Manifest(
        files=files or {},
        fingerprint=MACHINE,
        versions={"onnxruntime": "1.32.0"},
        deploy=(
            Deployment(
                runtime="onnxruntime",
                file="onnxruntime/model.onnx",
                precision="int8",
                settings={"session.intra_op.allow_spinning": "0"},
                input_shapes={"tokens": ("sequence", 1)},
            ),
            Deployment(runtime="openvino", file="openvino/model.xml", precision="f32"),
        ),
        states=(StateRecord(input="h_0", output="h_0_out"),),
    )


def curve(title: str, width: int, last: int = 392) -> Curve:
    """Returns a stepped curve with noise, as OpenVINO's."""
    dimensions = [*range(8, last, 8), last]
    true = {d: 20 + 0.6 * math.ceil(d / width) * width + 0.008 * d * d for d in dimensions}
    samples = {d: [value * (1 + 0.01 * math.sin(7 * d + k)) for k in range(12)] for d, value in true.items()}
    points: list[int] = []
    bins: list[tuple[int, int]] = []
    for dimension in reversed(dimensions):
        if not points or true[dimension] < 0.94 * true[points[-1]]:
            points.append(dimension)
    for right, left in zip(points, [*points[1:], 0], strict=True):
        inside = [d for d in dimensions if left < d < right]
        if inside:
            bins.append((inside[0], inside[-1]))
    return Curve(title=title, latency_us=true, samples=samples, points=points, bins=bins)


def curves() -> list[Curve]:
    return [
        curve("lstm_0, OpenVINO f32", 48),
        curve("lstm_0, ONNX Runtime f32", 16),
        curve("lstm_0, ONNX Runtime int8", 64),
    ]
