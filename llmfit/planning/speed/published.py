"""Decode rates that others published, by card and format: a measure of what an engine reaches.

Left out on purpose: engines of another kind than the row's (vLLM beside its own row, SGLang,
TensorRT-LLM), whose kernels say nothing about ours, and figures whose card is not named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRate:
    """One published figure: batch 1, decode."""

    hardware: str
    """Name of the part, as in the table of ``planning/speed/hardware.py``."""
    backend: str
    """Row of ours that does the same: ``sdpa``, ``nf4`` …"""
    model: str
    """Hub id, as in the catalogue."""
    tokens_per_s: float
    engine: str
    """What it was measured with."""
    one_graph: bool
    """Whether that runs a step as one graph, as llmfit does, or launches its kernels one by one."""
    source: str


def published(hardware_name: str, backend: str, *, one_graph: bool) -> tuple[PublishedRate, ...]:
    """Figures of this card in this format by such engines; empty where none is known here."""
    row = backend.partition(":")[0]
    return tuple(
        rate
        for rate in RATES
        if (rate.hardware, rate.backend, rate.one_graph) == (hardware_name, row, one_graph)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What the figures of one table have in common."""

    hardware: str
    engine: str
    source: str
    one_graph: bool = False

    def rates(self, figures: Mapping[str, Mapping[str, float]]) -> tuple[PublishedRate, ...]:
        """Tokens per second by hub id, then by row."""
        return tuple(
            PublishedRate(
                hardware=self.hardware,
                backend=backend,
                model=model,
                tokens_per_s=rate,
                engine=self.engine,
                one_graph=self.one_graph,
                source=self.source,
            )
            for model, by_backend in figures.items()
            for backend, rate in by_backend.items()
        )


_LLAMA = "meta-llama/Llama-3.1-8B"

_RTX_3090 = _Run(
    hardware="NVIDIA GeForce RTX 3090",
    engine="its author's table",
    source="reference table of Llama-3.1-8B, sequence 512, approximate figures",
)
_GPT_FAST = _Run(
    hardware="NVIDIA A100-SXM4-80GB",
    engine="gpt-fast",
    source="pytorch-labs/gpt-fast, README.md, 330 W, prompt of 5 tokens",
    one_graph=True,
)
_QWEN25 = _Run(
    hardware="NVIDIA A100-SXM4-80GB",
    engine="transformers 4.46",
    source="QwenLM/Qwen2.5, docs/source/benchmark/speed_benchmark.rst, input 1, output 2048",
)
_QWEN25_VLLM = _Run(
    hardware="NVIDIA A100-SXM4-80GB",
    engine="vLLM 0.6.3",
    source="QwenLM/Qwen2.5, docs/source/benchmark/speed_benchmark.rst, input 1, output 2048",
    one_graph=True,
)
_LLAMA_CPP_3080 = _Run(
    hardware="NVIDIA GeForce RTX 3080",
    engine="llama.cpp b3622",
    source="dmatora/LLM-inference-speed-benchmarks, issue 12, llama-bench in Q4_K_M",
    one_graph=True,
)
_QWEN3 = _Run(
    hardware="NVIDIA H20",
    engine="transformers 4.51",
    source="QwenLM/Qwen2.5, docs/source/getting_started/speed_benchmark.md, input 1, output 2048",
)
_BNB_README = "bitsandbytes-foundation/bitsandbytes, benchmarking/README.md, v0.45.0"
_BNB_4090 = _Run(
    hardware="NVIDIA GeForce RTX 4090",
    engine="transformers 4.46",
    source=_BNB_README,
)
_BNB_H100 = _Run(
    hardware="NVIDIA H100 80GB HBM3",
    engine="transformers 4.46",
    source=_BNB_README,
)
_LLMFIT = _Run(
    hardware="NVIDIA H200",
    engine="llmfit",
    source="llmfit, benchmarks/results/decode_gpu.json, prompt of 512 tokens, 256 new ones",
    one_graph=True,
)

RATES: tuple[PublishedRate, ...] = (
    # The compiled figure is beyond the card: 15 GB a token at 936 GB/s are 62 tokens/s at most.
    # It stands as its author wrote it; whoever calibrates by it has to look.
    *_RTX_3090.rates(
        {
            _LLAMA: {
                "bf16": 38,
                "sdpa": 52,
                "compiled": 68,
                "int8": 35,
                "nf4": 42,
                "gptq": 55,
                "awq": 52,
            }
        }
    ),
    *_GPT_FAST.rates({"meta-llama/Llama-2-7b-hf": {"compiled": 104.9}, _LLAMA: {"compiled": 93.9}}),
    *_QWEN25.rates(
        {
            "Qwen/Qwen2.5-0.5B-Instruct": {"sdpa": 47.40, "gptq": 50.60, "awq": 37.09},
            "Qwen/Qwen2.5-1.5B-Instruct": {"sdpa": 39.68, "gptq": 43.33, "awq": 31.70},
            "Qwen/Qwen2.5-7B-Instruct": {"sdpa": 40.38, "gptq": 43.10, "awq": 32.03},
            "Qwen/Qwen2.5-14B-Instruct": {"sdpa": 24.74, "gptq": 25.89, "awq": 19.23},
            "Qwen/Qwen2.5-32B-Instruct": {"sdpa": 17.54, "gptq": 19.20, "awq": 14.60},
        }
    ),
    *_QWEN25_VLLM.rates(
        {
            "Qwen/Qwen2.5-0.5B-Instruct": {"vllm": 311.55},
            "Qwen/Qwen2.5-1.5B-Instruct": {"vllm": 183.33},
            "Qwen/Qwen2.5-14B-Instruct": {"vllm": 46.30},
        }
    ),
    *_LLAMA_CPP_3080.rates({_LLAMA: {"gguf-gpu": 111.95}}),
    *_QWEN3.rates(
        {
            "Qwen/Qwen3-0.6B": {"sdpa": 58.57},
            "Qwen/Qwen3-1.7B": {"sdpa": 59.83},
            "Qwen/Qwen3-4B": {"sdpa": 45.94, "awq": 51.57},
            "Qwen/Qwen3-8B": {"sdpa": 45.32, "awq": 51.33},
            "Qwen/Qwen3-32B": {"sdpa": 26.24, "awq": 41.8},
        }
    ),
    # Its "INT8+Decomp" is LLM.int8() with the outliers kept apart, as our row runs it; its "NF4"
    # is without double quantisation, likewise.
    *_BNB_4090.rates(
        {
            _LLAMA: {"sdpa": 47.46, "nf4": 67.71, "int8": 22.26},
            "Qwen/Qwen2.5-14B-Instruct": {"nf4": 46.74, "int8": 15.44},
        }
    ),
    *_BNB_H100.rates(
        {
            _LLAMA: {"sdpa": 40.99, "nf4": 30.14, "int8": 12.24},
            "Qwen/Qwen2.5-32B-Instruct": {"sdpa": 19.67, "nf4": 14.14, "int8": 5.49},
            "meta-llama/Llama-3.1-70B": {"nf4": 12.00, "int8": 5.04},
        }
    ),
    *_LLMFIT.rates(
        {
            _LLAMA: {
                "bf16": 134.5,
                "sdpa": 137.6,
                "compiled": 242.1,
                "nf4": 353.8,
                "gptq": 443.0,
                "awq": 444.8,
            }
        }
    ),
)
