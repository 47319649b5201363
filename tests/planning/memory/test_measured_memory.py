"""Predicted peaks against published measurements on GPUs.

The published program is transformers' own loop: its cache grows, so a prompt's peak holds the keys
and values of the prompt alone, and that of decoding those of all tokens. Each row is compared with
that protocol, and with what ``llmfit plan`` says of its own decoder, whose cache is made at once.
"""

from __future__ import annotations

import csv
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from llmfit.models import resolve
from llmfit.planning.memory.activations import Pass, decode_pass, pass_bytes, prefill_passes
from llmfit.planning.memory.kv_cache import kv_cache_bytes
from llmfit.planning.memory.prediction import predict_memory, weights_bytes, workspace_bytes
from llmfit.planning.speed.hardware import match_gpu
from llmfit.records import ModelSpec, Workload
from llmfit.shape import ModelShape
from llmfit.testing import make_model

MIB = 2**20
UNITS = {"MiB": MIB, "GiB": 1024 * MIB}
# Flash attention ran throughout, so bf16 is the row with fused attention.
BACKENDS = {"bf16": "sdpa", "gptq-int8": "gptq:int8", "gptq-int4": "gptq", "awq": "awq"}
PREFILL_CHUNK = 512


@dataclass(frozen=True, kw_only=True)
class Row:
    """A published peak of torch's allocator."""

    spec: ModelSpec
    method: str
    engine: str
    gpu: str
    workload: Workload
    measured_bytes: float

    @property
    def backend(self) -> str:
        return BACKENDS[self.method]

    def __str__(self) -> str:
        name = self.spec.name.rpartition("/")[2].removesuffix("-Instruct")
        chunk = self.workload.prefill_chunk or "full"
        return f"{name:12} {self.method:9} {self.workload.prompt_tokens:6} {chunk!s:>5}"


@pytest.fixture(scope="module")
def rows(shared_data: Path) -> tuple[Row, ...]:
    """The table's peaks of GPU memory."""
    return tuple(_read(shared_data))


