"""HellaSwag-like items a second: llmfit's lm-eval adapter against lm-eval's own ``hf`` model.

Both score the same questions with the same model object in one process, in turns (hf, llmfit, hf,
llmfit, …), so that a busy machine slows both; what counts is the ratio of the turns. The model has
the shape of Llama-3.2-1B (1.24 B parameters, vocabulary 128,256) and random weights, unless
``--model`` names a folder. ``hf`` runs with whichever of the batch sizes is its fastest here.

In bfloat16 ``hf`` is given ``softmax_dtype=float32``: its default rounds the sum of an ending's
log-probabilities to bfloat16, of which two of 25 tokens each differ by 1 or 2 or not at all, so
that its choices would be those of the rounding. The speed of the default is printed as well.

    python benchmarks/eval_speed.py --hellaswag-file hellaswag_val.jsonl --out eval_speed.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerFast,
    logging,
)

from llmfit.backends._hf import HfModel, linear_kernel
from llmfit.backends._tokenizer import HfTokenizer
from llmfit.backends.base import LoadInfo
from llmfit.device.environment import environment
from llmfit.evaluate.adapter import ModelAdapter
from llmfit.evaluate.tasks import read_hellaswag
from llmfit.models import data_path
from llmfit.records import Kernel, to_builtins
from llmfit.stats import sampled

LLAMA_1B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
"""Source: config.json of meta-llama/Llama-3.2-1B."""

Scorer = Callable[[list[Instance]], list[tuple[float, bool]]]


@dataclass(frozen=True, slots=True)
class Question:
    """A question as lm-eval's ``hellaswag`` poses it."""

    query: str
    endings: tuple[str, ...]

    def requests(self) -> list[Instance]:
        """One log-likelihood request an ending."""
        return [
            Instance("loglikelihood", {}, (self.query, f" {ending}"), index)
            for index, ending in enumerate(self.endings)
        ]

    def choices(self, scores: Sequence[float]) -> tuple[int, int]:
        """The answers that lm-eval's ``acc`` and ``acc_norm`` count, from log-likelihoods."""
        norm = [score / len(text) for score, text in zip(scores, self.endings, strict=True)]
        return max(range(len(scores)), key=scores.__getitem__), max(
            range(len(norm)), key=norm.__getitem__
        )


def read_questions(path: Path, count: int) -> list[Question]:
    """The first ``count`` questions of a HellaSwag file, with lm-eval's own clean-up."""
    from lm_eval.tasks.hellaswag.utils import preprocess

    questions = []
    for doc in read_hellaswag(path)[:count]:
        context = f"{doc['ctx_a']} {doc['ctx_b'].capitalize()}"
        questions.append(
            Question(
                preprocess(f"{doc['activity_label']}: {context}"),
                tuple(preprocess(ending) for ending in doc["endings"]),
            )
        )
    return questions


def make_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of ``texts``; it puts BOS before each text, as Llama-3's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=LLAMA_1B["vocab_size"],
        min_frequency=2,
        special_tokens=["<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>"
    )


def make_model(args: argparse.Namespace, texts: Iterator[str]) -> tuple[Any, Any]:
    """Model and tokenizer: those of ``--model``, or the 1.24 B shape with random weights."""
    dtype = getattr(torch, args.dtype)
    if args.model is not None:
        model = AutoModelForCausalLM.from_pretrained(
            args.model, dtype=dtype, attn_implementation="sdpa"
        )
        return model.eval(), AutoTokenizer.from_pretrained(args.model)
    torch.manual_seed(args.seed)
    config = LlamaConfig(**LLAMA_1B)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.eval(), make_tokenizer(texts)


def our_scorer(model: Any, tokenizer: Any, batch_tokens: int) -> Scorer:
    """llmfit's adapter over the model."""
    info = LoadInfo(
        kernel=Kernel(linear=linear_kernel(model), attention="sdpa"), dtype=str(model.dtype)
    )
    loaded = HfModel(
        model,
        tokenizer=HfTokenizer(tokenizer),
        info=info,
        context_length=model.config.max_position_embeddings,
    )
    adapter = ModelAdapter(loaded, window=2048, batch_tokens=batch_tokens)
    return lambda requests: adapter.loglikelihood(requests, disable_tqdm=True)


def hf_scorer(model: Any, tokenizer: Any, batch_size: int, softmax_dtype: str | None) -> Scorer:
    """lm-eval's own ``hf`` model over the model."""
    theirs = HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype=softmax_dtype
    )
    return lambda requests: theirs.loglikelihood(requests, disable_tqdm=True)


def timed(score: Scorer, questions: Sequence[Question]) -> tuple[float, list[list[float]]]:
    """Items a second, and each question's log-likelihoods."""
    requests = [request for question in questions for request in question.requests()]
    started = time.perf_counter()
    scored = iter(score(requests))
    seconds = time.perf_counter() - started
    answers = [[next(scored)[0] for _ in question.endings] for question in questions]
    return len(questions) / seconds, answers


def token_lengths(questions: Sequence[Question], tokenizer: Any) -> dict[str, float]:
    """Mean tokens of a context, BOS included, and of an ending; characters a token."""
    contexts = [len(tokenizer.encode(question.query)) for question in questions]
    endings = [
        len(tokenizer.encode(f" {ending}", add_special_tokens=False))
        for question in questions
        for ending in question.endings
    ]
    characters = sum(len(question.query) for question in questions)
    return {
        "context": sum(contexts) / len(contexts),
        "ending": sum(endings) / len(endings),
        "characters_per_token": characters / (sum(contexts) - len(contexts)),
    }


