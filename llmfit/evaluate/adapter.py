"""One lm-eval model over anything that is a ``LoadedModel``: PyTorch rows and llama.cpp alike.

    lm-eval Instance ─► token ids ─► Window ─► LoadedModel.score ─► WindowScore ─► (loglik, greedy)

Both engines give log-probabilities of windows, so lm-eval's protocol is written once. Requests
are sorted by length, so that a batch pads little, and put back in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from llmfit.backends.base import LoadedModel, Progress, no_progress
from llmfit.decode.base import Window, WindowScore
from llmfit.errors import EvaluationError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

_MAX_NEW_TOKENS = 256  # lm-eval's own default for generate_until


class ModelAdapter(TemplateLM):
    """lm-eval's ``loglikelihood``, ``loglikelihood_rolling`` and ``generate_until`` on our rows.

    Texts are encoded with the tokenizer's own special tokens, as lm-eval's ``hf`` model does by
    default. Rolling scores encode without them and put one BOS (EOS for models without) before
    the first window: the same as ``hf`` with ``add_bos_token=False``.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        window: int,
        batch_tokens: int,
        progress: Progress = no_progress,
    ) -> None:
        super().__init__()
        self._model = model
        self._progress = progress
        self._batch_tokens = batch_tokens
        self.window = min(window, model.context_length)
        """Ids in one rolling window: one of context, the rest scored."""
        self.rolling_tokens = 0
        """Tokens scored by ``loglikelihood_rolling`` so far."""

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
        """Token ids; None adds the tokenizer's own special tokens unless the text has its BOS."""
        tokenizer = self._model.tokenizer
        if add_special_tokens is None:
            prefix = tokenizer.decode([self.prefix_token_id])
            add_special_tokens = not (prefix and has_bos_prefix(string, prefix))
        return tokenizer.encode(string, special=add_special_tokens)

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
        """Context and continuation as one window; a long context loses its beginning."""
        if not continuation:
            raise EvaluationError("a continuation has no token to score.")
        ids = tuple(context) + tuple(continuation)
        ids = ids[-self.max_length :]
        start = len(ids) - len(continuation)
        if start < 1:
            raise EvaluationError(
                f"a continuation of {len(continuation)} tokens does not fit the model's context "
                f"of {self.max_length}."
            )
        return Window(ids, start)

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
                max_seq_len=self.window - 1,
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
        """Greedy continuations, each cut at the first of its stop strings."""
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        until = settings.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        limit = int(settings.get("max_gen_toks", _MAX_NEW_TOKENS))
        prompt = self.tok_encode(context)[-(self.max_length - limit) :]
        decoder = self._model.decoder(batch=1, capacity=len(prompt) + limit)
        produced: list[int] = []
        text = ""
        try:
            decoder.prefill([prompt])
            while len(produced) < limit:
                (token,) = decoder.tokens()
                if token == self._model.tokenizer.eos_id:
                    break
                produced.append(token)
                text = self._model.tokenizer.decode(produced)
                if any(stop in text for stop in stops):
                    break
                if len(produced) < limit:
                    decoder.step()
        finally:
            decoder.close()
        for stop in stops:
            text = text.split(stop)[0]
        return text

    def _score(self, windows: Sequence[Window], stage: str) -> list[WindowScore]:
        """Scores in the order of ``windows``, computed from the longest to the shortest.

        Windows of one context stay together, so that an engine can run the context once.
        """
        contexts = [window.ids[: window.score_from] for window in windows]
        longest: dict[tuple[int, ...], int] = {}
        for context, window in zip(contexts, windows, strict=True):
            longest[context] = max(longest.get(context, 0), len(window.ids))
        order = sorted(range(len(windows)), key=lambda i: (-longest[contexts[i]], contexts[i]))
        ordered = [windows[index] for index in order]
        scores: list[WindowScore | None] = [None] * len(windows)
        total = len(windows)
        done = self._model.score(ordered, batch_tokens=self._batch_tokens)
        for count, (index, score) in enumerate(zip(order, done, strict=True), start=1):
            scores[index] = score
            if count % 16 == 0 or count == total:
                self._progress(stage, count, total)
        return [score for score in scores if score is not None]
