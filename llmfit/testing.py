"""Helpers for tests of code that uses llmfit: records in one line, a model without torch."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from llmfit.backends.base import (
    Backend,
    LoadedModel,
    LoadInfo,
    Progress,
    Tokenizer,
    no_progress,
)
from llmfit.decode.base import GREEDY, Decoder, LogitsVisitor, Sampling, Window, WindowScore
from llmfit.planning.architectures import read_shape
from llmfit.planning.comparing.differences import attach_differences
from llmfit.planning.verdict.recommend import recommend
from llmfit.records import (
    Comparison,
    Decode,
    Device,
    Divergence,
    Environment,
    HellaSwag,
    Kernel,
    Latency,
    Memory,
    ModelSpec,
    Perplexity,
    Plan,
    Prefill,
    RunRecord,
    Workload,
)
from llmfit.serving.judging import level
from llmfit.serving_records import RequestTrace, ServerBenchmark, ServerWorkload
from llmfit.shape import ModelShape
from llmfit.stats import ratio_interval, sampled

GB = 10**9


def make_model(**changes: Any) -> ModelSpec:
    """A ModelSpec with the shape of Llama-3.1-8B; ``changes`` replace its fields."""
    spec = ModelSpec(
        name="meta-llama/Llama-3.1-8B",
        path="meta-llama/Llama-3.1-8B",
        source="hub",
        architecture="LlamaForCausalLM",
        model_type="llama",
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
        max_position_embeddings=131072,
        tie_word_embeddings=False,
        parameters=8_030_261_248,
        dtype="bfloat16",
    )
    spec = replace(spec, **changes)
    return spec if "shape" in changes else replace(spec, shape=_shape(spec))


def _shape(spec: ModelSpec) -> ModelShape | None:
    """The shape that a config with the spec's numbers describes."""
    names = (
        "model_type", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
        "max_position_embeddings", "tie_word_embeddings", "attention_bias",
    )  # fmt: skip
    return read_shape({name: getattr(spec, name) for name in names})


def make_record(
    backend: str,
    *,
    tokens_per_s: float = 40.0,
    spread: float = 0.01,
    peak_gb: float = 8.0,
    device: Device = "cuda",
    acc_norm: float | None = 0.8,
    perplexity: float | None = 6.14,
    n: int = 1000,
    kl_divergence: float | None = None,
    **changes: Any,
) -> RunRecord:
    """An ok row with these figures; ``changes`` replace any field of the record.

    Five decode rates lie evenly within ``tokens_per_s`` × (1 ± ``spread``). The first
    ``acc_norm`` × ``n`` items are answered correctly, so two rows are paired on the same items.
    The text has 50 blocks; two backends' losses on a block differ by noise, which moves their
    perplexities' ratio by 0.1 %. None for ``acc_norm``, ``perplexity`` or ``kl_divergence``
    leaves that one unmeasured.
    """
    rates = [tokens_per_s * (1 + spread * offset) for offset in (0.0, -1.0, 1.0, -0.5, 0.5)]
    steps = tuple(tuple([1 / rate] * 4) for rate in rates)
    peak = int(peak_gb * GB)
    record = RunRecord(
        backend=backend,
        label=backend,
        status="ok",
        device=device,
        kernel=Kernel(linear="Linear", attention="sdpa"),
        memory=Memory(
            device=device,
            predicted_bytes=int(peak * 1.02),
            peak_bytes=peak,
            error_pct=2.0,
            peak_ram_bytes=peak if device == "cpu" else GB,
        ),
        decode=Decode(
            tokens_per_s=sampled(rates),
            step=Latency(
                mean_s=1 / tokens_per_s,
                p50_s=1 / tokens_per_s,
                p95_s=1 / min(rates),
                p99_s=1 / min(rates),
                samples_s=steps,
            ),
        ),
        prefill=Prefill(tokens_per_s=sampled([20 * rate for rate in rates])),
        ttft_s=sampled([512 / (20 * rate) for rate in rates]),
        load_s=3.2,
        total_s=61.0,
        hellaswag=None if acc_norm is None else _hellaswag(acc_norm, n),
        perplexity=None if perplexity is None else _perplexity(backend, perplexity),
        kl_divergence=kl_divergence,
        top1_agreement=None if kl_divergence is None else 0.97,
        divergence=None if kl_divergence is None else _divergence(kl_divergence),
    )
    return replace(record, **changes)


def make_server(benchmark_id: str = "server", **changes: Any) -> ServerBenchmark:
    """Figures of a server: two answers at once that took a second each."""
    trace = RequestTrace(started_s=0.0, chunks_s=(0.25, 0.5, 1.0), ended_s=1.0, new_tokens=3)
    found = ServerBenchmark(
        benchmark_id=benchmark_id,
        url="http://127.0.0.1:8000",
        served_model="served",
        api="completions",
        workload=ServerWorkload(concurrency=(2,)),
        levels=(level(2, [trace, trace]),),
        machine="lab",
        started_at="2026-01-02T03:04:05+00:00",
    )
    return replace(found, **changes)


