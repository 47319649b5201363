"""Tokens of a prompt a second on a CPU: llmfit's products of many rows beside the libraries' own.

Both run in turns in one process, over the same loaded weights: a forward pass of transformers'
model with the layers as llmfit loads them, and with the classes' own forward in them. ``sdpa``, in
which nothing is replaced, is what the others are held against. Weights of the 1.24 B shape of
Llama-3.2 are random.

    python benchmarks/prompt_cpu.py --out benchmarks/results/prompt_cpu.json
    python benchmarks/prompt_cpu.py --show benchmarks/results/prompt_cpu.json
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from decoding import OURS, Row, Turn, add_options, race, row_of, run_apart, workload_of

from llmfit.deployer import Deployer
from llmfit.errors import LlmfitError
from llmfit.measure import random_prompts

MODEL = "meta-llama/Llama-3.2-1B"
"""By its shape alone."""
BACKENDS = ("sdpa", "int8", "nf4")
"""The first as it is, the others with products of llmfit's."""
LIBRARY = "the library's own"


def main() -> None:
    """Run the rows, each in a process of its own, and print and write the figures."""
    args = _arguments()
    run_apart(run_row, [(backend,) for backend in args.backends], args)


def run_row(backend: str, args: argparse.Namespace) -> Row:
    """The race of one row; where it cannot run, a row with the reason."""
    workload = workload_of(args)
    try:
        deployer = Deployer(
            MODEL,
            backend=backend,
            device="cpu",
            threads=args.threads,
            seed=args.seed,
            weights="synthetic",
        ).load()
    except LlmfitError as exc:
        return Row(model=MODEL, backend=backend, skipped=str(exc))
    model: Any = deployer.model.model  # type: ignore[attr-defined]
    ids = torch.tensor(random_prompts(workload, deployer.model.vocab_size, args.seed)[:1])
    turns = [prompt_turn(OURS, model, ids, nullcontext)]
    if any(replaced(model)):
        turns.append(prompt_turn(LIBRARY, model, ids, lambda: as_the_library_has_them(model)))
    return row_of(
        race(turns, args.rounds, backend),
        bytes_per_token=None,
        model=MODEL,
        backend=backend,
        kernel=deployer.info.kernel.linear,
        notes=deployer.info.notes,
    )


def prompt_turn(name: str, model: Any, ids: torch.Tensor, layers: Any) -> Turn:
    """A turn of one forward pass over ``ids`` [1, T], within the context that ``layers`` makes."""

    def turn() -> Mapping[str, float]:
        within: AbstractContextManager[None] = layers()
        with torch.inference_mode(), within:
            started = time.perf_counter()
            model(input_ids=ids, use_cache=False, logits_to_keep=1)
            return {name: ids.numel() / (time.perf_counter() - started)}

    return turn


def replaced(model: Any) -> Iterator[Any]:
    """The layers whose forward is not their class's."""
    return (layer for layer in model.modules() if "forward" in vars(layer))


@contextmanager
def as_the_library_has_them(model: Any) -> Iterator[None]:
    """Meanwhile every layer runs by its class's own forward."""
    own = {layer: layer.forward for layer in list(replaced(model))}
    for layer in own:
        del layer.forward
    try:
        yield
    finally:
        for layer, forward in own.items():
            layer.forward = forward


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    add_options(parser, backends=BACKENDS, prompt_tokens=512, new_tokens=1, rounds=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
