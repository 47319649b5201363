#!/usr/bin/env python3
"""Make everything in llmfit/data from nothing but this repository: texts, questions, the model.

scripts/train_embedded.py                 all of it; about half an hour on two cores
scripts/train_embedded.py --texts-only    evaluation files and calibration text alone
scripts/train_embedded.py --evaluate      score the model that is there and write its card
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from embedded.card import TrainingRun, model_card
from embedded.corpus import TEXT_MIX, sample_text, split_text
from embedded.model import new_model, token_stream, train_tokenizer
from embedded.questions import json_lines, questions
from embedded.scoring import Score, score_questions, text_loss
from embedded.training import Job, Settings, token_count, train

ROOT = Path(__file__).resolve().parents[1]
TEXT_BYTES = 50_000
CALIBRATION_BYTES = 80_000
NEAR_NATS_PER_BYTE = 0.05


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "llmfit" / "data", help="package data")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first weights")
    parser.add_argument("--steps", type=int, default=5000, help="steps of 2,048 tokens")
    parser.add_argument("--minutes", type=float, default=55.0, help="training ends by then")
    parser.add_argument("--workers", type=int, default=2, choices=(1, 2), help="processes")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=Path(tempfile.gettempdir()) / "llmfit-embedded.pt",
        help="file to go on from after an interruption; removed at the end",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--texts-only", action="store_true", help="write the texts, do not train")
    mode.add_argument("--evaluate", action="store_true", help="score the model that is there")
    return parser.parse_args()


def write(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that no reader sees half of it."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def write_texts(out: Path) -> None:
    """Write the questions, the perplexity text and the calibration text."""
    out.mkdir(parents=True, exist_ok=True)
    write(out / "hellaswag.jsonl", json_lines(questions()))
    write(out / "text.txt", sample_text("text", TEXT_BYTES))
    write(out / "calibration.txt", sample_text("calibration", CALIBRATION_BYTES))


def by_kind(scores: list[Score]) -> dict[str, tuple[int, float]]:
    """Return the number of questions and acc_norm of each kind."""
    kinds: dict[str, list[Score]] = defaultdict(list)
    for score in scores:
        kinds[score.kind].append(score)
    return {
        kind: (len(part), sum(s.right_per_byte for s in part) / len(part))
        for kind, part in sorted(kinds.items())
    }


def evaluate(out: Path) -> None:
    """Score the model under ``out`` on its own files, print the figures and write its card."""
    from safetensors import safe_open

    folder = out / "embedded"
    scores = score_questions(folder, questions())
    kinds = by_kind(scores)
    for kind, (count, share) in kinds.items():
        print(f"{kind:14} n {count:3}  acc_norm {share:.3f}")
    loss = text_loss(folder, split_text((out / "text.txt").read_text(encoding="utf-8")))
    norm = sum(s.right_per_byte for s in scores) / len(scores)
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        parameters = sum(math.prod(tensors.get_slice(k).get_shape()) for k in tensors.keys())  # noqa: SIM118
    run = TrainingRun.load(folder)
    every_kind = score_questions(folder, questions(mix=TEXT_MIX))
    figures = {
        "parameters": parameters,
        "last_step": run.log[-1].step,
        "n": len(scores),
        "acc": sum(s.right for s in scores) / len(scores),
        "acc_norm": norm,
        "stderr": math.sqrt(norm * (1 - norm) / (len(scores) - 1)),
        "every_kind": sum(s.right_per_byte for s in every_kind) / len(every_kind),
        "near_limit": NEAR_NATS_PER_BYTE,
        "near": sum(abs(s.margin_per_byte) < NEAR_NATS_PER_BYTE for s in scores) / len(scores),
        "loss": loss,
        "perplexity": math.exp(loss),
    }
    print("\n".join(f"{key:14} {value:.5g}" for key, value in figures.items()))
    write(folder / "README.md", model_card(run, figures, kinds))


def make_model(options: argparse.Namespace) -> None:
    """Train tokenizer and model, and save both."""
    import torch

    folder = options.out / "embedded"
    tokenizer = train_tokenizer(folder)
    print("tokenizer trained; making the training text", file=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        tokens = Path(scratch) / "tokens.npy"
        np.save(tokens, token_stream(tokenizer, token_count(options.steps)))
        job = Job(
            settings=Settings(steps=options.steps, limit_minutes=options.minutes),
            seed=options.seed,
            tokens=str(tokens),
            checkpoint=str(options.checkpoint),
            meeting=str(Path(scratch) / "meeting"),
            workers=options.workers,
        )
        log = train(job)
    model = new_model(options.seed)
    model.load_state_dict(torch.load(options.checkpoint, weights_only=True)["model"])
    model.to(torch.bfloat16).save_pretrained(folder)
    TrainingRun(
        seed=options.seed,
        steps_asked=options.steps,
        limit_minutes=options.minutes,
        workers=options.workers,
        torch=torch.__version__,
        log=tuple(log),
    ).save(folder)
    options.checkpoint.unlink(missing_ok=True)


def main() -> None:
    """Run the chosen mode."""
    options = parse_arguments()
    if not options.evaluate:
        write_texts(options.out)
    if options.texts_only:
        return
    if not options.evaluate:
        make_model(options)
    evaluate(options.out)


if __name__ == "__main__":
    main()
