"""BF16 weights where there is room for them: the GPU, then RAM, then the checkpoint on disk.

    GPU budget  ─ cache, activations ─► first layers ─┐
    RAM budget  ─ this process ───────► next layers  ─┼─► each computes on the GPU, or on the CPU
    checkpoint  ──────────────────────► the others   ─┘   without one; its weights are brought there

The row for a model that fits in no format: it always runs, at the rate of the slowest memory that
a token's weights come from. accelerate places the layers and moves their weights.
"""

from __future__ import annotations

import tempfile
from itertools import chain
from typing import TYPE_CHECKING, Any

from llmfit.backends._hf import (
    HfModel,
    TorchBackend,
    fused_attention,
    linear_kernel,
    load_causal_lm,
    plan_config,
)
from llmfit.backends._tokenizer import tokenizer_of
from llmfit.backends.base import (
    TORCH,
    Check,
    LoadedModel,
    LoadInfo,
    Package,
    Progress,
    no_progress,
)
from llmfit.device.limits import gpu_room_bytes
from llmfit.device.memory import free_bytes, resident_bytes
from llmfit.planning.memory.prediction import predict_memory
from llmfit.records import Kernel, Plan
from llmfit.units import format_bytes

if TYPE_CHECKING:
    from torch import nn

_SLACK_BYTES = 100_000_000
"""Left free in each memory. Source: peak resident set of bf16 rows of 5 M and 246 M parameters,
26 to 60 MB above weights, cache and activations: oneDNN's kernels, what loading leaves behind."""
_FREE_SHARE = 0.9
"""Of the memory that is free now, where no budget is given: others use the machine too."""
_UNKNOWN_SHARE = 0.1
"""Of a memory, left for cache and activations where they are not known for the architecture."""


class Offload(TorchBackend):
    """bf16 with SDPA, weights on GPU, in RAM and on disk by accelerate's device map."""

    id = "offload"
    label = "BF16 offloaded"
    one_gpu = "it spreads the weights over one GPU, RAM and disk"
    packages = (*TORCH, Package("accelerate", "accelerate"))

    def check(self, plan: Plan) -> Check:
        """As the base; also real weights, since those on disk are read where they lie."""
        outcome = super().check(plan)
        if outcome == Check() and plan.weights == "synthetic":
            return Check(
                skipped="offload reads weights from the model's own files; synthetic ones have none"
            )
        return outcome

    def load(self, plan: Plan, progress: Progress = no_progress) -> LoadedModel:
        """See ``Backend.load``."""
        self.require(plan)
        attention, notes = fused_attention(plan_config(plan))
        scratch = None
        if plan.offload_dir is None:
            scratch = tempfile.TemporaryDirectory(prefix="llmfit-offload-")
        model = load_causal_lm(
            plan.model.path,
            plan,
            attention=attention,
            device_map="auto",
            max_memory=_rooms(plan),
            # Weights are read from the checkpoint; only what transformers converts is written.
            offload_folder=plan.offload_dir or (scratch.name if scratch else None),
        )
        placed = _placed_bytes(model)
        info = LoadInfo(
            kernel=Kernel(linear=linear_kernel(model), attention=attention),
            dtype="bfloat16",
            weights_bytes=sum(placed.values()),
            quantized_share=0.0,
            notes=(_placement_note(placed), *notes),
        )
        return OffloadedModel(
            model,
            tokenizer=tokenizer_of(plan),
            info=info,
            context_length=plan.model.max_position_embeddings,
            kv_cache_dtype=plan.kv_cache_dtype,
            own_attention=False,  # to try it would read all weights from disk once more
            scratch=scratch,
        )


class OffloadedModel(HfModel):
    """A dispatched model with the folder that its offloaded weights may be written to."""

    def __init__(
        self, *args: Any, scratch: tempfile.TemporaryDirectory[str] | None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._scratch = scratch

    def close(self) -> None:
        """As the base; also removes the folder."""
        super().close()
        if self._scratch is not None:
            self._scratch.cleanup()


def _rooms(plan: Plan) -> dict[int | str, int]:
    """Bytes that weights may take in each memory: its budget less what else is there.

    accelerate itself leaves room beside them for the largest layer that comes from elsewhere.
    """
    ram = plan.ram_budget_bytes
    in_ram = ram - resident_bytes() if ram is not None else int(free_bytes("cpu") * _FREE_SHARE)
    if plan.device == "cpu":
        return {"cpu": max(0, in_ram - _working_bytes(plan, in_ram) - _SLACK_BYTES)}
    on_gpu = gpu_room_bytes(plan.budget_bytes)
    return {
        0: max(0, on_gpu - _working_bytes(plan, on_gpu) - _SLACK_BYTES),
        "cpu": max(0, in_ram - _SLACK_BYTES),
    }


def _working_bytes(plan: Plan, room_bytes: int) -> int:
    """Cache and activations, which lie where the layers compute."""
    memory = predict_memory(
        plan.model, "sdpa", plan.workload, plan.device, kv_cache_dtype=plan.kv_cache_dtype
    )
    if memory is None:
        return int(max(0, room_bytes) * _UNKNOWN_SHARE)
    return memory.kv_cache_bytes + memory.activation_bytes


def _placed_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of weights and buffers in each memory, ``gpu``, ``cpu``, ``disk``; a tied one once."""
    map_: dict[str, Any] = getattr(model, "hf_device_map", None) or {}
    tied: Any = getattr(model, "all_tied_weights_keys", None) or {}
    placed: dict[str, int] = {}
    for name, weight in chain(model.named_parameters(), model.named_buffers()):
        if name in tied:
            continue
        prefixes = [key for key in map_ if not key or name == key or name.startswith(f"{key}.")]
        place = str(map_[max(prefixes, key=len)] if prefixes else weight.device.type)
        kind = place if place in ("cpu", "disk") else "gpu"
        placed[kind] = placed.get(kind, 0) + weight.numel() * weight.element_size()
    return placed


def _placement_note(placed: dict[str, int]) -> str:
    """Where the weights lie; pages of the checkpoint that stay in RAM are the system's affair."""
    where = {"gpu": "on the GPU", "cpu": "in RAM", "disk": "on disk"}
    parts = [f"{format_bytes(placed[kind])} {where[kind]}" for kind in where if kind in placed]
    note = f"weights: {', '.join(parts)}"
    if "disk" in placed:
        note += (
            "; those are read for every token, and faster where the system holds the file in "
            "memory that is free"
        )
    return note if len(parts) > 1 or "disk" in placed else f"{note}: nothing is offloaded"
