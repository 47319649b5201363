"""Log-probabilities of given tokens under a transformers causal language model.

Neighbouring windows with the same beginning, as the endings of a multiple-choice question have,
share one row: the beginning is run once, and each ending sees it and itself alone.

    tokens      c c c c  a a a  b b        positions  0 1 2 3  4 5 6  4 5
    a sees      x x x x  x x x  . .
    b sees      x x x x  . . .  x x

The output head is applied only where a prediction is read, a few hundred positions at a time:
with 128 k tokens in the vocabulary, logits of every position would cost more memory than the model.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llmfit.decode.base import LogitsVisitor, Window, WindowScore, common_prefix
from llmfit.decode.placement import execution_device
from llmfit.errors import EvaluationError

_HEAD_ROWS = 256
"""Positions given to the output head at once, the most that a ``LogitsVisitor`` may see."""
_CPU_TOKENS = 512
"""Tokens of one pass on a CPU: more only drive the activations out of the caches."""
_PADDING_SHARE = 1 / 16
"""Most of a batch that may be padding; a pass of its own costs less than that."""
_SOFTMAX_ROWS = 32
"""Rows of float32 log-softmax held at a time: 16 MB of a 128 k vocabulary."""


@dataclass(frozen=True, slots=True)
class _Row:
    """Windows over one beginning, packed: what is fed, and where each prediction is read."""

    windows: tuple[Window, ...]
    ids: tuple[int, ...]
    positions: tuple[int, ...]
    own_start: tuple[int, ...]
    """For each token the first token of its own ending; 0 for the shared tokens."""
    shared: int
    """Tokens at the row's beginning that every window sees."""
    reads: tuple[int, ...]
    """The tokens whose logits predict the scored tokens, window after window."""


@torch.inference_mode()
def score_windows(
    model: nn.Module,
    windows: Sequence[Window],
    *,
    batch_tokens: int,
    pad_id: int = 0,
    visit: LogitsVisitor | None = None,
) -> Iterator[WindowScore]:
    """Score windows in order, batching neighbours while padding included ≤ ``batch_tokens``.

    Windows that cost alike should be neighbours, and so should windows of one beginning. Padding
    is on the right, where causal attention never looks, so a score does not depend on what
    shares its batch beyond rounding.
    """
    at_once = (
        batch_tokens if execution_device(model).type != "cpu" else min(batch_tokens, _CPU_TOKENS)
    )
    longest = _longest_shareable(model)
    rows = _pack(windows, batch_tokens, longest, _hidden_size(model))
    waiting: list[Window] = []
    states: list[torch.Tensor] = []
    for batch in _batches(rows, at_once, longest):
        states.append(_run(model, batch, pad_id))
        waiting += [window for row in batch for window in row.windows]
        if sum(map(len, states)) >= _HEAD_ROWS:  # fewer would leave the head waiting for memory
            yield from score_hidden(model, waiting, torch.cat(states), visit)
            waiting, states = [], []
    if waiting:
        yield from score_hidden(model, waiting, torch.cat(states), visit)


def _hidden_size(model: nn.Module) -> int:
    config: Any = model.config.get_text_config()  # type: ignore[union-attr,operator]
    return int(config.hidden_size)


def _longest_shareable(model: nn.Module) -> float:
    """Tokens of the longest window that may share a row; 0 where one mask cannot part endings.

    State-space layers have no mask, ALiBi no positions to set, and a sliding or chunked layer
    would look further back in a row than in a window longer than its reach. GPT-Neo's local layers
    count places in the row.
    """
    base: Any = model.base_model
    config: Any = model.config.get_text_config()  # type: ignore[union-attr,operator]
    takes_positions = "position_ids" in inspect.signature(base.forward).parameters
    stateful = getattr(model, "_is_stateful", False)
    local = "local" in (getattr(config, "attention_layers", None) or ())
    if stateful or local or not takes_positions or getattr(config, "alibi", False):
        return 0
    reach = [getattr(config, "attention_chunk_size", None)]
    if getattr(config, "use_sliding_window", True):
        reach.append(getattr(config, "sliding_window", None))
    return min((tokens for tokens in reach if tokens is not None), default=math.inf)


