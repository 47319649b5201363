"""HellaSwag scoring as lm-eval defines it, by a plain loop: the check of the embedded model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Score:
    """How one question came out, by summed log-likelihood and per byte of the ending."""

    kind: str
    right: bool
    right_per_byte: bool
    margin_per_byte: float
    """Log-likelihood per byte of the right ending less that of the best wrong one."""


@dataclass(frozen=True, slots=True)
class _Request:
    question: int
    ending: int
    ids: list[int]
    scored: int
    """How many of the last ids belong to the ending."""


def _requests(rows: Sequence[dict], encode) -> list[_Request]:
    found = []
    for number, row in enumerate(rows):
        context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}".strip()
        start = len(encode(context))
        for place, ending in enumerate(row["endings"]):
            ids = encode(f"{context} {ending}")
            found.append(_Request(number, place, ids, len(ids) - start))
    # Requests of like length share a batch.
    return sorted(found, key=lambda request: len(request.ids))


def score_questions(folder: Path, rows: Sequence[dict], batch: int = 64) -> list[Score]:
    """Return the score of each row under the model in ``folder``, in its stored precision."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    requests = _requests(rows, lambda text: tokenizer(text)["input_ids"])
    likelihood = [[0.0] * len(row["endings"]) for row in rows]
    for start in range(0, len(requests), batch):
        part = requests[start : start + batch]
        ids = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(request.ids) for request in part], batch_first=True
        )
        with torch.inference_mode():
            logits = model(input_ids=ids).logits.float()
        gains = torch.log_softmax(logits[:, :-1], -1).gather(2, ids[:, 1:, None])[
            ..., 0
        ]  # [B, T-1]
        for line, request in zip(gains, part, strict=True):
            stop = len(request.ids) - 1
            total = line[stop - request.scored : stop].sum().item()
            likelihood[request.question][request.ending] = total
    return [_score(row, values) for row, values in zip(rows, likelihood, strict=True)]


def _score(row: dict, values: Sequence[float]) -> Score:
    per_byte = [v / len(e.encode()) for v, e in zip(values, row["endings"], strict=True)]
    label = row["label"]
    wrong = [value for place, value in enumerate(per_byte) if place != label]
    return Score(
        kind=row["source_id"].split("~")[0],
        right=max(range(len(values)), key=values.__getitem__) == label,
        right_per_byte=max(range(len(per_byte)), key=per_byte.__getitem__) == label,
        margin_per_byte=per_byte[label] - max(wrong),
    )


def text_loss(folder: Path, texts: Sequence[str]) -> float:
    """Return the mean loss in nats per token over ``texts``, each scored from its beginning."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            logits = model(input_ids=ids).logits.float()
        total += torch.nn.functional.cross_entropy(
            logits[0, :-1], ids[0, 1:], reduction="sum"
        ).item()
        count += ids.shape[1] - 1
    return total / count
