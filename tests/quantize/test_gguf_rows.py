"""Rows of every converted architecture: decoding, scoring and quantising in llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_models import MODELS, random_ids, save_model

from llmfit.backends.registry import get_backend
from llmfit.decode.base import Window
from llmfit.models import read_spec
from llmfit.quantize.gguf_types import read_types
from llmfit.records import Plan

transformers = pytest.importorskip("transformers")
pytest.importorskip("llama_cpp")

CASES = ("phi3", "gemma2", "gemma3", "mixtral")


def plan_of(folder: Path, cache: Path, backend: str) -> Plan:
    """A plan for one row on one thread."""
    spec = read_spec(folder, name=folder.name, source="local")
    return Plan(backend=backend, model=spec, device="cpu", threads=1, cache_dir=str(cache))


def expected_logprobs(model: Any, window: Window) -> np.ndarray:
    """Log-probabilities of the window's scored tokens, by transformers in float32."""
    with torch.no_grad():
        logprobs = model(torch.tensor([window.ids])).logits[0, :-1].log_softmax(-1)
    chosen = logprobs.gather(-1, torch.tensor(window.ids[1:])[:, None])[:, 0]
    return chosen[window.score_from - 1 :].numpy()


@pytest.mark.parametrize("case", CASES)
def test_scores_and_decoding(case: str, tmp_path: Path) -> None:
    """Windows longer than the sliding window, sharing beginnings or not, score as transformers
    does, and a batch continues its prompts by the tokens that transformers finds likeliest."""
    model = save_model(tmp_path / "model", *MODELS[case])
    ids = tuple(random_ids(120))
    windows = [
        Window(ids, 1),
        Window(ids[:90] + ids[10:40], 90),
        Window(ids[:90] + ids[50:60], 90),
        Window(ids[30:75], 20),
    ]
    prompts = [list(ids[:70]), list(ids[20:60])]
    with get_backend("gguf:f32").load(plan_of(tmp_path / "model", tmp_path, "gguf:f32")) as loaded:
        scores = list(loaded.score(windows, batch_tokens=256))
        decoder = loaded.decoder(batch=2, capacity=100)
        decoder.prefill(prompts)
        steps = [decoder.tokens()]
        for _ in range(20):
            decoder.step()
            steps.append(decoder.tokens())
    for window, score in zip(windows, scores, strict=True):
        # K and V are kept in float16 there.
        np.testing.assert_allclose(score.logprobs, expected_logprobs(model, window), atol=0.05)
    for prompt, tokens in zip(prompts, zip(*steps, strict=True), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *tokens[:-1]]])).logits[0, len(prompt) - 1 :]
        best = logits.max(-1).values
        chosen = logits.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
        # The likeliest, or as good as it; a tie between experts can fall the other way.
        assert (best - chosen).max() < (0.2 if case == "mixtral" else 0.05)


@pytest.mark.parametrize("case", CASES)
def test_default_type(case: str, tmp_path: Path) -> None:
    """At widths that K-quants fit, all matrices are quantised but the one that chooses experts,
    and the perplexity of a random text stays near the float32 one."""
    family, changes = MODELS[case]
    wide = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    if family.startswith("Gemma"):
        wide |= {"head_dim": 64, "query_pre_attn_scalar": 64}
    model = save_model(tmp_path / "model", family, changes | wide)
    window = Window(tuple(random_ids(100)), 1)
    with get_backend("gguf").load(plan_of(tmp_path / "model", tmp_path, "gguf")) as loaded:
        (score,) = loaded.score([window], batch_tokens=256)
        info = loaded.info
    types = read_types(Path(info.artifact or ""))
    assert set(types.parameters) == {"Q4_K", "Q6_K", "F32"}
    assert (info.quantized_share or 0) > 0.99
    assert not any("row length" in note for note in info.notes)
    expected = expected_logprobs(model, window)
    assert np.mean(score.logprobs) == pytest.approx(expected.mean(), abs=0.5)
