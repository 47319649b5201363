"""The gguf row: llama.cpp decodes and scores what transformers does on the same weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmfit.backends.base import LoadedModel
from llmfit.backends.registry import get_backend
from llmfit.decode.base import Decoder, Sampling, Window
from llmfit.device.memory import peak_resident_bytes, resident_bytes, restart_peak
from llmfit.errors import EvaluationError, ModelLoadError, ModelNotFound, UsageError
from llmfit.models import data_path, read_spec
from llmfit.records import ModelSpec, Plan

pytest.importorskip("llama_cpp")
transformers = pytest.importorskip("transformers")

PROMPTS = ("Once upon a time", "Tom and Lily went to the park. They saw a", "The dog")


def plan_of(folder: Path, cache: Path, backend: str = "gguf:f32", **more: Any) -> Plan:
    """A plan for one row on one thread."""
    return Plan(
        backend=backend,
        model=read_spec(folder, name=folder.name, source="local"),
        device="cpu",
        threads=1,
        cache_dir=str(cache),
        **more,
    )


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One artifact cache for all tests of this file."""
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture
def stories(shared_data: Path) -> Path:
    """The trained model of 260 thousand parameters whose rows fit few types."""
    return shared_data / "stories260k"


@pytest.fixture(params=["embedded", "stories260k"])
def folder(request: pytest.FixtureRequest) -> Path:
    """A real trained model: the package's own, and one of another vocabulary and shape."""
    return Path(request.getfixturevalue(request.param).path)


@pytest.fixture
def text(folder: Path, request: pytest.FixtureRequest) -> str:
    """Text of the kind that the model was trained on."""
    if folder.name == "stories260k":
        return (request.getfixturevalue("shared_data") / "tinystories_sample.txt").read_text()
    return data_path("text.txt").read_text("utf-8")


@pytest.fixture
def loaded(folder: Path, cache: Path) -> Iterator[LoadedModel]:
    """The model as float32 GGUF."""
    with get_backend("gguf:f32").load(plan_of(folder, cache)) as model:
        yield model


@pytest.fixture
def reference(folder: Path) -> Any:
    """The model in transformers, float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()


def continue_all(decoder: Decoder, count: int) -> list[list[int]]:
    """The first token of each sequence and ``count`` − 1 further ones."""
    columns = [decoder.tokens()]
    for _ in range(count - 1):
        decoder.step()
        columns.append(decoder.tokens())
    return [list(row) for row in zip(*columns, strict=True)]


def test_greedy_tokens_equal_those_of_generate(loaded: LoadedModel, reference: Any) -> None:
    """Prompts of different length in one batch continue as transformers.generate does.

    llama.cpp's KV cache is float16, so the first difference, if any, must be a near tie of the
    two best logits.
    """
    prompts = [loaded.tokenizer.encode(text) for text in PROMPTS]
    decoder = loaded.decoder(batch=3, capacity=128)
    decoder.prefill(prompts)
    for prompt, tokens in zip(prompts, continue_all(decoder, 60), strict=True):
        expected = reference.generate(
            torch.tensor([prompt]),
            max_new_tokens=60,
            do_sample=False,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
        same = expected.sequences[0, len(prompt) :].tolist()
        differing = [i for i, pair in enumerate(zip(tokens, same, strict=True)) if len({*pair}) > 1]
        if differing:
            best = expected.logits[differing[0]][0].topk(2).values
            assert best[0] - best[1] < 0.01
    decoder.close()


def test_a_decoder_can_be_used_again(loaded: LoadedModel) -> None:
    """A second prefill starts from an empty cache: same prompt, same tokens."""
    prompts = [loaded.tokenizer.encode(text) for text in PROMPTS[:2]]
    decoder = loaded.decoder(batch=2, capacity=64)
    runs = []
    for _ in range(2):
        decoder.prefill(prompts)
        runs.append(continue_all(decoder, 20))
    assert runs[0] == runs[1]


def test_a_prompt_longer_than_one_chunk(loaded: LoadedModel, text: str) -> None:
    """A batch of prompts that spans several chunks gives each prompt's own first token."""
    ids = loaded.tokenizer.encode(text[:8000])
    prompts = [ids[:400], ids[:37], ids[:400]]
    together = loaded.decoder(batch=3, capacity=410)
    together.prefill(prompts)
    batched = continue_all(together, 8)
    alone = loaded.decoder(batch=1, capacity=410)
    for prompt, tokens in zip(prompts, batched, strict=True):
        alone.prefill([prompt])
        assert continue_all(alone, 8)[0] == tokens


