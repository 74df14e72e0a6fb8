"""The page that a user shows: one file, no network, no script."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from lstmopt.report import figures, plots
from lstmopt.report.plots import Curve
from lstmopt.report.schema import Interval, Latency, Metric, Report, Speedup, runtime_title

if TYPE_CHECKING:
    from jinja2 import Template

Row = dict[str, Any]


def render_html(report: Report, curves: Sequence[Curve] = ()) -> str:
    """Returns the text of `report.html`.

    Args:
        report: what `report.json` holds.
        curves: latency curves of the probe.
    """
    return _template().render(
        report=report,
        title=report.source or "model",
        created=_moment(report),
        headline=headline(report),
        tiles=tiles(report),
        result=result_rows(report),
        peers=peer_rows(report),
        candidates=candidate_rows(report),
        published=trusted(report),
        wide=plots.scatter(report, plots.WIDE),
        narrow=plots.scatter(report, plots.NARROW),
        legend=plots.legend(report),
        curves=[(curve.title, plots.curve(curve, index)) for index, curve in enumerate(curves)],
        unmeasured=sum(record.degradation is None for record in plots.shown_candidates(report)),
        seconds=sum(record.seconds for record in report.passes),
        machine=machine_rows(report),
        shapes=_shapes(report),
        f=figures,
        runtime_title=runtime_title,
    )


@cache
def _template() -> Template:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = files("lstmopt.report").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(page)


def trusted(report: Report) -> bool:
    """Returns whether latencies may be published: they were measured, and the A/A pair was within 2%."""
    return not report.predicted and (report.measurement is None or report.measurement.trusted)


def headline(report: Report) -> str:
    """Returns the result in one sentence."""
    best = report.peers[report.best_peer]
    shipped = report.optimized
    if report.predicted:
        return (
            f"What ships: {shipped.name} in {shipped.title}. Its speed was not measured: for its recurrent "
            f"layers the latency tables predict {figures.latency(shipped.latency_us.median)} a call, for the "
            f"original's in {best.title} {figures.latency(best.latency_us.median)}."
        )
    if not trusted(report):
        return f"What ships: {shipped.name} in {shipped.title}. Its speed has to be measured again."
    took = figures.latency(shipped.latency_us.median)
    if shipped.name == "original":
        return (
            f"The original in {shipped.title} is what ships, {took} a call: "
            "nothing smaller was faster within the contract."
        )
    told = (
        f"{took} a call in {shipped.title}, where the best that the original does "
        f"is {figures.latency(best.latency_us.median)} in {best.title}."
    )
    barred = [
        peer
        for peer in report.peers
        if not peer.within_contract and peer.latency_us.median < best.latency_us.median
    ]
    if not barred:
        return told
    fastest = min(barred, key=lambda peer: peer.latency_us.median)
    worse = "" if fastest.degradation is None else f", degrading by {figures.percent(fastest.degradation)}"
    return (
        f"{told[:-1]} within the contract; {figures.latency(fastest.latency_us.median)} in "
        f"{fastest.title}{worse}, which is not allowed."
    )


def tiles(report: Report) -> list[Row]:
    """Returns the headline's figures: two speeds, the degradation, the size."""
    f32, best = report.peers[report.fastest_f32], report.peers[report.best_peer]
    ratios, contract = report.ratios, report.contract
    rows = [
        _speed(report, ratios.latency_over_f32, f"the fastest f32 peer, {f32.title}"),
        _speed(report, ratios.latency_over_best_peer, f"the best peer, {best.title}"),
        {
            "value": figures.percent(contract.degradation.value),
            "name": f"degradation, {figures.percent(contract.max_degradation, 1)} allowed",
            "detail": _interval(contract.degradation, figures.percent),
            "state": ("met" if contract.met else "missed"),
        },
        {
            "value": figures.ratio(ratios.nonzero_parameters),
            "name": "fewer non-zero LSTM or GRU weights",
            "detail": f"{figures.count(report.original.nonzero_parameters)} → "
            f"{figures.count(report.optimized.nonzero_parameters)}",
            "state": "",
        },
    ]
    return rows


