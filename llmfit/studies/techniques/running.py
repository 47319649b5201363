"""Techniques that run the same model otherwise: fused attention, compiled layers, a KV cache.

Sizes in, a Found of each technique out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmfit.benchmark import Case, speedup
from llmfit.device.execution import is_out_of_memory
from llmfit.errors import BackendUnavailable, first_line
from llmfit.studies.base import StudyContext
from llmfit.studies.techniques.base import TEXT_ACCURACY, Sizes, require_room, side
from llmfit.studies.techniques.found import Found, Loss
from llmfit.studies.tuning import (
    HELD_OUT_TEXT,
    TRAINING_TEXT,
    load_model,
    next_token_accuracy,
    sequences,
)
from llmfit.study_records import StudyCheck

if TYPE_CHECKING:
    from torch import Tensor

FLASH, COMPILE, CACHE = "flash attention", "torch.compile", "KV cache"
_SAME_STATES = 1e-3
"""Of the largest state: rounding in another order."""


def flash_attention(context: StudyContext, sizes: Sizes) -> tuple[Found, ...]:
    """A prompt's pass through the layers with eager and with fused attention."""
    import torch

    batch, tokens = sizes.attention_batch, sizes.attention_tokens
    models = {
        name: load_model(context.device, attention=name, in_float32=True).model
        for name in ("eager", "sdpa")
    }
    heads = models["eager"].config.num_attention_heads
    require_room(
        3 * 4 * batch * heads * tokens**2, context, f"eager attention over {tokens} tokens"
    )
    ids = sequences(TRAINING_TEXT, tokens=tokens, seed=context.seed, most=batch)
    ids = ids[torch.arange(batch) % len(ids)].to(context.device)
    cases = [pass_case(name, model, ids) for name, model in models.items()]
    before, after = context.bench.run_in_turns(cases, n_warmup=1, n_runs=sizes.runs)
    check = _same_states(models["eager"], models["sdpa"], ids, "fused and eager attention")
    return (
        Found(
            technique=FLASH,
            before=side("eager attention, a prompt", before, before.working_bytes),
            after=side("fused attention", after, after.working_bytes),
            memory_of="a prompt's pass, without the weights",
            speed=speedup(before, after),
            checks=(check,),
            benchmarks=(before, after),
        ),
    )


def pass_case(name: str, model: Any, ids: Tensor) -> Case:
    """The layers without the head, whose logits would hide what a layer needs."""
    import torch

    def call(given: Tensor) -> object:
        with torch.no_grad():
            return model(given, use_cache=False)

    return Case(
        name=name,
        call=call,
        prepare=lambda: ids,
        batch_size=len(ids),
        model=model,
        kind="inference",
        count_flops=False,
    )


def _same_states(one: Any, other: Any, ids: Tensor, what: str) -> StudyCheck:
    import torch

    with torch.no_grad():
        a, b = (model(ids, use_cache=False).last_hidden_state for model in (one, other))
    largest = float((a - b).abs().max())
    scale = float(a.abs().max())
    return StudyCheck(
        name=f"{what} give the same states",
        holds=largest <= _SAME_STATES * scale,
        detail=f"largest difference {largest:.1e} of states up to {scale:.1f}",
    )


def compiled(context: StudyContext, sizes: Sizes) -> tuple[Found, ...]:
    """A pass with each layer compiled: layers are alike, so that one compilation serves all.

    Raises BackendUnavailable where torch.compile cannot build here.
    """
    plain, fast = (load_model(context.device, in_float32=True) for _ in range(2))
    ids = sequences(
        TRAINING_TEXT, tokens=sizes.compile_tokens, seed=context.seed, most=sizes.compile_batch
    ).to(context.device)
    for layer in fast.model.layers:
        layer.compile(dynamic=False)
    cases = [pass_case("eager", plain.model, ids), pass_case("compiled", fast.model, ids)]
    try:
        cases[1].call(ids)
    except RuntimeError as exc:  # what dynamo and inductor raise, a missing C++ compiler among it
        if is_out_of_memory(exc):
            raise
        raise BackendUnavailable(f"torch.compile cannot build here: {first_line(exc)}") from exc
    before, after = context.bench.run_in_turns(cases, n_warmup=2, n_runs=3 * sizes.runs)
    data = sequences(
        HELD_OUT_TEXT, tokens=sizes.compile_tokens, seed=context.seed, most=sizes.held_out
    )
    lost = Loss(
        share=_guessed(plain, data, len(ids), context) - _guessed(fast, data, len(ids), context),
        of=TEXT_ACCURACY,
    )
    check = _same_states(plain.model, fast.model, ids, "compiled and eager layers")
    return (
        Found(
            technique=COMPILE,
            before=side("a pass in eager mode", before, before.peak_bytes),
            after=side("compiled", after, after.peak_bytes),
            memory_of="weights and a pass",
            speed=speedup(before, after),
            lost=lost,
            checks=(check,),
            benchmarks=(before, after),
        ),
    )


def _guessed(model: Any, data: Tensor, batch: int, context: StudyContext) -> float:
    """Next-token accuracy in batches of the shape that was compiled."""
    parts = [part for part in data.split(batch) if len(part) == batch]
    shares = [next_token_accuracy(model, part, context.device) for part in parts]
    return sum(shares) / len(shares)


def kv_cache(context: StudyContext, sizes: Sizes) -> tuple[Found, ...]:
    """Greedy generation with the cache, and with every token run anew."""
    model = load_model(context.device, in_float32=True)
    prompt = sequences(TRAINING_TEXT, tokens=sizes.cache_prompt, seed=context.seed, most=1).to(
        context.device
    )
    cases = [
        generation_case(name, model, prompt, sizes.cache_new, cached=cached)
        for name, cached in (("without a cache", False), ("with a cache", True))
    ]
    before, after = context.bench.run_in_turns(cases, n_warmup=0, n_runs=max(3, sizes.runs // 2))
    slow, fast = (generate(model, prompt, sizes.cache_new, cached=c) for c in (False, True))
    differing = float((slow != fast).float().mean())
    check = StudyCheck(
        name="tokens with and without a KV cache are equal",
        holds=differing == 0,
        detail=f"{int((slow != fast).sum())} of {sizes.cache_new} differ",
    )
    return (
        Found(
            technique=CACHE,
            before=side("generation without a cache", before, before.peak_bytes),
            after=side("with the cache", after, after.peak_bytes),
            memory_of="weights and generation",
            speed=speedup(before, after),
            lost=Loss(share=differing, of="generated tokens that differ"),
            checks=(check,),
            benchmarks=(before, after),
        ),
    )


def generate(model: Any, prompt: Tensor, new_tokens: int, *, cached: bool) -> Tensor:
    """The ``new_tokens`` most likely tokens after ``prompt: int64[B, T]``, one by one."""
    import torch

    made: Tensor = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        use_cache=cached,
        do_sample=False,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        pad_token_id=0,
    )
    return made[:, prompt.shape[1] :]


def generation_case(
    name: str, model: Any, prompt: Tensor, new_tokens: int, *, cached: bool = True
) -> Case:
    """``generate`` for ``Benchmark``."""

    def call(given: Tensor) -> object:
        return generate(model, given, new_tokens, cached=cached)

    return Case(
        name=name,
        call=call,
        prepare=lambda: prompt,
        batch_size=new_tokens,
        model=model,
        kind="inference",
        count_flops=False,
    )