def test_sampling_is_reproducible(loaded: LoadedModel) -> None:
    """One seed gives one text, another seed another, and the sequences of a batch differ."""
    prompt = loaded.tokenizer.encode(PROMPTS[0])
    decoder = loaded.decoder(batch=2, capacity=64)
    texts = []
    for seed in (1, 1, 2):
        decoder.prefill([prompt, prompt], Sampling(temperature=1.0, seed=seed))
        texts.append(continue_all(decoder, 30))
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert texts[0][0] != texts[0][1]


@pytest.mark.slow
def test_sampling_follows_the_distribution(loaded: LoadedModel, reference: Any) -> None:
    """First tokens are drawn from softmax(logits / temperature) cut to top-k, then to top-p."""
    from llmfit.decode.sampling import filtered_logits

    prompt = loaded.tokenizer.encode("One day, a")
    sampling = Sampling(temperature=1.5, top_k=12, top_p=0.8)
    with torch.no_grad():
        logits = reference(torch.tensor([prompt])).logits[:, -1]
    expected = filtered_logits(logits, sampling).softmax(-1)[0]
    decoder = loaded.decoder(batch=32, capacity=32)
    counts = torch.zeros(loaded.vocab_size)
    draws = 0
    for seed in range(40):
        decoder.prefill([prompt] * 32, Sampling(temperature=1.5, top_k=12, top_p=0.8, seed=seed))
        for token in decoder.tokens():
            counts[token] += 1
        draws += 32
    assert counts[expected == 0].sum() == 0
    # Chi-square of the tokens kept: mean and variance of the statistic are k and 2k.
    kept = expected > 0
    chi2 = ((counts - draws * expected)[kept] ** 2 / (draws * expected[kept])).sum().item()
    degrees = int(kept.sum()) - 1
    assert degrees >= 2
    assert chi2 < degrees + 5 * math.sqrt(2 * degrees)


def test_scores_equal_those_of_transformers(loaded: LoadedModel, reference: Any, text: str) -> None:
    """Scores agree within float16's rounding in the KV cache and the attention kernel, whether
    a window shares its beginning with the one before or not."""
    ids = tuple(loaded.tokenizer.encode(text[:8000])[:512])
    windows = [
        Window(ids, 1),
        Window(ids[:60], 50),
        Window(ids[:50] + ids[200:220], 50),
        Window(ids[:50], 20),
        Window(ids[300:310], 9),
    ]
    scores = list(loaded.score(windows, batch_tokens=4096))
    for window, score in zip(windows, scores, strict=True):
        with torch.no_grad():
            logits = reference(torch.tensor([window.ids])).logits[0, :-1].double()
        targets = torch.tensor(window.ids[1:])
        chosen = logits.log_softmax(-1).gather(-1, targets[:, None])[window.score_from - 1 :, 0]
        np.testing.assert_allclose(score.logprobs, chosen.numpy(), atol=0.1)
        assert sum(score.logprobs) / len(score.logprobs) == pytest.approx(
            chosen.mean().item(), abs=2e-3
        )
    # Small chunks change nothing but the order of sums.
    for whole, parts in zip(scores, loaded.score(windows, batch_tokens=48), strict=True):
        np.testing.assert_allclose(whole.logprobs, parts.logprobs, atol=0.1)


def test_greedy_flag(loaded: LoadedModel) -> None:
    """``greedy`` is True for the model's own continuation and False for another one."""
    prompt = loaded.tokenizer.encode(PROMPTS[0])
    decoder = loaded.decoder(batch=1, capacity=64)
    decoder.prefill([prompt])
    own = continue_all(decoder, 6)[0]
    ids = tuple(prompt + own)
    windows = [
        Window(ids, len(prompt)),
        Window((*ids[:-1], (ids[-1] + 1) % loaded.vocab_size), len(prompt)),
    ]
    assert [score.greedy for score in loaded.score(windows, batch_tokens=4096)] == [True, False]