def _speed(report: Report, ratio: Speedup, peer: str) -> Row:
    row = {"value": figures.ratio(ratio.value), "detail": _interval(ratio, figures.ratio), "state": ""}
    if not trusted(report):
        row |= {"value": "–", "detail": unpublished(report)}
    return {**row, "name": f"the speed of {peer}"}


def unpublished(report: Report) -> str:
    """Returns why no speed is published, in one line."""
    if report.predicted:
        return "not measured: the target's runtimes do not run here"
    return "not published: the machine was too busy to measure it"


def _latency(report: Report, microseconds: float) -> str:
    """Returns a latency, or that it is not published."""
    return figures.latency(microseconds) if trusted(report) else "–"


def _interval(interval: Interval | Speedup, write: Any) -> str:
    return f"95% interval {write(interval.low)} to {write(interval.high)}"


def result_rows(report: Report) -> Row:
    """Returns the result table: a column for the fastest f32 peer, the best peer and what ships."""
    peers = [report.peers[report.fastest_f32]]
    names = ["Original, fastest f32"]
    if report.best_peer != report.fastest_f32:
        peers.append(report.peers[report.best_peer])
        names.append("Original, best peer")
    else:
        names = ["Original, fastest f32 and best peer"]
    original, shipped, count = report.original, report.optimized, len(peers)
    latencies: list[Latency] = [*(peer.latency_us for peer in peers), shipped.latency_us]

    def sizes(field: str) -> list[str]:
        return [figures.count(getattr(original, field))] * count + [figures.count(getattr(shipped, field))]

    rows = [
        ("Runtime", [runtime_title(peer.runtime) for peer in peers] + [runtime_title(shipped.runtime)]),
        ("Precision", [peer.precision for peer in peers] + [shipped.precision]),
        ("Latency, p50", [_latency(report, item.median) for item in latencies]),
        ("Latency, p90", [_latency(report, item.p90) for item in latencies]),
        ("Latency, p99", [_latency(report, item.p99) for item in latencies]),
        *_cold_row(report, count),
        ("LSTM, GRU parameters", sizes("parameters")),
        ("LSTM, GRU parameters, non-zero", sizes("nonzero_parameters")),
    ]
    if original.model_parameters is not None:
        rows.append(("All parameters", sizes("model_parameters")))
        rows.append(("All parameters, non-zero", sizes("model_nonzero_parameters")))
    sources = [
        original.bytes if peer.bytes is None and peer.precision == "f32" else peer.bytes for peer in peers
    ]
    on_disk = [figures.size(number) if number is not None else "–" for number in sources]
    rows.append(("File", [*on_disk, figures.size(shipped.bytes)]))
    degradations = [figures.percent(peer.degradation) for peer in peers]
    rows.append(("Degradation", [*degradations, figures.percent(report.contract.degradation.value)]))
    if report.contract.agreement is not None:
        agreements = [*(peer.agreement for peer in peers), report.contract.agreement]
        rows.append(("Same top class as the original", [figures.percent(share) for share in agreements]))
    for metric, data in ((shipped.metric, "validation"), (report.test, "test")):
        if metric is not None:
            rows.append((f"{metric.name}, {data}", _metric_cells(report, metric, count)))
    return {"columns": [*names, "Optimised"], "rows": rows}


def _cold_row(report: Report, count: int) -> list[tuple[str, list[str]]]:
    """Returns the row of latencies with empty caches, none where they were not measured or not to be trusted.

    Args:
        report: what `report.json` holds.
        count: columns of peers; the last of them is the best peer's.
    """
    cold = report.cold
    if cold is None or not cold.trusted:
        return []
    cells = ["–"] * (count - 1) + [figures.latency(item.median) for item in (cold.best_peer, cold.optimized)]
    return [("Latency, empty caches", cells)]


def _metric_cells(report: Report, metric: Metric, count: int) -> list[str]:
    return [figures.metric(metric.original)] + ["–"] * (count - 1) + [figures.metric(metric.optimized)]


