"""The ONNX row against the library's own loop and the unquantised model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from llmfit.backends.onnx import OnnxLoaded
from llmfit.backends.registry import get_backend
from llmfit.decode.base import Sampling, Window
from llmfit.errors import QuantizationError
from llmfit.records import ModelSpec, Plan

og: Any = pytest.importorskip("onnxruntime_genai", reason="the package onnxruntime-genai")
pytestmark = pytest.mark.slow

PROMPT = (0, 31, 57, 400, 12, 9)


@pytest.fixture(scope="module")
def loaded(embedded: ModelSpec, artifact_cache: Path) -> Iterator[OnnxLoaded]:
    plan = Plan(
        backend="onnx", model=embedded, device="cpu", threads=2, cache_dir=str(artifact_cache)
    )
    with get_backend("onnx").load(plan) as model:
        assert isinstance(model, OnnxLoaded)
        yield model


def continued(loaded: OnnxLoaded, new: int, sampling: Sampling, **options: Any) -> list[int]:
    decoder = loaded.decoder(batch=1, capacity=64, **options)
    decoder.prefill([PROMPT], sampling)
    tokens = decoder.tokens()
    for _ in range(new - 1):
        decoder.step()
        tokens += decoder.tokens()
    decoder.close()
    return tokens


def test_tokens_are_those_of_the_librarys_own_loop(loaded: OnnxLoaded) -> None:
    """Greedy, up to the token at which that one ends by itself; in chunks and again likewise."""
    model = og.Model(str(loaded.info.artifact))
    params = og.GeneratorParams(model)
    params.set_search_options(batch_size=1, max_length=len(PROMPT) + 24, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(np.array([PROMPT], dtype=np.int32))
    theirs = []
    while not generator.is_done():
        generator.generate_next_token()
        theirs.append(int(generator.get_next_tokens()[0]))
    ours = continued(loaded, 24, Sampling())
    assert ours[: len(theirs)] == theirs and len(theirs) > 4
    assert continued(loaded, 24, Sampling(), prefill_chunk=2) == ours
    decoder = loaded.decoder(batch=1, capacity=64)
    for _ in range(2):
        decoder.prefill([PROMPT])
        assert decoder.tokens() == ours[:1]


def test_scores_are_near_those_of_the_unquantised_model(
    loaded: OnnxLoaded, embedded: ModelSpec
) -> None:
    """Four bits move a token's log-probability by little; windows share what is alike."""
    text = Path(embedded.path).parent / "text.txt"
    ids = (0, *loaded.tokenizer.encode(text.read_text("utf-8")[:3000], special=False)[:600])
    model = transformers.AutoModelForCausalLM.from_pretrained(embedded.path, dtype=torch.float32)
    with torch.inference_mode():
        rows = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    theirs = [float(rows[place - 1, ids[place]]) for place in range(1, len(ids))]
    whole, end = Window(ids, 1), Window((*ids[:500], 7, 9), 500)
    seen: list[int] = []
    (first,) = loaded.score([whole], batch_tokens=64, visit=lambda rows: seen.append(len(rows)))
    assert sum(seen) == len(ids) - 1 and max(seen) <= 256
    differences = np.array(first.logprobs) - np.array(theirs)
    assert abs(differences.mean()) < 0.05 and np.abs(differences).mean() < 0.3
    again, ending = loaded.score([whole, end], batch_tokens=4096)
    assert again.logprobs == pytest.approx(first.logprobs, abs=1e-3)
    (alone,) = loaded.score([end], batch_tokens=4096)
    assert ending.logprobs == pytest.approx(alone.logprobs, abs=1e-3)


def test_the_same_seed_draws_the_same(loaded: OnnxLoaded) -> None:
    """And another one other tokens."""
    drawn = [continued(loaded, 12, Sampling(temperature=1.5, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_architecture_that_the_builder_lacks_is_one_error(
    embedded: ModelSpec, tmp_path: Path
) -> None:
    """In its own words; nothing half-made is kept."""
    from llmfit.quantize.cache import ArtifactCache
    from llmfit.quantize.onnx_genai import make_onnx

    folder = tmp_path / "model"
    folder.mkdir()
    for file in Path(embedded.path).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["UnheardOfForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    cache = ArtifactCache(tmp_path / "cache")
    with pytest.raises(QuantizationError, match="builder ended with exit code 1"):
        make_onnx(folder, cache, trust_remote_code=False)
    assert list(cache.entries()) == []
