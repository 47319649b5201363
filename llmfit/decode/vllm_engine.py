"""Decoding and scoring with vLLM's engine, which is stepped from here.

    prefill ─► add_request for each prompt ─► LLMEngine.step until each has its first token
    step    ─► LLMEngine.step until each sequence has one more
    score   ─► requests that make one token each: prompt_logprobs, and the last token's beside it

The engine runs in this process, so that torch's allocator counts its memory and caps it. A call of
vLLM's ``step`` hands over at most a token of every sequence; while it does, the GPU may compute the
next, as in a server. Cached prefixes are off: a prompt that is timed again would not be computed
again. Source: vLLM 0.30, v1/engine/llm_engine.py, LLMEngine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

import numpy as np

from llmfit.child import variables
from llmfit.decode.base import GREEDY, Decoder, Sampling, Window, WindowScore
from llmfit.errors import LlmfitError, UsageError

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # a place for the token that the last one predicts
    "VLLM_NO_USAGE_STATS": "1",
}
"""Read when an engine is made. Source: vLLM 0.30, envs.py."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What vLLM is started with, by its own names. Source: vLLM 0.30, engine/arg_utils.py."""

    model: str
    max_model_len: int
    """Tokens of a prompt and its continuation, the last chosen one among them."""
    max_num_seqs: int
    """Sequences that run at once."""
    max_num_batched_tokens: int
    """Tokens of all sequences in one pass."""
    kv_cache_memory_bytes: int
    """Of the pool of all sequences, whatever the share below."""
    seed: int = 0
    trust_remote_code: bool = False
    dtype: str = "bfloat16"
    gpu_memory_utilization: float = 0.01
    """Where the pool's bytes are given, only the share of the GPU that has to be free at the start:
    llmfit's own cap decides what is too much."""
    enable_prefix_caching: bool = False
    enable_chunked_prefill: bool = True
    skip_tokenizer_init: bool = True
    """Tokens go in and come out."""
    generation_config: str = "vllm"
    """The model's own defaults of sampling are left alone."""
    load_format: str = "safetensors"
    """No pickle is opened."""
    disable_log_stats: bool = True


class VllmModel:
    """A model that vLLM has loaded, with its pool for keys and values."""

    def __init__(self, options: EngineOptions) -> None:
        """Load and compile it. Raises whatever vLLM does: there is no end to its kinds."""
        with variables(_ENVIRONMENT):
            from vllm.engine.arg_utils import EngineArgs
            from vllm.usage.usage_lib import UsageContext
            from vllm.v1.engine.llm_engine import LLMEngine

            self._engine: Any = LLMEngine.from_engine_args(
                EngineArgs(**asdict(options)), usage_context=UsageContext.LLM_CLASS
            )
        self.options = options
        self._numbers = count()

    @property
    def context_length(self) -> int:
        """Tokens that can be fed; one more is predicted."""
        return self.options.max_model_len - 1

    def model(self) -> Any:
        """The torch module that runs."""
        return self._engine.apply_model(lambda model: model)[0]

    def add(self, ids: Sequence[int], params: Any) -> str:
        """Queue a prompt; the name by which its outputs come."""
        from vllm.inputs import tokens_input

        name = str(next(self._numbers))
        self._engine.add_request(name, tokens_input(list(ids)), params)
        return name

    def abort(self, names: Sequence[str]) -> None:
        """Forget requests, finished or not."""
        self._engine.abort_request(list(names))

    def outputs(self) -> Iterator[Any]:
        """What one step of the engine's gives; it may be nothing. Raises LlmfitError when idle."""
        if not self._engine.has_unfinished_requests():
            raise LlmfitError("vLLM ended a request before its last token.")
        yield from self._engine.step()

    def close(self) -> None:
        """Free the weights and the pool."""
        if self._engine is None:
            return
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self._engine.engine_core.shutdown()
        self._engine = None
        cleanup_dist_env_and_memory()