def _cost(tokens: int, hidden_size: int) -> float:
    """Multiplications of a row of ``tokens``, in units of 2 × layers × hidden size.

    Source: Kaplan et al., Scaling Laws for Neural Language Models, 2020, table 1: a token costs 12
    hidden² in a layer's weights, and 2 hidden for each token that its attention computes.
    """
    return tokens * (6.0 * hidden_size + tokens)


def _pack(
    windows: Sequence[Window], batch_tokens: int, longest: float, hidden_size: int
) -> Iterator[_Row]:
    """Put a window into its predecessors' row where that costs less than a row of its own.

    Packing runs the common beginning once, and makes attention look over all endings' tokens:
    texts that share only BOS stay apart, endings of one question come together.
    """
    group: list[Window] = []
    shared = 0
    for window in windows:
        if group:
            common = min(shared, window.score_from, common_prefix(group[0].ids, window.ids))
            together = _fed(common, [*group, window])
            apart = _cost(_fed(shared, group), hidden_size) + _cost(_fed(0, [window]), hidden_size)
            fits = (
                together <= batch_tokens and max(_fed(0, [w]) for w in (*group, window)) <= longest
            )
            if common > 0 and fits and _cost(together, hidden_size) < apart:
                group.append(window)
                shared = common
                continue
            yield _row(group, shared)
        group, shared = [window], window.score_from
    if group:
        yield _row(group, shared)


def _fed(shared: int, windows: Sequence[Window]) -> int:
    """Tokens fed for ``windows`` of which ``shared`` are run once; the last is only predicted."""
    return shared + sum(len(window.ids) - 1 - shared for window in windows)


def _row(windows: Sequence[Window], shared: int) -> _Row:
    ids = list(windows[0].ids[:shared])
    positions = list(range(shared))
    own_start = [0] * shared
    reads: list[int] = []
    for window in windows:
        start = len(ids)
        own = window.ids[shared:-1]
        ids += own
        positions += range(shared, shared + len(own))
        own_start += [start] * len(own)
        places = range(window.score_from - 1, len(window.ids) - 1)
        reads += [place if place < shared else start + place - shared for place in places]
    return _Row(
        tuple(windows), tuple(ids), tuple(positions), tuple(own_start), shared, tuple(reads)
    )


def _batches(rows: Iterator[_Row], most_tokens: int, shareable: float) -> Iterator[list[_Row]]:
    """Neighbouring rows, while they fit ``most_tokens`` and little of it is padding.

    The mask of a shared row is the batch's, and lets all before be seen: a window longer than
    ``shareable``, of which some layers see a part alone, is in no such batch.
    """
    batch: list[_Row] = []
    longest = filled = 0
    for row in rows:
        longest = max(longest, len(row.ids))
        filled += len(row.ids)
        size = longest * (len(batch) + 1)
        together = (*batch, row)
        masked = any(len(each.windows) > 1 for each in together)
        parted = masked and any(_is_long(each, shareable) for each in together)
        if batch and (parted or size > most_tokens or size - filled > _PADDING_SHARE * size):
            yield batch
            batch, longest, filled = [], len(row.ids), len(row.ids)
        batch.append(row)
    if batch:
        yield batch


def _is_long(row: _Row, shareable: float) -> bool:
    return len(row.windows) == 1 and len(row.ids) > shareable


