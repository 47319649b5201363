"""The decision guide as a table for a terminal: what to apply, its effect, how to measure it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from llmfit.planning.advice.advise import Advice, Guide
from llmfit.planning.advice.measured_effects import Effect
from llmfit.report._column import UNKNOWN, Column, Detail
from llmfit.report._layout import hanging, styled, widest
from llmfit.report._text import plain
from llmfit.units import format_number

if TYPE_CHECKING:
    from rich.console import RenderableType

GuideFormat = Literal["table", "json"]

_HARDWARE = {
    "server_gpu": "server GPU",
    "consumer_gpu": "consumer GPU",
    "cpu": "CPU",
    "edge": "edge device",
}


def render_guide(guide: Guide, fmt: GuideFormat, *, width: int = 120, color: bool = False) -> str:
    """The guide as text that ends in a newline; ``width`` and ``color`` are of the table."""
    if fmt == "json":
        from llmfit.records import to_json

        return to_json(guide) + "\n"
    from rich.text import Text

    lines = _lines(guide)
    table, _, _ = widest(
        lambda detail: _columns(lines, detail),
        width=width,
        styles=["dim" if advice is None else "" for _, advice, _ in lines],
    )
    parts: list[RenderableType] = [Text(_heading(guide), style="bold"), Text(), table, Text()]
    for number, advice in enumerate(guide.advice, start=1):
        parts.append(hanging(f"{number} ".rjust(3), _note(advice)))
    parts += [Text(), *(Text(line, style="dim") for line in _legend(guide))]
    return styled(parts, width=width, color=color)


def _heading(guide: Guide) -> str:
    accuracy = "accuracy critical" if guide.accuracy_critical else "accuracy not critical"
    return " · ".join(
        (
            f"Advice for {guide.task}",
            _HARDWARE[guide.hardware],
            f"{format_number(guide.vram_available_gb)} GB of VRAM",
            accuracy,
        )
    )


Line = tuple[str, Advice | None, Effect]


def _lines(guide: Guide) -> list[Line]:
    """A line for each technique, and one below it where it was measured on this machine."""
    lines: list[Line] = []
    for number, advice in enumerate(guide.advice, start=1):
        label = f"{number} ".rjust(3) + advice.technique
        lines.append((label, advice, advice.expected))
        if advice.measured is not None:
            lines.append(("     measured here", None, advice.measured))
    return lines


def _columns(lines: list[Line], detail: Detail) -> tuple[Column, ...]:
    def column(head: str, cells: tuple[str | None, ...]) -> Column:
        return Column(
            head=head, unit="", cells=tuple(cell or UNKNOWN for cell in cells), align="left"
        )

    chosen = (
        column("technique", tuple(label for label, _, _ in lines)),
        column("memory", tuple(effect.memory for _, _, effect in lines)),
        column("speed", tuple(effect.speed for _, _, effect in lines)),
        column("quality", tuple(effect.quality for _, _, effect in lines)),
    )
    if detail < Detail.COMPACT:
        return chosen
    efforts = tuple("" if advice is None else advice.effort for _, advice, _ in lines)
    return (*chosen, Column(head="effort", unit="", cells=efforts, align="left"))


def _note(advice: Advice) -> str:
    """Why it is advised, whose figures they are, and how to measure it."""
    option = "as an option, " if advice.strength == "option" else ""
    told = [_sentence(option + advice.why), f"Source: {advice.expected.source}."]
    if advice.measured is not None:
        told.append(f"{_sentence(plain(advice.measured.source))}")
    told.append(f"Measure: {advice.command}")
    return "\n".join(told)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _legend(guide: Guide) -> list[str]:
    lines = ["Expected effects are as published, mostly on other models and machines."]
    if any(advice.measured is not None for advice in guide.advice):
        lines.append("measured here: the newest comparable rows among this machine's own records")
    lines.append("MODEL: a folder or a hub id. As JSON: --format json")
    return lines
