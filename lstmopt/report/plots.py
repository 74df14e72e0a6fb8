"""The report's plots, as SVG that stands inside the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from lstmopt.report import figures, svg
from lstmopt.report.schema import CandidateRecord, Report, runtime_title
from lstmopt.report.svg import Box, Scale

WIDE, NARROW = 960, 344
"""Widths of the scatter plot: for a screen, and for a telephone, where a scaled one could not be read."""
CURVE_WIDTH, CURVE_HEIGHT = 400, 264
SAMPLES_DRAWN = 8
"""Raw samples drawn at one dimension; more are one blot, and make the page heavy."""

SHAPES = {"openvino": "circle", "onnxruntime": "square", "tensorrt": "triangle"}
PRECISIONS = ("f32", "bf16", "f16", "int8", "sparse-f32", "sparse-i16", "sparse-i8")
LETTER = 6.6
"""Width of a letter of a plot's labels."""


@dataclass(frozen=True)
class Curve:
    """Latency against a hidden size.

    Attributes:
        title: layer, runtime and precision.
        latency_us: microseconds by dimension.
        samples: raw microseconds by dimension, where measured.
        points: hysteresis points.
        bins: the smallest and largest dimension of each bin.
    """

    title: str
    latency_us: Mapping[int, float]
    samples: Mapping[int, Sequence[float]]
    points: Sequence[int]
    bins: Sequence[tuple[int, int]]


def marker(shape: str, x: float, y: float, radius: float, class_: str) -> str:
    """Returns a point of a runtime's shape; the shapes have about the same area."""
    if shape == "circle":
        return svg.element("circle", cx=float(x), cy=float(y), r=float(radius), class_=class_)
    side = radius * 0.9
    corners = {
        "square": ((-side, -side), (side, -side), (side, side), (-side, side)),
        "triangle": ((0.0, -1.25 * radius), (1.2 * radius, 0.85 * radius), (-1.2 * radius, 0.85 * radius)),
    }.get(shape, ((0.0, -1.3 * radius), (1.3 * radius, 0.0), (0.0, 1.3 * radius), (-1.3 * radius, 0.0)))
    places = " ".join(f"{x + dx:.2f},{y + dy:.2f}" for dx, dy in corners)
    return svg.element("polygon", points=places, class_=class_)


def shape_of(runtime: str) -> str:
    """Returns the shape of a runtime's points."""
    return SHAPES.get(runtime, "diamond")


def class_of(record: CandidateRecord) -> str:
    """Returns the style of a candidate's point: colour by precision, hollow where it is the original."""
    precision = record.precision if record.precision in PRECISIONS else "other"
    return f"mark p-{precision}{' hollow' if record.name == 'original' else ''}"


def shown_candidates(report: Report) -> tuple[CandidateRecord, ...]:
    """Returns all candidates, with the peers that are not among them."""
    known = {(record.runtime, record.precision) for record in report.candidates if record.name == "original"}
    missing = tuple(
        CandidateRecord(**peer.model_dump(), name="original")
        for peer in report.peers
        if (peer.runtime, peer.precision) not in known
    )
    return (*report.candidates, *missing)


def front(records: Sequence[CandidateRecord]) -> tuple[CandidateRecord, ...]:
    """Returns the candidates to choose among: for each other one of them is as fast and as accurate.

    Args:
        records: of measured degradation.

    Returns:
        The Pareto front, fastest first.
    """
    found: list[CandidateRecord] = []
    for record in sorted(records, key=lambda item: (item.latency_us.median, item.degradation or 0.0)):
        if not found or (record.degradation or 0.0) < (found[-1].degradation or 0.0):
            found.append(record)
    return tuple(found)


