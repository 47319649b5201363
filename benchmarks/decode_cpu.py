"""Decode rate of every row on a CPU, beside a peer that runs in turns with it in one process.

Peers: for the PyTorch rows ``transformers.generate`` on the very same loaded weights; for ``gguf``
a bare loop around ``llama_decode`` over the same weights; for ``compiled`` also that loop over a
BF16 GGUF of its weights. Two models: the 1.24 B shape of Llama-3.2 with random weights, whose
decoding is bound by memory bandwidth, and the embedded one of 5 M parameters, bound by overhead.

A ratio is ours over the peer's in the same turn, with the interval of its median. The limit is the
bandwidth at which this machine reads memory over the bytes that a token reads. A share of it is
taken in a turn in which reading as many bytes follows each step: the median of the steps, each with
its read. The embedded model lies in the CPU's cache, but for that turn.

    python benchmarks/decode_cpu.py --out benchmarks/results/decode_cpu.json
    python benchmarks/decode_cpu.py --show benchmarks/results/decode_cpu.json
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from decoding import (
    Ours,
    Row,
    Turn,
    add_options,
    generate_turn,
    known,
    race,
    row_of,
    run_apart,
    workload_of,
)

from llmfit.deployer import Deployer
from llmfit.device.bandwidth import memory_reader
from llmfit.errors import LlmfitError
from llmfit.measure import random_prompts
from llmfit.planning.speed.work import bytes_per_step

MODELS = {"1.24 B": "meta-llama/Llama-3.2-1B", "embedded": None}
"""The first by its shape alone, with random weights."""
BACKENDS = ("bf16", "sdpa", "compiled", "int8", "nf4", "gptq", "awq", "gguf")
LLAMA_CPP = "llama_decode"
LLAMA_CPP_BF16 = "llama_decode, BF16"


def main() -> None:
    """Run the rows, each in a process of its own, and print and write the figures."""
    args = _arguments()
    run_apart(
        run_row, [(model, backend) for model in args.models for backend in args.backends], args
    )


def run_row(model: str, backend: str, args: argparse.Namespace) -> Row:
    """The race of one row; where it cannot run, a row with the reason."""
    workload = workload_of(args)
    try:
        deployer = Deployer(
            MODELS[model],
            backend=backend,
            device="cpu",
            threads=args.threads,
            seed=args.seed,
            weights="real" if MODELS[model] is None else "synthetic",
        ).load()
    except LlmfitError as exc:
        return Row(model=model, backend=backend, skipped=str(exc))
    loaded, new_tokens = deployer.model, workload.new_tokens
    prompt = random_prompts(workload, loaded.vocab_size, args.seed)[0]
    bytes_per_token = bytes_per_step(deployer.plan.model, backend, workload, device="cpu")
    assert bytes_per_token is not None  # of every format that runs here
    with ExitStack() as stack:
        turns: list[Turn] = []
        if backend == "gguf":
            handle = loaded.model._handle  # type: ignore[attr-defined]
            turns.append(llama_turn(LLAMA_CPP, handle, prompt, new_tokens, args.threads))
        else:
            torch_model = loaded.model  # type: ignore[attr-defined]
            turns.append(generate_turn(torch_model, prompt, new_tokens, "cpu"))
        if backend == "compiled":
            handle = stack.enter_context(_bf16_gguf(torch_model, args.threads))
            turns.append(llama_turn(LLAMA_CPP_BF16, handle, prompt, new_tokens, args.threads))
        ours = Ours(loaded, prompt, new_tokens, "cpu", keep=backend == "compiled")
        reader = known(memory_reader("cpu"))
        turns += [ours.decode, partial(ours.decode_and_read, reader, bytes_per_token)]
        raced = race(turns, args.rounds, f"{model} {backend}")
    kernel = deployer.info.kernel
    return row_of(
        raced,
        bytes_per_token=bytes_per_token,
        model=model,
        backend=backend,
        kernel=kernel.step or kernel.linear,
        notes=deployer.info.notes,
    )


def llama_turn(
    name: str, handle: Any, prompt: Sequence[int], new_tokens: int, threads: int
) -> Turn:
    """A bare greedy loop around ``llama_decode``, with llama.cpp's own settings but the threads."""
    import llama_cpp

    vocabulary = llama_cpp.llama_model_get_vocab(handle)
    vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
    marks: list[float] = []

    def turn() -> Mapping[str, float]:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = len(prompt) + new_tokens
        params.n_threads = params.n_threads_batch = threads
        context = llama_cpp.llama_init_from_model(handle, params)
        tokens = (llama_cpp.llama_token * len(prompt))(*prompt)
        one = (llama_cpp.llama_token * 1)()
        batch = llama_cpp.llama_batch_get_one(tokens, len(prompt))
        marks.clear()
        for _ in range(new_tokens):
            if llama_cpp.llama_decode(context, batch) != 0:
                raise LlmfitError("llama_decode failed.")
            logits = llama_cpp.llama_get_logits_ith(context, -1)
            one[0] = int(np.ctypeslib.as_array(logits, shape=(vocab_size,)).argmax())
            batch = llama_cpp.llama_batch_get_one(one, 1)
            marks.append(time.perf_counter())
        llama_cpp.llama_free(context)
        return {name: (new_tokens - 1) / (marks[-1] - marks[0])}

    return turn


@contextmanager
def _bf16_gguf(model: Any, threads: int) -> Iterator[Any]:
    """The weights of a transformers model as BF16 in llama.cpp."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from llmfit.decode.llama_cpp import LlamaCppModel
    from llmfit.quantize.gguf_convert import convert

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder)
        # Token ids go in and out alone; the converter wants a tokenizer of a kind it knows.
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {token: i for i, token in enumerate([*letters, "ab"])}
        tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
        file = convert(folder, folder / "bf16.gguf", dtype="bf16").path
        for weights in folder.glob("*.safetensors"):
            weights.unlink()
        in_llama_cpp = LlamaCppModel(file, threads=threads, head_dim=model.config.head_dim)
        try:
            yield in_llama_cpp._handle
        finally:
            in_llama_cpp.close()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--threads", type=int, default=2)
    add_options(parser, backends=BACKENDS, prompt_tokens=128, new_tokens=32, rounds=7)
    return parser.parse_args()


if __name__ == "__main__":
    main()
