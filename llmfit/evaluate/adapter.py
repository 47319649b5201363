"""One lm-eval model over anything that is a ``LoadedModel``: PyTorch rows and llama.cpp alike.

    lm-eval Instance ─► token ids ─► Window ─► LoadedModel.score ─► WindowScore ─► (loglik, greedy)

Both engines give log-probabilities of windows, so lm-eval's protocol is written once. Windows with
the same beginning are put side by side, so that an engine runs it once, and groups of them in the
order of their size, so that a batch pads little; results are put back in the requests' order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from llmfit.backends.base import LoadedModel, Progress, no_progress
from llmfit.decode.base import Decoder, Sampling, Window, WindowScore, common_prefix
from llmfit.errors import EvaluationError
from llmfit.evaluate.finite import check_finite

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

_MAX_NEW_TOKENS = 256  # lm-eval's own default for generate_until
_TEXTS_KEPT = 64
_GENERATION_KEYS = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}


class ModelAdapter(TemplateLM):
    """lm-eval's ``loglikelihood``, ``loglikelihood_rolling`` and ``generate_until`` on our rows.

    The protocol is that of lm-eval's ``hf`` model. A choice is scored after the last tokens of its
    context that the model can attend to; texts are encoded with the tokenizer's own special
    tokens. Rolling scores encode without them and put one BOS (EOS for models without) before the
    first window: ``hf`` with ``add_bos_token=False`` and ``max_length=window``.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        window: int,
        batch_tokens: int,
        progress: Progress = no_progress,
        known: Mapping[Window, WindowScore] | None = None,
    ) -> None:
        """Adapt ``model``; windows that ``known`` holds are looked up and not run again."""
        super().__init__()
        self._model = model
        self._progress = progress
        self._batch_tokens = batch_tokens
        self._known = known or {}
        self.window = min(window, model.context_length)
        """Tokens that one rolling window feeds; the last of its ids is only predicted."""
        self.rolling_tokens = 0
        """Tokens scored by ``loglikelihood_rolling`` so far."""
        self._encoded = lru_cache(_TEXTS_KEPT)(self._encode)

    @property
    def eot_token_id(self) -> int:
        """EOS, or BOS where the model has none."""
        tokenizer = self._model.tokenizer
        token = tokenizer.eos_id if tokenizer.eos_id is not None else tokenizer.bos_id
        if token is None:
            raise EvaluationError("the tokenizer has neither BOS nor EOS to start a text with.")
        return token

    @property
    def prefix_token_id(self) -> int:
        """What precedes the first token of a text: BOS, or EOS where the model has no BOS."""
        bos = self._model.tokenizer.bos_id
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        """Tokens that the model can attend to."""
        return self._model.context_length

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids; None adds the tokenizer's own special tokens unless the text has its BOS.

        A question's choices come one after the other: what they share is encoded once.
        """
        return list(self._encoded(string, add_special_tokens))

    def _encode(self, string: str, special: bool | None) -> list[int]:
        encode = self._model.tokenizer.encode
        if special is not None:
            return encode(string, special=special)
        ids = encode(string)
        twice = ids[:2] == [self.prefix_token_id] * 2  # the text itself begins with BOS
        return encode(string, special=False) if twice else ids

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        windows = [self._window(context, continuation) for _, context, continuation in requests]
        scores = self._score(windows, "score choices")
        return [(sum(score.logprobs), score.greedy) for score in scores]

    def _window(self, context: Sequence[int], continuation: Sequence[int]) -> Window:
        """Context and continuation as one window; a long context loses its beginning.

        As in ``hf``, one token more than the model attends to fits: the last is only predicted.
        """
        if not continuation:
            raise EvaluationError("a continuation has no token to score.")
        if len(continuation) > self.max_length:
            raise EvaluationError(
                f"a continuation of {len(continuation)} tokens does not fit the model's context "
                f"of {self.max_length}."
            )
        ids = (*context, *continuation)[-(self.max_length + 1) :]
        return Window(ids, len(ids) - len(continuation))

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts, every token scored once, windows not overlapping."""
        windows: list[Window] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            pieces = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.window,
                context_len=1,
            )
            for piece in pieces:
                context, scored = make_disjoint_window(piece)
                windows.append(Window((*context, *scored), len(context)))
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, score in zip(owners, self._score(windows, "score text"), strict=True):
            totals[owner] += sum(score.logprobs)
            self.rolling_tokens += len(score.logprobs)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations, each cut at the first of its stop strings; greedy unless asked otherwise.

        Raises EvaluationError for a generation setting that no decoder here has.
        """
        texts = []
        for count, request in enumerate(requests, start=1):
            texts.append(self._generate(*request.args))
            self._progress("generate", count, len(requests))
        return texts

    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        options: dict[str, Any] = dict(normalize_gen_kwargs(settings, _MAX_NEW_TOKENS))
        unknown = sorted(options.keys() - _GENERATION_KEYS)
        if unknown:
            raise EvaluationError(
                f"the task asks for the generation setting {unknown[0]}="
                f"{options[unknown[0]]!r}, which llmfit's decoders do not have.",
                hint="a task that needs only " + ", ".join(sorted(_GENERATION_KEYS)),
            )
        limit = options["max_gen_toks"]
        if limit >= self.max_length:
            raise EvaluationError(
                f"the task asks for {limit} new tokens, the model's context is {self.max_length}."
            )
        prompt = self.tok_encode(context)[-(self.max_length - limit) :]
        decoder = self._model.decoder(batch=1, capacity=len(prompt) + limit)
        try:
            decoder.prefill([prompt], _sampling(options))
            text = self._continue(decoder, options["until"], limit)
        finally:
            decoder.close()
        return str(postprocess_generated_text(text, options["until"], None))

    def _continue(self, decoder: Decoder, until: Sequence[str], limit: int) -> str:
        """Text of up to ``limit`` tokens, no longer than what the first stop string needs."""
        tokenizer = self._model.tokenizer
        stops = [stop for stop in until if stop]
        ends = set(tokenizer.end_ids)
        for stop in stops:  # a special token has no text: it is known by its id
            ids = tokenizer.encode(stop, special=False)
            if len(ids) == 1 and not tokenizer.decode(ids):
                ends.update(ids)
        produced: list[int] = []
        text = ""
        while len(produced) < limit:
            if produced:
                decoder.step()
            (token,) = decoder.tokens()
            if token in ends:
                break
            produced.append(token)
            text = tokenizer.decode(produced)
            if any(stop in text for stop in stops):
                break
        return text

    def _score(self, windows: Sequence[Window], stage: str) -> list[WindowScore]:
        """Scores in the order of ``windows``, each different one that is not known run once.

        Raises NotFinite.
        """
        scores = {window: self._known[window] for window in windows if window in self._known}
        order = _sorted({window: None for window in windows if window not in scores})
        done = self._model.score(order, batch_tokens=self._batch_tokens)
        for count, (window, score) in enumerate(zip(order, done, strict=True), start=1):
            check_finite(score.logprobs)
            scores[window] = score
            if count % 16 == 0 or count == len(order):
                self._progress(stage, count, len(order))
        return [scores[window] for window in windows]


def _sampling(options: dict[str, Any]) -> Sampling:
    if not options["do_sample"]:
        return Sampling()
    return Sampling(
        temperature=float(options["temperature"]),
        top_k=int(options.get("top_k") or 0),
        top_p=float(options.get("top_p", 1.0)),
    )


def _sorted(windows: Iterable[Window]) -> list[Window]:
    """Windows grouped by a beginning that is at least half of each, the largest group first.

    The size of a group is the tokens to run for it when its common beginning is run once.
    """
    groups: list[list[Window]] = []
    sizes: list[int] = []
    for window in sorted(windows, key=lambda window: window.ids):
        fed = len(window.ids) - 1
        common = common_prefix(groups[-1][-1].ids, window.ids) if groups else 0
        if groups and 2 * common >= min(fed, len(groups[-1][-1].ids) - 1):
            groups[-1].append(window)
            sizes[-1] += fed - min(common, fed)
        else:
            groups.append([window])
            sizes.append(fed)
    order = sorted(range(len(groups)), key=lambda index: -sizes[index])
    return [window for index in order for window in groups[index]]
