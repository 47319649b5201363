"""Row ``vllm``: vLLM's engine in 16 bits, or on a GPTQ or AWQ checkpoint as it is.

vLLM takes most of a card for keys and values unless it is told otherwise. Here its pool holds what
the workload needs, and one window of text for scoring; so its memory can be compared with the
others'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from llmfit.backends._tokenizer import tokenizer_of
from llmfit.backends._weights import weights_bytes
from llmfit.backends.base import (
    TORCH,
    Backend,
    Check,
    LoadedModel,
    LoadInfo,
    Package,
    Progress,
    Tokenizer,
    no_progress,
)
from llmfit.errors import UsageError
from llmfit.foreign.errors import LibraryErrors
from llmfit.planning.memory.kv_cache import kv_cache_bytes, vllm_window
from llmfit.records import Kernel, Plan
from llmfit.units import format_bytes

if TYPE_CHECKING:
    from llmfit.decode.base import Decoder, LogitsVisitor, Window, WindowScore
    from llmfit.decode.vllm_engine import EngineOptions, VllmModel

_MOST_TOKENS = 8192
"""Of a pass over prompts where no chunk is asked for. Source: vLLM 0.30, engine/arg_utils.py, the
default of its class ``LLM`` on cards below 70 GiB."""
_SCORED_AT_ONCE = 8
"""Windows that run together, unless a pass takes fewer tokens."""


class VllmLoaded(LoadedModel):
    """A model in vLLM's engine."""

    gives_logits = False

    def __init__(
        self, model: VllmModel, *, tokenizer: Tokenizer, info: LoadInfo, vocab_size: int
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.info = info
        self.vocab_size = vocab_size
        self.context_length = model.context_length

    def check_capacity(self, capacity: int) -> None:
        """Raise UsageError where ``capacity`` exceeds what the engine was made for."""
        if capacity > self.context_length:
            raise UsageError(
                f"{capacity} tokens a sequence are asked for, the vLLM engine was made for "
                f"{self.context_length}.",
                hint="fewer prompt or new tokens, or a workload as long as that",
            )

    def decoder(self, *, batch: int, capacity: int, prefill_chunk: int | None = None) -> Decoder:
        """See ``LoadedModel.decoder``."""
        from llmfit.decode.vllm_engine import VllmDecoder

        self.check_capacity(capacity)
        return VllmDecoder(self.model, batch=batch, capacity=capacity, prefill_chunk=prefill_chunk)

    def score(
        self, windows: Sequence[Window], *, batch_tokens: int, visit: LogitsVisitor | None = None
    ) -> Iterator[WindowScore]:
        """See ``LoadedModel.score``; ``visit`` is shown nothing, as ``gives_logits`` says."""
        from llmfit.decode.vllm_engine import score_windows

        self.check_windows(windows)
        return score_windows(self.model, windows, batch_tokens=batch_tokens)

    def close(self) -> None:
        """See ``LoadedModel.close``."""
        self.model.close()


class Vllm(Backend):
    """bf16 in vLLM; GPTQ and AWQ where the model is stored in them."""

    id = "vllm"
    label = "vLLM"
    packages = (*TORCH, Package("vllm", "vllm"))
    devices = frozenset({"cuda"})
    loads_quantized = frozenset({"gptq", "awq"})

    def install_hint(self) -> str:
        """The line that installs a vLLM of llmfit's own torch and transformers.

        0.31 and later want an older transformers. Source: the packages' Requires-Dist.
        """
        return "pip install 'vllm>=0.30,<0.31'"

    def check(self, plan: Plan) -> Check:
        """See ``Backend.check``."""
        outcome = super().check(plan)
        if outcome != Check():
            return outcome
        if plan.weights == "synthetic":
            return Check(skipped="vLLM is given real weights alone here")
        if plan.kv_cache_dtype is not None:
            return Check(skipped=f"vLLM has no KV cache in {plan.kv_cache_dtype}")
        return outcome

    def load(self, plan: Plan, progress: Progress = no_progress) -> LoadedModel:
        """See ``Backend.load``. Compiling and warming up the engine are part of it."""
        from llmfit.decode.vllm_engine import VllmModel

        self.require(plan)
        tokenizer = tokenizer_of(plan)
        progress("load", 0, 0)
        options = engine_options(plan)
        with LibraryErrors(f"vLLM cannot load {plan.model.name}", folder=plan.model.path):
            model = VllmModel(options)
        module = model.model()
        info = LoadInfo(
            kernel=_kernel(module),
            dtype=plan.model.quantization or "bfloat16",
            weights_bytes=weights_bytes(module),
            quantized_share=_quantized_share(module, plan),
            notes=_notes(options, plan),
        )
        return VllmLoaded(model, tokenizer=tokenizer, info=info, vocab_size=plan.model.vocab_size)


def engine_options(plan: Plan) -> EngineOptions:
    """What vLLM is started with, for the plan's workload and the windows of its text.

    Its pool has the bytes that are predicted for it: every sequence whole, and at least one window.
    """
    from llmfit.decode.vllm_engine import EngineOptions

    work = plan.workload
    window = vllm_window(plan.model, work)
    asked = 0 if plan.evaluation is None else plan.evaluation.ppl_window or 0
    context = min(max(window, asked), plan.model.max_position_embeddings)
    pool = kv_cache_bytes(plan.model, work, backend="vllm", vllm_context=context)
    passed = work.prefill_chunk or min(_MOST_TOKENS, work.batch * work.prompt_tokens)
    sequences = max(work.batch, min(_SCORED_AT_ONCE, passed))
    return EngineOptions(
        model=plan.model.path,
        max_model_len=context + 1,
        max_num_seqs=sequences,
        max_num_batched_tokens=max(passed, sequences),  # vLLM wants a token of each
        kv_cache_memory_bytes=pool,
        seed=plan.seed,
        trust_remote_code=plan.trust_remote_code,
    )


def _kernel(module: Any) -> Kernel:
    """Classes that multiply in the linear layers, and vLLM's name of its attention."""
    linear = dict.fromkeys(
        type(part.quant_method).__name__
        for part in module.modules()
        if "Linear" in type(part).__name__ and getattr(part, "quant_method", None) is not None
    )
    attention = dict.fromkeys(
        part.attn_backend.get_name() for part in module.modules() if hasattr(part, "attn_backend")
    )
    return Kernel(
        linear=" + ".join(linear) + " (vLLM)", attention=" + ".join(attention) + " (vLLM)"
    )


def _quantized_share(module: Any, plan: Plan) -> float | None:
    """0 in 16 bits; else the parameters that are not held as such. None where their number is not
    known."""
    if plan.model.quantization is None:
        return 0.0
    if plan.model.parameters is None:
        return None
    plain = sum(
        parameter.numel()
        for part in module.modules()
        for parameter in part.parameters(recurse=False)
        if type(getattr(part, "quant_method", None)).__name__.startswith(("Unquantized", "None"))
    )
    return max(0.0, 1.0 - plain / plan.model.parameters)


def _notes(options: EngineOptions, plan: Plan) -> tuple[str, ...]:
    """How the engine was set, where that is not its default or shows in the figures."""
    pool = format_bytes(options.kv_cache_memory_bytes)
    notes = (
        f"KV pool of {pool}, for the workload and a window of text; prefix caching off",
        "compiled and captured in CUDA graphs by vLLM while it loads",
    )
    context = options.max_model_len - 1
    if context == plan.model.max_position_embeddings:
        return notes
    return (*notes, f"contexts of up to {context} tokens; the model's own would enlarge the pool")
