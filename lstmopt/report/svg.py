"""The few pieces that a plot is drawn from: scales, axes and escaped SVG elements.

Colours and fonts come from the page's style sheet through classes, so that a plot follows light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from lstmopt.report import figures


@dataclass(frozen=True)
class Box:
    """A rectangle in the units of the drawing, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """Its width."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Its height."""
        return self.bottom - self.top

    def meets(self, other: Box) -> bool:
        """Returns whether two rectangles overlap."""
        return not (
            self.right <= other.left
            or other.right <= self.left
            or self.bottom <= other.top
            or other.bottom <= self.top
        )

    def holds(self, other: Box) -> bool:
        """Returns whether another lies inside this one."""
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.top <= other.top
            and other.bottom <= self.bottom
        )


@dataclass(frozen=True)
class Scale:
    """A map from values to places in a drawing.

    Attributes:
        low: the value at `start`.
        high: the value at `end`.
        start: a place.
        end: another place, smaller than `start` for an axis that points up.
        logarithmic: whether equal ratios take equal room.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Returns a value's place."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, wanted: int) -> list[float]:
        """Returns round values along the scale."""
        if not self.logarithmic:
            return figures.ticks(self.low, self.high, wanted)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        marks = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
        return [mark for mark in marks if self.low <= mark <= self.high]


def element(name: str, content: str = "", **attributes: str | float | None) -> str:
    """Returns an element; attribute names use ``_`` for ``-`` and a trailing one for Python's keywords."""
    parts = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{parts}>{content}</{name}>" if content else f"<{name}{parts}/>"


def _number(value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)


def text(content: str, x: float, y: float, anchor: str = "start", class_: str = "tick") -> str:
    """Returns a line of text."""
    return element("text", escape(content), x=float(x), y=float(y), text_anchor=anchor, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    """Returns a straight line."""
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def path(places: Iterable[tuple[float, float]], class_: str) -> str:
    """Returns straight lines from place to place."""
    steps = " ".join(f"{_number(float(x))},{_number(float(y))}" for x, y in places)
    return element("polyline", points=steps, class_=class_)


def drawing(
    content: Sequence[str], width: float, height: float, identity: str, title: str, description: str
) -> str:
    """Returns a whole drawing with what it shows in words, for who cannot see it."""
    head = element("title", escape(title), id=f"{identity}-title")
    head += element("desc", escape(description), id=f"{identity}-desc")
    return element(
        "svg",
        head + "".join(content),
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        role="img",
        id=identity,
        aria_labelledby=f"{identity}-title {identity}-desc",
        xmlns="http://www.w3.org/2000/svg",
    )


def axes(
    box: Box,
    x: Scale,
    y: Scale,
    labels: tuple[str, str],
    formats: tuple[Callable[[float], str], Callable[[float], str]],
    counts: tuple[int, int],
) -> list[str]:
    """Returns grid, ticks and labels of a plot.

    Args:
        box: the plot's area.
        x: its horizontal scale.
        y: its vertical scale.
        labels: what the axes show, with units.
        formats: how ticks are written.
        counts: about how many ticks.
    """
    parts = []
    for value in y.ticks(counts[1]):
        place = y(value)
        parts.append(line(box.left, place, box.right, place, "grid"))
        parts.append(text(formats[1](value), box.left - 6, place + 4, "end"))
    for value in x.ticks(counts[0]):
        place = x(value)
        parts.append(line(place, box.bottom, place, box.bottom + 4, "axis"))
        parts.append(text(formats[0](value), place, box.bottom + 17, "middle"))
    parts.append(line(box.left, box.bottom, box.right, box.bottom, "axis"))
    parts.append(text(labels[0], (box.left + box.right) / 2, box.bottom + 35, "middle", "name"))
    # Above the axis rather than turned: it reads without a tilted head, and costs no width.
    parts.append(text(labels[1], 2, 13, "start", "name"))
    return parts
