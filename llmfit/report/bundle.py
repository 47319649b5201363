"""README.md of a bundle: how to start it, what was measured, and how to measure it again."""

from __future__ import annotations

import shlex

from llmfit.engines.base import Engine, Served
from llmfit.records import RunRecord
from llmfit.report._text import in_markdown, markdown_code, plain
from llmfit.report.markdown import table_line
from llmfit.serving_records import Bundle
from llmfit.units import format_bytes, format_number, format_percent, format_rate, format_seconds

_URL = "http://127.0.0.1:8000"
_OLLAMA_URL = "http://127.0.0.1:11434"


def readme(bundle: Bundle, engine: Engine, served: Served, row: RunRecord | None) -> str:
    """The whole text; ``row`` is the format as it was measured, None where it was not."""
    size = sum(file.size_bytes for file in bundle.files)
    lines = [
        f"# {in_markdown(plain(bundle.name))}",
        "",
        in_markdown(
            plain(
                f"{bundle.model} as {bundle.backend} for {engine.label}: {format_bytes(size)}"
                + (f", a context of {bundle.context} tokens." if bundle.context else ".")
            )
        ),
        "",
        "## Start",
        "",
        f"{engine.label} is installed by `{engine.install}`"
        if " " in engine.install
        else f"{engine.label} comes from <{engine.install}>",
        "",
        *markdown_code(["./serve.sh"]),
        "",
        in_markdown(plain(_how(bundle, engine))),
        "",
        *(f"- {in_markdown(plain(note))}" for note in bundle.notes),
        *([""] if bundle.notes else []),
        "## Measured",
        "",
        *_figures(bundle, row),
        "",
        "## Measure it again",
        "",
        *markdown_code(plain(line) for line in _again(bundle, engine, served, row)),
        "",
        "`sha256sum -c SHA256SUMS` tells whether the files are those.",
    ]
    return "\n".join(lines).rstrip() + "\n"


def _how(bundle: Bundle, engine: Engine) -> str:
    tried = (
        f"Tried when it was made: {bundle.validated_by} was started on it and answered."
        if bundle.validation == "started"
        else f"Not started when it was made; {bundle.validated_by}."
    )
    if not engine.serves:
        return f"serve.sh makes the model known to {engine.label} and runs it. {tried}"
    return f"HOST and PORT are variables of serve.sh, further words go to {engine.label}. {tried}"


def _figures(bundle: Bundle, row: RunRecord | None) -> list[str]:
    """The row's figures as a table, or where they would come from."""
    if row is None:
        return [in_markdown("No stored run has figures of this model in this format.")]
    facts: list[tuple[str, str]] = []
    if row.decode is not None:
        rate = row.decode.tokens_per_s
        facts.append(
            (
                "decode, tokens/s",
                f"{format_rate(rate.median)} ({format_rate(rate.low)} … {format_rate(rate.high)})",
            )
        )
    if row.ttft_s is not None:
        facts.append(("time to first token", format_seconds(row.ttft_s.median)))
    if row.memory is not None and row.memory.peak_bytes is not None:
        facts.append(("peak memory", format_bytes(row.memory.peak_bytes)))
    if row.hellaswag is not None:
        facts.append(("HellaSwag, acc_norm", format_percent(row.hellaswag.acc_norm)))
    if row.perplexity is not None:
        facts.append(("perplexity, token", format_number(row.perplexity.token)))
    if row.plan is not None:
        work = row.plan.workload
        facts.append(("workload", f"{work.prompt_tokens} prompt and {work.new_tokens} new tokens"))
    there = row.environment
    if there is not None:
        facts.append(("machine", there.gpu or there.cpu))
    facts.append(("run", bundle.run_id or "not told"))
    return [
        "By llmfit, without a server, one sequence at a time:",
        "",
        table_line(("figure", "value")),
        table_line(("---", "---")),
        *(table_line(in_markdown(plain(cell)) for cell in fact) for fact in facts),
    ]


def _again(bundle: Bundle, engine: Engine, served: Served, row: RunRecord | None) -> list[str]:
    asked = ["llmfit", "bench-server", _URL if engine.serves else _OLLAMA_URL]
    asked += ["--served-model", engine.asked_as(served)]
    asked += ["--model", bundle.model, "--backend", bundle.backend]
    lines = [shlex.join(asked)]
    if row is not None and row.plan is not None and row.plan.command is not None:
        lines.append(row.plan.command)
    return lines
