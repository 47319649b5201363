"""How much of the hardware's limits each format reaches: stated defaults, with their sources.

    busy    = detour bytes ÷ B·b + max(bytes read ÷ B·b, FLOPs ÷ F·c)
    waiting = layers started × seconds each    (Python, launches, small kernels, threads that meet)
    a GPU's kernels launched one by one: max(busy, waiting), since launches run ahead
    a step that is one graph on a GPU, and any on a CPU: busy + waiting

B and F are the bandwidth and the arithmetic of the part, b and c the shares of them that are
reached. Small models wait, large ones are busy, so the two are kept apart: what was seen of the
one says nothing of the other. ``calibration.py`` puts measurements in the place of the defaults.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from llmfit.planning.memory.kv_cache import is_llama_cpp
from llmfit.planning.speed.work import Work
from llmfit.records import Hardware, KvCacheDtype

Place = Literal["gpu", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What running a format costs, against the limits of the part that it runs on."""

    bandwidth_share: float
    """Share of the part's bandwidth that is reached."""
    compute_share: float
    """Share of the part's arithmetic that is reached."""
    layer_s: float
    """Seconds for each start of a decoder layer, whatever its size."""
    adds_up: bool
    """Whether the part stands still meanwhile: on a GPU whose launches run ahead it does not."""

    def faster(self, busy: float, waiting: float) -> Cost:
        """The cost with the busy and the waiting time each divided by its factor."""
        return replace(
            self,
            bandwidth_share=self.bandwidth_share * busy,
            compute_share=self.compute_share * busy,
            layer_s=self.layer_s / waiting,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """The cost of a format as it is expected, with the slowest and the fastest to reckon with."""

    low: Cost
    """The slowest."""
    estimate: Cost
    high: Cost
    """The fastest."""
    basis: str
    """For people: what the figures rest on."""


def busy_and_waiting_s(work: Work, cost: Cost, hardware: Hardware) -> tuple[float, float]:
    """Seconds that the part works, and that it is waited for. ``hardware.bandwidth`` is known."""
    assert hardware.bandwidth is not None
    bandwidth = hardware.bandwidth * cost.bandwidth_share
    arithmetic = work.flops / (hardware.flops * cost.compute_share) if hardware.flops else 0.0
    busy = work.detour_bytes / bandwidth + max(work.read_bytes / bandwidth, arithmetic)
    return busy, work.layer_runs * cost.layer_s


def seconds(work: Work, cost: Cost, hardware: Hardware) -> float:
    """Time of ``work``."""
    busy, waiting = busy_and_waiting_s(work, cost, hardware)
    return busy + waiting if cost.adds_up else max(busy, waiting)


def stated(
    backend: str,
    hardware: Hardware,
    kv_cache_dtype: KvCacheDtype | None,
    *,
    one_graph: bool = False,
) -> Efficiency:
    """The default for a format on such a part, to be used where nothing was measured.

    ``one_graph`` is a decode step that a GPU runs as one graph, where llmfit captures the format's.
    """
    name = backend.partition(":")[0]
    place: Place = "cpu" if hardware.kind == "cpu" else "gpu"
    if one_graph and place == "gpu" and name in _ONE_GRAPH:
        return _of_one_graph(name, hardware)
    efficiency = _STATED.get((name, place)) or _of_an_unstated_format(place)
    if place == "gpu" and _DESKTOP_CARD.search(hardware.name):
        efficiency = _beside_a_desktop(efficiency)
    if kv_cache_dtype is not None and not is_llama_cpp(backend):
        efficiency = _with_quantised_cache(efficiency)
    return _with_guessed_bandwidth(efficiency) if is_guess(hardware) else efficiency


def _of_one_graph(name: str, hardware: Hardware) -> Efficiency:
    """As on an H200; where less bandwidth has to be kept up with, packed codes reach more of it."""
    efficiency = _ONE_GRAPH[name]
    if name not in _PACKED or hardware.bandwidth is None:
        return efficiency
    slower = max(1.0, _H200_BANDWIDTH / hardware.bandwidth)

    def reached(cost: Cost, most: float) -> Cost:
        return replace(cost, bandwidth_share=min(most, slower * cost.bandwidth_share))

    return replace(
        efficiency,
        low=reached(efficiency.low, 0.55),
        estimate=reached(efficiency.estimate, 0.80),
    )


def _of_an_unstated_format(place: Place) -> Efficiency:
    """As 16 bits, or half as fast: how a checkpoint's own kernels do is not known here."""
    plain = _STATED[("sdpa", place)]
    return replace(
        plain,
        low=plain.low.faster(1 / 2, 1 / 2),
        basis=f"{plain.basis}, for 16 bits: nothing is stated for this format",
    )


_DESKTOP_CARD = re.compile(
    r"GeForce|RTX|GTX|TITAN|Quadro|Radeon|Ryzen|\bArc\b|Apple", re.IGNORECASE
)
_DESKTOP_PACE = 1.5
"""How much faster a desktop's CPU launches than a server's. Source: NF4 and LLM.int8() are 2.2 and
1.8 times as fast beside an RTX 4090 as beside an H100 (bitsandbytes' benchmark), NF4 and GPTQ 1.4
times beside the RTX 3090 of the reference table; taken between them."""


def _beside_a_desktop(efficiency: Efficiency) -> Efficiency:
    """Launches at a desktop's pace, at worst at that of a common server."""
    low, estimate, high = efficiency.low, efficiency.estimate, efficiency.high
    return replace(
        efficiency,
        low=replace(low, layer_s=estimate.layer_s),
        estimate=estimate.faster(1.0, _DESKTOP_PACE),
        high=high.faster(1.0, _DESKTOP_PACE),
    )


def is_guess(hardware: Hardware) -> bool:
    """A CPU whose bandwidth nobody measured; an assumed GPU is a real card that is named."""
    return hardware.assumed and hardware.kind == "cpu"


def _with_guessed_bandwidth(efficiency: Efficiency) -> Efficiency:
    return replace(
        efficiency,
        low=efficiency.low.faster(1 / _GUESS, 1.0),
        high=efficiency.high.faster(_GUESS, 1.0),
        basis=f"{efficiency.basis}; bandwidth assumed",
    )


def _with_quantised_cache(efficiency: Efficiency) -> Efficiency:
    """Two to four times the starts: a layer's cache is unpacked, and packed, at each step."""
    return replace(
        efficiency,
        low=efficiency.low.faster(1.0, 1 / 4),
        estimate=efficiency.estimate.faster(1.0, 1 / 2),
        basis=f"{efficiency.basis}; quantised cache assumed to double the launches",
    )


_GUESS = 1.7
"""A machine's bandwidth may be so many times more or less than its cores let expect: one or two
channels, DDR4 or DDR5."""


def _range(
    bandwidth: tuple[float, float, float],
    compute: tuple[float, float, float],
    layer_ms: tuple[float, float, float],
    source: str,
    *,
    adds_up: bool = False,
) -> Efficiency:
    """Slowest, expected and fastest of each figure, in this order."""
    low, estimate, high = (
        Cost(bandwidth_share=b, compute_share=c, layer_s=ms / 1e3, adds_up=adds_up)
        for b, c, ms in zip(bandwidth, compute, layer_ms, strict=True)
    )
    return Efficiency(
        low=low, estimate=estimate, high=high, basis=f"stated default, after {source}"
    )


_BNB = "bitsandbytes' benchmark"
_QWEN = "Qwen's benchmarks"
_CORES = "rates on two CPU cores"
_LLAMA_CPP = "llama.cpp's benchmarks"
_H200 = "llmfit's rows on an H200"

_adding = partial(_range, adds_up=True)

_STATED: dict[tuple[str, Place], Efficiency] = {
    # GPU: seconds a layer are those beside a server's CPU, the slowest those of small cloud hosts.
    # Bandwidth: Llama-3.1-8B, 15 GB a token, 21.1 ms on an RTX 4090 (1,008 GB/s).
    # Layers: 24.4 ms for 32 and 50.8 ms for 64 on an H100, where the reading takes 5 and 20 ms;
    # 39 ms for 36 on a T4. Source of all rows of bitsandbytes: its benchmarking/README.md, v0.45.0,
    # batch 1. On an A100 0.77 ms a layer (QwenLM/Qwen, README.md, 1.8B to 14B), on an H20 0.61
    # (Qwen's speed_benchmark.md, 0.6B to 32B). All of it through generate, which is left out here.
    ("bf16", "gpu"): _range((0.55, 0.70, 0.88), (0.30, 0.50, 0.70), (1.15, 0.72, 0.45), _BNB),
    ("sdpa", "gpu"): _range((0.55, 0.70, 0.88), (0.35, 0.55, 0.75), (1.15, 0.70, 0.43), _BNB),
    # Llama-2-7B: 1,397 GB/s are 0.69 of an A100-80GB's 2,039, and 0.82 of the 1,700 that it has
    # when held to 330 W, as there (gpt-fast's README). A graph leaves microseconds between
    # kernels, so more is reached than by launching the same kernels one by one.
    ("compiled", "gpu"): _range(
        (0.52, 0.74, 0.90), (0.35, 0.55, 0.75), (0.040, 0.015, 0.005), "gpt-fast on an A100"
    ),
    # LLM.int8() with its outliers: 81.7 ms for 32 layers on an H100, 182 for 64, 198.5 for 80;
    # 44.9 for 32 beside an RTX 4090; 167 for 36 on a T4. Its products are waited for long before
    # they reach the bandwidth.
    ("int8", "gpu"): _range((0.30, 0.50, 0.75), (0.20, 0.35, 0.60), (4.70, 2.50, 1.30), _BNB),
    # 33.1, 70.7 and 83.3 ms for 32, 64 and 80 layers on an H100, 14.8 for 32 beside an RTX 4090,
    # 60.8 for 36 on a T4. Batches of Llama-3.1-8B reach 0.75 of the RTX 4090's bandwidth while
    # they unpack.
    ("nf4", "gpu"): _range((0.35, 0.60, 0.80), (0.30, 0.50, 0.70), (1.75, 0.95, 0.55), _BNB),
    # GPTQ: 14.1, 20.0 and 25.8 ms for 24, 32 and 40 layers of Qwen-1.8B, 7B and 14B (QwenLM/Qwen,
    # README.md); 0.83 ms a layer of Qwen2.5, AWQ 1.1 (its speed_benchmark.rst), by AutoGPTQ and
    # AutoAWQ on an A100; AWQ 0.4 to 0.55 on an H20 (Qwen3). The shares are between NF4's and 16
    # bits': their kernels unpack less.
    ("gptq", "gpu"): _range((0.35, 0.55, 0.80), (0.30, 0.50, 0.70), (1.30, 0.75, 0.45), _QWEN),
    ("awq", "gpu"): _range((0.35, 0.55, 0.80), (0.30, 0.50, 0.70), (1.40, 0.80, 0.36), _QWEN),
    # vLLM: 311.55, 183.33 and 46.30 tokens/s of Qwen2.5-0.5B, 1.5B and 14B in 24, 28 and 48 layers
    # on an A100 (2,039 GB/s), vLLM 0.6.3: 28 GB a token at 0.64 of the bandwidth, 0.13 to 0.19 ms a
    # layer with its scheduling, which later versions overlap. The prompt's shares are sdpa's.
    ("vllm", "gpu"): _range((0.52, 0.64, 0.88), (0.35, 0.55, 0.75), (0.20, 0.12, 0.03), _QWEN),
    # llama.cpp: 4.35 GB a token of Llama-8B in Q4_0 at 156.6 tokens/s on an RTX 3090, 0.73 of its
    # 936 GB/s (ggml-org/llama.cpp, pull request 15802); 4.62 GB in Q4_K_M at 112.0 on an RTX 3080,
    # 0.68 of 760 (dmatora/LLM-inference-speed-benchmarks, issue 12). Prompts: 12,300 tokens/s of
    # IQ4_NL on an RTX 4090 (pull request 24127) are 1.2 times its bf16 rate, as products are of 8
    # bits. Launches as of a compiled step, with less fused.
    ("gguf-gpu", "gpu"): _range(
        (0.48, 0.68, 0.85), (0.35, 0.70, 1.20), (0.080, 0.030, 0.008), _LLAMA_CPP
    ),
    # CPU: a 1.24 B Llama shape on two cores at 25 to 60 GB/s, and seconds a layer from the embedded
    # model's 6 (benchmarks/results/decode_cpu.json). The slowest are those without llmfit's own
    # kernels, for which no compiler may be there, and an 8 B one's 0.43 to 0.45 in bf16
    # (rtx3090_llama31_8b_cpu.json). The arithmetic is a share of the cores' multiply-adds in their
    # widest registers.
    ("bf16", "cpu"): _adding((0.38, 0.75, 0.98), (0.10, 0.30, 0.80), (0.90, 0.52, 0.25), _CORES),
    ("sdpa", "cpu"): _adding((0.40, 0.80, 1.00), (0.10, 0.35, 0.85), (0.75, 0.37, 0.18), _CORES),
    ("compiled", "cpu"): _adding(
        (0.40, 0.87, 1.00), (0.10, 0.35, 0.85), (0.65, 0.04, 0.02), _CORES
    ),
    ("int8", "cpu"): _adding((0.20, 0.70, 0.95), (0.06, 0.45, 0.80), (1.50, 0.37, 0.20), _CORES),
    ("nf4", "cpu"): _adding((0.20, 0.80, 0.98), (0.08, 0.50, 0.85), (0.70, 0.34, 0.17), _CORES),
    ("gptq", "cpu"): _adding((0.30, 0.80, 0.98), (0.08, 0.50, 0.85), (0.55, 0.35, 0.15), _CORES),
    ("awq", "cpu"): _adding((0.30, 0.80, 0.98), (0.08, 0.50, 0.85), (0.55, 0.35, 0.15), _CORES),
    ("gguf", "cpu"): _adding((0.55, 0.90, 1.00), (0.10, 0.40, 0.90), (0.20, 0.08, 0.02), _CORES),
}

_H200_BANDWIDTH = 4_800e9
_PACKED = frozenset({"int8", "nf4", "gptq", "awq"})
"""Unpacking takes integer arithmetic, on an H200 more time than reading. GPUs of any size have 4 to
20 T such operations a second, and an eighteenth to all of that card's bandwidth."""
_ONE_GRAPH: dict[str, Efficiency] = {
    # Decode steps of Llama-3.1-8B on an H200 of 4,800 GB/s (benchmarks/results/decode_gpu.json):
    # 7.4 and 7.3 ms captured alone, of which 32 layers' small kernels take 0.11 ms each; compiled
    # 4.1 ms, and 0.02 ms a layer. The slowest of it is gpt-fast's 9.5 ms for Llama-2-7B's 13.2 GB
    # on an A100 that is held to 330 W. The shares of 4 bits rise where bandwidth is scarcer beside
    # integer arithmetic, of which a code takes three instructions. LLM.int8() is between.
    "bf16": _adding((0.50, 0.85, 0.98), (0.30, 0.50, 0.70), (0.30, 0.115, 0.04), _H200),
    "sdpa": _adding((0.50, 0.85, 0.98), (0.35, 0.55, 0.75), (0.30, 0.112, 0.04), _H200),
    "compiled": _adding(
        (0.50, 0.85, 0.98),
        (0.35, 0.55, 0.75),
        (0.040, 0.015, 0.005),
        f"{_H200}, gpt-fast on an A100",
    ),
    "int8": _adding((0.25, 0.60, 0.95), (0.20, 0.35, 0.60), (0.060, 0.025, 0.008), _H200),
    "nf4": _adding((0.30, 0.48, 0.92), (0.30, 0.50, 0.70), (0.045, 0.020, 0.006), _H200),
    "gptq": _adding((0.35, 0.61, 0.95), (0.30, 0.50, 0.70), (0.045, 0.020, 0.006), _H200),
    "awq": _adding((0.35, 0.61, 0.95), (0.30, 0.50, 0.70), (0.045, 0.020, 0.006), _H200),
}
"""Decode steps on a GPU, of a sequence or a batch, that llmfit's decoder runs as one graph."""
