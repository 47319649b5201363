"""Comparisons as CSV: one line per row, every figure in base units, nothing rounded."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from io import StringIO

from llmfit.records import (
    Comparison,
    Difference,
    QualityDifference,
    RunRecord,
    Sampled,
    SpeedPrediction,
)
from llmfit.report._text import in_csv

Value = str | int | float | bool | None


def render_csv(comparison: Comparison) -> str:
    """A head line and one line per row; an unknown value is an empty field.

    A text that a spreadsheet would run as a formula gets an apostrophe in front.
    """
    return csv_text(flat_rows(comparison))


def flat_rows(comparison: Comparison) -> list[dict[str, Value]]:
    """Each row's figures by the name of the column; further tasks' come last."""
    return [_flat(comparison, row) | _tasks(row) for row in comparison.rows]


def csv_text(rows: Iterable[dict[str, Value]]) -> str:
    """Rows as CSV, with a head line of all names that occur."""
    rows = list(rows)
    # Rows may have been scored on different tasks: a failed one on none.
    heads = list(dict.fromkeys(name for row in rows for name in row))
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(_field, heads))
    writer.writerows([_field(row.get(head)) for head in heads] for row in rows)
    return out.getvalue()


def _flat(comparison: Comparison, row: RunRecord) -> dict[str, Value]:
    return {
        "run_id": comparison.run_id,
        "model": comparison.model.name,
        "backend": row.backend,
        "label": row.label,
        "status": row.status,
        "pick": row.backend == comparison.verdict.backend,
        "reason": row.reason,
        "device": row.device,
        "kernel_linear": row.kernel.linear if row.kernel else None,
        "kernel_attention": row.kernel.attention if row.kernel else None,
        "kernel_step": row.kernel.step if row.kernel else None,
        "dtype": row.dtype,
        "quantized_share": row.quantized_share,
        "weights_bytes": row.weights_bytes,
        "huge_page_bytes": row.huge_page_bytes,
        "batch": comparison.workload.batch,
        "prompt_tokens": comparison.workload.prompt_tokens,
        "new_tokens": comparison.workload.new_tokens,
        "budget_bytes": comparison.budget_bytes,
        "ram_budget_bytes": comparison.ram_budget_bytes,
        "predicted_only": row.predicted_only,
        **_memory(row),
        **_speed(row),
        **_quality(row),
        **_divergence(row),
        **_differences(row.difference),
        "warnings": "; ".join(f"{w.code}: {w.message}" for w in row.warnings) or None,
        "notes": "; ".join(row.notes) or None,
    }


def _memory(row: RunRecord) -> dict[str, Value]:
    memory = row.memory
    parts = memory.predicted if memory else None
    return {
        "memory_predicted_bytes": memory.predicted_bytes if memory else None,
        # Within it, and neither in the peak nor in the error.
        "memory_predicted_runtime_bytes": parts.runtime_bytes if parts else None,
        "memory_peak_bytes": memory.peak_bytes if memory else None,
        "memory_error_pct": memory.error_pct if memory else None,
        "memory_peak_ram_bytes": memory.peak_ram_bytes if memory else None,
    }


def _speed(row: RunRecord) -> dict[str, Value]:
    step = row.decode.step if row.decode else None
    return {
        **_predicted(row.predicted_tokens_per_s),
        **_sampled("decode_tokens_per_s", row.decode.tokens_per_s if row.decode else None),
        "step_mean_s": step.mean_s if step else None,
        "step_p50_s": step.p50_s if step else None,
        "step_p95_s": step.p95_s if step else None,
        "step_p99_s": step.p99_s if step else None,
        **_sampled("prefill_tokens_per_s", row.prefill.tokens_per_s if row.prefill else None),
        **_sampled("ttft_s", row.ttft_s),
        "load_s": row.load_s,
        "quantize_s": row.quantize_s,
        "compile_s": row.compile_s,
        "limit_tokens_per_s": row.roofline.limit_tokens_per_s,
        "limit_fraction": row.roofline.fraction,
        "joules_per_token": row.energy.joules_per_token,
    }


def _predicted(rate: SpeedPrediction | None) -> dict[str, Value]:
    return {
        "predicted_tokens_per_s": rate.estimate if rate else None,
        "predicted_tokens_per_s_low": rate.low if rate else None,
        "predicted_tokens_per_s_high": rate.high if rate else None,
        "predicted_basis": rate.basis if rate else None,
    }


def _sampled(name: str, value: Sampled | None) -> dict[str, Value]:
    return {
        f"{name}_median": value.median if value else None,
        f"{name}_low": value.low if value else None,
        f"{name}_high": value.high if value else None,
    }


def _quality(row: RunRecord) -> dict[str, Value]:
    score, text = row.hellaswag, row.perplexity
    return {
        "hellaswag_acc": score.acc if score else None,
        "hellaswag_acc_norm": score.acc_norm if score else None,
        "hellaswag_stderr": score.stderr if score else None,
        "hellaswag_n": score.n if score else None,
        "perplexity_task": text.task if text else None,
        "perplexity_token": text.token if text else None,
        "perplexity_token_low": text.low if text else None,
        "perplexity_token_high": text.high if text else None,
        "perplexity_word": text.word if text else None,
        "perplexity_byte": text.byte if text else None,
        "bits_per_byte": text.bits_per_byte if text else None,
        "perplexity_n_tokens": text.n_tokens if text else None,
        "perplexity_protocol": text.protocol if text else None,
    }


def _divergence(row: RunRecord) -> dict[str, Value]:
    found = row.divergence
    return {
        "kl_divergence": row.kl_divergence,
        "kl_divergence_low": found.low if found else None,
        "kl_divergence_high": found.high if found else None,
        "kl_divergence_median": found.median if found else None,
        "kl_divergence_p99": found.p99 if found else None,
        "kl_divergence_n_tokens": found.n_tokens if found else None,
        "top1_agreement": row.top1_agreement,
        "top1_agreement_low": found.top1_low if found else None,
        "top1_agreement_high": found.top1_high if found else None,
    }


def _differences(found: QualityDifference | None) -> dict[str, Value]:
    return {
        "difference_from": found.reference if found else None,
        **_difference("hellaswag_acc_norm_difference", found.acc_norm if found else None),
        **_difference("perplexity_token_difference", found.perplexity if found else None),
        **_difference("perplexity_token_ratio", found.perplexity_ratio if found else None),
    }


def _difference(name: str, value: Difference | None) -> dict[str, Value]:
    return {
        name: value.mean if value else None,
        f"{name}_low": value.low if value else None,
        f"{name}_high": value.high if value else None,
        f"{name}_p": value.p_value if value else None,
        f"{name}_tie": value.tie if value else None,
    }


def _tasks(row: RunRecord) -> dict[str, Value]:
    """Every metric of every further task, named by task, metric and lm-eval's filter."""
    values: dict[str, Value] = {}
    for task in row.tasks:
        for metric in task.metrics:
            suffix = "" if metric.filter == "none" else f",{metric.filter}"
            values[f"{task.task}/{metric.name}{suffix}"] = metric.value
            values[f"{task.task}/{metric.name}_stderr{suffix}"] = metric.stderr
    return values


def _field(value: Value) -> Value:
    if isinstance(value, bool):
        return str(value).lower()
    return in_csv(value) if isinstance(value, str) else value
