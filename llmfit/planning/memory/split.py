"""Predicted memory of each GPU, for a model over several equal ones.

    balanced   whole layers, one GPU after the other, as transformers' device_map="balanced" has
               accelerate place them: embedding first, head last, or with the embedding where tied;
               each layer's KV cache lies with it
    tensor     a part of every matrix on every GPU, as transformers' own plan for tensor parallelism
               cuts them; heads, and so the KV cache, are shared out, logits are whole everywhere

Each GPU has its own CUDA context; of a tensor split NCCL's buffers beside it. GPUs that wait for
each other hold no more than those that compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmfit.planning.memory import tensor_plan
from llmfit.planning.memory.prediction import predict_memory, weights_bytes, with_working_set
from llmfit.planning.memory.weights import WeightParts, placed_parts, weight_parts
from llmfit.records import (
    Device,
    Hardware,
    KvCacheDtype,
    MemoryPrediction,
    ModelSpec,
    Plan,
    Split,
    Workload,
)
from llmfit.shape import ModelShape

SPLITS: tuple[Split, ...] = ("balanced", "tensor")
NCCL_BYTES = 2 * 16 * 10 * 1024 * 1024
"""What NCCL allocates on a GPU beside torch: 10 MiB a channel and neighbour, to two neighbours in a
ring. Its channels are few over PCIe and up to 32 over NVLink; 16 are counted.
Source: NVIDIA/nccl issue 1685, the sizes that NCCL_DEBUG_SUBSYS=ALLOC shows."""

_BUFFER = 1.25
"""Room beyond an equal share, in sizes of the largest layer or matrix.
Source: transformers 5.23, integrations/accelerate.py, get_balanced_memory."""
_BNB_SHARE = 0.9
"""Of that room, what is used for bitsandbytes. Source: its quantizers' adjust_max_memory."""


def predict_split(
    spec: ModelSpec,
    backend: str,
    workload: Workload,
    gpus: int,
    split: Split,
    *,
    budget_bytes: int | None = None,
    kv_cache_dtype: KvCacheDtype | None = None,
    gpu: Hardware | None = None,
) -> tuple[MemoryPrediction, ...] | None:
    """Peak memory of each of ``gpus`` GPUs, in their order; None where it is not known.

    ``budget_bytes`` is what each may take, which moves layers to later GPUs; where they do not all
    fit, the last holds more. ``gpu`` is the card. Whether the format can be split at all is for its
    backend to say, and whether the heads can be shared out for ``tensor_plan.why_not``.
    """
    if gpus == 1:
        whole = predict_memory(
            spec, backend, workload, "cuda", kv_cache_dtype=kv_cache_dtype, gpu=gpu
        )
        return None if whole is None else (whole,)
    if spec.shape is None:
        return None
    shares = (
        _balanced(spec, spec.shape, backend, workload, gpus, budget_bytes, kv_cache_dtype, gpu)
        if split == "balanced"
        else _tensor(spec, spec.shape, backend, gpus)
    )
    if shares is None:
        return None
    return tuple(
        _beside(
            with_working_set(
                weights, spec, shape, backend, workload, "cuda",
                kv_cache_dtype=kv_cache_dtype, gpu=gpu,
            ),
            NCCL_BYTES if split == "tensor" else 0,
        )
        for weights, shape in shares
    )  # fmt: skip


def predict_plan(plan: Plan, device: Device | None = None) -> MemoryPrediction | None:
    """Peak memory of a row on ``device`` (None: the plan's): of several GPUs that of the fullest.

    None where it is not known.
    """
    place = device or plan.device
    if place == "cpu" or plan.gpus == 1:
        return predict_memory(
            plan.model, plan.backend, plan.workload, place, kv_cache_dtype=plan.kv_cache_dtype
        )
    per_gpu = predict_split(
        plan.model,
        plan.backend,
        plan.workload,
        plan.gpus,
        plan.split,
        budget_bytes=plan.budget_bytes,
        kv_cache_dtype=plan.kv_cache_dtype,
    )
    return None if per_gpu is None else fullest(per_gpu)


def fullest(per_gpu: Sequence[MemoryPrediction]) -> MemoryPrediction:
    """That of the GPU with the largest total. Raises ValueError for none."""
    return max(per_gpu, key=lambda memory: memory.total_bytes)


