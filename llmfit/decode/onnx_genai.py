"""Decoding and scoring with onnxruntime-genai, over its generator's own KV cache.

A sequence has a generator of its own: in one batch the library would tell padding from tokens by
the token's id, which a prompt may hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmfit.decode.base import (
    GREEDY,
    Decoder,
    LogitsVisitor,
    Sampling,
    Window,
    WindowScore,
    common_prefix,
)
from llmfit.errors import ModelLoadError, UsageError

CHUNK_TOKENS = 512
"""Prompt tokens given to the library at once: it gives the logits of each of them."""
_VISITED_ROWS = 256


class OnnxModel:
    """A model that onnxruntime-genai has loaded."""

    def __init__(self, folder: Path, *, threads: int) -> None:
        """Load ``folder`` on ``threads`` threads. Raises ModelLoadError in the library's words."""
        import onnxruntime_genai as og

        try:
            config = og.Config(str(folder))
            session = {"session_options": {"intra_op_num_threads": threads}}
            config.overlay(json.dumps({"model": {"decoder": session}}))
            self._model: Any = og.Model(config)
        except RuntimeError as exc:
            raise ModelLoadError(f"onnxruntime-genai cannot load {folder}: {exc}") from exc

    def generator(self, capacity: int) -> Any:
        """A generator for one sequence of up to ``capacity`` tokens."""
        import onnxruntime_genai as og

        params = og.GeneratorParams(self._model)
        params.set_search_options(batch_size=1, max_length=capacity, do_sample=False)
        return og.Generator(self._model, params)

    def close(self) -> None:
        """Free the weights, once no generator is left."""
        self._model = None


class OnnxDecoder(Decoder):
    """``Decoder`` over a generator for each sequence, which run one after the other."""

    def __init__(
        self, model: OnnxModel, *, batch: int, capacity: int, prefill_chunk: int | None = None
    ) -> None:
        self.check_chunk(prefill_chunk)
        self.batch = batch
        self.capacity = capacity
        self._chunk = prefill_chunk or CHUNK_TOKENS
        # The last token chosen is fed only by the next step.
        self._generators = [model.generator(capacity) for _ in range(batch)]
        self._tokens = np.zeros((batch, 1), np.int32)
        self._longest = 0
        self._sampling = GREEDY
        self._draws: list[Any] = []

    @property
    def notes(self) -> tuple[str, ...]:
        """See ``Decoder.notes``."""
        return () if self.batch == 1 else ("sequences of a batch run one after the other",)

    def prefill(self, prompts: Sequence[Sequence[int]], sampling: Sampling = GREEDY) -> None:
        """See ``Decoder.prefill``."""
        self.check_prompts(prompts)
        self._sampling = sampling
        self._draws = [_draws(sampling, sequence) for sequence in range(self.batch)]
        self._longest = max(map(len, prompts))
        for sequence, prompt in enumerate(prompts):
            generator = self._generators[sequence]
            generator.rewind_to(0)
            _feed(generator, prompt, self._chunk)
            self._choose(sequence)

    def step(self) -> None:
        """See ``Decoder.step``."""
        if self._longest >= self.capacity:
            raise UsageError(f"the KV cache is full: it holds {self.capacity} tokens a sequence.")
        self._longest += 1
        for sequence, generator in enumerate(self._generators):
            generator.append_tokens(self._tokens[sequence : sequence + 1])
            self._choose(sequence)

    def tokens(self) -> list[int]:
        """See ``Decoder.tokens``."""
        chosen: list[int] = self._tokens[:, 0].tolist()
        return chosen

    def close(self) -> None:
        """See ``Decoder.close``."""
        self._generators = []

    def _choose(self, sequence: int) -> None:
        logits = self._generators[sequence].get_logits()[0, -1]
        if self._sampling.greedy:
            self._tokens[sequence] = logits.argmax()
            return
        import torch

        from llmfit.decode.sampling import choose

        drawn = choose(torch.from_numpy(logits[None]), self._sampling, self._draws[sequence])
        self._tokens[sequence] = int(drawn)


def _feed(generator: Any, ids: Sequence[int], chunk: int) -> None:
    """Append ``ids``, ``chunk`` at a time."""
    for start in range(0, len(ids), chunk):
        generator.append_tokens(np.asarray([ids[start : start + chunk]], np.int32))


def _draws(sampling: Sampling, sequence: int) -> Any:
    """A source of chance of the sequence's own; None where none is drawn."""
    if sampling.greedy:
        return None
    import torch

    seed = int(np.random.SeedSequence((sampling.seed, sequence)).generate_state(1)[0])
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- scoring


def score_windows(
    model: OnnxModel,
    windows: Sequence[Window],
    *,
    batch_tokens: int,
    visit: LogitsVisitor | None = None,
) -> Iterator[WindowScore]:
    """Score windows in order; what a window has in common with the one before it stays cached."""
    if not windows:
        return
    chunk = max(1, min(CHUNK_TOKENS, batch_tokens))
    generator = model.generator(max(len(window.ids) for window in windows))
    cached: tuple[int, ...] = ()
    for window in windows:
        fed = window.ids[:-1]
        keep = min(common_prefix(cached, fed), window.score_from - 1)
        generator.rewind_to(keep)
        yield _score(generator, window, keep, chunk, visit)
        cached = fed


def _score(
    generator: Any, window: Window, keep: int, chunk: int, visit: LogitsVisitor | None
) -> WindowScore:
    """Feed what follows the first ``keep`` tokens, and score each wanted one as it is predicted."""
    import torch

    logprobs: list[float] = []
    greedy = True
    end = len(window.ids) - 1
    for start in range(keep, end, chunk):
        stop = min(start + chunk, end)
        generator.append_tokens(np.asarray([window.ids[start:stop]], np.int32))
        first = max(start, window.score_from - 1)
        if first >= stop:
            continue
        logits = torch.from_numpy(generator.get_output("logits")[0, first - start :]).float()
        wanted = torch.tensor(window.ids[first + 1 : stop + 1])
        if visit is not None:
            for rows in logits.split(_VISITED_ROWS):
                visit(rows)
        scores = logits.log_softmax(dim=-1).gather(1, wanted[:, None])[:, 0]
        logprobs += scores.tolist()
        greedy = greedy and bool((logits.argmax(dim=-1) == wanted).all())
    return WindowScore(tuple(logprobs), greedy)