def _run(model: nn.Module, batch: list[_Row], pad_id: int) -> torch.Tensor:
    """Hidden states [S, H] that the output head is to be given, row after row."""
    device = execution_device(model)
    longest = max(len(row.ids) for row in batch)

    def padded(values: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
        return torch.tensor(
            [[*row, *[filler] * (longest - len(row))] for row in values], device=device
        )

    options: dict[str, torch.Tensor] = {}
    if any(len(row.windows) > 1 for row in batch):
        options["position_ids"] = padded([row.positions for row in batch], 0)
        options["attention_mask"] = _shared_mask(
            padded([row.own_start for row in batch], longest),
            torch.tensor([row.shared for row in batch], device=device),
            model.dtype,  # type: ignore[arg-type]
        )
    base: Any = model.base_model
    ids = padded([row.ids for row in batch], pad_id)
    hidden: torch.Tensor = base(input_ids=ids, use_cache=False, **options)[0]  # [B, T, H]
    reads = [index * longest + place for index, row in enumerate(batch) for place in row.reads]
    # Of layers on several devices, the last one's has the states.
    return hidden.flatten(0, 1)[torch.tensor(reads, device=hidden.device)]


def _shared_mask(own_start: torch.Tensor, shared: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask [B, 1, T, T]: 0 where a token may look, the least finite number elsewhere.

    ``own_start`` int[B, T] and ``shared`` int[B] are as in ``_Row``. Every token sees the
    shared tokens before it and its own ending before it; padding sees the shared tokens.
    """
    token = torch.arange(own_start.shape[1], device=own_start.device)
    before = token[None, None, :] <= token[None, :, None]  # [1, T, T]
    in_shared = token[None, None, :] < shared[:, None, None]  # [B, 1, T]
    in_own = token[None, None, :] >= own_start[:, :, None]  # [B, T, T]
    seen = before & (in_shared | in_own)
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def score_hidden(
    model: nn.Module,
    windows: Sequence[Window],
    hidden: torch.Tensor,
    visit: LogitsVisitor | None,
) -> Iterator[WindowScore]:
    """Score windows whose predictions are read from ``hidden`` [S, H], window after window."""
    wanted = [token for window in windows for token in window.ids[window.score_from :]]
    targets = torch.tensor(wanted, device=hidden.device)
    logprobs: list[float] = []
    highest: list[bool] = []
    _require_own_head(model, hidden[:1])
    for states, tokens in zip(hidden.split(_HEAD_ROWS), targets.split(_HEAD_ROWS), strict=True):
        logits = _head(model, states)  # [n, V]
        if visit is not None:
            visit(logits)
        for rows, goals in zip(
            logits.split(_SOFTMAX_ROWS), tokens.split(_SOFTMAX_ROWS), strict=True
        ):
            scores = rows.float().log_softmax(dim=-1)
            logprobs += scores.gather(1, goals[:, None])[:, 0].tolist()
            highest += (scores.argmax(dim=-1) == goals).tolist()
    start = 0
    for window in windows:
        end = start + len(window.ids) - window.score_from
        yield WindowScore(tuple(logprobs[start:end]), all(highest[start:end]))
        start = end


def _require_own_head(model: nn.Module, some: torch.Tensor) -> None:
    """Raise EvaluationError for a model whose head cannot be run apart: its scores would be wrong.

    It has to tell states ``some`` [1, H] from their opposite. Looked at once a model.
    """
    if getattr(model, "llmfit_head_is_apart", False):
        return
    if torch.equal(_head(model, some), _head(model, -some)):
        raise EvaluationError(
            f"{type(model).__name__} computes its logits in a way that cannot be scored here.",
            hint="--no-eval",
        )
    model.llmfit_head_is_apart = True  # type: ignore[assignment]


def _head(model: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Logits [n, V] of ``hidden`` [n, H] by the model's own code, soft caps and scales included.

    The model's ``forward`` runs with its body, which has been run already, handing out ``hidden``.
    """

    def ready(*_: Any, **__: Any) -> Any:
        return _handed_out()(last_hidden_state=hidden[None])

    base: Any = model.base_model
    bodies: list[Any] = [base, getattr(base, "decoder", None)]  # OPT's forward calls the latter
    # Only where someone has wrapped the class's method.
    own = [(body, body.__dict__.get("forward")) for body in bodies if body is not None]
    for body, _ in own:
        body.forward = ready
    try:
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0]
    finally:
        for body, forward in own:
            if forward is None:
                del body.forward
            else:
                body.forward = forward
    return logits


@functools.cache
def _handed_out() -> type[Any]:
    """What stands for a body's output: ``last_hidden_state``, and None for all else that is read.

    Router logits, say, or the cross attentions of a decoder that has none.
    """
    from transformers.modeling_outputs import BaseModelOutput

    class HandedOut(BaseModelOutput):
        def __getattr__(self, name: str) -> None:
            if name.startswith("__"):
                raise AttributeError(name)

    return HandedOut