def working_bytes(
    spec: ModelSpec,
    backend: str,
    workload: Workload,
    gpus: int,
    *,
    kv_cache_dtype: KvCacheDtype | None = None,
    gpu: Hardware | None = None,
) -> int | None:
    """What each GPU of a balanced split keeps free for cache and activations; None: not known.

    The activations of the whole model's fullest moment, and of the cache an equal share of layers.
    """
    whole = predict_memory(spec, backend, workload, "cuda", kv_cache_dtype=kv_cache_dtype, gpu=gpu)
    if whole is None or spec.shape is None:
        return None
    layers = len(spec.shape.layers)
    most = -(-layers // gpus)
    return whole.activation_bytes + -(-whole.kv_cache_bytes * most // layers)


def _beside(memory: MemoryPrediction, more_bytes: int) -> MemoryPrediction:
    """With ``more_bytes`` of runtime."""
    return replace(
        memory,
        runtime_bytes=memory.runtime_bytes + more_bytes,
        total_bytes=memory.total_bytes + more_bytes,
    )


# ---------------------------------------------------------------- whole layers


def _balanced(
    spec: ModelSpec,
    shape: ModelShape,
    backend: str,
    workload: Workload,
    gpus: int,
    budget_bytes: int | None,
    kv_cache_dtype: KvCacheDtype | None,
    gpu: Hardware | None,
) -> list[tuple[int, ModelShape]] | None:
    """Each GPU's bytes of weights, and the shape of what it computes."""
    stored = spec.quantization
    parts = weight_parts(shape, backend, stored=stored)
    placed = placed_parts(shape, backend)
    whole = predict_memory(spec, backend, workload, "cuda", kv_cache_dtype=kv_cache_dtype, gpu=gpu)
    working = working_bytes(spec, backend, workload, gpus, kv_cache_dtype=kv_cache_dtype, gpu=gpu)
    if parts is None or placed is None or whole is None or working is None:
        return None
    room = None if budget_bytes is None else budget_bytes - whole.runtime_bytes - working
    share = _BNB_SHARE if backend.partition(":")[0] in ("int8", "nf4") else 1.0
    places = place(placed, gpus, room, share=share)
    return [_share_of(shape, parts, places, index) for index in range(gpus)]


def place(
    parts: WeightParts, gpus: int, room_bytes: int | None, *, share: float = 1.0
) -> tuple[int, ...]:
    """The GPU of each part: embedding, extra, every layer, last, head; a tied head with the first.

    Each GPU but the last takes an equal share with some room, and at most ``room_bytes``, in order
    and without going back; the first keeps room for the largest part that is still to come. What is
    left is the last GPU's. ``share`` is of what each may take.

    Source: transformers 5.23, integrations/accelerate.py, get_balanced_memory and
    infer_auto_device_map, whose rules accelerate's are.
    """
    sizes = (parts.embedding, parts.extra, *parts.layers, parts.last, parts.head)
    limit = float(sum(sizes) // gpus + int(_BUFFER * max(sizes)))
    if room_bytes is not None:
        limit = min(limit, room_bytes)
    limit *= share
    places: list[int] = []
    current, used = 0, 0
    for index, size in enumerate(sizes):
        while current < gpus - 1:
            reserve = max(sizes[index + 1 :], default=0) if current == 0 else 0
            if used + size <= limit - reserve:
                break
            current, used = current + 1, 0
        used += size
        places.append(current)
    if parts.head == 0:
        places[-1] = places[0]
    return tuple(places)


def _share_of(
    shape: ModelShape, parts: WeightParts, places: Sequence[int], gpu: int
) -> tuple[int, ModelShape]:
    """Bytes of weights on one GPU, and the layers and head that it computes."""
    sizes = (parts.embedding, parts.extra, *parts.layers, parts.last, parts.head)
    weights = sum(size for size, place in zip(sizes, places, strict=True) if place == gpu)
    layers = tuple(
        kind for kind, place in zip(shape.layers, places[2:-2], strict=True) if place == gpu
    )
    used = sorted(set(layers)) or sorted(set(shape.layers))  # beside a head alone, as if of one
    return weights, replace(
        shape,
        kinds=tuple(shape.kinds[kind] for kind in used),
        layers=tuple(used.index(kind) for kind in layers),
        vocab_size=shape.vocab_size if places[-1] == gpu else 0,
    )


# ---------------------------------------------------------------- a part of every matrix


def _tensor(
    spec: ModelSpec, shape: ModelShape, backend: str, gpus: int
) -> list[tuple[int, ModelShape]] | None:
    """Likewise; None where the plan does not allow it."""
    if tensor_plan.why_not(shape, gpus) is not None:
        return None
    found = []
    for rank in range(gpus):
        held = tensor_plan.share(shape, gpus, rank)
        weights = weights_bytes(replace(spec, shape=held), backend)
        if weights is None:
            return None
        found.append((weights, replace(held, vocab_size=shape.vocab_size)))
    return found
