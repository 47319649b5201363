"""Bytes, seconds, rates, counts and shares as short text; the one place that formats them.

Everything else stores plain bytes and seconds. GB is 10⁹ bytes, GiB is 2³⁰ bytes.
"""

from __future__ import annotations

import math

from llmfit.errors import UsageError

MB = 10**6
GB = 10**9
GIB = 2**30
MOST_GB = 1_000_000
"""Of a budget: a petabyte, far beyond any machine."""


def gb_bytes(name: str, gb: float) -> int:
    """Bytes of ``gb`` GB, as a budget called ``name`` was given. Raises UsageError."""
    if isinstance(gb, bool) or not isinstance(gb, int | float) or not 0 < gb <= MOST_GB:
        raise UsageError(f"{name} must be a number of GB above 0, at most {MOST_GB:,}, not {gb!r}.")
    return int(gb * GB)


def format_number(value: float) -> str:
    """Three significant figures, at most three decimals: ``0.012``, ``4.70``, ``52.1``, ``1,234``.

    A positive value that would round to 0 reads ``<0.001``.
    """
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return str(value)
    if value < 0:
        return "−" + format_number(-value)
    if value < 0.0005:
        return "<0.001"
    return f"{value:,.{_decimals(value)}f}"


def format_plus_minus(value: float, half_width: float) -> str:
    """A value and its uncertainty with the same decimals: ``52.1 ± 0.4``, ``52.1 ± <0.1``.

    The larger of the two has three significant figures.
    """
    decimals = _decimals(max(value, half_width))
    half = f"{half_width:,.{decimals}f}"
    if half_width > 0 and float(half.replace(",", "")) == 0:
        half = f"<{10**-decimals:.{decimals}f}"
    return f"{value:,.{decimals}f} ± {half}"


def format_bytes(size_bytes: float) -> str:
    """Bytes with the decimal unit that suits: ``4.70 GB``, ``12.3 MB``, ``260 kB``, ``17 B``."""
    return _scaled(size_bytes, ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")), "B")


def format_gib(size_bytes: float) -> str:
    """Bytes in GiB (2³⁰), as memory is sold: ``24.0 GiB``."""
    return f"{format_number(size_bytes / GIB)} GiB"


def format_count(count: float) -> str:
    """A number of parameters: ``8.03 B``, ``5.2 M``, ``260 K``, ``512``."""
    text = _scaled(count, ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")), "")
    number, _, unit = text.partition(" ")
    if "." in number:
        number = number.rstrip("0").rstrip(".")
    return f"{number} {unit}".strip()


def format_seconds(seconds: float) -> str:
    """A duration: ``85 µs``, ``12.3 ms``, ``4.56 s``, ``2 min 5 s``, ``1 h 3 min``."""
    if seconds < 0:
        return "−" + format_seconds(-seconds)
    if seconds < 59.95:
        return _scaled(seconds, ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")), "s")
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def format_rate(tokens_per_s: float) -> str:
    """Tokens per second without the unit: ``52.1``, ``1,234``."""
    return format_number(tokens_per_s)


def format_ratio(ratio: float) -> str:
    """A factor of two figures: ``1.38×``."""
    return f"{format_number(ratio)}×"


def format_percent(share: float, *, decimals: int = 1) -> str:
    """A share of 1 as a percentage: 0.816 is ``81.6 %``."""
    return f"{format_signed(100 * share, decimals=decimals, plus=False)} %"


def format_signed(value: float, *, decimals: int, plus: bool = True) -> str:
    """A number with its sign, a true minus, and no negative zero: ``+0.3``, ``−0.5``, ``0.0``."""
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return text
    return ("−" if value < 0 else "+" if plus else "") + text


def _decimals(value: float) -> int:
    """Decimals that leave a positive value three significant figures, at most three."""
    for bound, decimals in ((0.9995, 3), (9.995, 2), (99.95, 1)):
        if value < bound:
            return decimals
    return 0


def _scaled(value: float, scales: tuple[tuple[float, str], ...], base: str) -> str:
    """Three significant figures in the largest unit that leaves at least 1."""
    if value < 0:
        return "−" + _scaled(-value, scales, base)
    for scale, unit in scales:
        # 999.95 of a unit would round to 1,000: it is 1.00 of the next one.
        if value >= scale * 0.9995:
            return f"{format_number(value / scale)} {unit}"
    return f"{value:.0f} {base}".strip()
