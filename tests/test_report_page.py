"""report.html in headless Chromium, and the figures on it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmopt.report import figures
from lstmopt.report.html import candidate_rows, headline, machine_rows, render_html, result_rows
from lstmopt.report.plots import NARROW, WIDE, front, scatter
from lstmopt.report.schema import CandidateRecord, Interval, Measurement, Ratios, Report, Speedup
from lstmopt.report.svg import Scale
from lstmopt.report.text import result_table
from tests.browser import Page, browser, chromium
from tests.needed import missing
from tests.report_samples import curves, latency, report

TABLES = ("result", "peers", "candidates", "lstms", "passes")


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    if chromium() is None:
        missing("no chromium here: apt-get install -y chromium")
    with browser() as opened:
        yield opened


def busy_report() -> Report:
    """Returns a report with what strains the page: many candidates, long names, everything that warns."""
    sample = report()
    extra = [
        CandidateRecord(
            name=f"pruned at a density of 1/{index + 2} with banks of 64, k for each panel",
            runtime=("openvino", "onnxruntime", "tensorrt", "other")[index % 4],
            precision=("f32", "bf16", "f16", "int8", "int4")[index % 5],
            latency_us=latency(40.0 * (index + 1) ** 1.5),
            degradation=None if index % 7 == 6 else 0.004 * index - 0.02,
            within_contract=index < 8,
            hidden_sizes={f"a/very/long/name/of/a/layer/{layer}": 1000 + layer for layer in range(12)},
            density=1 / (index + 2),
        )
        for index in range(40)
    ]
    contract = sample.contract.model_copy(update={"kind": "fidelity", "made_inputs": True, "met": False})
    return sample.model_copy(
        update={
            "candidates": (*sample.candidates, *extra),
            "contract": contract,
            "measurement": Measurement(
                aa=Interval(value=1.01, low=1.0, high=1.1), trusted=True, kept_interrupted=True
            ),
            "notes": ("x" * 300, *sample.notes),
            "command": "lstmopt optimize " + "/a/long/path" * 40,
            "source": "a_very_long_name_of_a_model_" * 6 + ".onnx",
        }
    )


def unpublished_report() -> Report:
    """Returns a report of a machine that was too busy to measure anything."""
    sample = busy_report()
    return sample.model_copy(
        update={
            "measurement": Measurement(aa=Interval(value=1.04, low=1.0, high=1.1), trusted=False),
            "ratios": Ratios.of(Speedup(), Speedup(), sample.original, sample.optimized),
        }
    )


def minimal_report() -> Report:
    """Returns a report with as little as one can have."""
    sample = report()
    return sample.model_copy(
        update={
            "peers": sample.peers[1:2],
            "fastest_f32": 0,
            "best_peer": 0,
            "candidates": (),
            "passes": (),
            "notes": (),
            "test": None,
            "measurement": None,
            "command": "",
            "created": "",
            "optimized": sample.optimized.model_copy(update={"metric": None}),
            "versions": {},
        }
    )


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("make", [report, busy_report, unpublished_report, minimal_report])
def test_page_in_a_browser(page: Page, tmp_path: Path, make: object, width: int, scheme: str) -> None:
    assert callable(make)
    sample = make()
    with_curves = make is not minimal_report
    path = tmp_path / "report.html"
    path.write_text(render_html(sample, curves() if with_curves else ()), encoding="utf-8")
    page.open(path, width, scheme=scheme)
    assert page.messages == []
    assert page.requests == [path.resolve().as_uri()]
    assert page.value("document.scripts.length") == 0
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value("document.body.innerText").count("\n") > 40
    # Every table is there with its rows, and scrolls in its own container where it is too wide.
    expected = [table for table in TABLES if table != "passes" or sample.passes]
    assert page.value("[...document.querySelectorAll('table')].map(t => t.id)") == expected
    assert page.value("[...document.querySelectorAll('table')].every(t => t.tBodies[0].rows.length > 0)")
    inside = """[...document.querySelectorAll('.scroll')].every(
        s => s.getBoundingClientRect().right <= document.documentElement.clientWidth)"""
    assert page.value(inside)
    # Every plot is there, drawn, inside the page; of the two scatter plots the one that fits is shown.
    shown = page.value(
        """[...document.querySelectorAll('svg[role=img]')].filter(s => s.getBoundingClientRect().width > 0)
        .map(s => [s.id, s.getBoundingClientRect().right <= document.documentElement.clientWidth,
                   s.getBoundingClientRect().height > 150, s.querySelectorAll('title').length > 0])"""
    )
    plots = ["candidates-wide" if width > 640 else "candidates-narrow"]
    plots = [] if make is unpublished_report else plots
    plots += [f"curve-{index}" for index in range(len(curves()))] if with_curves else []
    assert shown == [[name, True, True, True] for name in plots]
    assert page.value(
        """[...document.querySelectorAll('svg[role=img]')].filter(s => s.getBoundingClientRect().width > 0)
        .every(s => [...s.querySelectorAll('text')].every(
            t => t.getBBox().x >= -1 && t.getBBox().x + t.getBBox().width <= s.viewBox.baseVal.width + 1))"""
    )
    # Text and its ground differ enough to be read (WCAG AA asks for 4.5).
    assert page.value(CONTRAST) >= 4.5


def test_the_browser_tells_of_faults(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "faulty.html"
    path.write_text(
        "<body style='width:3000px'><img src='gone.png'><script>console.error('oh'); gone()</script>"
    )
    page.open(path, 400)
    assert any("gone.png" in request for request in page.requests)
    assert any("oh" in message for message in page.messages)
    assert any("ReferenceError" in message for message in page.messages)
    assert page.value("document.documentElement.scrollWidth") > 400


CONTRAST = """(() => {
  const light = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
      .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
  const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
      if (c !== 'rgba(0, 0, 0, 0)') return c; } return 'rgb(255, 255, 255)'; };
  let worst = 21;
  for (const e of document.querySelectorAll(
      'p, h1, h2, h3, td, th, dt, dd, li, pre, figcaption, .badge, svg text')) {
    if (!e.textContent.trim() || !e.getClientRects().length) continue;
    const style = getComputedStyle(e);
    const a = light(e instanceof SVGElement ? style.fill : style.color), b = light(ground(e));
    worst = Math.min(worst, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return worst;
})()"""


def test_page_holds_the_figures() -> None:
    sample = report()
    html = render_html(sample, curves())
    words = re.sub(r"<[^>]+>", " ", html).replace(figures.SPACE, " ")
    for figure in (
        "5.51×",
        "2.42×",
        "1.72%",
        "1.49%",
        "6.03×",
        "252 µs",
        "328 µs",
        "1.39 ms",
        "3.484",
        "322,560",
        "721 kB",
        "7 min 6 s",
        "AMD EPYC",
        sample.command,
        "2026.4.0",
        "2026-11-24 10:30:00 UTC",
    ):
        assert figure in words, figure
    assert "&lt;script&gt;" in html and "<script" not in html
    assert not re.search(r"(?:src|href)=[\"'](?!data:)|url\(|@import|https?://(?!www\.w3\.org)", html)
    assert "first" not in re.findall(r'class="([^"]*)"', html)


def test_first_line_comes_first() -> None:
    html = render_html(unpublished_report())
    body = re.sub(r"<[^>]+>", "", html[html.index("<body") :]).strip()
    assert body.startswith("Not checked against labels; trained on inputs that it made itself;")
    assert body.index("no speed is published") < body.index("lstmopt report")


def test_no_speed_is_shown_where_none_is_published() -> None:
    """Neither as a figure nor as a bar, a plot or an order; everything else is there."""
    sample = unpublished_report()
    latencies = [item.latency_us for item in (sample.optimized, *sample.peers, *sample.candidates)]
    written = {figures.latency(us) for timing in latencies for us in (timing.median, timing.p99)}

    def shown(made: Report) -> tuple[set[str], set[str]]:
        html = render_html(made)
        bars = re.findall(r'class="bar" style="width:([\d.]+)%"', html[: html.index('id="passes"')])
        return {figure for figure in written if f">{figure}<" in html}, set(bars)

    assert shown(sample) == (set(), {"0.0"})
    figures_shown, bars = shown(busy_report())
    assert figures_shown and len(bars) > 1
    html = render_html(sample)
    words = re.sub(r"<[^>]+>", " ", html)
    assert 'id="candidates-wide"' not in html and "No speed is published" in html
    rows = candidate_rows(sample)
    assert [(row["name"], row["title"]) for row in rows] == [
        (record.name, record.title) for record in sample.candidates
    ]
    assert "322,560" in words and "1.72%" in words
    assert "5.51×" in render_html(busy_report())


def test_interrupted_rounds_that_were_kept_are_told() -> None:
    assert dict(machine_rows(busy_report()))["Interrupted rounds"].endswith("some kept: the machine was busy")
    assert dict(machine_rows(report()))["Interrupted rounds"] == "3 measured again"


def test_agreement_stands_beside_the_degradation() -> None:
    sample = report()
    contract = sample.contract.model_copy(update={"agreement": 0.987})
    peers = tuple(peer.model_copy(update={"agreement": 0.5}) for peer in sample.peers)
    rows = dict(result_rows(sample.model_copy(update={"contract": contract, "peers": peers}))["rows"])
    assert rows["Same top class as the original"] == ["50.00%", "50.00%", "98.70%"]
    assert "Same top class as the original" not in dict(result_rows(sample)["rows"])


def test_the_original_that_ships_is_named() -> None:
    sample = report()
    shipped = sample.optimized.model_copy(update={"name": "original"})
    assert headline(sample.model_copy(update={"optimized": shipped})).startswith(
        "The original in ONNX Runtime int8"
    )


def test_plot_places_every_candidate() -> None:
    sample = busy_report()
    measured = [record for record in sample.candidates if record.degradation is not None]
    for width in (WIDE, NARROW):
        drawing = scatter(sample, width)
        assert drawing.count('class="mark ') == len(measured)
        assert drawing.count('class="ring"') == 1 and drawing.count('class="limit"') == 1
        places = re.findall(r'<circle cx="([\d.-]+)" cy="([\d.-]+)"', drawing)
        assert places and all(0 <= float(x) <= width and 0 <= float(y) <= 420 for x, y in places)


def test_the_front_holds_what_nothing_else_beats() -> None:
    sample = busy_report()
    # Its slower candidates are the less accurate ones; here they are the more accurate ones.
    measured = [
        record.model_copy(update={"degradation": -record.degradation})
        for record in sample.candidates
        if record.degradation is not None
    ]
    found = front(measured)
    assert 1 < len(found) < len(measured)

    def beats(one: CandidateRecord, other: CandidateRecord) -> bool:
        mine, theirs = ((r.latency_us.median, r.degradation or 0.0) for r in (one, other))
        return all(a <= b for a, b in zip(mine, theirs, strict=True)) and mine != theirs

    assert {id(r) for r in found} == {id(r) for r in measured if not any(beats(o, r) for o in measured)}
    assert list(found) == sorted(found, key=lambda record: record.latency_us.median)
    assert scatter(sample, WIDE).count('class="front"') == 1


def test_result_table_for_a_terminal() -> None:
    from rich.console import Console

    console = Console(width=110, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(result_table(busy_report()))
    text = console.export_text().replace(figures.SPACE, " ")
    assert text.startswith("not checked against labels; ")
    assert "contract missed" in text and "252 µs" in text and "322,560" in text
    console.print(result_table(unpublished_report()))
    text = console.export_text().replace(figures.SPACE, " ")
    assert "no speed is published" in text and "252 µs" not in text and "322,560" in text


@settings(deadline=None, max_examples=300, derandomize=True)
@given(st.floats(1e-3, 1e9), st.integers(2, 5))
def test_digits_keep_the_value(value: float, count: int) -> None:
    written = figures.digits(value, count)
    assert "e" not in written
    assert float(written.replace(",", "")) == pytest.approx(value, rel=0.51 * 10 ** (1 - count), abs=0.5e-12)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (figures.latency(999.6), "1.00 ms"),
        (figures.latency(0.25), "0.250 µs"),
        (figures.latency(2.5e6), "2.50 s"),
        (figures.percent(-0.00001), "0.00%"),
        (figures.percent(-0.0123), "−1.23%"),
        (figures.percent(None), "–"),
        (figures.percent(12.5), "1,250.00%"),
        (figures.percent(-12.5), "−1,250.00%"),
        (figures.size(7_874_803), "7.87 MB"),
        (figures.size(12), "12 B"),
        (figures.memory(524288), "512 KiB"),
        (figures.duration(59.96), "60.0 s"),
        (figures.duration(3725), "1 h 2 min"),
        (figures.digits(-9.999), "−10.0"),
    ],
)
def test_figures(written: str, expected: str) -> None:
    assert written.replace(figures.SPACE, " ") == expected


@settings(deadline=None, max_examples=300, derandomize=True)
@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e5), st.integers(2, 9))
def test_ticks_are_few_and_inside(low: float, span: float, wanted: int) -> None:
    marks = figures.ticks(low, low + span, wanted)
    assert 1 <= len(marks) <= 2 * wanted + 2
    assert all(low - 1e-6 * span <= mark <= low + span + 1e-6 * span for mark in marks)


def test_logarithmic_scale() -> None:
    scale = Scale(10, 1000, 0, 100, logarithmic=True)
    assert scale(100) == pytest.approx(50)
    assert scale.ticks(5) == [10, 20, 50, 100, 200, 500, 1000]
