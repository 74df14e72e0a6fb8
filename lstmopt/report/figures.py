"""How figures are written: three digits that matter, and a unit."""

from __future__ import annotations

import math
from collections.abc import Iterable

MINUS = "\N{MINUS SIGN}"
SPACE = "\N{NO-BREAK SPACE}"
"""Between a figure and its unit, which no line break may part."""


def digits(value: float, count: int = 3) -> str:
    """Returns a number rounded to as many significant digits, never in exponent form."""
    if value == 0:
        return "0"
    value = float(f"{value:.{count - 1}e}")
    magnitude = abs(value)
    places = count - 1
    while magnitude >= 10 and places > 0:
        magnitude, places = magnitude / 10, places - 1
    while magnitude < 1 and places < 12:
        magnitude, places = magnitude * 10, places + 1
    return f"{value:,.{places}f}".replace("-", MINUS)


def _in_unit(value: float, units: tuple[tuple[str, float], ...]) -> str:
    """Returns a value in the first unit, largest first, of which it is at least one when rounded."""
    rounded = float(f"{value:.2e}")
    for unit, scale in units[:-1]:
        if rounded >= scale:
            return f"{digits(value / scale)}{SPACE}{unit}"
    return f"{digits(value / units[-1][1])}{SPACE}{units[-1][0]}"


def latency(microseconds: float) -> str:
    """Returns a latency in the unit that suits it."""
    return _in_unit(microseconds, (("s", 1e6), ("ms", 1e3), ("µs", 1.0)))


def ratio(value: float | None) -> str:
    """Returns a ratio, such as 3.42×."""
    return "–" if value is None else f"{digits(value)}×"


def percent(fraction: float | None, places: int = 2) -> str:
    """Returns a fraction as a percentage."""
    if fraction is None:
        return "–"
    text = f"{100 * fraction:,.{places}f}"
    if round(100 * fraction, places) == 0:
        text = text.removeprefix("-")
    return text.replace("-", MINUS) + "%"


def count(value: int | None) -> str:
    """Returns a whole number with its thousands apart."""
    return "–" if value is None else f"{value:,}"


def size(number: int) -> str:
    """Returns a number of bytes in decimal units."""
    if number < 1000:
        return f"{number}{SPACE}B"
    return _in_unit(number, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)))


def memory(number: int) -> str:
    """Returns a number of bytes of a cache in binary units."""
    for unit, scale in (("MiB", 2**20), ("KiB", 2**10)):
        if number >= scale:
            return f"{number / scale:g}{SPACE}{unit}"
    return f"{number}{SPACE}B"


def duration(seconds: float) -> str:
    """Returns a time, such as 4 min 12 s."""
    if seconds < 60:
        return f"{seconds:.1f}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{SPACE}h {minutes}{SPACE}min" if hours else f"{minutes}{SPACE}min {rest}{SPACE}s"


def metric(value: float | None) -> str:
    """Returns a metric with four digits."""
    return "–" if value is None else digits(value, 4)


def listing(items: Iterable[str]) -> str:
    """Returns items apart by commas."""
    return ", ".join(items)


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Returns about as many round numbers in a range, for an axis."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def plain(value: float) -> str:
    """Returns a round number as it is, for an axis."""
    return f"{value:,.6g}".replace("-", MINUS)