def test_perplexity_of_the_half_precision_file(
    folder: Path, cache: Path, reference: Any, text: str
) -> None:
    """The f16 file's perplexity on a story is within 3 % of bfloat16's in torch."""
    with get_backend("gguf:f16").load(plan_of(folder, cache, "gguf:f16")) as model:
        ids = tuple(model.tokenizer.encode(text[:8000])[:512])
        (score,) = model.score([Window(ids, 1)], batch_tokens=4096)
    with torch.no_grad():
        logits = reference.bfloat16()(torch.tensor([ids])).logits[0, :-1].double()
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])).item()
    ours = -sum(score.logprobs) / len(score.logprobs)
    assert math.exp(ours) == pytest.approx(math.exp(loss), rel=0.03)


def test_limits_are_errors(loaded: LoadedModel) -> None:
    """Too long a prompt, a full cache, and windows or decoders beyond the context are refused."""
    decoder = loaded.decoder(batch=1, capacity=6)
    with pytest.raises(UsageError, match="7 tokens"):
        decoder.prefill([list(range(3, 10))])
    decoder.prefill([[1, 300, 301, 302, 303]])
    decoder.step()
    with pytest.raises(UsageError, match="full"):
        decoder.step()
    beyond = loaded.context_length + 1
    with pytest.raises(UsageError, match=f"{beyond} tokens"):
        loaded.decoder(batch=1, capacity=beyond)
    with pytest.raises(EvaluationError, match=f"{beyond} tokens"):
        list(loaded.score([Window((1,) * (beyond + 1), 1)], batch_tokens=4096))


def test_default_row_of_the_embedded_model(embedded: ModelSpec, cache: Path) -> None:
    """The package's own model takes K-quants whole: no note, and 3 % of perplexity at most."""
    ids: tuple[int, ...] = ()
    losses = []
    for backend in ("gguf", "gguf:f32"):
        plan = plan_of(Path(embedded.path), cache, backend)
        with get_backend(backend).load(plan) as model:
            if backend == "gguf":
                assert model.info.kernel.linear == "llama.cpp Q4_K/Q6_K"
                assert model.info.notes == ()
                assert (model.info.quantized_share or 0) > 0.99
            text = data_path("text.txt").read_text("utf-8")[:8000]
            ids = tuple(model.tokenizer.encode(text)[:1024])
            (score,) = model.score([Window(ids, 1)], batch_tokens=4096)
            losses.append(-sum(score.logprobs) / len(score.logprobs))
    assert math.exp(losses[0] - losses[1]) == pytest.approx(1, abs=0.03)


