"""Predicted peak memory of a deploy format, from a model's shape.

    total = weights + KV cache + activations + runtime

The first three are what torch's allocator counts at its peak; the runtime lies beyond it: CUDA
context and allocator slack on a GPU, interpreter and libraries on a CPU. None where shape or
format is not known.
"""

from __future__ import annotations

import re
from dataclasses import replace

from llmfit.planning.memory.activations import EAGER_ONLY, activation_bytes
from llmfit.planning.memory.kv_cache import is_llama_cpp, kv_cache_bytes, quantising_bytes
from llmfit.planning.memory.weights import repacking_bytes
from llmfit.planning.memory.weights import weights_bytes as weights_bytes_of
from llmfit.records import Device, Hardware, KvCacheDtype, MemoryPrediction, ModelSpec, Workload
from llmfit.shape import ModelShape

CUDA_RUNTIME_BYTES = 500_000_000
"""CUDA context and library workspaces, beside what the allocator counts. Source: nvidia-smi of an
idle torch process with cuBLAS loaded, 0.3 to 0.6 GB by GPU and driver."""
ALLOCATOR_SLACK_BYTES = (20 + 2) * 1024 * 1024
"""What torch's allocator takes from the driver beyond what it hands out: of each of its two pools
one segment that is not full. More comes of fragmentation, which no arithmetic tells. Source:
PyTorch 2.13, c10/cuda/CUDACachingAllocator.h, kLargeBuffer and kSmallBuffer."""

_IDLE_WORKER_BYTES = 480_000_000
"""Resident set of a worker before it loads: Python, torch, transformers, scipy.
Source: measured with torch 2.13 for CPUs on Linux, 470 to 479 MB from row to row."""
_IDLE_WORKER_GPTQMODEL_BYTES = 645_000_000
"""The same with GPTQModel imported."""

WORKSPACE_BYTES = 4096 * 1024 * 2 + 16 * 1024 * 8
"""What torch reserves for cuBLAS in its allocator. Source: PyTorch 2.13, aten/src/ATen/cuda/
CublasHandlePool.cpp, parseChosenWorkspaceSize."""
LARGE_WORKSPACE_BYTES = 4096 * 1024 * 8
"""The same from compute capability 9.0 on."""
_LARGE_WORKSPACE = re.compile(r"\b(G?[HB]\d{2,3}|GH200|RTX 50\d\d|RTX PRO|GB10)", re.IGNORECASE)


def weights_bytes(spec: ModelSpec, backend: str, device: Device = "cuda") -> int | None:
    """Bytes of all weights in a format, or None where shape or layout is not known here."""
    if spec.shape is None:
        return None
    return weights_bytes_of(spec.shape, backend, stored=spec.quantization, device=device)


def workspace_bytes(device: Device, gpu: Hardware | None = None) -> int:
    """cuBLAS's workspace, which the allocator counts; that of ``gpu`` where it is known."""
    if device == "cpu":
        return 0
    large = gpu is not None and _LARGE_WORKSPACE.search(gpu.name) is not None
    return LARGE_WORKSPACE_BYTES if large else WORKSPACE_BYTES


def uses_eager_attention(spec: ModelSpec, backend: str) -> bool:
    """Whether a row computes its scores one by one: the bf16 row does, and some models always.

    Those models in transformers alone: vLLM's kernels have caps and sinks.
    """
    return backend == "bf16" or (spec.model_type in EAGER_ONLY and backend != "vllm")


def idle_worker_bytes(backend: str) -> int:
    """What a worker of this row holds before it loads anything."""
    uses_gptqmodel = backend.partition(":")[0] in ("gptq", "awq")
    return _IDLE_WORKER_GPTQMODEL_BYTES if uses_gptqmodel else _IDLE_WORKER_BYTES


def predict_memory(
    spec: ModelSpec,
    backend: str,
    workload: Workload,
    device: Device,
    *,
    kv_cache_dtype: KvCacheDtype | None = None,
    idle_ram_bytes: int | None = None,
    gpu: Hardware | None = None,
) -> MemoryPrediction | None:
    """Peak memory by part, or None where the architecture or format is not known here.

    ``idle_ram_bytes`` is the idle worker's resident set where another than the usual one was
    measured, ``gpu`` the card that is planned for.
    """
    weights = weights_bytes(spec, backend, device)
    if weights is None or spec.shape is None:
        return None
    return with_working_set(
        weights, spec, spec.shape, backend, workload, device,
        kv_cache_dtype=kv_cache_dtype, idle_ram_bytes=idle_ram_bytes, gpu=gpu,
    )  # fmt: skip


def with_working_set(
    weights: int,
    spec: ModelSpec,
    shape: ModelShape,
    backend: str,
    workload: Workload,
    device: Device,
    *,
    kv_cache_dtype: KvCacheDtype | None = None,
    idle_ram_bytes: int | None = None,
    gpu: Hardware | None = None,
) -> MemoryPrediction:
    """``weights`` bytes with the cache, activations and runtime of what computes ``shape``.

    ``shape`` is ``spec``'s own, or the share of one of several GPUs.
    """
    spec = replace(spec, shape=shape)
    cache = kv_cache_bytes(spec, workload, backend=backend, kv_cache_dtype=kv_cache_dtype)
    activations = activation_bytes(
        shape, backend, workload, device=device, eager=uses_eager_attention(spec, backend)
    )
    if kv_cache_dtype is not None and not is_llama_cpp(backend):
        activations = max(activations, quantising_bytes(spec, workload))
    activations += workspace_bytes(device, gpu)
    if device == "cpu":  # a row may be at its fullest before it has a cache
        activations = max(activations, repacking_bytes(shape, backend) - cache)
    runtime = CUDA_RUNTIME_BYTES + ALLOCATOR_SLACK_BYTES
    if device == "cpu":
        runtime = idle_worker_bytes(backend) if idle_ram_bytes is None else idle_ram_bytes
    return MemoryPrediction(
        weights_bytes=weights,
        kv_cache_bytes=cache,
        activation_bytes=activations,
        runtime_bytes=runtime,
        total_bytes=weights + cache + activations + runtime,
    )
