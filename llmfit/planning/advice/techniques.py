"""What is published about each optimisation technique, and the command that measures it.

"Technique table" below is a reference table of expected impact whose author calls its figures
approximate; the papers beside it are named with the figure that they give.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llmfit.planning.advice.measured_effects import Effect
from llmfit.planning.comparing.published_quality import published_cost
from llmfit.units import format_percent

TechniqueName = Literal[
    "bf16", "flash", "compile", "kv_cache", "checkpointing", "accumulation", "qlora", "int8",
    "gptq", "awq", "q4_k_m", "q3_k_m", "onnx", "distillation",
]  # fmt: skip
Effort = Literal["low", "medium", "high"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Technique:
    """A technique with what is published about it."""

    label: str
    expected: Effect
    effort: Effort
    command: str
    """The llmfit command that measures it."""
    pair: tuple[str, str] | None = None
    """Backends of which the second shows the technique over the first."""


def _perplexity(backend: str) -> str:
    """The published rise of a format's perplexity, e.g. ``perplexity +2.4–3.4 %``."""
    cost = published_cost(backend)
    assert cost is not None  # every format of this table has one
    low = format_percent(cost.low).removesuffix(" %")
    return f"perplexity +{low}–{format_percent(cost.high)}"


TECHNIQUES: Mapping[TechniqueName, Technique] = {
    "bf16": Technique(
        label="mixed precision",
        expected=Effect(
            memory="−50 %",
            speed="2–3×",
            quality="unchanged",
            source="Micikevicius et al. 2018, arXiv:1710.03740 (half the memory, the same "
            "accuracy); technique table; its ResNet-50 step on an RTX 4090, 95 → 38 ms",
        ),
        effort="low",
        command="llmfit study precision",
    ),
    "flash": Technique(
        label="flash attention",
        expected=Effect(
            memory="−50–90 % attention",
            speed="2–8× attention",
            quality="unchanged",
            source="Dao 2023, arXiv:2307.08691 (memory linear in the length, twice the speed of "
            "the first version); technique table; its forward pass at 2,048 tokens on an RTX "
            "4090, 9.12 → 1.12 ms",
        ),
        effort="low",
        command="llmfit study attention",
        pair=("bf16", "sdpa"),
    ),
    "compile": Technique(
        label="torch.compile",
        expected=Effect(
            memory="unchanged",
            speed="1.5–2.5×",
            quality="unchanged",
            source="Ansel et al. 2024, PyTorch 2, ASPLOS (2.27× inference, 1.41× training, "
            "geometric mean of 180 models on an A100); technique table",
        ),
        effort="low",
        command="llmfit compare MODEL --backends bf16,sdpa,compiled",
        pair=("sdpa", "compiled"),
    ),
    "kv_cache": Technique(
        label="KV cache",
        expected=Effect(
            memory="grows with context",
            speed="10–50×",
            quality="unchanged",
            source="technique table; by arithmetic, a token without it runs all tokens before it "
            "through the model again",
        ),
        effort="low",
        command="llmfit study kv-cache",
    ),
    "checkpointing": Technique(
        label="gradient checkpointing",
        expected=Effect(
            memory="−50–70 %",
            speed="0.7×",
            quality="unchanged",
            source="Chen et al. 2016, arXiv:1604.06174 (activations of √n layers for one more "
            "forward pass); technique table; its 12-layer Transformer on an RTX 3090, 18.4 → "
            "7.8 GB, 285 → 378 ms",
        ),
        effort="low",
        command="llmfit study checkpointing",
    ),
    "accumulation": Technique(
        label="gradient accumulation",
        expected=Effect(
            memory="activations ÷ steps",
            speed="about 1×",
            quality="unchanged",
            source="arithmetic: a sum of gradients in parts, the same but for rounding and for "
            "layers that look across the batch",
        ),
        effort="low",
        command="llmfit study accumulation",
    ),
    "qlora": Technique(
        label="QLoRA",
        expected=Effect(
            memory="65 B in 48 GB",
            speed=None,
            quality="as 16-bit tuning",
            source="Dettmers et al. 2023, arXiv:2305.14314 (65 B parameters on one 48 GB GPU "
            "instead of over 780 GB, at the quality of 16-bit tuning)",
        ),
        effort="medium",
        command="llmfit study techniques",
        pair=("bf16", "nf4"),
    ),
    "int8": Technique(
        label="INT8 (bitsandbytes)",
        expected=Effect(
            memory="−50 %",
            speed="0.9–1.1×",
            quality=_perplexity("int8"),
            source="Dettmers et al. 2022, arXiv:2208.07339 (half the memory, no loss in their "
            "tasks); technique table; torchao's table of Llama-3.1-8B",
        ),
        effort="low",
        command="llmfit compare MODEL --backends bf16,int8",
        pair=("bf16", "int8"),
    ),
    "gptq": Technique(
        label="GPTQ INT4",
        expected=Effect(
            memory="−70–75 %",
            speed="1.3–4.5×",
            quality=_perplexity("gptq"),
            source="Frantar et al. 2023, arXiv:2210.17323 (3.25× on an A100, 4.5× on an A6000, "
            "own kernels); technique table (1.3–1.8×); GPTQ-for-LLaMa's tables",
        ),
        effort="medium",
        command="llmfit compare MODEL --backends bf16,gptq",
        pair=("bf16", "gptq"),
    ),
    "awq": Technique(
        label="AWQ INT4",
        expected=Effect(
            memory="−70–75 %",
            speed="1.3–3×",
            quality=_perplexity("awq"),
            source="Lin et al. 2024, arXiv:2306.00978 (over 3× transformers' FP16, own kernels; "
            "Llama-2-7B 5.47 → 5.60); technique table (1.3–1.8×)",
        ),
        effort="medium",
        command="llmfit compare MODEL --backends bf16,awq",
        pair=("bf16", "awq"),
    ),
    "q4_k_m": Technique(
        label="GGUF Q4_K_M",
        expected=Effect(
            memory="−69 %",
            speed="≤ 3.3× (CPU)",
            quality=_perplexity("gguf:q4_k_m"),
            source="llama.cpp's tables: 4.89 bits a weight of Llama-3.1-8B, whose share of 16 "
            "bounds the speed; perplexity of Llama-3-8B and Llama-2-70B",
        ),
        effort="low",
        command="llmfit compare MODEL --backends bf16,gguf",
        pair=("bf16", "gguf"),
    ),
    "q3_k_m": Technique(
        label="GGUF Q3_K_M",
        expected=Effect(
            memory="−75 %",
            speed="≤ 4× (CPU)",
            quality=_perplexity("gguf:q3_k_m"),
            source="llama.cpp's tables: 4.00 bits a weight of Llama-3.1-8B, whose share of 16 "
            "bounds the speed; perplexity of Llama-3-8B and Llama-2-70B",
        ),
        effort="low",
        command="llmfit compare MODEL --backends bf16,gguf:q3_k_m,gguf",
        pair=("bf16", "gguf:q3_k_m"),
    ),
    "onnx": Technique(
        label="ONNX export",
        expected=Effect(
            memory=None,
            speed=None,
            quality="unchanged",
            source="the same weights and operations; no figure holds across runtimes and parts",
        ),
        effort="medium",
        command="llmfit study onnx",
    ),
    "distillation": Technique(
        label="distillation",
        expected=Effect(
            memory="−40–90 %",
            speed="1.6–20×",
            quality="−3–15 % accuracy",
            source="Sanh et al. 2019, arXiv:1910.01108 (DistilBERT: 40 % smaller, 60 % faster, "
            "97 % of the score); technique table",
        ),
        effort="high",
        command="llmfit study techniques",
    ),
}