def make_comparison(
    rows: Sequence[RunRecord], *, budget_bytes: int | None = None, **changes: Any
) -> Comparison:
    """A Comparison of ``rows``, differences and verdict real; ``changes`` replace its fields."""
    rows = attach_differences(rows)
    on_gpu = any(row.device == "cuda" for row in rows)
    comparison = Comparison(
        run_id="20260102-030405-abcdef",
        model=make_model(),
        workload=Workload(),
        budget_bytes=budget_bytes,
        rows=rows,
        verdict=recommend(rows, budget_bytes=budget_bytes),
        environment=Environment(
            platform="Linux-6.1-x86_64",
            python="3.12.1",
            cpu="Example CPU",
            cpu_cores=8,
            ram_bytes=32 * 2**30,
            gpu="NVIDIA GeForce RTX 3090" if on_gpu else None,
            gpu_memory_bytes=24 * 2**30 if on_gpu else None,
            cuda="13.0" if on_gpu else None,
            packages={"torch": "2.13.0", "transformers": "5.23.0"},
        ),
        command="llmfit compare meta-llama/Llama-3.1-8B",
    )
    return replace(comparison, **changes)


def _hellaswag(acc_norm: float, n: int) -> HellaSwag:
    right = round(acc_norm * n)
    share = right / n
    return HellaSwag(
        acc=share,
        acc_norm=share,
        stderr=(share * (1 - share) / n) ** 0.5,
        n=n,
        correct=tuple(index < right for index in range(n)),
    )


def _perplexity(backend: str, token: float) -> Perplexity:
    """50 blocks of 2,000 tokens, harder and easier ones, alike for every backend but for noise."""
    text, noise = random.Random(0), random.Random(backend)
    block_tokens = (2000,) * 50
    losses = [math.log(token) + text.gauss(0, 0.1) + noise.gauss(0, 0.003) for _ in block_tokens]
    surplus = sum(losses) / len(losses) - math.log(token)
    block_nll = tuple((loss - surplus) * 2000 for loss in losses)
    interval = ratio_interval(block_nll, block_tokens)
    return Perplexity(
        token=token,
        protocol="window 2048, stride 2048, BOS",
        n_tokens=sum(block_tokens),
        low=None if interval is None else math.exp(interval[0]),
        high=None if interval is None else math.exp(interval[1]),
        block_nll=block_nll,
        block_tokens=block_tokens,
        n_documents=1,
    )


def _divergence(mean: float) -> Divergence:
    return Divergence(
        reference="bf16",
        n_tokens=100_000,
        mean=mean,
        low=0.9 * mean,
        high=1.1 * mean,
        median=mean / 2,
        p99=8 * mean,
        top1_agreement=0.97,
        top1_low=0.969,
        top1_high=0.971,
    )


class ByteTokenizer(Tokenizer):
    """A token per UTF-8 byte; 0 is BOS and EOS."""

    bos_id = 0
    eos_id = 0

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """See ``Tokenizer.encode``."""
        return [self.bos_id] * special + list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """See ``Tokenizer.decode``."""
        return bytes(token for token in ids if token).decode(errors="replace")


class FakeDecoder(Decoder):
    """Continues every prompt by counting up from its last token."""

    def __init__(self, batch: int, capacity: int, vocab_size: int) -> None:
        self.batch, self.capacity = batch, capacity
        self.steps = 0
        self._vocab_size = vocab_size
        self._last: list[int] = []

    def prefill(self, prompts: Sequence[Sequence[int]], sampling: Sampling = GREEDY) -> None:
        """See ``Decoder.prefill``."""
        self.check_prompts(prompts)
        self._last = [(prompt[-1] + 1) % self._vocab_size for prompt in prompts]

    def step(self) -> None:
        """See ``Decoder.step``."""
        self.steps += 1
        self._last = [(token + 1) % self._vocab_size for token in self._last]

    def tokens(self) -> list[int]:
        """See ``Decoder.tokens``."""
        return list(self._last)

    def close(self) -> None:
        """See ``Decoder.close``."""


class FakeModel(LoadedModel):
    """A model for which every next token is equally likely: its perplexity is its vocabulary."""

    vocab_size = 256
    context_length = 128

    def __init__(self) -> None:
        self.info = LoadInfo(kernel=Kernel(linear="none", attention="none"), dtype="none")
        self.tokenizer = ByteTokenizer()
        self.closed = False

    def decoder(self, *, batch: int, capacity: int, prefill_chunk: int | None = None) -> Decoder:
        """See ``LoadedModel.decoder``."""
        return FakeDecoder(batch, capacity, self.vocab_size)

    def score(
        self, windows: Sequence[Window], *, batch_tokens: int, visit: LogitsVisitor | None = None
    ) -> Iterator[WindowScore]:
        """See ``LoadedModel.score``."""
        for window in windows:
            scored = len(window.ids) - window.score_from
            if visit is not None:
                _show(visit, scored, self.vocab_size)
            yield WindowScore((-math.log(self.vocab_size),) * scored, greedy=False)

    def close(self) -> None:
        """See ``LoadedModel.close``."""
        self.closed = True


def _show(visit: LogitsVisitor, scored: int, vocab_size: int) -> None:
    import torch

    for part in torch.zeros(scored, vocab_size).split(256):
        visit(part)


class FakeBackend(Backend):
    """A backend without packages that loads a ``FakeModel``."""

    id = "fake"
    label = "Fake"
    packages = ()

    def load(self, plan: Plan, progress: Progress = no_progress) -> LoadedModel:
        """See ``Backend.load``."""
        return FakeModel()
