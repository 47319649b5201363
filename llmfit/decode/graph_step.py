"""The decode step as one graph, run without Python between its kernels.

    step: transformers' forward over a fixed cache
      ─► Dynamo ─► one FX graph ─► inductor ─► called with the tensors that were traced, no guards
      ─► on a GPU, traced or not ─► CUDA graph ─► replayed: one launch

Everything that changes from step to step lives in tensors that stay where they are: the ids, the
cache and the number of tokens in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from llmfit.decode.cache import StaticKVCache
from llmfit.decode.capture import Graph, capture
from llmfit.decode.placement import execution_device
from llmfit.decode.step_linears import StepLinears, asks_the_host
from llmfit.device.execution import is_out_of_memory
from llmfit.errors import ModelLoadError, first_line
from llmfit.kernels.build import why_no_kernels
from llmfit.kernels.gpu_support import why_no_gpu_kernels
from llmfit.private_code import compile_privately

_INDUCTOR_ON_CPU = {"cpp_wrapper": True, "size_asserts": False, "alignment_asserts": False}
"""Kernels are called from C++: Python between them costs more than they do, as weights push it out
of the CPU's caches. Nor are shapes checked at each call: they never change."""

_MANY_STEPS = {"recompile_limit": 1 << 16, "accumulated_recompile_limit": 1 << 16}
"""Dynamo takes the steps of all decoders that live for one that is traced again and again."""

COMPILED_NOTE = "only the decode step is compiled; prefill and scoring run uncompiled"

Step = Callable[[], torch.Tensor]
"""Feeds the ids that are in their tensor [B, 1] and returns logits [B, V]."""

_FULL = "full_attention"
_UNTOLD = -1
"""In the place of a sliding window that a layer says nothing of."""
ATTENTION = "llmfit_decode"
"""The name by which transformers finds the attention of a step."""


class FixedStep:
    """One token a sequence, over a cache in fixed mode: shapes and addresses never change."""

    def __init__(
        self,
        model: nn.Module,
        cache: StaticKVCache,
        ids: torch.Tensor,
        *,
        slots: torch.Tensor | None,
        padding: torch.Tensor | None,
    ) -> None:
        """``ids`` int64[B, 1] are fed.

        ``slots`` bool[B, capacity] and ``padding`` int64[B, 1] tell of prompts of different length:
        which slots of the cache hold a token, and how many before them do not.
        """
        self._model = model
        self._cache = cache
        self._ids = ids
        self._slots = slots
        self._padding = padding
        self._attends_itself = False
        config: Any = model.config.get_text_config()  # type: ignore[union-attr,operator]
        # transformers makes eager attention's mask on the host, where no CUDA graph may look.
        self._adds = (
            ids.device.type == "cuda"
            and config._attn_implementation == "eager"
            and set(getattr(config, "layer_types", None) or {_FULL}) == {_FULL}
            and not getattr(config, "sliding_window", None)
        )

    def _added(self) -> torch.Tensor:
        """What is added to scores [B, H, 1, capacity]: the least number where no token is held."""
        position = self._cache.position
        capacity = self._cache.layers[0].get_max_length()
        seen = (torch.arange(capacity, device=position.device) <= position)[None]
        if self._slots is not None:
            seen = seen & self._slots
        dtype: torch.dtype = self._model.dtype  # type: ignore[assignment]
        hidden = torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
        return hidden[:, None, None]

    def __call__(self) -> torch.Tensor:
        """See ``Step``."""
        position = self._cache.position
        positions = position.expand_as(self._ids)
        extra = {"held_tokens": position + 1} if self._attends_itself else {}
        logits: torch.Tensor = self._model(
            input_ids=self._ids,
            attention_mask=self._added() if self._adds else self._slots,
            position_ids=positions if self._padding is None else positions - self._padding,
            past_key_values=self._cache,
            use_cache=True,
            **extra,
        ).logits[:, -1]
        position.add_(1)
        return logits

    @property
    def device(self) -> torch.device:
        """Where the ids are."""
        return self._ids.device

    @contextmanager
    def own_attention(self) -> Iterator[bool]:
        """Let the step, while it is traced, attend by ``_attend``; says whether it does.

        It takes SDPA's place alone, and knows no mask but that of what is held and of a sliding
        window. It is llmfit's kernel, on a CPU for bfloat16.
        """
        self._attends_itself = self._slots is None and attends_itself(self._model)
        if not self._attends_itself:
            yield False
            return
        with with_own_attention(self._model):
            yield True


