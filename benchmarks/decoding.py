"""What the decode benchmarks share: turns of llmfit and of its peers, their ratios, the table.

A turn is one prompt and its new tokens; its rate is that of the tokens after the first. All parties
of a row take their turns one after the other (A B A B …) in one process, over the same weights.

On a shared machine the memory's bandwidth is another one a second later. A CPU's share of its limit
is therefore taken in a turn of its own, in which reading as many bytes follows each step.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from llmfit.backends.base import LoadedModel
from llmfit.decode.base import Decoder
from llmfit.device.bandwidth import MemoryReader, measure_bandwidth
from llmfit.device.environment import environment
from llmfit.device.execution import Marks
from llmfit.errors import LlmfitError
from llmfit.files import write_atomically
from llmfit.records import Device, Environment, Sampled, Workload, read_record, to_json
from llmfit.stats import sampled

T = TypeVar("T")
Turn = Callable[[], Mapping[str, float]]
"""Runs one turn and returns the decode rate of its party in tokens/s."""

OURS = "llmfit"
GENERATE = "transformers.generate"
BANDWIDTH = "bandwidth"
"""Bytes per second that memory was read at."""
SHARE = "share of the limit"
"""Of the rate that the bandwidth allows, reached by the step beside which it was measured."""


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
    """Bytes per second that memory was read at: on a CPU the median of the reads between the steps
    of a turn, on a GPU the best of some passes between the turns."""
    bytes_per_token: int | None = None
    limit_tokens_per_s: float | None = None
    share_of_limit: Sampled | None = None
    """Turn by turn; on a CPU the median of a turn's steps, each with the read that follows it."""
    skipped: str | None = None
    """Why there are no figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a benchmark writes."""

    workload: Workload
    settings: dict[str, Any]
    rows: tuple[Row, ...]
    environment: Environment


class Ours:
    """Turns of llmfit's decoder, closed after each, so that a peer finds the model as loaded.

    With ``keep`` it is made once: a compiled or captured step leaves the model alone.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prompt: Sequence[int],
        new_tokens: int,
        device: Device,
        *,
        keep: bool,
    ) -> None:
        self._loaded = loaded
        self._prompt = prompt
        self._new_tokens = new_tokens
        self._device: Device = device
        self._kept = self._decoder() if keep else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the decoder that was kept tells of itself."""
        return () if self._kept is None else self._kept.notes

    def decode(self, new_tokens: int | None = None) -> Mapping[str, float]:
        """A turn, of fewer new tokens where they are given."""
        steps = (new_tokens or self._new_tokens) - 1
        with self._prefilled() as decoder:
            marks = Marks(self._device)
            marks.mark()
            for _ in range(steps):
                decoder.step()
            marks.mark()
            return {OURS: steps / sum(marks.seconds())}

    def decode_and_read(self, reader: MemoryReader, bytes_per_token: int) -> Mapping[str, float]:
        """A turn in which reading about as many bytes from memory follows each step."""
        passes = max(1, round(bytes_per_token / reader.nbytes))
        read_s = []
        with self._prefilled() as decoder:
            marks = Marks(self._device)
            for _ in range(self._new_tokens - 1):
                marks.mark()
                decoder.step()
                marks.mark()
                read_s.append(sum(reader.read_s() for _ in range(passes)))
            step_s = marks.seconds()[::2]
        rates = [passes * reader.nbytes / seconds for seconds in read_s]
        shares = [bytes_per_token / step / rate for step, rate in zip(step_s, rates, strict=True)]
        return {SHARE: median(shares), BANDWIDTH: median(rates)}

    def _decoder(self) -> Decoder:
        return self._loaded.decoder(batch=1, capacity=len(self._prompt) + self._new_tokens)

    @contextmanager
    def _prefilled(self) -> Iterator[Decoder]:
        decoder = self._kept or self._decoder()
        decoder.prefill([self._prompt])
        yield decoder
        if self._kept is None:
            decoder.close()


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

    def turn() -> Mapping[str, float]:
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
        return {GENERATE: (new_tokens - 1) / sum(seconds)}

    return turn


def known(measured: T | None) -> T:
    """What measures or was measured; LlmfitError where too little memory is free for it."""
    if measured is None:
        raise LlmfitError("too little memory is free to measure its bandwidth.")
    return measured


def bandwidth_turn(device: Device) -> Turn:
    """The best of some passes over memory; LlmfitError where too little of it is free."""

    def turn() -> Mapping[str, float]:
        return {BANDWIDTH: known(measure_bandwidth(device))}

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


def workload_of(args: argparse.Namespace) -> Workload:
    """The prompt and the new tokens that are asked for."""
    return Workload(prompt_tokens=args.prompt_tokens, new_tokens=args.new_tokens)


def run_apart(
    run_row: Callable[..., Row], rows: Sequence[tuple[str, ...]], args: argparse.Namespace
) -> None:
    """``run_row(*row, args)`` of each row in a process of its own; print and write the figures.

    With ``--show`` those of a file are printed and nothing runs. ``args`` has ``threads``, too.
    """
    if args.show is not None:
        print_result(read_record(Result, args.show))
        return
    context = multiprocessing.get_context("spawn")
    made = []
    for row in rows:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            made.append(pool.submit(run_row, *row, args).result())
    result = Result(
        workload=workload_of(args),
        settings={"threads": args.threads, "rounds": args.rounds, "seed": args.seed},
        rows=tuple(made),
        environment=environment(),
    )
    print_result(result)
    if args.out is not None:
        write_atomically(args.out, to_json(result) + "\n")


def race(
    turns: Sequence[Turn], rounds: int, label: str, *, warm_up: Sequence[Turn] | None = None
) -> dict[str, Sampled]:
    """``rounds`` turns of each party, one after the other.

    Before them come those of ``warm_up``, or one of each party, which are not counted.
    """
    rates: dict[str, list[float]] = {}
    first = turns if warm_up is None else warm_up
    for index in range(-1, rounds):
        for turn in turns if index >= 0 else first:
            gc.collect()
            for name, rate in turn().items():
                if index >= 0:
                    rates.setdefault(name, []).append(rate)
        done = "warm-up" if index < 0 else f"turn {index + 1} of {rounds}"
        print(f"\r  {label}: {done}   ", end="", flush=True)
    print("\r" + " " * 60 + "\r", end="")
    return {name: sampled(values) for name, values in rates.items()}


def row_of(
    raced: Mapping[str, Sampled], *, bytes_per_token: int | None, model: str, backend: str,
    kernel: str | None, notes: tuple[str, ...],
) -> Row:  # fmt: skip
    """The row of a race, in which ``BANDWIDTH`` may have taken part."""
    rates = {name: value for name, value in raced.items() if name not in (BANDWIDTH, SHARE)}
    bandwidth, share = raced.get(BANDWIDTH), raced.get(SHARE)
    limit = None
    if bandwidth is not None and bytes_per_token is not None:
        limit = bandwidth.median / bytes_per_token
        share = share or _quotient(rates[OURS], bandwidth, bytes_per_token)
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
    if not row.ratio:
        print(f"{row.backend:<9} {ours.median:8.1f} tokens/s ({ours.low:.1f} … {ours.high:.1f})")
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
