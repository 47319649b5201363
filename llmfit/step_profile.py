"""Where the time of a decode step goes: kernels in groups, and what is between them.

    decoder ─► a few steps timed, as many under torch.profiler ─► self times by kernel ─► groups
                                               wall time less all of them ─► between kernels

The shares are of the wall time without the profiler, which makes Python slower; kernels are taken
as they ran. llama.cpp runs its own threads and has no profile here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from llmfit.backends.base import LoadedModel
from llmfit.device.execution import Marks
from llmfit.measure import random_prompts
from llmfit.records import Device, ProfileGroup, StepProfile, Workload

LINEAR, ATTENTION, CACHE, OTHER = "linear layers", "attention", "cache and copies", "other kernels"
BETWEEN = "between kernels"
"""Python, launches, and waiting for the host."""
_WARM_STEPS = 3
_MOST_STEPS = 16
_MARKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (ATTENTION, ("attend", "attention", "flash", "fmha", "softmax", "bmm")),
    (
        LINEAR,
        (
            "linear", "mm", "gemm", "gemv", "marlin", "machete", "exllama", "awq", "gptq",
            "int4pack", "int8", "4bit", "bitsandbytes", "mkldnn", "cutlass", "cublas", "nvjet",
            "bf16_rows", "code_rows", "byte_rows", "unpack_int4",
        ),
    ),
    (CACHE, ("copy_", "memcpy", "memset", "index_copy", "cat", "clone", "fill_", "slice_scatter")),
)  # fmt: skip
"""Parts of kernels' names, by group; the first group with one that fits takes the kernel."""
_FUSED = "_fused_"
"""In the name of a kernel of inductor's, after which come the operations that it joins."""


def profile_steps(
    model: LoadedModel, workload: Workload, *, device: Device, seed: int = 0
) -> StepProfile | None:
    """Profile decode steps after the prompt of ``workload``.

    None for a model that PyTorch does not run, and where its context leaves no room for steps.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    from llmfit.decode.torch_decoder import TorchDecoder

    room = model.context_length - workload.prompt_tokens
    steps = min(_MOST_STEPS, (room - _WARM_STEPS) // 2)
    if steps < 1:
        return None
    decoder = model.decoder(
        batch=workload.batch,
        capacity=workload.prompt_tokens + _WARM_STEPS + 2 * steps,
        prefill_chunk=workload.prefill_chunk,
    )
    try:
        if not isinstance(decoder, TorchDecoder):
            return None
        decoder.prefill(random_prompts(workload, model.vocab_size, seed))
        for _ in range(_WARM_STEPS):
            decoder.step()
        marks = Marks(device)
        marks.mark()
        for _ in range(steps):
            decoder.step()
        marks.mark()
        wall_s = marks.seconds()[0] / steps
        activities = [ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU]
        with profile(activities=activities, acc_events=True) as profiler:
            for _ in range(steps):
                decoder.step()
            if device == "cuda":
                torch.cuda.synchronize()
    finally:
        decoder.close()
    on_gpu = device == "cuda"
    events = [
        (event.key, (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6)
        for event in profiler.key_averages()
    ]
    return grouped(events, wall_s=wall_s, steps=steps)


def grouped(events: Iterable[tuple[str, float]], *, wall_s: float, steps: int) -> StepProfile:
    """A profile from kernels' names and their seconds over all ``steps``.

    What the groups leave of the step's wall time, at least nothing, is between the kernels.
    """
    spent: dict[str, float] = defaultdict(float)
    for name, seconds in events:
        if not _is_frame(name):
            spent[group_of(name)] += seconds / steps
    spent[BETWEEN] = max(0.0, wall_s - sum(spent.values()))
    whole = sum(spent.values())
    order = (LINEAR, ATTENTION, CACHE, OTHER, BETWEEN)
    return StepProfile(
        step_s=wall_s,
        steps=steps,
        groups=tuple(
            ProfileGroup(name=name, step_s=spent[name], share=spent[name] / whole)
            for name in order
            if whole and spent[name] > 0
        ),
    )


def group_of(name: str) -> str:
    """The group of a kernel by its name.

    Of one that inductor made of several operations, copying is no more than a part.
    """
    lower = name.lower()
    for group, parts in _MARKS:
        if group == CACHE and _FUSED in lower:
            return OTHER
        if any(part in lower for part in parts):
            return group
    return OTHER


def _is_frame(name: str) -> bool:
    """True for what encloses kernels and is no work of its own: graphs, Python, the profiler."""
    return name.startswith(("##", "AOTDispatcher", "ProfilerStep", "TorchDynamo", "Torch-Compiled"))
