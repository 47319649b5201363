"""The largest context that fits a budget."""

from __future__ import annotations

from dataclasses import replace

from llmfit.planning.memory.prediction import predict_memory
from llmfit.records import Device, Hardware, KvCacheDtype, ModelSpec, Workload


def max_context(
    spec: ModelSpec,
    backend: str,
    workload: Workload,
    device: Device,
    budget_bytes: int,
    *,
    kv_cache_dtype: KvCacheDtype | None = None,
    gpu: Hardware | None = None,
) -> int | None:
    """Tokens of prompt and continuation that fit at the workload's batch and way of prefill.

    At most the model's own limit; 0 where nothing fits, None where the memory is not known.
    The continuation keeps its length while a prompt of one token remains.
    """

    def fits(tokens: int) -> bool | None:
        new = min(workload.new_tokens, tokens - 1)
        work = replace(workload, prompt_tokens=tokens - new, new_tokens=new)
        memory = predict_memory(spec, backend, work, device, kv_cache_dtype=kv_cache_dtype, gpu=gpu)
        return None if memory is None else memory.total_bytes <= budget_bytes

    if fits(2) is None:
        return None
    low, high = 1, spec.max_position_embeddings + 1
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low if low > 1 else 0