def scatter(report: Report, width: int) -> str:
    """Returns latency against degradation of all candidates, the contract's limit drawn.

    Args:
        report: its candidates and peers are drawn.
        width: in CSS pixels at which it is shown.
    """
    drawn = [record for record in shown_candidates(report) if record.degradation is not None]
    limit = report.contract.max_degradation
    narrow = width < 600
    height = 330 if narrow else 420
    box = Box(54, 30, width - 14, height - 46)
    slowest = max((record.latency_us.median for record in drawn), default=1.0)
    fastest = min((record.latency_us.median for record in drawn), default=1.0)
    unit, suffix = (1e3, "ms") if slowest >= 1000 else (1.0, "µs")
    logarithmic = slowest > 12 * fastest
    start = fastest / unit * 0.8 if logarithmic else 0.0
    x = Scale(start, slowest / unit * (1.25 if logarithmic else 1.08), box.left, box.right, logarithmic)
    y = _degradation_scale([record.degradation or 0.0 for record in drawn], limit, box)
    places = 0 if y.high - y.low > 0.06 else 1
    parts = svg.axes(
        box,
        x,
        y,
        (f"latency of a call, median, {suffix}", "degradation"),
        (figures.plain, lambda value: figures.percent(value, places)),
        (5 if narrow else 9, 5),
    )
    parts.insert(0, svg.element("rect", x=box.left, y=float(y(limit)), width=box.width,
                                height=float(box.bottom - y(limit)), class_="allowed"))  # fmt: skip
    parts.append(svg.line(box.left, y(limit), box.right, y(limit), "limit"))
    limit_text = f"contract: at most {figures.percent(limit, 1)}"
    limit_box = _text_box(limit_text, box.right - 4, y(limit) - 6, "end")
    parts.append(svg.text(limit_text, box.right - 4, y(limit) - 6, "end", "limit-name"))
    steps: list[tuple[float, float]] = []
    for record in front(drawn):
        across, down = x(record.latency_us.median / unit), y(min(record.degradation or 0.0, y.high))
        steps += [(across, steps[-1][1] if steps else down), (across, down)]
    parts.append(svg.path(steps, "front"))
    centres = []
    for record in sorted(drawn, key=lambda item: item.shipped):
        place = (x(record.latency_us.median / unit), y(min(record.degradation or 0.0, y.high)))
        centres.append((record, place))
        parts.append(_candidate(record, place, y))
    limit_line = Box(box.left, y(limit) - 1, box.right, y(limit) + 1)
    parts += _names(report, centres, box, [limit_box, limit_line])
    parts += _beyond(centres, y)
    size = "narrow" if narrow else "wide"
    return svg.drawing(
        parts,
        width,
        height,
        f"candidates-{size}",
        "Latency against degradation of every candidate",
        f"{len(drawn)} candidates; what ships takes {figures.latency(report.optimized.latency_us.median)}, "
        f"degradation {figures.percent(report.contract.degradation.value)} of {figures.percent(limit)} "
        "allowed. The table of candidates holds the same figures.",
    )


def _degradation_scale(values: Sequence[float], limit: float, box: Box) -> Scale:
    """Returns a scale that tells apart what lies near the limit; the rest is put at its top."""
    cap = max(3 * limit, 0.03)
    inside = [value for value in values if value <= cap]
    high = max([1.5 * limit, 0.01, *inside])
    low = min([0.0, *inside])
    room = (high - low) * 0.12
    return Scale(low - room, high + room, box.bottom, box.top)


def _candidate(record: CandidateRecord, place: tuple[float, float], y: Scale) -> str:
    """Returns one point with its interval and what it is in words."""
    left, top = place
    degradation = record.degradation or 0.0
    parts = []
    interval = record.degradation_interval
    beyond = degradation > y.high
    if interval is not None and not beyond:
        ends = (
            y.low if interval.low is None else interval.low,
            y.high if interval.high is None else interval.high,
        )
        low, high = (y(min(max(end, y.low), y.high)) for end in ends)
        parts.append(svg.line(left, low, left, high, "whisker"))
    if record.shipped:
        parts.append(svg.element("circle", cx=float(left), cy=float(top), r=11, class_="ring"))
    parts.append(marker(shape_of(record.runtime), left, top, 5.5, class_of(record)))
    words = (
        f"{record.name}, {record.title}: {figures.latency(record.latency_us.median)}, "
        f"degradation {figures.percent(record.degradation)}"
    )
    return svg.element("g", svg.element("title", escape(words)) + "".join(parts))


