"""What every backend of the registry promises; a new one is picked up by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from small_models import write_fp8

from llmfit.backends._hf import HfModel
from llmfit.backends.base import Backend, LoadedModel
from llmfit.backends.registry import BACKENDS, backend_ids, get_backend
from llmfit.decode.base import Window
from llmfit.errors import EvaluationError, ModelLoadError, UsageError
from llmfit.models import data_path, resolve
from llmfit.records import ModelSpec, Plan

pytestmark = pytest.mark.slow

CONTEXT = (0, 31, 57, 400)


@pytest.fixture(scope="module", params=backend_ids())
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend in turn; one whose packages are missing is skipped with its pip line."""
    chosen = get_backend(request.param)
    if chosen.missing():
        pytest.skip(f"{chosen.id}: {chosen.install_hint()}")
    if "cpu" not in chosen.devices:
        pytest.skip(f"{chosen.id} runs on a GPU alone")
    return chosen


@pytest.fixture(scope="module")
def fp8_checkpoint(embedded: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded model stored in FP8, for the row that makes no format itself."""
    model = transformers.AutoModelForCausalLM.from_pretrained(embedded.path, dtype=torch.float32)
    folder = tmp_path_factory.mktemp("stored") / "fp8"
    return str(write_fp8(folder, model, tokenizer_from=Path(embedded.path)))


@pytest.fixture(scope="module")
def loaded(
    backend: Backend, embedded: ModelSpec, artifact_cache: Path, fp8_checkpoint: str
) -> Iterator[LoadedModel]:
    """The embedded model in that format, on the CPU."""
    plan = Plan(
        backend=backend.id,
        model=embedded,
        device="cpu",
        threads=2,
        cache_dir=str(artifact_cache),
        checkpoint=fp8_checkpoint if backend.id == "stored" else None,
    )
    outcome = backend.check(plan)
    assert outcome.unavailable is None and outcome.skipped is None
    backend.prepare(plan)
    with backend.load(plan) as model:
        yield model


def test_a_backend_names_itself(backend: Backend) -> None:
    """Its id is the registry's, it has a label, and its extra is one of pyproject.toml's."""
    assert BACKENDS[backend.id].endswith(type(backend).__name__)
    assert backend.label
    assert backend.devices <= {"cpu", "cuda"}
    if backend.extra is not None:
        assert f"llmfit[{backend.extra}]" in backend.install_hint()


def test_loading_says_what_it_became(loaded: LoadedModel, embedded: ModelSpec) -> None:
    """Kernel, bytes and share quantised are facts of the model in memory."""
    assert loaded.info.kernel.linear and loaded.info.kernel.attention
    assert loaded.vocab_size == embedded.vocab_size
    assert loaded.context_length == embedded.max_position_embeddings
    assert loaded.info.weights_bytes is not None and embedded.parameters is not None
    assert 0.4 < loaded.info.weights_bytes / embedded.parameters < 2.1  # bytes a parameter
    share = loaded.info.quantized_share
    assert share is not None
    # All linear layers of the blocks: 4.7 of 5.2 M parameters; GGUF has the embedding too.
    assert share == 0.0 or 0.85 < share <= 1.0


def test_probabilities_sum_to_one(loaded: LoadedModel) -> None:
    """The scores of all possible next tokens are a distribution."""
    windows = [Window((*CONTEXT, token), len(CONTEXT)) for token in range(loaded.vocab_size)]
    scores = list(loaded.score(windows, batch_tokens=4096))
    total = math.fsum(math.exp(score.logprobs[0]) for score in scores)
    assert total == pytest.approx(1.0, abs=2e-3)
    best = max(range(len(scores)), key=lambda token: scores[token].logprobs[0])
    assert scores[best].greedy
    decoder = loaded.decoder(batch=1, capacity=8)
    decoder.prefill([CONTEXT])
    assert decoder.tokens() == [best], "decoding and scoring agree on the likeliest token"
    decoder.close()


def test_a_batch_continues_each_prompt(loaded: LoadedModel) -> None:
    """Prompts of different length in one batch start as they do alone, and each step adds one."""
    prompts = [CONTEXT, (0, 77)]
    together = loaded.decoder(batch=2, capacity=16)
    together.prefill(prompts)
    firsts = together.tokens()
    together.step()
    assert len(together.tokens()) == 2
    together.close()
    for prompt, first in zip(prompts, firsts, strict=True):
        alone = loaded.decoder(batch=1, capacity=16)
        alone.prefill([prompt])
        assert alone.tokens() == [first]
        alone.close()


def test_greedy_tokens_equal_generate(backend: Backend, loaded: LoadedModel) -> None:
    """A PyTorch row continues as transformers.generate does on the same weights.

    Where steps have own kernels, which round otherwise, either of two tokens may come whose
    logits are neighbours in bf16, once or twice: generate then goes on from ours.
    """
    if not isinstance(loaded, HfModel):
        pytest.skip(f"{backend.id} is not run by PyTorch")
    if backend.id == "compiled":
        pytest.skip("compiled arithmetic rounds less; tests/decode compares it in float32")
    decoder = loaded.decoder(batch=1, capacity=64)
    decoder.prefill([CONTEXT])
    ours = decoder.tokens()
    for _ in range(23):
        decoder.step()
        ours += decoder.tokens()
    decoder.close()
    begin, ties = 0, 0
    while begin < len(ours):
        theirs, logits = _generated(loaded.model, ours[:begin], len(ours))
        parted = next((i for i in range(begin, len(ours)) if ours[i] != theirs[i]), None)
        if parted is None:
            break
        best, other = (float(logits[parted - begin][made[parted]]) for made in (theirs, ours))
        spacing = torch.finfo(torch.bfloat16).eps * 2.0 ** math.floor(math.log2(abs(best)))
        assert best - other <= spacing, f"token {parted}: {theirs} is made, not {ours}"
        begin, ties = parted + 1, ties + 1
    assert ties <= (0 if loaded.info.kernel.step is None else 2)


def _generated(model: Any, given: list[int], count: int) -> tuple[list[int], list[torch.Tensor]]:
    """``given`` and what generate adds to it up to ``count`` tokens; its logits of those."""
    ids = torch.tensor([[*CONTEXT, *given]])
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count - len(given),
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return made.sequences[0, len(CONTEXT) :].tolist(), [step[0] for step in made.logits]


def test_limits_are_errors(loaded: LoadedModel) -> None:
    """More tokens than the context holds is refused, in decoding and in scoring."""
    with pytest.raises(UsageError):
        loaded.decoder(batch=1, capacity=loaded.context_length + 1)
    long = Window(tuple([1] * (loaded.context_length + 2)), 1)  # the last is only predicted
    with pytest.raises(EvaluationError):
        list(loaded.score([long], batch_tokens=4096))


@pytest.mark.parametrize("backend", ["nf4", "int8", "hqq"])
def test_a_model_of_which_nothing_is_quantised_is_no_row_of_the_format(
    backend: str, tmp_path: Path
) -> None:
    """Falcon's layers are a class of their own, which these formats pass over."""
    if get_backend(backend).missing():
        pytest.skip(get_backend(backend).install_hint())
    config = transformers.FalconConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=2048,
    )  # fmt: skip
    transformers.FalconForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(data_path("embedded")).save_pretrained(tmp_path)
    plan = Plan(backend=backend, model=resolve(str(tmp_path)), device="cpu")
    with pytest.raises(ModelLoadError, match=f"nothing of .* is quantised by {backend}"):
        get_backend(backend).load(plan)


def test_a_model_without_a_longest_context_has_the_plans(tmp_path: Path) -> None:
    """BLOOM's config tells none: it runs, to the length that stands for none."""
    config = transformers.BloomConfig(hidden_size=64, n_layer=1, n_head=4, vocab_size=2048)
    transformers.BloomForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(data_path("embedded")).save_pretrained(tmp_path)
    plan = Plan(backend="bf16", model=resolve(str(tmp_path)), device="cpu")
    with get_backend("bf16").load(plan) as loaded:
        assert loaded.context_length == plan.model.max_position_embeddings
        decoder = loaded.decoder(batch=1, capacity=16)
        decoder.prefill([[1, 2, 3]])
        decoder.step()
