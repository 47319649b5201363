"""Decode rate of the seven PyTorch rows on a GPU, in turns with ``transformers.generate``.

The shape of Llama-3.1-8B with random weights, made on the device in each format's own layout, so
that nothing is downloaded; prompt 512, 256 new tokens, batch 1. Both parties run the same loaded
weights, one after the other. The limit is the bandwidth at which this GPU's memory is read over the
bytes that a token reads; the bandwidth of a copy on the device stands beside it. A row whose
package is missing, or that fails, is skipped with the reason. Needs torch 2.11 and transformers
5.17, or later ones, and runs from the source folder.

    python benchmarks/decode_gpu.py --out benchmarks/results/decode_gpu.json
    python benchmarks/decode_gpu.py --show benchmarks/results/decode_gpu.json
"""

from __future__ import annotations

import argparse
import gc
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from decoding import (
    Ours,
    Result,
    Row,
    add_options,
    bandwidth_turn,
    generate_turn,
    print_result,
    race,
    row_of,
    workload_of,
)

from llmfit.deployer import Deployer
from llmfit.device.environment import environment
from llmfit.device.execution import Marks, is_out_of_memory, pick_device
from llmfit.errors import LlmfitError
from llmfit.files import write_atomically
from llmfit.measure import random_prompts
from llmfit.planning.speed.work import bytes_per_step
from llmfit.records import Device, Kernel, Workload, read_record, to_json

BACKENDS = ("bf16", "sdpa", "compiled", "int8", "nf4", "gptq", "awq")
_COPY_BYTES = 1 << 30
_COPIES = 8
_WARM_UP_TOKENS = 8
"""In which steps are compiled and captured."""


def main() -> None:
    """Run the rows one after the other, print and write the figures."""
    args = _arguments()
    if args.show is not None:
        print_result(read_record(Result, args.show))
        return
    device = pick_device(args.device)
    workload = workload_of(args)
    result = Result(
        workload=workload,
        settings={
            "model": args.model,
            "device": device,
            "rounds": args.rounds,
            "seed": args.seed,
            "copy_bytes_per_s": copy_bandwidth(device),
        },
        rows=(),
        environment=environment(),
    )
    for backend in args.backends:
        result = replace(result, rows=(*result.rows, run_row(backend, args, workload, device)))
        if args.out is not None:  # what is measured is kept, whatever happens to a later row
            write_atomically(args.out, to_json(result) + "\n")
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    print_result(result)
    print(f"\na copy on the device moves {result.settings['copy_bytes_per_s'] / 1e9:.0f} GB/s")


def run_row(backend: str, args: argparse.Namespace, workload: Workload, device: Device) -> Row:
    """The race of one row; where it cannot run, a row with the reason."""
    skipped = partial(Row, model=args.model, backend=backend)
    deployer = None
    try:
        deployer = Deployer(
            args.model, backend=backend, device=device, seed=args.seed, weights="synthetic"
        ).load()
        return _race(deployer, args, workload, device)
    except LlmfitError as exc:
        return skipped(skipped=str(exc))
    except RuntimeError as exc:
        if not is_out_of_memory(exc):
            raise
        return skipped(skipped=f"out of memory: {exc}")
    finally:
        if deployer is not None:
            deployer.close()


def _race(deployer: Deployer, args: argparse.Namespace, workload: Workload, device: Device) -> Row:
    loaded, backend = deployer.model, deployer.plan.backend
    prompt = random_prompts(workload, loaded.vocab_size, args.seed)[0]
    keep = device == "cuda" or backend == "compiled"
    ours = Ours(loaded, prompt, workload.new_tokens, device, keep=keep)
    model: Any = loaded.model  # type: ignore[attr-defined]
    turns = (
        generate_turn(model, prompt, workload.new_tokens, device),
        bandwidth_turn(device),
        ours.decode,
    )
    few = min(_WARM_UP_TOKENS, workload.new_tokens)
    warm_up = (generate_turn(model, prompt, few, device), partial(ours.decode, few))
    raced = race(turns, args.rounds, backend, warm_up=warm_up)
    kernel = deployer.info.kernel
    return row_of(
        raced,
        bytes_per_token=bytes_per_step(deployer.plan.model, backend, workload, device=device),
        model=args.model,
        backend=backend,
        kernel=_kernel_name(kernel),
        notes=deployer.info.notes + ours.notes,
    )


def _kernel_name(kernel: Kernel) -> str:
    """The step's kernels with those of the layers that they do not run."""
    if kernel.step is None or kernel.linear in ("Linear", "Linear (torch.compile)"):
        return kernel.step or kernel.linear
    own = {"Linear4bit": "NF4", "Linear8bitLt": "int8"}.get(kernel.linear)
    return kernel.step if own and own in kernel.step else f"{kernel.linear} + {kernel.step}"


def copy_bandwidth(device: Device) -> float:
    """Bytes per second read and written by a copy within the device's memory; the best of some."""
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    marks = Marks(device)
    for _ in range(_COPIES + 1):
        marks.mark()
        target.copy_(source)
    marks.mark()
    return 2 * _COPY_BYTES / min(marks.seconds()[1:])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="meta-llama/Llama-3.1-8B", help="hub id or folder")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="cuda")
    add_options(parser, backends=BACKENDS, prompt_tokens=512, new_tokens=256, rounds=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
