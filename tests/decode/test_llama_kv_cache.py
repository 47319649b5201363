"""llama.cpp's quantised KV cache, against a plain loop over its C functions."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from llmfit.backends.registry import get_backend
from llmfit.decode.base import Window
from llmfit.decode.llama_cpp import LlamaCppModel
from llmfit.errors import ModelLoadError
from llmfit.models import data_path
from llmfit.records import KvCacheDtype, ModelSpec, Plan

llama_cpp = pytest.importorskip("llama_cpp")

TYPES: dict[KvCacheDtype | None, int] = {
    None: llama_cpp.GGML_TYPE_F16,
    "q8_0": llama_cpp.GGML_TYPE_Q8_0,
    "q4_0": llama_cpp.GGML_TYPE_Q4_0,
}
VALUES_A_TOKEN = 6 * 2 * 4 * 32  # layers × keys and values × heads × head size


def plan_of(spec: ModelSpec, cache: Path, dtype: KvCacheDtype | None) -> Plan:
    """The 16-bit GGUF row on one thread."""
    return Plan(
        backend="gguf:f16",
        model=spec,
        device="cpu",
        threads=1,
        cache_dir=str(cache),
        kv_cache_dtype=dtype,
    )


@pytest.fixture(scope="module")
def ids() -> tuple[int, ...]:
    """200 tokens of the embedded text."""
    tokenizer = AutoTokenizer.from_pretrained(data_path("embedded"))
    return tuple(tokenizer(data_path("text.txt").read_text("utf-8")[:2000])["input_ids"][:200])


def open_context(file: str, dtype: KvCacheDtype | None, tokens: int) -> tuple[object, object]:
    """Model and context over one sequence of ``tokens``."""
    model = llama_cpp.llama_model_load_from_file(
        file.encode(), llama_cpp.llama_model_default_params()
    )
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = tokens
    params.n_threads = params.n_threads_batch = 1
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.type_k = params.type_v = TYPES[dtype]
    return model, llama_cpp.llama_init_from_model(model, params)


def loop_logprobs(file: str, dtype: KvCacheDtype | None, ids: tuple[int, ...]) -> list[float]:
    """Log-probabilities of all tokens after the first, all fed in one batch."""
    model, context = open_context(file, dtype, 256)
    fed = len(ids) - 1
    batch = llama_cpp.llama_batch_init(fed, 0, 1)
    batch.n_tokens = fed
    for at in range(fed):
        batch.token[at], batch.pos[at] = ids[at], at
        batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = 1, 0, 1
    assert llama_cpp.llama_decode(context, batch) == 0
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    flat = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (fed, vocabulary))
    logits = flat.astype(np.float64)
    found = logits[np.arange(fed), ids[1:]] - np.log(np.exp(logits).sum(axis=1))
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return [float(each) for each in found]


def test_scores_equal_a_plain_loop_with_the_same_types(
    embedded: ModelSpec, artifact_cache: Path, ids: tuple[int, ...]
) -> None:
    """Each type's scores are the loop's; q8_0 moves them from f16's a little, q4_0 more."""
    scores = {}
    for dtype in TYPES:
        with get_backend("gguf").load(plan_of(embedded, artifact_cache, dtype)) as loaded:
            (score,) = loaded.score([Window(ids, 1)], batch_tokens=512)
            kernel = "flash" if dtype else "plain, in scoring flash"  # heads of 32
            assert loaded.info.kernel.attention == f"{kernel} (llama.cpp), KV {dtype or 'f16'}"
            file = str(loaded.info.artifact)
        scores[dtype] = np.array(score.logprobs)
        assert score.logprobs == pytest.approx(loop_logprobs(file, dtype, ids), abs=1e-4)
    moved = {dtype: np.abs(scores[dtype] - scores[None]).mean() for dtype in ("q8_0", "q4_0")}
    assert 0 < moved["q8_0"] < 0.01
    assert 3 * moved["q8_0"] < moved["q4_0"] < 0.2


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0"])
def test_decode_equals_a_plain_loop_with_the_same_types(
    embedded: ModelSpec, artifact_cache: Path, ids: tuple[int, ...], dtype: KvCacheDtype
) -> None:
    """Greedy tokens are those that the highest logits of the loop give, token by token."""
    with get_backend("gguf").load(plan_of(embedded, artifact_cache, dtype)) as loaded:
        decoder = loaded.decoder(batch=1, capacity=128)
        decoder.prefill([ids[:60]])
        produced = decoder.tokens()
        for _ in range(30):
            decoder.step()
            produced += decoder.tokens()
        file = str(loaded.info.artifact)
    model, context = open_context(file, dtype, 128)
    expected = []
    feed = (ctypes.c_int32 * 60)(*ids[:60])
    while len(expected) < len(produced):
        assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(feed, len(feed))) == 0
        row = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), (2048,))
        expected.append(int(row.argmax()))
        feed = (ctypes.c_int32 * 1)(expected[-1])
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    assert produced == expected


@pytest.mark.parametrize(("dtype", "bits"), [(None, 16), ("q8_0", 8.5), ("q4_0", 4.5)])
def test_the_cache_has_the_bytes_of_its_type(
    embedded: ModelSpec, artifact_cache: Path, dtype: KvCacheDtype | None, bits: float
) -> None:
    """llama.cpp's saved state of 160 tokens is theirs in blocks of 34 or 18 bytes, or 16 bits."""
    with get_backend("gguf").load(plan_of(embedded, artifact_cache, dtype)) as loaded:
        decoder = loaded.decoder(batch=1, capacity=256)
        decoder.prefill([list(range(160))])
        state = llama_cpp.llama_state_seq_get_size(decoder._context.handle, 0)  # type: ignore[attr-defined]
    keys_and_values = 160 * VALUES_A_TOKEN * bits / 8
    # Beside them: positions and a header of each layer.
    assert keys_and_values <= state <= keys_and_values + 160 * 16 + 1000


def test_a_head_size_that_blocks_do_not_divide_is_refused(
    stories260k: ModelSpec, artifact_cache: Path
) -> None:
    """Heads of 8 values: the error names head size, type and option."""
    with get_backend("gguf").load(plan_of(stories260k, artifact_cache, None)) as loaded:
        file = Path(str(loaded.info.artifact))
    with pytest.raises(ModelLoadError, match=r"q8_0 .*head_k=8.*--kv-cache-dtype"):
        LlamaCppModel(file, threads=1, kv_cache_dtype="q8_0")
