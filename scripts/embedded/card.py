"""The model card of the embedded model, and the record of its training that the card tells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .training import TOKENS_PER_STEP, Progress


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What was run to make the model; kept as ``training.json`` beside the weights."""

    seed: int
    steps_asked: int
    limit_minutes: float
    workers: int
    torch: str
    log: tuple[Progress, ...]
    note: str = ""
    """What the fields do not tell, such as an interruption."""

    @property
    def command(self) -> str:
        """The command that makes the model again."""
        return (
            f"scripts/train_embedded.py --seed {self.seed} --steps {self.steps_asked} "
            f"--minutes {self.limit_minutes:g} --workers {self.workers}"
        )

    def save(self, folder: Path) -> None:
        """Write the run to ``folder/training.json``."""
        (folder / "training.json").write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> TrainingRun:
        """Read the run from ``folder/training.json``."""
        fields = json.loads((folder / "training.json").read_text())
        log = tuple(Progress(**line) for line in fields.pop("log"))
        return cls(log=log, **fields)


def _curve(log: Sequence[Progress]) -> str:
    chosen = [line for line in log if line.step % 500 == 0 or line.step in (50, 100, 200)]
    if log[-1] not in chosen:
        chosen.append(log[-1])
    rows = [f"| {c.step:,} | {c.step * TOKENS_PER_STEP / 1e6:.2f} | {c.loss:.3f} |" for c in chosen]
    return "\n".join(
        ["| step | tokens seen, millions | training loss, nats/token |", "|---:|---:|---:|", *rows]
    )


def _by_kind(figures: Mapping[str, tuple[int, float]]) -> str:
    rows = [f"| {kind} | {count} | {share:.0%} |" for kind, (count, share) in figures.items()]
    return "\n".join(["| kind | questions | acc_norm |", "|---|---:|---:|", *rows])


def model_card(
    run: TrainingRun, figures: Mapping[str, float], kinds: Mapping[str, tuple[int, float]]
) -> str:
    """Return the card as Markdown, from the run and the figures of the model's own check."""
    last = run.log[-1]
    return CARD.format(
        run=run,
        tokens=last.step * TOKENS_PER_STEP / 1e6,
        minutes=last.minutes,
        curve=_curve(run.log),
        kinds=_by_kind(kinds),
        **figures,
    )


CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# llmfit's embedded model

A Llama-architecture language model of {parameters:,} parameters that `llmfit compare` uses when
no model is named, so that every deploy format can be built, run and judged offline on any machine.

## What it is
- 6 layers, hidden size 256, MLP width 768, 8 query and 4 key-value heads of size 32, tied
  embeddings, context 1,024, stored in bf16. Every matrix row is a multiple of 256 long, so K-quant
  blocks (256) and GPTQ and AWQ groups (128) are real ones.
- A byte-level BPE tokenizer of 2,048 tokens that splits words as GPT-2 does. One special token,
  `<|endoftext|>`, begins and ends a text; encoding puts it in front.
- Trained on stories that a seeded generator in `scripts/embedded/` writes: people, places, things
  that change hands, counting, comparing, weather, feelings, causes and their consequences.

## What it is not
It knows no world but that one, answers no questions of yours and follows no instructions. Text
from outside its small world reads to it as noise. Its speed and memory say nothing about a model
of useful size, and its accuracy and perplexity compare with no other model's: they show what a
*format* costs.

## How it was made
    {run.command}

{last_step:,} steps of about 2,048 tokens ({tokens:.1f} million, none seen twice) in {minutes:.0f}
minutes on {run.workers} CPU cores that other work shared, torch {run.torch}: AdamW (0.9, 0.95),
weight decay 0.1, peak rate 0.002 after 100 steps of warm-up, then cosine; bf16 autocast over
float32 weights, rounded to bf16 at the end. A row is one story, but in every sixteenth step the
full context of 1,024 tokens. Where the time limit comes before the last step, the rate comes down
by the clock. Another machine or torch version gives other weights of like quality; texts, questions
and tokenizer come out the same everywhere. {run.note}

{curve}

## How good it is
    scripts/train_embedded.py --evaluate

prints, on the {n} questions of `hellaswag.jsonl`, scored as lm-eval scores HellaSwag, in bf16:
**acc {acc:.1%}, acc_norm {acc_norm:.1%} ± {stderr:.1%}** (standard error; chance is 25 %).
In {near:.0%} of them the right ending and the best wrong one are less than {near_limit} nats a byte
apart: those are the ones that a coarser format can turn. On `text.txt` the loss is {loss:.4f} nats
a token (perplexity {perplexity:.3f}), each document from its beginning.

{kinds}

## The evaluation files
`hellaswag.jsonl` (questions in HellaSwag's JSON-lines form), `text.txt` (perplexity) and
`calibration.txt` (for GPTQ and AWQ) come from the same generator. Each has its own range of seeds,
and a hash of a story's context decides which of the streams may hold it, so no context is shared
with the training text or with another file.

How often each kind of question occurs was chosen after training, to bring acc_norm to where a loss
shows: kinds that the model does not master, such as whose thing it is or who has what after many
hands, are left out or rare. No question was picked by its own result. On as many questions of every
kind, mixed as in the training text, its acc_norm is {every_kind:.1%}.

Licence: Apache-2.0, weights, texts and questions alike.
"""
