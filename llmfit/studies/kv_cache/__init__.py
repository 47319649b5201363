"""Generation with and without a KV cache: the same tokens, other operations, and the bytes for it.

    prompt ─► own decoder, or a Hugging Face model ─┬► with cache:    one token a step
                                                    └► without cache: all tokens a step

Own decoder: ``transformer.py`` with random weights, which shows the operations. Hugging Face
model: the one inside the package, by transformers' ``generate``.

    generators ─► measuring ─► Found ─┬► showing ─► tables, plots
                                      └► judging ─► checks, findings

generators   the two models: tokens, bytes of the cache, operations in closed form
measuring    the sizes; each model timed both ways, and whether its tokens agree
growth_of    how time and operations grow with the new tokens
published    the speed-up that is published
showing      tables and plots
judging      checks and findings
"""

from __future__ import annotations

from llmfit.studies.base import StudyContext
from llmfit.studies.kv_cache.judging import checks, findings
from llmfit.studies.kv_cache.measuring import DEFAULT, REFERENCE, Sizes, measure
from llmfit.studies.kv_cache.published import published_text
from llmfit.studies.kv_cache.showing import plots, tables
from llmfit.studies.reference import TECHNIQUES_OF
from llmfit.study_records import StudyResult

TITLE = "KV cache"
QUESTION = "How much faster does a KV cache make generation, and how many bytes does it take?"


def run(context: StudyContext) -> StudyResult:
    """Both models at all lengths."""
    return study(context, REFERENCE if context.preset == "reference" else DEFAULT)


def study(context: StudyContext, sizes: Sizes) -> StudyResult:
    """The study with those sizes."""
    both = measure(context, sizes)
    return StudyResult(
        study="kv-cache",
        title=TITLE,
        question=QUESTION,
        preset=context.preset,
        device=context.device,
        settings=sizes.settings(),
        tables=tables(both, sizes.fit_from),
        plots=plots(both),
        checks=checks(both),
        findings=findings(both, sizes.fit_from),
        reference=f"speed-up of generation, {published_text()}: {TECHNIQUES_OF}",
        notes=(
            f"FLOPs are in closed form, and counted up to {sizes.count_up_to:,} new tokens.",
            "The last token of a generation is not run again, so it is not in the cache.",
            "Both models run in float32: in 16 bits rounding alone can change a token.",
        ),
        benchmarks=tuple(
            result for found in both for each in found for result in (each.cached, each.plain)
        ),
    )
