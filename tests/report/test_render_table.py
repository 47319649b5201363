"""The terminal table: widths, escaping, signs, and what is said when figures are missing."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from rich.cells import cell_len

from llmfit.planning.verdict.constraints import Constraints
from llmfit.planning.verdict.recommend import recommend
from llmfit.records import (
    Comparison,
    MeasurementWarning,
    Roofline,
    RunRecord,
    Status,
    TaskMetric,
    TaskResult,
)
from llmfit.reliability import sample_warnings
from llmfit.report import render
from llmfit.testing import GB, make_comparison, make_model, make_record

LABELS = {
    "bf16": "BF16 eager",
    "sdpa": "BF16 SDPA",
    "compiled": "BF16 compiled",
    "int8": "INT8 bitsandbytes",
    "nf4": "NF4 bitsandbytes",
    "gptq": "GPTQ INT4",
    "awq": "AWQ INT4",
    "gguf": "GGUF Q4_K_M (CPU)",
}


def empty(row: RunRecord, status: Status, reason: str) -> RunRecord:
    """``row`` without any figure."""
    return replace(
        row,
        status=status,
        reason=reason,
        decode=None,
        prefill=None,
        ttft_s=None,
        memory=None,
        hellaswag=None,
        perplexity=None,
        kl_divergence=None,
        top1_agreement=None,
        divergence=None,
    )


@pytest.fixture
def on_gpu() -> Comparison:
    """Eight rows on a GPU with a budget of 8 GB: every status, notes, one shared by two rows."""
    figures = [
        (38, 16.0, 0.821, 6.14),
        (52, 14.2, 0.821, 6.14),
        (68, 14.2, 0.821, 6.14),
        (35, 7.5, 0.818, 6.21),
        (42, 4.9, 0.812, 6.47),
        (55, 4.8, 0.815, 6.39),
        (52, 4.7, 0.816, 6.35),
        (18, 5.0, 0.813, 6.42),
    ]
    rows = [
        make_record(
            backend,
            label=LABELS[backend],
            tokens_per_s=rate,
            peak_gb=gb,
            acc_norm=acc,
            perplexity=ppl,
            device="cpu" if backend == "gguf" else "cuda",
            roofline=Roofline(limit_tokens_per_s=100.0, fraction=rate / 100),
            kl_divergence=None if backend == "bf16" else (ppl - 6.14) / 8,
        )
        for backend, (rate, gb, acc, ppl) in zip(LABELS, figures, strict=True)
    ]
    shared = "the group size is 64, because 128 does not divide the width of 172."
    rows[1] = empty(rows[1], "does_not_fit", "needs 14.5 GB of the 8.00 GB budget.")
    rows[2] = empty(rows[2], "failed", "the worker was killed by signal 9 after 35 s; memory?")
    rows[4] = empty(rows[4], "unavailable", "bitsandbytes not installed: pip install 'llmfit[bnb]'")
    rows[5] = replace(rows[5], notes=(shared, "calibrated on 128 windows."))
    rows[6] = replace(rows[6], notes=(shared,))
    return make_comparison(rows, budget_bytes=8 * GB)


def row_of(text: str, label: str) -> str:
    """The table's line that begins with ``label``."""
    return next(line for line in text.splitlines() if line.startswith(label))


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120, 140, 200])
def test_no_line_is_wider_than_the_terminal(on_gpu: Comparison, width: int) -> None:
    """At every width each line fits, counted in terminal cells."""
    text = render(on_gpu, "table", width=width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert text.endswith("\n") and "\x1b" not in text


def test_80_columns_keep_what_decides(on_gpu: Comparison) -> None:
    """On 80 columns format, memory, speed, quality and verdict stay; the rest is pointed at."""
    assert "6.390" in row_of(render(on_gpu, "table", width=80), "GPTQ INT4")
    text = render(on_gpu, "table", width=80)
    assert "of limit" not in text
    for head in ("format", "memory", "tokens/s", "HellaSwag", "perplexity", "verdict"):
        assert head in text
    line = row_of(text, "GPTQ INT4")
    assert "4.80 ✓" in line and "55.0 ± 0.5" in line and "81.5 %" in line and "★ pick" in line
    assert "All columns: a terminal" in text and "--format json" in text


def test_140_columns_show_everything(on_gpu: Comparison) -> None:
    """A wide terminal shows predictions, shares, spreads and short reasons."""
    text = render(on_gpu, "table", width=140)
    line = row_of(text, "GPTQ INT4")
    assert "4.80 (4.90, +2 %) ✓" in line and "55 %" in line and "81.5 ± 1.2 %" in line
    assert re.search(r"6\.390 ± 0\.\d{3} \(\+0\.250\)  ", line)
    assert "0.0312" in line and "97.0 %" in line
    assert "All columns" not in text
    assert "0 + 5.00 (5.10) RAM" not in text
    assert "0 + 5.00 RAM" in row_of(text, "GGUF") and "no GPU needed" in row_of(text, "GGUF")


def test_120_columns_show_every_figure_but_the_finest(on_gpu: Comparison) -> None:
    """Eight rows on a GPU with a budget fit 120 columns with changes, spreads, limit and KL."""
    text = render(on_gpu, "table", width=120)
    for head in ("peak GB (pred.)", "of limit", "acc_norm ±", "token (− bf16)", "KL"):
        assert head in text
    assert "6.390 (+0.250)" in row_of(text, "GPTQ INT4")
    assert "0.0312" in row_of(text, "GPTQ INT4")


def test_the_told_width_is_enough(on_gpu: Comparison) -> None:
    """At the width that the narrow table names, all columns do appear; one less is too few."""
    told = int(render(on_gpu, "table", width=80).split("a terminal ")[1].split(" ")[0])
    wide, narrower = (render(on_gpu, "table", width=width) for width in (told, told - 1))
    for sign in ("of limit", "top-1", "token ± (− bf16)"):
        assert sign in wide
    assert "All columns" not in wide
    assert f"All columns: a terminal {told} wide" in narrower
    assert "token ± (− bf16)" not in narrower


def test_every_status_shows_with_its_whole_reason(on_gpu: Comparison) -> None:
    """Rows without figures stay in the table; their reasons stand complete below it."""
    text = render(on_gpu, "table", width=140)
    for label, word in (
        ("BF16 SDPA", "does not fit"),
        ("BF16 compiled", "failed"),
        ("NF4 bitsandbytes", "unavailable"),
    ):
        line = row_of(text, label)
        assert word in line and "–" in line
    assert "failed: the worker was killed by signal 9 after 35 s; memory?" in text
    assert "unavailable: bitsandbytes not installed: pip install 'llmfit[bnb]'" in text


def test_equal_notes_share_a_footnote(on_gpu: Comparison) -> None:
    """A note on two rows is written once, and both rows carry its number."""
    text = render(on_gpu, "table", width=140)
    assert text.count("because 128 does not divide") == 1
    assert "⁴·⁵" in row_of(text, "GPTQ INT4")
    assert "⁴ " in row_of(text, "AWQ INT4") and "⁵" not in row_of(text, "AWQ INT4")


def test_ties_carry_the_sign_and_losses_do_not(on_gpu: Comparison) -> None:
    """= stands where the paired interval against bf16 holds 0, and never on bf16 itself."""
    text = render(on_gpu, "table", width=140)
    assert "=" not in row_of(text, "BF16 eager")
    assert "81.8 ± 1.2 % =" in row_of(text, "INT8")
    assert "=" not in row_of(text, "GPTQ INT4")
    assert "= a tie: the 95 % interval of the paired difference from bf16 holds 0" in text


@pytest.mark.parametrize("width", [80, 120, 160])
def test_a_tie_in_perplexity_is_one_in_table_markdown_and_verdict(width: int) -> None:
    """A perplexity that differs by noise carries = in every table, and the verdict says a tie."""
    rows = [
        make_record("bf16", tokens_per_s=30, acc_norm=None, perplexity=6.14),
        make_record("nf4", tokens_per_s=60, acc_norm=None, perplexity=6.1404),
        make_record("gptq", tokens_per_s=50, acc_norm=None, perplexity=6.2),
    ]
    comparison = make_comparison(rows)
    text = render(comparison, "table", width=width)
    markdown = render(comparison, "md")
    figure = r"6\.140( ± \d\.\d+)?( +\(0\.000\))?"
    assert re.search(rf"{figure} =", row_of(text, "nf4"))
    assert re.search(rf"{figure} = \|", row_of(markdown, "| nf4"))
    for label in ("bf16", "gptq"):
        assert "=" not in row_of(text, label) and "=" not in row_of(markdown, f"| {label}")
    assert "perplexity 6.14, +0.01 % against bf16" in text
    assert re.search(r"\(−0\.\d\d to \+0\.\d\d, a tie\)", " ".join(text.split()))


def test_perplexities_stand_below_each_other() -> None:
    """Decimal points, brackets and signs align, with a change of 0, with one, and without."""
    rows = [
        make_record("bf16", perplexity=6.14),
        make_record("nf4", perplexity=6.1401),
        make_record("gptq", perplexity=6.4),
    ]
    text = render(make_comparison(rows), "table", width=140)
    lines = [row_of(text, label) for label in ("bf16", "nf4", "gptq")]
    assert len({line.index("6.") for line in lines}) == 1
    assert len({line.index(")", line.index("6.")) for line in lines[1:]}) == 1


def test_divergence_is_explained(on_gpu: Comparison) -> None:
    """The legend says from what, in what unit and over how many tokens the divergence is."""
    markdown = render(on_gpu, "md")
    for text in (render(on_gpu, "table", width=120), markdown):
        text = " ".join(text.split())
        assert "KL(bf16 ‖ row): nats per token, mean over 100,000 tokens of the text" in text
    assert "0.0312 (0.0281–0.0344)" in row_of(markdown, "| GPTQ INT4")
    assert "top-1: share of them whose most likely token is bf16's too" in markdown


def test_80_columns_show_the_divergence_where_it_fits() -> None:
    """With short names there is room for KL on 80 columns, and its legend comes with it."""
    rows = [
        make_record("bf16", device="cpu"),
        make_record("nf4", kl_divergence=0.0413, device="cpu"),
    ]
    text = render(make_comparison(rows), "table", width=80)
    assert "0.0413" in row_of(text, "nf4") and "KL(bf16 ‖ row)" in text
    assert max(map(cell_len, text.splitlines())) <= 80


def test_tasks_have_a_column_of_their_main_metric() -> None:
    """acc_norm before acc before exact_match before the first metric, with its standard error."""

    def result(task: str, **metrics: tuple[float, float | None]) -> TaskResult:
        return TaskResult(
            task=task,
            version="1",
            n=570,
            num_fewshot=0,
            metrics=tuple(
                TaskMetric(name=name, filter="none", value=value, stderr=stderr)
                for name, (value, stderr) in metrics.items()
            ),
        )

    tasks = (
        result("arc_easy", acc=(0.5, 0.01), acc_norm=(0.4567, 0.0201)),
        result("gsm8k", exact_match=(0.25, 0.05)),
        result("lambada", perplexity=(12.345, 0.678), acc=(0.61, None)),
        result("pile", word_perplexity=(33.21, None)),
    )
    rows = [make_record("bf16", tasks=tasks), make_record("nf4", tasks=tasks[:1])]
    comparison = make_comparison(rows)
    text = render(comparison, "table", width=200)
    for figure in ("45.7 ± 2.0 %", "25.0 ± 5.0 %", "61.0 %", "33.2"):
        assert figure in row_of(text, "bf16") and figure in row_of(
            render(comparison, "md"), "| bf16"
        )
    assert "45.7 ± 2.0 %" in row_of(text, "nf4") and row_of(text, "nf4").count("–") == 3
    for head in ("arc_easy", "acc_norm ±", "gsm8k", "exact_match ±", "word_perplexity"):
        assert head in text
    assert "arc_easy (acc_norm, version 1, 570 items, 0-shot)" in " ".join(text.split())


def test_without_quality_its_columns_are_left_out() -> None:
    """--no-eval leaves no empty columns, and the verdict says that quality was not judged."""
    rows = [make_record(b, acc_norm=None, perplexity=None, device="cpu") for b in ("bf16", "nf4")]
    text = render(make_comparison(rows), "table", width=100)
    assert "HellaSwag" not in text and "perplexity" not in text
    assert "Quality was not measured" in text


def test_small_models_are_shown_in_mb() -> None:
    """Memory of a model below 1 GB is shown in MB, and the head says so."""
    row = make_record("bf16", peak_gb=0.0123, device="cpu")
    text = render(make_comparison([row]), "table", width=100)
    assert "peak MB" in text and "12.3 (12.5, +2 %)" in text


def test_a_row_that_was_only_predicted_shows_the_prediction() -> None:
    """A prediction without a measurement stands in brackets under a head that explains them."""
    row = make_record("bf16", peak_gb=16.0)
    assert row.memory is not None
    row = replace(
        row,
        status="does_not_fit",
        reason="too large.",
        decode=None,
        memory=replace(row.memory, peak_bytes=None),
    )
    text = render(make_comparison([row], budget_bytes=8 * GB), "table", width=60)
    assert "(16.3) ✗" in text and "(pred.)" in text


@pytest.mark.parametrize("name", ["[red]x[/red]", "[/]", "a\x1b[31mb\x07", "wide 語\u202e\ntwo"])
def test_text_from_outside_stays_text(name: str) -> None:
    """Markup and control characters in names, labels, reasons and notes are shown, not obeyed."""
    row = make_record("nf4", label=name, device="cpu", notes=(name,))
    failed = empty(make_record("gptq", device="cpu"), "failed", name)
    comparison = make_comparison([row, failed], model=make_model(name=name))
    for color in (False, True):
        text = render(comparison, "table", width=100, color=color)
        assert "\x07" not in text and "\u202e" not in text and "\x1b[31mb" not in text
    text = render(comparison, "table", width=100)
    assert "\x1b" not in text
    assert max(map(cell_len, text.splitlines())) <= 100
    shown = name.replace("\x1b", "\\x1b").replace("\x07", "\\x07").replace("\u202e", "\\u202e")
    assert " ".join(shown.split()) in text


def test_colour_only_when_asked(on_gpu: Comparison) -> None:
    """Styles are ANSI codes, and without them the text is the same."""
    plain, colored = (render(on_gpu, "table", width=140, color=c) for c in (False, True))
    assert "\x1b[" in colored
    stripped = re.sub(r"\x1b\[[0-9;]*m", "", colored)
    assert [s.rstrip() for s in stripped.splitlines()] == plain.splitlines()


def test_the_environment_does_not_change_the_table(
    on_gpu: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COLUMNS, TERM and FORCE_COLOR are the caller's business: same input, same text."""
    before = render(on_gpu, "table", width=100)
    for key, value in (("COLUMNS", "30"), ("TERM", "dumb"), ("FORCE_COLOR", "1")):
        monkeypatch.setenv(key, value)
    assert render(on_gpu, "table", width=100) == before


def test_no_rows_is_still_a_table() -> None:
    """An interrupted run without a finished row renders in every format."""
    comparison = make_comparison([])
    for fmt in ("table", "md", "csv", "json"):
        assert render(comparison, fmt).endswith("\n")


def test_warnings_are_grouped_below_the_table() -> None:
    """One line a kind: each row by name, what was seen with its figure, and what to do."""

    def busy(cores: int) -> MeasurementWarning:
        message = f"other processes kept {cores} of 8 CPUs busy."
        return MeasurementWarning(code="busy_cpu", message=message, hint="close other programs")

    few = MeasurementWarning(code="few_samples", message="2 repeats.", hint="--repeats 5 or more")
    rows = [
        make_record(backend, warnings=(busy(cores), few))
        for backend, cores in zip(LABELS, (1, 2, 2, 3, 4, 5, 5, 1), strict=True)
    ]
    comparison = make_comparison(rows)
    for text in (render(comparison, "table", width=100), render(comparison, "md")):
        text = " ".join(text.replace("\\", "").split())
        assert (
            "Warning busy_cpu · bf16, gguf: other processes kept 1 of 8 CPUs busy; "
            "sdpa, compiled: other processes kept 2 of 8 CPUs busy; "
            "int8: other processes kept 3 of 8 CPUs busy; and likewise nf4, gptq, awq "
            "→ close other programs"
        ) in text
        assert (
            "Warning few_samples · bf16, sdpa, compiled, int8, nf4, gptq, awq, gguf: 2 repeats "
            "→ --repeats 5 or more"
        ) in text
    assert "Warning" not in render(make_comparison([make_record("bf16")]), "table")


def test_unsteady_runs_are_named() -> None:
    """Rows whose runs differ by more than 20 % are named with what to do; steady ones are not."""
    rows = []
    for backend, spread in (("bf16", 0.05), ("nf4", 0.3)):
        row = make_record(backend, spread=spread, device="cpu")
        assert row.decode is not None
        rows.append(replace(row, warnings=sample_warnings(row.decode.tokens_per_s)))
    text = " ".join(render(make_comparison(rows), "table", width=100).split())
    warning = text.partition("Warning unsteady · ")[2]
    assert warning.startswith("nf4: ") and "60 %" in warning and "--repeats" in warning
    assert "Warning" not in render(make_comparison(rows[:1]), "table", width=100)


def test_how_to_run_it_again_stands_below() -> None:
    """The command that makes the comparison again, and the one that checks its figures."""
    comparison = make_comparison([make_record("bf16")])
    for text in (render(comparison, "table", width=80), render(comparison, "md")):
        assert "Again: llmfit compare meta-llama/Llama-3.1-8B" in text
        assert "Check: llmfit reproduce 20260102-030405-abcdef" in text


def test_the_verdict_column_goes_by_the_bounds_of_the_verdict() -> None:
    """A row within the loss that was allowed is not said to lose, one too slow is said to be."""
    rows = [
        make_record("bf16", tokens_per_s=30, peak_gb=16),
        make_record("gptq", tokens_per_s=60, peak_gb=5),
        make_record("nf4", tokens_per_s=40, peak_gb=5, perplexity=6.14 * 1.08),
    ]
    strict = make_comparison(rows)
    assert "loses quality" in row_of(render(strict, "table", width=140), "nf4")
    bounds = Constraints(perplexity_rise=0.1, min_tokens_per_s=35)
    loose = replace(strict, verdict=recommend(strict.rows, bounds))
    text = render(loose, "table", width=140)
    assert "loses quality" not in row_of(text, "nf4")
    assert "too slow" in row_of(text, "bf16")


def test_what_was_gone_on_with_took_less_than_its_rows() -> None:
    """Rows of before count to no share of this call's time; of one call they do."""
    row = make_record("bf16", load_s=2.0, measure_s=30.0, evaluate_s=5.0)
    whole = make_comparison([row], total_s=40.0)
    told = "took 40.0 s: loading 2.00 s, measuring 30.0 s, scoring 5.00 s, the rest 3.00 s (7.5 %)"
    assert told in render(whole, "table", width=120)
    resumed = render(replace(whole, total_s=6.0), "table", width=120)
    assert "took 6.00 s since it was gone on with; all rows: loading 2.00 s" in resumed
    assert "the rest" not in resumed