def _read(data: Path) -> Iterator[Row]:
    with (data / "measured_memory.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if row["kind"] != "vram_peak":
                continue
            spec = resolve(str(data / "configs" / row["model"].replace("/", "--")))
            yield Row(
                spec=replace(spec, name=row["model"]),
                method=row["method"],
                engine=row["engine"],
                gpu=row["gpu"],
                workload=Workload(
                    prompt_tokens=int(row["input_tokens"]),
                    new_tokens=int(row["output_tokens"]),
                    batch=int(row["batch"]),
                    prefill_chunk=PREFILL_CHUNK if row["prefill"] == "chunked" else None,
                ),
                measured_bytes=float(row["value"]) * UNITS[row["unit"]],
            )


# ---------------------------------------------------------------- the published protocol


def published_protocol_bytes(row: Row) -> float:
    """What transformers' own loop holds at its fullest, in torch's allocator."""
    spec, shape, work = row.spec, row.spec.shape, row.workload
    assert shape is not None
    weights = weights_bytes(spec, row.backend)
    assert weights is not None
    grown = kv_cache_bytes(spec, work)
    of_prompt = kv_cache_bytes(spec, replace(work, new_tokens=0))
    # Flash attention takes chunks as they come, without a mask: a chunk is like a prompt.
    passes = [replace(each, context=each.new) for each in prefill_passes(work)]
    prefill = max(_pass(row, shape, each) for each in passes)
    decode = _pass(row, shape, decode_pass(row.backend, work))
    peak = max(of_prompt + prefill, grown + decode)
    return weights + peak + workspace_bytes("cuda", match_gpu(row.gpu)) + _engine_bytes(row, shape)


def _pass(row: Row, shape: ModelShape, run: Pass) -> int:
    return pass_bytes(
        shape, row.backend, run, device="cuda", eager=False, prompt=row.workload.prompt_tokens
    )


def _engine_bytes(row: Row, shape: ModelShape) -> int:
    """What the engines of the time held besides.

    transformers before 4.50 loads tensor by tensor, in blocks of torch's own sizes. AutoGPTQ's
    exllama kernel unpacks into a buffer of the largest matrix.
    """
    extra = 0
    if "transformers 4.46" in row.engine:
        extra += _block_waste(row.spec, shape, row.backend)
    if row.method == "gptq-int4":
        extra += _largest_matrix_bytes(shape)
    return extra


def _largest_matrix_bytes(shape: ModelShape) -> int:
    """Bytes of the largest matrix of a block, unpacked to 16 bits."""
    return max(m.rows * m.columns * 2 for kind in shape.kinds for m in kind.matrices if m.linear)


def _block_waste(spec: ModelSpec, shape: ModelShape, backend: str) -> int:
    """Bytes that the weights' blocks have beyond their tensors.

    A request from 10 MiB gets a block of its own in steps of 2 MiB, of which a rest of up to 1 MiB
    is not split off. Source: PyTorch, c10/cuda/CUDACachingAllocator.cpp, should_split.
    """
    per_value = {"sdpa": 2.0, "gptq:int8": 1.0, "gptq": 0.5, "awq": 0.5}[backend]
    waste = 0
    for matrix in (shape.embedding, shape.head):
        waste += _waste(matrix.parameters * 2)
    for layer in shape.of_layers():
        for matrix in layer.matrices:
            waste += _waste(int(matrix.parameters * per_value))
    return waste


def _waste(size: int) -> int:
    rest = -size % (2 * MIB)
    return rest if size >= 10 * MIB and rest <= MIB else 0


# ---------------------------------------------------------------- the promises


def _errors(rows: tuple[Row, ...], predicted: list[float], title: str) -> list[float]:
    """Absolute errors in %; prints the table, for ``pytest -s``."""
    errors, lines = [], ["", title]
    for row, value in zip(rows, predicted, strict=True):
        error = 100 * (value / row.measured_bytes - 1)
        errors.append(abs(error))
        sizes = f"{row.measured_bytes / MIB:8.0f} {value / MIB:8.0f} MiB"
        lines.append(f"{row}  {sizes}  {error:+6.2f} %")
    within = sum(error <= 5 for error in errors) / len(errors)
    median, worst = statistics.median(errors), max(errors)
    lines.append(f"median {median:.2f} %, worst {worst:.2f} %, {within:.0%} within 5 %")
    sys.stdout.write("\n".join(lines) + "\n")
    return errors


def test_published_peaks_by_their_own_protocol(rows: tuple[Row, ...]) -> None:
    """Every published peak is met within 1.6 %, half of them within 0.5 %."""
    errors = _errors(rows, [published_protocol_bytes(row) for row in rows], "their protocol")
    assert max(errors) <= 1.6
    assert statistics.median(errors) <= 0.5


def test_published_peaks_as_llmfit_plans_them(rows: tuple[Row, ...]) -> None:
    """Of the published peaks 90 % are predicted within 5 %, all within 8 %, half within 2 %."""
    predicted: list[float] = []
    for row in rows:
        memory = predict_memory(row.spec, row.backend, row.workload, "cuda")
        assert memory is not None
        predicted.append(memory.total_bytes - memory.runtime_bytes)
    errors = _errors(rows, predicted, "llmfit's decoder")
    assert sum(error <= 5 for error in errors) >= 0.9 * len(errors)
    assert max(errors) <= 8
    assert statistics.median(errors) <= 2


# ---------------------------------------------------------------- other sizes, same publisher

FULL, CHUNKED = None, PREFILL_CHUNK
# hidden, MLP, layers, heads, key heads, head size; tied, vocabulary 151,936 throughout.
SIZES = {
    "Qwen2.5-0.5B": ("qwen2", 896, 4864, 24, 14, 2, 64),
    "Qwen2.5-1.5B": ("qwen2", 1536, 8960, 28, 12, 2, 128),
    "Qwen3-1.7B": ("qwen3", 2048, 6144, 28, 16, 8, 128),
    "Qwen3-4B": ("qwen3", 2560, 9728, 36, 32, 8, 128),
}
PUBLISHED: dict[tuple[str, str], tuple[int | None, float, tuple[float, ...]]] = {
    ("Qwen2.5-0.5B", "bf16"): (FULL, 1024, (0.97, 1.23, 1.60, 2.34)),
    ("Qwen2.5-0.5B", "gptq-int8"): (FULL, 1024, (0.64, 0.90, 1.26, 2.01)),
    ("Qwen2.5-0.5B", "gptq-int4"): (FULL, 1024, (0.48, 0.73, 1.10, 1.85)),
    ("Qwen2.5-1.5B", "bf16"): (FULL, 1024, (2.95, 3.43, 4.16, 5.62)),
    ("Qwen2.5-1.5B", "gptq-int8"): (FULL, 1024, (1.82, 2.30, 3.03, 4.49)),
    ("Qwen2.5-1.5B", "gptq-int4"): (FULL, 1024, (1.18, 1.66, 2.39, 3.85)),
    ("Qwen3-1.7B", "bf16"): (CHUNKED, 1, (3412, 4213, 5109, 6902)),
    ("Qwen3-1.7B", "gptq-int8"): (CHUNKED, 1, (2229, 2901, 3798, 5590)),
    ("Qwen3-4B", "bf16"): (CHUNKED, 1, (7973, 8860, 10012, 12317)),
    ("Qwen3-4B", "awq"): (CHUNKED, 1, (2915, 3881, 5151, 7742)),
}
"""Peaks in GiB (1024) or MiB (1) after 1, 6,144, 14,336 and 30,720 tokens, 2,048 of them new.

AWQ of the two smallest is left out: with one token it is published above the same row with GPTQ by
the size of the embedding, which AutoAWQ holds twice while it loads a tied model.
Source: QwenLM/Qwen3, docs/source/benchmark/speed_benchmark.rst (A100, transformers 4.46) and
docs/source/getting_started/speed_benchmark.md (H20, transformers 4.51).
"""


def test_other_published_sizes() -> None:
    """Forty peaks of four more models, none of which the arithmetic was written by: all within 5 %,
    half within 1.5 %."""
    errors = []
    for (name, method), (chunk, unit, peaks) in PUBLISHED.items():
        kind, hidden, width, layers, heads, kv_heads, head_dim = SIZES[name]
        spec = make_model(
            model_type=kind, hidden_size=hidden, intermediate_size=width, head_dim=head_dim,
            num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
            vocab_size=151_936, tie_word_embeddings=True,
        )  # fmt: skip
        for tokens, peak in zip((1, 6144, 14_336, 30_720), peaks, strict=True):
            work = Workload(prompt_tokens=tokens, new_tokens=2048, prefill_chunk=chunk)
            memory = predict_memory(spec, BACKENDS[method], work, "cuda")
            assert memory is not None
            counted = memory.total_bytes - memory.runtime_bytes
            errors.append(abs(100 * (counted / (peak * unit * MIB) - 1)))
    assert max(errors) <= 5
    assert statistics.median(errors) <= 1.5