def test_default_row_of_odd_shapes(
    stories: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Q4_K_M at rows of 64 and 172: a legal file, the note says what was stored, no log leaks."""
    stages: list[str] = []
    backend = get_backend("gguf")
    plan = plan_of(stories, cache, "gguf")
    with backend.load(plan, lambda stage, done, total: stages.append(stage)) as model:
        info = model.info
    assert info.kernel.linear == "llama.cpp Q5_0/F16/Q8_0"
    assert info.dtype == "Q4_K_M"
    # 5 down projections of 172 × 64, and the norms, of 260,032 parameters, stay in floats.
    assert info.quantized_share == pytest.approx(1 - (5 * 172 * 64 + 11 * 64) / 260_032)
    assert "0 % of parameters in K-quants" in info.notes[0]
    assert "64 and 172" in info.notes[0]
    assert "F16 21.2 %" in info.notes[0]
    assert info.quantize_s is not None
    assert set(stages) == {"convert", "quantize", "load"}
    assert stages[-1] == "load"
    with backend.load(plan) as again:
        assert again.info.quantize_s is None
        assert again.info.notes == info.notes
    out, err = capfd.readouterr()
    assert "llama" not in out + err


def test_a_damaged_artifact_is_made_again_and_the_row_says_so(
    embedded: ModelSpec, tmp_path: Path
) -> None:
    """A byte of the weights is another one; the file, its size and its header look right."""
    plan = plan_of(Path(embedded.path), tmp_path, "gguf")
    backend = get_backend("gguf")
    with backend.load(plan) as model:
        assert model.info.notes == () and model.info.check_s < 60
        file = Path(str(model.info.artifact))
    content = bytearray(file.read_bytes())
    whole = bytes(content)
    content[-1000] ^= 1
    file.write_bytes(content)
    with backend.load(plan) as model:
        (note,) = model.info.notes
        assert note == (
            "the cached artifact was damaged (the content of model.gguf is not what was written): "
            "made again"
        )
        assert model.info.quantize_s is not None
    assert file.read_bytes() == whole


def test_making_is_no_part_of_the_rows_peak(stories: Path, tmp_path: Path) -> None:
    """What converting and quantising took is forgotten by the peak, the loaded model is not."""
    if not restart_peak():
        pytest.skip("this system cannot restart a process's peak of memory")

    def take_memory(stage: str, done: int, total: int) -> None:
        if stage != "load" and done == total:
            np.ones(300_000_000, np.int8)

    with get_backend("gguf").load(plan_of(stories, tmp_path, "gguf"), take_memory):
        peak = peak_resident_bytes()
        assert peak is not None
        now = resident_bytes()
        assert 0.99 * now <= peak < now + 150_000_000  # the kernel counts pages in batches


def test_types_that_are_not_made_here_are_planned_and_loaded(stories: Path, cache: Path) -> None:
    """IQ3_M has a predicted size and takes a ready file; without one its row says what to do."""
    plan = plan_of(stories, cache, "gguf:iq3_m")
    backend = get_backend(plan.backend)
    assert backend.check(plan).skipped == (
        "llmfit makes no IQ3_M files: --checkpoint gguf=FILE takes a ready one"
    )
    assert backend.check(replace(plan, checkpoint="iq3_m.gguf")).skipped is None
    assert backend.describe("iq3_m") == "GGUF IQ3_M (CPU)"


def test_a_checkpoint_is_loaded_as_it_is(stories: Path, cache: Path, tmp_path: Path) -> None:
    """--checkpoint takes a .gguf file or the folder of one, and says what is in it."""
    with get_backend("gguf:q8_0").load(plan_of(stories, cache, "gguf:q8_0")) as model:
        file = Path(model.info.artifact or "")
    for checkpoint in (file, file.parent):
        plan = plan_of(stories, tmp_path, "gguf", checkpoint=str(checkpoint))
        with get_backend("gguf").load(plan) as model:
            assert model.info.artifact == str(file)
            assert model.info.dtype == "Q8_0/F16"
            assert "Q8_0 78.6 %" in model.info.notes[0]
    assert not list(tmp_path.iterdir())


def test_wrong_checkpoints_are_errors(stories: Path, cache: Path, tmp_path: Path) -> None:
    """A missing, empty, broken or foreign checkpoint each has its own message."""
    backend = get_backend("gguf")

    def load(path: Path, folder: Path = stories) -> None:
        backend.load(plan_of(folder, cache, "gguf", checkpoint=str(path)))

    with pytest.raises(ModelNotFound, match="does not exist"):
        load(tmp_path / "no.gguf")
    with pytest.raises(ModelNotFound, match="none"):
        load(tmp_path)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but not really")
    with pytest.raises(ModelLoadError, match=r"broken\.gguf"):
        load(broken)
    with backend.load(plan_of(stories, cache, "gguf:q8_0")) as model:
        whole = Path(model.info.artifact or "")
    truncated = tmp_path / "truncated.gguf"
    truncated.write_bytes(whole.read_bytes()[:200_000])
    with pytest.raises(ModelLoadError, match=r"truncated\.gguf"):
        load(truncated)
    other = tmp_path / "other"
    other.mkdir()
    for file in stories.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(ModelLoadError, match="5 layers, the model 4"):
        load(whole, other)


def test_what_the_row_cannot_take_is_said_before_loading(stories: Path, cache: Path) -> None:
    """An architecture without a converter is skipped, unless a checkpoint is given."""
    plan = plan_of(stories, cache)
    config = {name: getattr(plan.model, name) for name in plan.model.__slots__}
    foreign = ModelSpec(**config | {"architecture": "GemmaForCausalLM"})
    backend = get_backend("gguf")
    base = {"backend": "gguf", "model": foreign, "device": "cpu"}
    assert "GemmaForCausalLM" in (backend.check(Plan(**base)).skipped or "")
    assert backend.check(Plan(**base, checkpoint="x.gguf")).skipped is None
    assert backend.describe("q3_k_m") == "GGUF Q3_K_M (CPU)"
    with pytest.raises(UsageError, match="q9"):
        get_backend("gguf:q9")