@contextmanager
def with_own_attention(model: nn.Module) -> Iterator[None]:
    """Within, a step of ``model`` that is given ``held_tokens`` attends by ``_attend``."""
    config: Any = model.config.get_text_config()  # type: ignore[union-attr,operator]
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def attends_itself(model: nn.Module) -> bool:
    """True where steps of prompts of one length can attend by ``_attend``."""
    config: Any = model.config.get_text_config()  # type: ignore[union-attr,operator]
    if config._attn_implementation != "sdpa" or not getattr(
        model, "_supports_attention_backend", False
    ):
        return False
    if execution_device(model).type == "cuda":
        missing = why_no_gpu_kernels()
    else:
        missing = "only bfloat16" if model.dtype != torch.bfloat16 else why_no_kernels()
    if missing is not None:
        return False
    if not hasattr(model, "llmfit_tells_attention"):
        model.llmfit_tells_attention = _tells_attention(model)  # type: ignore[assignment]
    return bool(model.llmfit_tells_attention)


class _MaskAlone(Exception):
    """A layer slides by its mask, which llmfit's attention does not look at."""


@torch.inference_mode()
def _tells_attention(model: nn.Module) -> bool:
    """True where layers hand on what llmfit's attention has to know; tried by one token."""
    config: Any = model.config.get_text_config()  # type: ignore[union-attr,operator]
    device = execution_device(model)
    ids = torch.zeros((1, 1), dtype=torch.int64, device=device)
    held = torch.ones((), dtype=torch.int64, device=device)
    cache = StaticKVCache(int(config.num_hidden_layers), 1, device)
    try:
        with with_own_attention(model):
            model(input_ids=ids, past_key_values=cache, use_cache=True, held_tokens=held)
    except _MaskAlone:
        return False
    except TypeError as exc:
        if "held_tokens" not in str(exc):
            raise
        return False
    return True


