"""Quality figures against plain loops and against lm-eval's own transformers model."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmfit.backends.base import LoadedModel
from llmfit.backends.registry import get_backend
from llmfit.evaluate.adapter import ModelAdapter
from llmfit.evaluate.datasets_ import read_documents
from llmfit.evaluate.score import evaluate
from llmfit.models import data_path
from llmfit.records import EvaluationSettings, ModelSpec, Plan
from llmfit.testing import FakeModel, make_model


def load(spec: ModelSpec, backend: str = "sdpa") -> LoadedModel:
    """A row's loaded model on the CPU."""
    return get_backend(backend).load(Plan(backend=backend, model=spec, device="cpu"))


def plain_bits_per_byte(spec: ModelSpec, documents: list[str], window: int) -> float:
    """Bits per byte of a plain transformers loop in bfloat16.

    Each document starts from BOS; later windows start from the token before them, and a
    document's last window reaches back to keep its length, as lm-eval's does.
    """
    tokenizer = AutoTokenizer.from_pretrained(spec.path)
    model = AutoModelForCausalLM.from_pretrained(
        spec.path, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    total = 0.0
    for document in documents:
        ids = tokenizer(document, add_special_tokens=False)["input_ids"]
        ids = [tokenizer.bos_token_id, *ids]
        for start in range(0, len(ids) - 1, window):
            end = min(start + window, len(ids) - 1)
            piece = torch.tensor([ids[max(0, end - window) : end + 1]])
            with torch.inference_mode():
                logits = model(piece[:, :-1]).logits[0].float()
            scored = end - start
            total += torch.nn.functional.cross_entropy(
                logits[-scored:], piece[0, -scored:], reduction="sum"
            ).item()
    return total / math.log(2) / sum(len(document.encode()) for document in documents)


@pytest.mark.slow
def test_lm_evals_measures_equal_a_plain_loop_on_a_real_model(
    stories260k: ModelSpec, shared_data: Path
) -> None:
    """The bits per byte in bf16 agree with a plain transformers loop within 0.5 %."""
    path = shared_data / "tinystories_sample.txt"
    settings = EvaluationSettings(tasks=("wikitext",), text_file=str(path))
    with load(stories260k) as model:
        quality = evaluate(model, stories260k, settings)
    scored = quality.perplexity
    assert quality.hellaswag is None and quality.notes == ()
    assert scored is not None and scored.byte is not None and scored.task == "text_local"
    expected = plain_bits_per_byte(stories260k, read_documents(path), window=512)
    assert scored.bits_per_byte == pytest.approx(expected, rel=0.005)
    assert math.log2(scored.byte) == pytest.approx(expected, rel=0.005)


def test_lm_evals_measures_equal_a_plain_loop_on_the_embedded_model(embedded: ModelSpec) -> None:
    """The same, with windows shorter than the documents, on the first documents only."""
    settings = EvaluationSettings(tasks=("wikitext",), limit=3, ppl_window=33)
    with load(embedded) as model:
        scored = evaluate(model, embedded, settings).perplexity
    assert scored is not None and scored.n_documents == 3
    documents = read_documents(data_path("text.txt"))[:3]
    expected = plain_bits_per_byte(embedded, documents, window=33)
    assert scored.bits_per_byte == pytest.approx(expected, rel=0.005)


def test_a_uniform_model_has_its_vocabulary_as_perplexity(tmp_path: Path) -> None:
    """Closed form: 256 equally likely bytes give perplexity 256 per token and 8 bits per byte."""
    text = tmp_path / "text.txt"
    text.write_text("one two three\n" * 40 + "<|endoftext|>\nfour five\n")
    settings = EvaluationSettings(
        hellaswag_file=str(data_path("hellaswag.jsonl")), text_file=str(text), limit=12
    )
    quality = evaluate(FakeModel(), make_model(), settings)
    assert quality.perplexity is not None and quality.hellaswag is not None
    assert quality.perplexity.token == pytest.approx(256)
    assert quality.perplexity.bits_per_byte == pytest.approx(8)
    assert quality.perplexity.byte == pytest.approx(256)
    assert quality.perplexity.n_tokens == len("one two three\n") * 40 - 1 + len("four five")
    # Per word: 256 to the bytes of a word; the first document has 120 words, the second 2.
    words = 120 + 2
    assert quality.perplexity.word == pytest.approx(256 ** (quality.perplexity.n_tokens / words))
    assert quality.hellaswag.n == 12
    share = sum(quality.hellaswag.correct) / 12
    assert quality.hellaswag.acc_norm == pytest.approx(share)
    # Standard error of a share: sqrt(p (1 − p) ÷ (n − 1)).
    assert quality.hellaswag.stderr == pytest.approx(math.sqrt(share * (1 - share) / 11))


@pytest.mark.slow
def test_questions_do_not_depend_on_the_batch(embedded: ModelSpec) -> None:
    """Accuracy and every single answer are the same for two batch sizes."""
    with load(embedded, "sdpa") as model:
        first, second = (
            evaluate(model, embedded, EvaluationSettings(limit=40, batch_tokens=batch)).hellaswag
            for batch in (256, 4096)
        )
    assert first is not None and second is not None
    assert first.n == 40
    assert first.acc_norm == pytest.approx(sum(first.correct) / 40)
    differing = sum(a != b for a, b in itertools.zip_longest(first.correct, second.correct))
    assert differing <= 1, "bf16 rounding may tip one close question, not more"


def test_generate_until_stops_at_its_string(embedded: ModelSpec) -> None:
    """Text is greedy and ends before the first stop string."""
    with load(embedded) as model:
        adapter = ModelAdapter(model, window=512, batch_tokens=2048)
        whole = adapter._generate("Weather: It was", {"until": [], "max_gen_toks": 24})
        stop = whole[len(whole) // 2]
        cut = adapter._generate("Weather: It was", {"until": [stop], "max_gen_toks": 24})
    assert cut == whole.split(stop)[0]