def agreement(
    questions: Sequence[Question], ours: list[list[float]], theirs: list[list[float]]
) -> dict[str, float]:
    """Shares of questions with the same ``acc`` and ``acc_norm`` choice; the largest difference."""
    pairs = [
        (question.choices(mine), question.choices(other))
        for question, mine, other in zip(questions, ours, theirs, strict=True)
    ]
    return {
        "same_acc": sum(a[0] == b[0] for a, b in pairs) / len(pairs),
        "same_acc_norm": sum(a[1] == b[1] for a, b in pairs) / len(pairs),
        "largest_relative_difference": max(
            abs(x - y) / abs(y)
            for mine, other in zip(ours, theirs, strict=True)
            for x, y in zip(mine, other, strict=True)
        ),
    }


def race(
    questions: Sequence[Question], scorers: dict[str, Scorer], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[list[float]]]]:
    """Rates of ``rounds`` turns of every scorer, one after the other, and the last answers."""
    rates: dict[str, list[float]] = {name: [] for name in scorers}
    answers: dict[str, list[list[float]]] = {}
    for turn in range(rounds):
        for name, score in scorers.items():
            rate, answers[name] = timed(score, questions)
            rates[name].append(rate)
            print(f"  round {turn + 1}  {name:<24} {rate:8.3f} items/s", flush=True)
    return rates, answers


def fastest_batch(
    model: Any, tokenizer: Any, args: argparse.Namespace, softmax: str | None, some: list[Question]
) -> tuple[int, dict[int, float]]:
    """The batch size at which ``hf`` scores ``some`` questions fastest, and the rates of all."""
    rates = {}
    for size in args.batch_sizes:
        score = hf_scorer(model, tokenizer, size, softmax)
        rates[size] = max(timed(score, some)[0] for _ in range(2))
        print(f"  hf batch {size:<3} {rates[size]:8.3f} items/s", flush=True)
    return max(rates, key=rates.__getitem__), rates


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hellaswag-file", type=Path, default=data_path("hellaswag.jsonl"))
    parser.add_argument("--items", type=int, default=16, help="questions in one turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 8], help="hf's")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="llmfit's")
    parser.add_argument("--model", help="a model folder instead of random weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for all figures")
    return parser.parse_args()


def main() -> None:
    """Run the race and print the table and the ratio."""
    args = parse()
    logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    every = read_questions(args.hellaswag_file, 1000)
    questions = every[: args.items]
    model, tokenizer = make_model(
        args, (text for question in every for text in (question.query, *question.endings))
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    lengths = token_lengths(questions, tokenizer)
    print(
        f"{parameters / 1e9:.2f} B parameters, {args.dtype}, {args.threads} threads; "
        f"{len(questions)} questions of {args.hellaswag_file.name}: context "
        f"{lengths['context']:.1f} tokens, ending {lengths['ending']:.1f}, "
        f"{lengths['characters_per_token']:.1f} characters a token"
    )
    softmax = "float32" if args.dtype == "bfloat16" else None
    best, tried = fastest_batch(model, tokenizer, args, softmax, questions[:4])
    scorers = {f"hf, batch {best}": hf_scorer(model, tokenizer, best, softmax)}
    if softmax is not None:
        scorers["hf, softmax in bfloat16"] = hf_scorer(model, tokenizer, best, None)
    scorers["llmfit"] = our_scorer(model, tokenizer, args.batch_tokens)
    rates, answers = race(questions, scorers, args.rounds)
    print(f"\n{'':<26}{'items/s':>9}  {'low … high':>17}  {'llmfit is':>10}  {'low … high':>15}")
    ratios = {}
    for name, values in rates.items():
        rate = sampled(values)
        ratio = sampled([ours / other for ours, other in zip(rates["llmfit"], values, strict=True)])
        ratios[name] = ratio
        print(
            f"{name:<26}{rate.median:9.3f}  {rate.low:7.3f} … {rate.high:7.3f}"
            f"  {ratio.median:8.2f} ×  {ratio.low:5.2f} … {ratio.high:5.2f}"
        )
    reference = next(iter(scorers))
    same = agreement(questions, answers["llmfit"], answers[reference])
    print(
        f"\nratio {ratios[reference].median:.2f} ({ratios[reference].low:.2f} … "
        f"{ratios[reference].high:.2f}); same choice as hf: acc {same['same_acc']:.1%}, acc_norm "
        f"{same['same_acc_norm']:.1%}; log-likelihoods within "
        f"{same['largest_relative_difference']:.1e} relative"
    )
    if args.out is not None:
        figures = {
            "parameters": parameters,
            "settings": {key: _named(value) for key, value in vars(args).items() if key != "out"},
            "tokens": lengths,
            "hf_batch_sizes_items_per_s": tried,
            "items_per_s": rates,
            "ratio": {name: ratio.median for name, ratio in ratios.items()},
            "agreement": same,
            "environment": to_builtins(environment()),
        }
        args.out.write_text(json.dumps(figures, indent=2) + "\n")


def _named(value: Any) -> Any:
    """A setting for the record: of a file its name, which says which without saying where."""
    return value.name if isinstance(value, Path) else value


if __name__ == "__main__":
    main()
