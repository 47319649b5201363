"""Prefill and decode of any transformers causal language model over a KV cache.

Prefill runs the whole prompt once and is bound by arithmetic; a decode step reads every weight
to make one token per sequence and is bound by memory bandwidth. The two are therefore separate
calls, timed apart. The first new token comes from the prefill's last logits: feeding the last
prompt token again would put it into the cache twice.

    prompts ─► pad left ─► prefill [B, T] ─► logits [B, V] ─► choose ─► ids [B, 1]
               (or T in chunks)                               ▲            │
                                              step: forward [B, 1] ◄───────┘

Prefill runs the library's kernels. A step runs those of ``step_linears``, and as one graph where it
is compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import Cache

from llmfit.decode.base import GREEDY, Decoder, Sampling
from llmfit.decode.cache import StaticKVCache
from llmfit.decode.graph_step import (
    COMPILED_NOTE,
    CapturedStep,
    CompiledStep,
    CompiledWhereItCan,
    FixedStep,
    Step,
    attends_itself,
    run_with,
    why_not_captured,
    with_own_attention,
)
from llmfit.decode.placement import execution_device, is_spread
from llmfit.decode.quantized_cache import quantized_cache
from llmfit.decode.sampling import choose
from llmfit.decode.step_linears import StepLinears
from llmfit.errors import ModelLoadError, UsageError
from llmfit.records import KvCacheDtype

_CACHED_LAYER_TYPES = {"full_attention", "sliding_attention"}


def check_cacheable(model: nn.Module) -> int:
    """Number of layers of a model whose whole state is keys and values.

    Raises ModelLoadError for models with recurrent or chunked layers, which this cache cannot
    hold.
    """
    config: Any = model.config.get_text_config()  # type: ignore[union-attr,operator]
    kinds = set(getattr(config, "layer_types", None) or {"full_attention"})
    unknown = sorted(kinds - _CACHED_LAYER_TYPES)
    if unknown or getattr(model, "_is_stateful", False):
        what = ", ".join(unknown) or "recurrent state"
        raise ModelLoadError(
            f"{type(model).__name__} has {what}, which llmfit's static KV cache does not hold.",
            hint="a model with full or sliding-window attention",
        )
    return int(config.num_hidden_layers)


def _has_local_layers(model: nn.Module) -> bool:
    """True for GPT-Neo's local attention, which goes by places in keys and not by a mask."""
    config: Any = model.config.get_text_config()  # type: ignore[union-attr,operator]
    return "local" in (getattr(config, "attention_layers", None) or ())