def _beyond(centres: Sequence[tuple[CandidateRecord, tuple[float, float]]], y: Scale) -> list[str]:
    """Returns the degradation of the points that are off the scale, where there is room for it."""
    parts, free_from = [], -math.inf
    for record, (left, top) in sorted(centres, key=lambda item: item[1][0]):
        words = f"↑ {figures.percent(record.degradation, 0)}"
        half = LETTER * len(words) / 2
        if (record.degradation or 0.0) > y.high and left - half > free_from:
            parts.append(svg.text(words, left, top + 20, "middle", "beyond"))
            free_from = left + half + LETTER
    return parts


def _names(
    report: Report, centres: Sequence[tuple[CandidateRecord, tuple[float, float]]], box: Box, taken: list[Box]
) -> list[str]:
    """Returns the names of the three points that the headline speaks of, clear of all points."""
    peers = (report.peers[report.fastest_f32], report.peers[report.best_peer])
    wanted: list[tuple[str, tuple[float, float]]] = []
    for record, place in centres:
        said = []
        if record.shipped:
            said.append("ships")
        if record.name == "original":
            same = [(peer.runtime, peer.precision) == (record.runtime, record.precision) for peer in peers]
            said += [word for word, yes in zip(("fastest f32", "best peer"), same, strict=True) if yes]
        if said:
            wanted.append((", ".join(said), place))
    occupied = taken + [Box(x - 9, y - 9, x + 9, y + 9) for _, (x, y) in centres]
    parts = []
    for words, (x, y) in wanted:
        spots = [
            (x + 14, y + 4, "start"), (x - 14, y + 4, "end"), (x, y - 16, "middle"), (x, y + 24, "middle"),
            (x + 10, y - 14, "start"), (x - 10, y - 14, "end"), (x + 10, y + 22, "start"),
            (x - 10, y + 22, "end"), (x, y + 38, "middle"), (x, y - 30, "middle"),
        ]  # fmt: skip
        boxes = [_text_box(words, *spot) for spot in spots]
        free = [
            index
            for index, place in enumerate(boxes)
            if box.holds(place) and not any(place.meets(other) for other in occupied)
        ]
        chosen = free[0] if free else 0
        occupied.append(boxes[chosen])
        parts.append(svg.text(words, *spots[chosen], "label"))
    return parts


def _text_box(words: str, x: float, y: float, anchor: str) -> Box:
    """Returns about the room that a line of text takes."""
    width = LETTER * len(words)
    left = {"start": x, "middle": x - width / 2, "end": x - width}[anchor]
    return Box(left, y - 11, left + width, y + 4)


def legend(report: Report) -> list[tuple[str, str]]:
    """Returns a small drawing and its meaning for each colour, shape and fill that the scatter plot uses."""
    records = [record for record in shown_candidates(report) if record.degradation is not None]
    entries = []

    def add(shape: str, class_: str, words: str) -> None:
        content = marker(shape, 8, 8, 5.5, class_)
        entries.append((_swatch(content), words))

    for precision in dict.fromkeys(record.precision for record in records):
        add("circle", f"mark p-{precision if precision in PRECISIONS else 'other'}", precision)
    for runtime in dict.fromkeys(record.runtime for record in records):
        add(shape_of(runtime), "mark neutral", runtime_title(runtime))
    if any(record.name == "original" for record in records):
        add("circle", "mark neutral hollow", "the original")
    if records:
        entries.append(
            (
                _swatch(svg.path([(1, 3), (8, 3), (8, 13), (15, 13)], "front")),
                "nothing is both faster and more accurate",
            )
        )
    if any(record.shipped for record in records):
        ring = svg.element("circle", cx=8, cy=8, r=7, class_="ring")
        entries.append((_swatch(ring + marker("circle", 8, 8, 3.5, "mark neutral")), "ships"))
    return entries