class CompiledStep:
    """A step through ``torch.compile``: traced at its first call, later called without guards."""

    def __init__(self, step: FixedStep, linears: StepLinears) -> None:
        """``linears`` run the layers while ``step`` is traced, and so in its graph."""
        self._step: FixedStep | None = step
        self._linears = linears
        self._compiled: Callable[..., Any] | None = None
        self._inputs: tuple[torch.Tensor, ...] = ()

    def __call__(self) -> torch.Tensor:
        """See ``Step``. Raises ModelLoadError where Dynamo or inductor cannot make the graph."""
        if self._compiled is None:
            return self._trace()
        logits: torch.Tensor = self._compiled(*self._inputs)[0]
        return logits

    def _trace(self) -> torch.Tensor:
        compile_privately()
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor.compile_fx import compile_fx

        from llmfit.decode.joint_linears import JoinLinears

        step = self._step
        assert step is not None

        def backend(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
            options: dict[str, Any] = {
                "realize_reads_threshold": 1,
                "post_grad_custom_pre_pass": JoinLinears(),
            }
            if step.device.type == "cpu":
                options |= _INDUCTOR_ON_CPU
            with torch._inductor.config.patch(options):
                compiled: Any = compile_fx(graph, inputs)
            self._compiled, self._inputs = compiled, tuple(inputs)
            return compiled  # type: ignore[no-any-return]

        self._linears.install()
        try:
            with step.own_attention(), torch._dynamo.config.patch(_MANY_STEPS):
                traced = torch.compile(step, backend=backend, fullgraph=True, dynamic=False)
                logits: torch.Tensor = traced()
        except TorchDynamoException as exc:
            if is_out_of_memory(exc):
                raise
            raise ModelLoadError(
                f"torch.compile cannot make the decode step: {_cause(exc)}.",
                hint="--backends sdpa, the same without it",
            ) from exc
        finally:
            self._linears.remove()
        self._step = None
        return logits


def _cause(exc: Exception) -> str:
    """What failed in a compiler's long text: its error line, or the first."""
    errors = (line.strip() for line in str(exc).splitlines() if "error:" in line)
    return next(errors, first_line(exc)).rstrip(".")


def run_with(linears: StepLinears, step: Step) -> torch.Tensor:
    """A step whose layers ``linears`` run; afterwards they are the library's again."""
    linears.install()
    try:
        return step()
    finally:
        linears.remove()


class CompiledWhereItCan:
    """A step through ``torch.compile``, or as it is, by the same linear kernels, where that fails.

    For rows whose point is not the compiler; ``why_not`` says the reason.
    """

    def __init__(self, step: FixedStep, linears: StepLinears) -> None:
        """As ``CompiledStep``."""
        self._plain = step
        self._linears = linears
        self._compiled = CompiledStep(step, linears)
        self.why_not: str | None = None

    def __call__(self) -> torch.Tensor:
        """See ``Step``."""
        if self.why_not is None:
            try:
                return self._compiled()
            except ModelLoadError as exc:  # while it was traced: nothing has run
                self.why_not = exc.message
        return run_with(self._linears, self._plain)


class CapturedStep:
    """A step as one CUDA graph: recorded at its first call, replayed by all others.

    Where it cannot be captured it runs as it is, and ``why_not`` says the reason.
    """

    def __init__(self, step: Step, cache: StaticKVCache, *, why_not: str | None = None) -> None:
        """``why_not`` is what is known to keep the step from being captured."""
        self._step = step
        self._cache = cache
        self._graph: Graph | None = None
        self._logits: torch.Tensor | None = None
        self.why_not = why_not
        """The kernel that cannot be captured, or the error of a capture that failed."""

    def __call__(self) -> torch.Tensor:
        """See ``Step``."""
        if self.why_not is not None:
            return self._step()
        if self._graph is None:
            self._capture()
        if self._graph is None or self._logits is None:
            return self._step()
        self._graph.replay()
        return self._logits

    def _capture(self) -> None:
        """Record the step. Its runs before write one slot, which the first replay fills again."""
        start = self._cache.position.clone()
        try:
            self._graph, self._logits = capture(
                self._step, after=lambda: self._cache.position.copy_(start)
            )
        except RuntimeError as exc:
            self.why_not = first_line(exc)
            self._cache.position.copy_(start)


def why_not_captured(model: nn.Module, linears: StepLinears) -> str | None:
    """The kernel that keeps a step of ``model`` from being a CUDA graph; None where none is known.

    ``linears`` run their layers instead of the library.
    """
    for module in model.modules():
        if asks_the_host(module) and not linears.runs(module):
            return (
                "bitsandbytes' LLM.int8() (Linear8bitLt) asks the host in every layer whether its "
                "inputs have outliers"
            )
    return None


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    held_tokens: torch.Tensor,
    scaling: float | None = None,
    sliding_window: int | None = _UNTOLD,
    position_bias: torch.Tensor | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function of a step: query [B, H, 1, D] → [B, 1, H, D]."""
    if position_bias is not None:
        raise NotImplementedError("a compiled step knows no bias by position")
    if sliding_window == _UNTOLD:
        if getattr(getattr(module, "config", None), "sliding_window", None):
            raise _MaskAlone
        sliding_window = None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attend = (torch.ops.llmfit if query.device.type == "cpu" else torch.ops.llmfit_gpu).attend
    return attend(query, key, value, held_tokens, scale, sliding_window or 0), None


def _no_mask(*_: object, **__: object) -> None:
    """``attend`` is told how many tokens are held."""


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, _no_mask)
