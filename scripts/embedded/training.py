"""The training loop: AdamW, warm-up and cosine, bf16 autocast over float32 weights."""

from __future__ import annotations

import itertools
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .model import MAX_POSITIONS, new_model

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

TOKENS_PER_STEP = 2048
CHUNK_STEPS = 64
WARMUP_STEPS = 100
LOG_EVERY_STEPS = 50
CHECKPOINT_EVERY_STEPS = 200


@dataclass(frozen=True, slots=True)
class Settings:
    """What a training run is asked to do."""

    steps: int
    limit_minutes: float
    """When this much time has gone, the learning rate has come down and training ends."""
    peak_rate: float = 2e-3
    weight_decay: float = 0.1


@dataclass(frozen=True, slots=True)
class Progress:
    """One line of the log: mean loss of the steps since the line before."""

    step: int
    loss: float
    minutes: float


def rate(done: float, step: int, peak: float) -> float:
    """Return the learning rate when the share ``done`` of the run is over."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def token_count(steps: int) -> int:
    """Return the number of tokens that a run of so many steps is cut from."""
    return math.ceil(steps / CHUNK_STEPS) * CHUNK_STEPS * TOKENS_PER_STEP


def batches(tokens: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of each step, int64[B, T], about 2,048 tokens each; -1 fills short rows.

    ``tokens`` is uint16[N], each document with token 0 in front. Most steps hold whole documents of
    like length, a row each: among several stories in one row a model of this size takes long to
    learn that a name comes back in its own. Every sixteenth step is packed to the full context.
    """
    size = CHUNK_STEPS * TOKENS_PER_STEP
    packed = size // 16
    for number in range(len(tokens) // size):
        chunk = tokens[number * size : (number + 1) * size].astype(np.int64)
        steps = _rows_by_length(chunk[packed:], CHUNK_STEPS - CHUNK_STEPS // 16)
        random.Random(number).shuffle(steps)
        long = chunk[:packed].reshape(CHUNK_STEPS // 16, -1, MAX_POSITIONS)
        for place in range(CHUNK_STEPS):
            yield long[place // 16] if place % 16 == 15 else steps.pop()


def _rows_by_length(tokens: np.ndarray, count: int) -> list[np.ndarray]:
    """Return ``count`` padded arrays that hold the whole documents of ``tokens``."""
    starts = np.flatnonzero(tokens == 0)
    # A document ends with the token that begins the next one.
    parts = sorted((tokens[a : b + 1] for a, b in itertools.pairwise(starts)), key=len)
    filled = np.cumsum([len(part) for part in parts])
    group = (filled - 1) * count // filled[-1]
    found = []
    for index in range(count):
        rows = [parts[i] for i in np.flatnonzero(group == index)]
        block = np.full((len(rows), max(map(len, rows))), -1, dtype=np.int64)
        for line, row in zip(block, rows, strict=True):
            line[: len(row)] = row
        found.append(block)
    return found


def _optimizer(model: LlamaForCausalLM, settings: Settings) -> torch.optim.AdamW:
    import torch

    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.peak_rate, betas=(0.9, 0.95), fused=True)


def _loss(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.autocast("cpu", torch.bfloat16):
        # What fills a row comes after its document, where causal attention does not see it.
        logits = model(input_ids=ids.clamp(min=0), use_cache=False).logits  # [B, T, vocabulary]
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), ignore_index=-1
    )


@dataclass(frozen=True, slots=True)
class Job:
    """What every worker process of one run needs to know; the files are named by their paths."""

    settings: Settings
    seed: int
    tokens: str
    """uint16 array in NumPy's format, at least steps × 2,048 long."""
    checkpoint: str
    meeting: str
    """File through which the workers find each other."""
    workers: int


def train(job: Job) -> list[Progress]:
    """Run the job in one process a worker; the checkpoint then holds the weights. Return the log.

    Each worker computes its share of a step's rows on one thread, and the gradients are averaged.
    On cores that other work shares this is several times as fast as one process of many threads,
    whose threads wait for one another in every operation. Goes on from a checkpoint that exists.
    """
    import torch

    torch.multiprocessing.spawn(_work, args=(job,), nprocs=job.workers)
    return [Progress(**line) for line in torch.load(job.checkpoint, weights_only=True)["log"]]


def _work(rank: int, job: Job) -> None:
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{job.meeting}", rank=rank, world_size=job.workers
    )
    model = new_model(job.seed)
    optimizer = _optimizer(model, job.settings)
    first, before_s, log = 0, 0.0, []
    if Path(job.checkpoint).exists():
        state = torch.load(job.checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, before_s, log = state["step"], state["seconds"], state["log"]
    tokens = np.load(job.tokens, mmap_mode="r")
    start = time.monotonic() - before_s
    seconds, recent, finished = before_s, [], first
    model.train()
    source = itertools.islice(batches(tokens), job.settings.steps)
    for step, rows in itertools.islice(enumerate(source), first, None):
        done = max(step / job.settings.steps, seconds / 60 / job.settings.limit_minutes)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate(done, step, job.settings.peak_rate)
        loss = _loss(model, torch.from_numpy(rows[rank :: job.workers]))
        loss.backward()
        # The clock is averaged too, so that all workers come to the same decisions.
        mean_loss, seconds = _average(model, loss.item(), time.monotonic() - start)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(mean_loss)
        finished = step + 1
        if rank == 0 and len(recent) == LOG_EVERY_STEPS:
            log.append(_report(finished, recent, seconds, job.settings))
            recent = []
        if rank == 0 and finished % CHECKPOINT_EVERY_STEPS == 0:
            _save(Path(job.checkpoint), model, optimizer, finished, seconds, log)
    if rank == 0:
        if recent:
            log.append(_report(finished, recent, seconds, job.settings))
        _save(Path(job.checkpoint), model, optimizer, finished, seconds, log)
    torch.distributed.destroy_process_group()


def _average(model: LlamaForCausalLM, loss: float, seconds: float) -> tuple[float, float]:
    """Average gradients, loss and clock over all workers."""
    import torch

    grads = [p.grad for p in model.parameters()]
    flat = torch.cat([*(g.flatten() for g in grads), torch.tensor([loss, seconds])])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    place = 0
    for grad in grads:
        grad.copy_(flat[place : place + grad.numel()].view_as(grad))
        place += grad.numel()
    return flat[-2].item(), flat[-1].item()


def _report(step: int, losses: list[float], seconds: float, settings: Settings) -> dict[str, float]:
    line = Progress(step, round(sum(losses) / len(losses), 4), round(seconds / 60, 2))
    print(
        f"step {step}/{settings.steps} loss {line.loss:.4f} "
        f"{step * TOKENS_PER_STEP / seconds:,.0f} tokens/s {line.minutes:.1f} min",
        file=sys.stderr,
        flush=True,
    )
    return asdict(line)


def _save(
    path: Path,
    model: LlamaForCausalLM,
    optimizer: torch.optim.AdamW,
    step: int,
    seconds: float,
    log: list[dict[str, float]],
) -> None:
    import torch

    draft = path.with_suffix(".part")
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "seconds": seconds,
            "log": log,
        },
        draft,
    )
    draft.replace(path)