def _swatch(content: str) -> str:
    return svg.element("svg", content, viewBox="0 0 16 16", width="16", height="16", aria_hidden="true")


def curve(data: Curve, index: int) -> str:
    """Returns latency against hidden size with hysteresis points and bins.

    Args:
        data: one layer in one runtime and precision.
        index: makes the drawing's id unique in the page.
    """
    dimensions = sorted(data.latency_us)
    highest = max(data.latency_us.values())
    unit, suffix = (1e3, "ms") if highest >= 1000 else (1.0, "µs")
    box = Box(48, 28, CURVE_WIDTH - 12, CURVE_HEIGHT - 44)
    last = dimensions[-1] + (0 if len(dimensions) > 1 else 1)
    x = Scale(min(dimensions[0], last), last, box.left + 4, box.right - 8)
    y = Scale(0.0, highest / unit * 1.12, box.bottom, box.top)
    parts = svg.axes(
        box, x, y, ("hidden size", f"latency of a call, {suffix}"), (figures.plain, figures.plain), (6, 4)
    )
    shades = []
    for low, high in data.bins:
        left, right = _between(dimensions, low, -1), _between(dimensions, high, 1)
        shades.append(
            svg.element("rect", x=float(x(left)), y=box.top, width=float(max(x(right) - x(left), 1.0)),
                        height=box.height, class_="bin")
        )  # fmt: skip
    for dimension, samples in sorted(data.samples.items()):
        for sample in _spread(samples):
            if sample / unit <= y.high and dimensions[0] <= dimension <= dimensions[-1]:
                parts.append(svg.element("circle", cx=float(x(dimension)), cy=float(y(sample / unit)), r=1.4,
                                         class_="sample"))  # fmt: skip
    parts.append(svg.path(((x(d), y(data.latency_us[d] / unit)) for d in dimensions), "curve"))
    free_from = -math.inf
    for point in sorted(data.points):
        if point not in data.latency_us:
            continue
        left, top = x(point), y(data.latency_us[point] / unit)
        words = f"{point}: {figures.latency(data.latency_us[point])}"
        parts.append(svg.element("circle", svg.element("title", escape(words)), cx=float(left), cy=float(top),
                                 r=3.2, class_="point"))  # fmt: skip
        half = LETTER * len(str(point)) / 2
        if left - half > free_from and left + half <= box.right + 10:
            parts.append(svg.text(str(point), left, top - 8, "middle", "label small"))
            free_from = left + half + 6
    return svg.drawing(
        shades + parts,
        CURVE_WIDTH,
        CURVE_HEIGHT,
        f"curve-{index}",
        f"Latency against hidden size: {data.title}",
        f"from {dimensions[0]} to {dimensions[-1]} units; hysteresis points at "
        + (figures.listing(str(point) for point in sorted(data.points)) or "no size")
        + f"; {len(data.bins)} bins",
    )


def _between(dimensions: Sequence[int], edge: int, side: int) -> float:
    """Returns the middle between a dimension and its neighbour, so that a bin of one has a width."""
    place = dimensions.index(edge) + side if edge in dimensions else -1
    return (edge + dimensions[place]) / 2 if 0 <= place < len(dimensions) else float(edge)


def _spread(samples: Sequence[float]) -> list[float]:
    """Returns a few samples that stand for all: evenly spaced quantiles."""
    ordered = sorted(samples)
    if len(ordered) <= SAMPLES_DRAWN:
        return ordered
    step = (len(ordered) - 1) / (SAMPLES_DRAWN - 1)
    return [ordered[round(index * step)] for index in range(SAMPLES_DRAWN)]