class TorchDecoder(Decoder):
    """Greedy or sampled continuation of a batch over one cache.

    The cache is preallocated; with ``kv_cache_dtype`` it is transformers' quantised one, which
    grows. With ``compiled`` the decode step is a ``torch.compile`` graph over constant shapes;
    prefill stays eager, as its length varies. A quantised cache has no constant shapes: both
    together raise UsageError. With ``may_compile`` a step on a GPU is compiled where it can be,
    and a note tells where not. ``linears`` run the steps of a batch of one. With ``own_attention``
    steps that are no graph attend by llmfit's kernel, where it takes SDPA's place.

    With ``prefill_chunk`` a prompt runs that many tokens at a time, which hold their activations
    only as long. The logits are those of one pass; over a quantised cache a chunk reads those
    before it quantised, as transformers' own chunked prefill does. Long prompts of LongRoPE models
    run whole.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        batch: int,
        capacity: int,
        pad_id: int = 0,
        compiled: bool = False,
        may_compile: bool = False,
        kv_cache_dtype: KvCacheDtype | None = None,
        prefill_chunk: int | None = None,
        linears: StepLinears | None = None,
        own_attention: bool = False,
    ) -> None:
        self.check_chunk(prefill_chunk)
        if compiled and kv_cache_dtype is not None:
            raise UsageError(f"a compiled step cannot use a {kv_cache_dtype} KV cache: it grows.")
        self.batch, self.capacity = batch, capacity
        self.compiled = compiled
        self._may_compile = may_compile
        self.prefill_chunk = prefill_chunk
        self._model = model
        self._device = execution_device(model)
        self._pad_id = pad_id
        self._linears = linears if linears is not None and batch == 1 else StepLinears()
        layers = check_cacheable(model)
        if compiled and _has_local_layers(model):
            raise ModelLoadError(
                f"{type(model).__name__} has local layers that count places in the cache, which a "
                "compiled step fills up to its capacity.",
                hint="--backends sdpa, the same without it",
            )
        self._cache: Cache | None = (
            StaticKVCache(layers, capacity, self._device)
            if kv_cache_dtype is None
            else quantized_cache(model, kv_cache_dtype)
        )
        self._sampling = GREEDY
        self._generator: torch.Generator | None = None
        self._ids = torch.zeros((batch, 1), dtype=torch.int64, device=self._device)
        self._filled = 0
        self._attends_itself = own_attention and kv_cache_dtype is None and attends_itself(model)
        self._held = torch.zeros((), dtype=torch.int64)
        # Only for prompts of different length: which cache slots hold a token, and each
        # sequence's number of padding slots. Written in place, as a graph keeps their address.
        self._slots = torch.ones((batch, capacity), dtype=torch.bool, device=self._device)
        self._padding = torch.zeros((batch, 1), dtype=torch.int64, device=self._device)
        self._ragged = False
        self._whole = False
        # A GPU replays a graph of the step whatever runs it; a cache that grows has no such graph,
        # nor have several devices, nor layers that look so many places back in what they are given.
        self._fixed = (
            kv_cache_dtype is None
            and not is_spread(model)
            and not _has_local_layers(model)
            and (compiled or self._device.type == "cuda")
        )
        self._graphs: dict[bool, CompiledStep | CapturedStep] = {}
        self._where_it_can: list[CompiledWhereItCan] = []

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], sampling: Sampling = GREEDY) -> None:
        """See ``Decoder.prefill``."""
        self.check_prompts(prompts)
        cache = self._live_cache()
        cache.reset()
        self._linears.remove()
        self._sampling = sampling
        if not sampling.greedy:
            self._generator = torch.Generator(self._device).manual_seed(sampling.seed)
        ids, mask, positions = self._pad(prompts)
        longest = ids.shape[1]
        chunk = self._chunk_of(longest)
        for start in range(0, longest, chunk):
            end = min(start + chunk, longest)
            logits = self._model(
                input_ids=ids[:, start:end],
                attention_mask=None if mask is None else mask[:, :end],
                position_ids=None if positions is None else positions[:, start:end],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        self._filled = longest
        if int(cache.get_seq_length()) != longest:
            raise ModelLoadError(
                f"{type(self._model).__name__} keeps no keys and values in transformers' cache: "
                "what it says next would not know the prompt.",
                hint="another model; this architecture cannot be decoded token by token",
            )
        self._choose(logits[:, -1])
        if self._fixed and isinstance(cache, StaticKVCache):
            cache.fix()  # a graph keeps the kernels that it was made with
        else:
            self._linears.install()

    def _chunk_of(self, longest: int) -> int:
        """Prompt tokens that are run at once.

        All of a prompt beyond the length up to which LongRoPE has other frequencies: those of its
        first chunks would be others than its last one's. Source: transformers,
        modeling_rope_utils.py.
        """
        config: Any = self._model.config.get_text_config()  # type: ignore[union-attr,operator]
        rope = getattr(config, "rope_parameters", None) or {}
        short = rope.get("original_max_position_embeddings") or longest
        self._whole = (
            self.prefill_chunk is not None
            and rope.get("rope_type") == "longrope"
            and longest > short
        )
        return longest if self._whole or self.prefill_chunk is None else self.prefill_chunk

    @torch.inference_mode()
    def step(self) -> None:
        """See ``Decoder.step``."""
        if self._filled >= self.capacity:
            raise UsageError(f"the KV cache is full: it holds {self.capacity} tokens a sequence.")
        cache = self._live_cache()
        self._filled += 1
        with self._linears.stepping():
            if self._fixed and isinstance(cache, StaticKVCache):
                logits = self._graph(cache)()
            else:
                logits = self._eager_logits(cache)
        self._choose(logits)

    def _eager_logits(self, cache: Cache) -> torch.Tensor:
        """Logits [B, V] after feeding the ids [B, 1]; attention reads what is filled."""
        if self._attends_itself and not self._ragged:
            with with_own_attention(self._model):
                own: torch.Tensor = self._model(
                    input_ids=self._ids,
                    past_key_values=cache,
                    use_cache=True,
                    held_tokens=self._held.fill_(self._filled),
                ).logits[:, -1]
            return own
        logits: torch.Tensor = self._model(
            input_ids=self._ids,
            attention_mask=self._slots[:, : self._filled] if self._ragged else None,
            position_ids=self._filled - 1 - self._padding if self._ragged else None,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
        return logits

    def _graph(self, cache: StaticKVCache) -> CompiledStep | CapturedStep:
        """The step's graph; that of prompts of different length is another one."""
        if self._ragged not in self._graphs:
            step = FixedStep(
                self._model,
                cache,
                self._ids,
                slots=self._slots if self._ragged else None,
                padding=self._padding if self._ragged else None,
            )
            self._graphs[self._ragged] = self._graph_of(step, cache)
        return self._graphs[self._ragged]

    def _graph_of(self, step: FixedStep, cache: StaticKVCache) -> CompiledStep | CapturedStep:
        if self._device.type == "cpu":
            return CompiledStep(step, self._linears)
        why_not = why_not_captured(self._model, self._linears)
        run: Step = partial(run_with, self._linears, step)
        if self.compiled:
            run = CompiledStep(step, self._linears)
        elif self._may_compile and why_not is None:
            run = CompiledWhereItCan(step, self._linears)
            self._where_it_can.append(run)
        return CapturedStep(run, cache, why_not=why_not)

    @property
    def notes(self) -> tuple[str, ...]:
        """See ``Decoder.notes``."""
        captured = [graph for graph in self._graphs.values() if isinstance(graph, CapturedStep)]
        reasons = dict.fromkeys(graph.why_not for graph in captured if graph.why_not is not None)
        compiled = dict.fromkeys(
            COMPILED_NOTE
            if step.why_not is None
            else f"decode steps are not compiled: {step.why_not}"
            for step in self._where_it_can
        )
        whole = ("long prompts ran whole: LongRoPE has other frequencies for them",)
        return (
            *(whole if self._whole else ()),
            *(f"decode steps are not one CUDA graph: {reason}" for reason in reasons),
            *compiled,
        )

    def tokens(self) -> list[int]:
        """See ``Decoder.tokens``."""
        chosen: list[int] = self._ids[:, 0].tolist()
        return chosen

    def close(self) -> None:
        """Free the cache and what was compiled over it."""
        self._linears.remove()
        self._graphs.clear()
        self._where_it_can.clear()
        self._cache = None

    def _live_cache(self) -> Cache:
        if self._cache is None:
            raise UsageError("this decoder is closed.")
        return self._cache

    def _choose(self, logits: torch.Tensor) -> None:
        self._ids.copy_(choose(logits, self._sampling, self._generator))

    def _pad(
        self, prompts: Sequence[Sequence[int]]
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Ids int64[B, T] padded on the left, with mask [B, T] and positions [B, T] where needed.

        Padding goes left so that every sequence's last token is in the last column, and new
        tokens of all sequences share a cache slot.
        """
        longest = max(len(prompt) for prompt in prompts)
        padding = [longest - len(prompt) for prompt in prompts]
        rows = [
            [self._pad_id] * pad + list(prompt)
            for pad, prompt in zip(padding, prompts, strict=True)
        ]
        ids = torch.tensor(rows, dtype=torch.int64, device=self._device)
        self._ragged = any(padding)
        if not self._ragged:
            return ids, None, None
        self._padding.copy_(torch.tensor(padding)[:, None])
        columns = torch.arange(self.capacity, device=self._device)[None]
        torch.ge(columns, self._padding, out=self._slots)
        positions = (columns[:, :longest] - self._padding).clamp_min(0)
        return ids, self._slots[:, :longest], positions