class VllmDecoder(Decoder):
    """``Decoder`` over requests of vLLM's, one a sequence."""

    on_host_clock = True

    def __init__(
        self, model: VllmModel, *, batch: int, capacity: int, prefill_chunk: int | None = None
    ) -> None:
        """The engine was made for so many sequences, and for one size of a pass.

        Raises UsageError for more of the one, or another of the other.
        """
        self.check_chunk(prefill_chunk)
        options = model.options
        if batch > options.max_num_seqs:
            raise UsageError(
                f"a batch of {batch} is asked of a vLLM engine made for {options.max_num_seqs}.",
                hint="load it with a workload of that --batch",
            )
        made_for = options.max_num_batched_tokens
        if prefill_chunk is not None and max(prefill_chunk, options.max_num_seqs) != made_for:
            raise UsageError(
                f"a prefill chunk of {prefill_chunk} tokens is asked of a vLLM engine made for "
                f"{made_for}.",
                hint="load it with a workload of that --prefill-chunk",
            )
        self.batch = batch
        self.capacity = capacity
        self._model = model
        self._names: list[str] = []
        self._made: dict[str, list[int]] = {}
        self._wanted = 0
        self._longest = 0

    def prefill(self, prompts: Sequence[Sequence[int]], sampling: Sampling = GREEDY) -> None:
        """See ``Decoder.prefill``."""
        self.check_prompts(prompts)
        self._model.abort(self._names)
        self._longest = max(map(len, prompts))
        self._names = [
            self._model.add(prompt, _continuing(sampling, sequence, self.capacity - len(prompt)))
            for sequence, prompt in enumerate(prompts)
        ]
        self._made = {name: [] for name in self._names}
        self._wanted = 1
        self._run()

    def step(self) -> None:
        """See ``Decoder.step``."""
        if self._longest >= self.capacity:
            raise UsageError(f"the KV cache is full: it holds {self.capacity} tokens a sequence.")
        self._longest += 1
        self._wanted += 1
        self._run()

    def tokens(self) -> list[int]:
        """See ``Decoder.tokens``."""
        return [self._made[name][self._wanted - 1] for name in self._names]

    def close(self) -> None:
        """See ``Decoder.close``."""
        self._model.abort(self._names)
        self._names = []

    def _run(self) -> None:
        """Step until every sequence has as many tokens as are wanted; some may be ahead."""
        while any(len(made) < self._wanted for made in self._made.values()):
            for output in self._model.outputs():
                if output.request_id in self._made:
                    self._made[output.request_id] += output.outputs[0].token_ids


def _continuing(sampling: Sampling, sequence: int, room: int) -> Any:
    """vLLM's parameters for ``room`` tokens more in the cache, and one that is only chosen."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    drawn = {}
    if not sampling.greedy:
        seed = np.random.SeedSequence((sampling.seed, sequence)).generate_state(1)[0]
        drawn = {"top_k": sampling.top_k, "top_p": sampling.top_p, "seed": int(seed)}
    return SamplingParams(
        temperature=sampling.temperature,
        max_tokens=room + 1,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        **drawn,
    )


# ---------------------------------------------------------------- scoring


def score_windows(
    model: VllmModel, windows: Sequence[Window], *, batch_tokens: int
) -> Iterator[WindowScore]:
    """Score windows in order, at most ``batch_tokens`` tokens in the engine at once, or a window.

    Log-probabilities are of the logits as they come from the model. vLLM tells those of the
    prompt's tokens and of one more, and not all logits: the divergence from another row would need
    them, at gigabytes of Python objects.
    """
    waiting: list[Window] = []
    for window in windows:
        together = [*waiting, window]
        if waiting and (
            sum(len(each.ids) for each in together) > batch_tokens
            or len(together) > model.options.max_num_seqs
        ):
            yield from _score(model, waiting)
            together = [window]
        waiting = together
    if waiting:
        yield from _score(model, waiting)


def _score(model: VllmModel, windows: Sequence[Window]) -> Iterator[WindowScore]:
    names = [model.add(window.ids[:-1], _scoring(window.ids[-1])) for window in windows]
    found: dict[str, Any] = {}
    while len(found) < len(names):
        found.update((output.request_id, output) for output in model.outputs() if output.finished)
    for name, window in zip(names, windows, strict=True):
        yield _window_score(found[name], window)


def _scoring(last: int) -> Any:
    """vLLM's parameters for the log-probabilities of a prompt's tokens, and of ``last``."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0,
        max_tokens=1,
        ignore_eos=True,
        detokenize=False,
        prompt_logprobs=0,  # of each token of the prompt itself, and no others
        logprob_token_ids=[last],
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _window_score(output: Any, window: Window) -> WindowScore:
    last = window.ids[-1]
    told = [
        output.prompt_logprobs[place][window.ids[place]]
        for place in range(window.score_from, len(window.ids) - 1)
    ]
    made = output.outputs[0]
    return WindowScore(
        logprobs=(*(each.logprob for each in told), made.logprobs[0][last].logprob),
        greedy=all(each.rank == 1 for each in told) and made.token_ids[0] == last,
    )
