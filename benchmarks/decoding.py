"""What the decode benchmarks share: turns of llmfit and of its peers, their ratios, the table.

A turn is one prompt and its new tokens; its rate is that of the tokens after the first. All parties
of a row take their turns one after the other (A B A B …) in one process, over the same weights.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmfit.backends.base import LoadedModel
from llmfit.decode.base import Decoder
from llmfit.device.bandwidth import measure_bandwidth
from llmfit.device.execution import Marks
from llmfit.errors import LlmfitError
from llmfit.records import Device, Environment, Sampled, Workload
from llmfit.stats import sampled

Turn = Callable[[], float]
"""Runs one turn and returns its decode rate in tokens/s."""

OURS = "llmfit"
GENERATE = "transformers.generate"
BANDWIDTH = "bandwidth"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of one model: rates of every party in each turn."""

    model: str
    backend: str
    kernel: str | None = None
    notes: tuple[str, ...] = ()
    tokens_per_s: dict[str, Sampled] = field(default_factory=dict)
    ratio: dict[str, Sampled] = field(default_factory=dict)
    """Ours over each peer's, turn by turn."""
    bandwidth: Sampled | None = None
    """Bytes per second that the memory was read at, between the turns."""
    bytes_per_token: int | None = None
    limit_tokens_per_s: float | None = None
    share_of_limit: Sampled | None = None
    skipped: str | None = None
    """Why there are no figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a benchmark writes."""

    workload: Workload
    settings: dict[str, Any]
    rows: tuple[Row, ...]
    environment: Environment


def our_turn(
    loaded: LoadedModel,
    prompt: Sequence[int],
    new_tokens: int,
    device: Device,
    *,
    keep: bool,
    made: list[Decoder] | None = None,
) -> Turn:
    """A turn of llmfit's decoder, closed after it, so that a peer finds the model as loaded.

    With ``keep`` it is made once, and put into ``made``: a compiled or captured step leaves the
    model alone.
    """
    capacity = len(prompt) + new_tokens
    kept = loaded.decoder(batch=1, capacity=capacity) if keep else None
    if kept is not None and made is not None:
        made.append(kept)

    def turn() -> float:
        decoder = kept or loaded.decoder(batch=1, capacity=capacity)
        decoder.prefill([prompt])
        marks = Marks(device)
        marks.mark()
        for _ in range(new_tokens - 1):
            decoder.step()
        marks.mark()
        seconds = marks.seconds()[0]
        if kept is None:
            decoder.close()
        return (new_tokens - 1) / seconds

    return turn


def generate_turn(model: Any, prompt: Sequence[int], new_tokens: int, device: Device) -> Turn:
    """A turn of ``transformers.generate``, greedy, with its own settings else."""
    import torch
    from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

    class MarkEach(StoppingCriteria):  # asked after each token, and stops nothing
        def __init__(self) -> None:
            self.marks = Marks(device)

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            self.marks.mark()
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    ids = torch.tensor([list(prompt)], device=model.device)
    model.generation_config = GenerationConfig(pad_token_id=0, use_cache=True)  # stops at no token

    def turn() -> float:
        each = MarkEach()
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new_tokens,
            stopping_criteria=StoppingCriteriaList([each]),
        )
        seconds = each.marks.seconds()
        assert out.shape[1] == ids.shape[1] + new_tokens and len(seconds) == new_tokens - 1
        return (new_tokens - 1) / sum(seconds)

    return turn


def bandwidth_turn(device: Device) -> Turn:
    """Bytes per second at which memory is read; LlmfitError where too little of it is free."""

    def turn() -> float:
        measured = measure_bandwidth(device)
        if measured is None:
            raise LlmfitError("too little memory is free to measure its bandwidth.")
        return measured

    return turn


def add_options(
    parser: argparse.ArgumentParser,
    *,
    backends: Sequence[str],
    prompt_tokens: int,
    new_tokens: int,
    rounds: int,
) -> None:
    """The options of both benchmarks, with their defaults."""
    parser.add_argument("--backends", nargs="+", choices=backends, default=backends)
    parser.add_argument("--prompt-tokens", type=int, default=prompt_tokens)
    parser.add_argument("--new-tokens", type=int, default=new_tokens)
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="counted turns (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=Path, help="print such a file's figures, run nothing")
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file")


def race(turns: Mapping[str, Turn], rounds: int, label: str) -> dict[str, Sampled]:
    """``rounds`` turns of each party, one after the other, after one that is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in turns}
    for index in range(-1, rounds):
        for name, turn in turns.items():
            gc.collect()
            rate = turn()
            if index >= 0:
                rates[name].append(rate)
        done = "warm-up" if index < 0 else f"turn {index + 1} of {rounds}"
        print(f"\r  {label}: {done}   ", end="", flush=True)
    print("\r" + " " * 60 + "\r", end="")
    return {name: sampled(values) for name, values in rates.items()}


def row_of(
    raced: Mapping[str, Sampled], *, bytes_per_token: int | None, model: str, backend: str,
    kernel: str | None, notes: tuple[str, ...],
) -> Row:  # fmt: skip
    """The row of a race, in which ``BANDWIDTH`` may have taken part."""
    rates = {name: value for name, value in raced.items() if name != BANDWIDTH}
    bandwidth = raced.get(BANDWIDTH)
    limit = share = None
    if bandwidth is not None and bytes_per_token is not None:
        limit = bandwidth.median / bytes_per_token
        share = _quotient(rates[OURS], bandwidth, bytes_per_token)
    return Row(
        model=model,
        backend=backend,
        kernel=kernel,
        notes=notes,
        tokens_per_s=rates,
        ratio={
            name: _quotient(rates[OURS], value) for name, value in rates.items() if name != OURS
        },
        bandwidth=bandwidth,
        bytes_per_token=bytes_per_token,
        limit_tokens_per_s=limit,
        share_of_limit=share,
    )


def _quotient(above: Sampled, below: Sampled, factor: float = 1.0) -> Sampled:
    pairs = zip(above.samples, below.samples, strict=True)
    return sampled([factor * a / b for a, b in pairs])


def print_result(result: Result) -> None:
    """Machine, then for each row a line of ratios and one of its limit."""
    machine = result.environment
    packages = machine.packages
    part = machine.gpu or machine.cpu
    print(
        f"{part}, torch {packages.get('torch')}, transformers {packages.get('transformers')}; "
        f"prompt {result.workload.prompt_tokens} + {result.workload.new_tokens} new tokens"
    )
    for model in dict.fromkeys(row.model for row in result.rows):
        print(f"\n{model}")
        for row in result.rows:
            if row.model == model:
                _print_row(row)


def _print_row(row: Row) -> None:
    if row.skipped is not None:
        print(f"{row.backend:<9} skipped: {row.skipped}")
        return
    ours = row.tokens_per_s[OURS]
    for name, ratio in row.ratio.items():
        peer = row.tokens_per_s[name].median
        print(
            f"{row.backend:<9} {ours.median:8.1f} tokens/s, {name} {peer:.1f} … "
            f"{ratio.median:.2f}x ({ratio.low:.2f} … {ratio.high:.2f})"
        )
    if row.bandwidth is not None and row.share_of_limit is not None:
        share = row.share_of_limit
        print(
            f"{'':<9} {row.bandwidth.median / 1e9:.1f} GB/s allow {row.limit_tokens_per_s:.1f}: "
            f"{share.median:.0%} of the limit ({share.low:.0%} … {share.high:.0%}); {row.kernel}"
        )