def peer_rows(report: Report) -> list[Row]:
    """Returns the original in every runtime and precision, slowest first, and what ships.

    Where no speed is published, they stand in the report's order.
    """
    slowest = max([report.optimized.latency_us.median, *(peer.latency_us.median for peer in report.peers)])
    rows = []
    for index, peer in enumerate(report.peers):
        tags = [
            word
            for word, place in (("fastest f32", report.fastest_f32), ("best peer", report.best_peer))
            if place == index
        ]
        within = "yes" if peer.within_contract else "no"
        rows.append(_timed(report, peer.title, peer.latency_us, peer.degradation, within, slowest, tags))
    rows.sort(key=lambda row: -float(row["share"]))
    contract = report.contract
    met = "yes" if contract.met else "no"
    shipped = report.optimized
    name = f"{shipped.name}, {shipped.title}"
    degradation = contract.degradation.value
    rows.append(_timed(report, name, shipped.latency_us, degradation, met, slowest, ["ships"]))
    return rows


def _timed(
    report: Report,
    name: str,
    latency: Latency,
    degradation: float | None,
    within: str,
    slowest: float,
    tags: list[str],
) -> Row:
    return {
        "name": name,
        "latency": _latency(report, latency.median),
        "share": f"{100 * latency.median / slowest if trusted(report) else 0:.1f}",
        "p99": _latency(report, latency.p99),
        "degradation": figures.percent(degradation),
        "within": within,
        "tags": tags,
        "ships": "ships" in tags,
    }


def candidate_rows(report: Report) -> list[Row]:
    """Returns everything that could have been shipped, fastest first where speed is published."""
    records = list(plots.shown_candidates(report))
    if trusted(report):
        records.sort(key=lambda item: item.latency_us.median)
    return [
        {
            "name": record.name,
            "title": record.title,
            "latency": _latency(report, record.latency_us.median),
            "degradation": figures.percent(record.degradation),
            "within": "yes" if record.within_contract else "no",
            "hidden": figures.listing(str(size) for size in record.hidden_sizes.values()) or "–",
            "density": figures.percent(record.density, 1),
            "ships": record.shipped,
        }
        for record in records
    ]


def machine_rows(report: Report) -> list[tuple[str, str]]:
    """Returns what the figures were measured on and with."""
    machine, target = report.fingerprint, report.target
    caches = [f"{name} {figures.memory(size)}" for name, size in machine.caches.items()]
    rows = [
        ("CPU", machine.cpu),
        ("Instruction sets", figures.listing(machine.isa)),
        ("Caches", figures.listing(caches)),
        ("Cores", str(machine.cores)),
        ("Memory", f"{machine.memory_gib:g} GiB"),
        ("System", machine.system),
        ("Target", f"{target.name}, {target.device}"),
        ("Threads a call", str(target.threads)),
        ("Calls measured", _shapes(report)),
    ]
    if report.measurement is not None:
        aa = report.measurement.aa
        low, value, high = (figures.metric(number) for number in (aa.low, aa.value, aa.high))
        against = f"{value}, 95% interval {low} to {high}; 0.98 to 1.02 allowed"
        rows.append(("A model against itself", against))
        kept = ", some kept: the machine was busy" if report.measurement.kept_interrupted else ""
        rows.append(("Interrupted rounds", f"{report.measurement.discarded} measured again{kept}"))
    rows += [(name, version) for name, version in report.versions.items()]
    rows.append(("Seed", str(report.seed)))
    if report.created:
        rows.append(("Made", _moment(report)))
    return [(name, value) for name, value in rows if value]


def _moment(report: Report) -> str:
    """Returns when the report was made as people write it."""
    return report.created.replace("T", " ").replace("+00:00", " UTC")


def _shapes(report: Report) -> str:
    shapes = report.target.shapes
    total = sum(shape.weight for shape in shapes)
    said = report.calls or [f"batch {shape.batch}, {shape.sequence} steps" for shape in shapes]
    return "; ".join(
        words + (f" ({figures.percent(shape.weight / total, 0)} of calls)" if len(shapes) > 1 else "")
        for words, shape in zip(said, shapes, strict=True)
    )
