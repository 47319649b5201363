"""The published table of Llama-3.1-8B on an RTX 3090, run here: each of its figures beside ours.

Eight rows, batch 1, a sequence of 512 tokens: 448 of prompt and 64 new ones unless told. With the
model's real weights (``--model FOLDER``, or downloaded before) and a GPU it is the whole table.
Without weights they are random, made straight in each row's packed layout: memory and speed are
real then, quality is missing. Whatever is missing says why.

    python benchmarks/rtx3090_llama31_8b.py --out benchmarks/results/rtx3090_llama31_8b_cpu.json
    python benchmarks/rtx3090_llama31_8b.py --show benchmarks/results/rtx3090_llama31_8b_cpu.json
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import llmfit
from llmfit.files import write_atomically
from llmfit.job import Observer
from llmfit.keeping import Keeping
from llmfit.models import resolve, why_no_weights
from llmfit.planning.comparing.reference import RTX_3090, ReferenceComparison, beside
from llmfit.records import (
    Comparison,
    EvaluationSettings,
    RunRecord,
    Weights,
    Workload,
    read_record,
    to_json,
)
from llmfit.report.reference import render_reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What is written: the table beside ours, and our rows with every sample."""

    reference: ReferenceComparison
    comparison: Comparison


class Progress(Observer):
    """A line on stderr as each row begins and ends."""

    def row_started(self, backend: str, label: str, index: int, total: int) -> None:
        """See ``Observer.row_started``."""
        print(f"[{index + 1}/{total}] {label} …", file=sys.stderr, flush=True)

    def row_done(self, record: RunRecord) -> None:
        """See ``Observer.row_done``."""
        end = record.status if record.reason is None else f"{record.status}: {record.reason}"
        print(f"      {end}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the rows, print the table, write the figures."""
    args = _arguments()
    if args.show is not None:
        found = read_record(Result, args.show).reference
        print(render_reference(found, args.format, width=args.width), end="")
        return
    absent = why_no_weights(resolve(args.model))
    weights: Weights = args.weights or ("real" if absent is None else "synthetic")
    comparison = llmfit.compare(
        args.model,
        backends=args.backends,
        workload=Workload(
            prompt_tokens=args.prompt_tokens,
            new_tokens=args.new_tokens,
            batch=RTX_3090.workload.batch,
            repeats=args.repeats,
        ),
        evaluation=_evaluation(args, weights),
        weights=weights,
        gpu_gb=args.gpu_gb,
        ram_gb=args.ram_gb,
        device=args.device,
        keeping=Keeping(runs_dir=args.runs_dir),
        time_limit_s=args.time_limit_s,
        observer=Progress(),
    )
    found = beside(comparison, RTX_3090)
    if args.out is not None:
        result = Result(
            reference=replace(found, record=comparison.run_id),
            comparison=_without_folders(comparison),
        )
        write_atomically(args.out, to_json(result) + "\n")
    print(render_reference(found, args.format, width=args.width), end="")


def _without_folders(comparison: Comparison) -> Comparison:
    """The figures without the plans and places that name folders of this machine."""
    return replace(
        comparison,
        model=replace(comparison.model, path=comparison.model.name),
        record=comparison.run_id,
        rows=tuple(replace(row, plan=None, artifact=None) for row in comparison.rows),
    )


def _arguments() -> argparse.Namespace:
    work = RTX_3090.workload
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=RTX_3090.model, help="folder or hub id")
    parser.add_argument(
        "--weights", choices=("real", "synthetic"), help="default: real where they are here"
    )
    parser.add_argument(
        "--backends", type=lambda text: text.split(","), default=list(RTX_3090.backends)
    )
    parser.add_argument("--prompt-tokens", type=int, default=work.prompt_tokens)
    parser.add_argument("--new-tokens", type=int, default=work.new_tokens)
    parser.add_argument("--repeats", type=int, default=work.repeats)
    parser.add_argument("--gpu-gb", type=float, help="budget of GPU memory, 10^9 bytes")
    parser.add_argument("--ram-gb", type=float, help="budget of RAM, 10^9 bytes")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--runs-dir", help="where the runs' records are kept")
    parser.add_argument("--time-limit-s", type=float, default=3600.0, help="for each row")
    parser.add_argument("--hellaswag-file", help="JSON lines; default: lm-eval's own task")
    parser.add_argument("--text-file", help="text of the perplexity; default: lm-eval's own task")
    parser.add_argument("--limit", type=int, help="score so many items and documents at most")
    parser.add_argument("--format", choices=("table", "md", "json"), default="table")
    parser.add_argument("--width", type=int, default=80)
    parser.add_argument("--show", type=Path, help="print such a file's table again, run nothing")
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file")
    return parser.parse_args()


def _evaluation(args: argparse.Namespace, weights: Weights) -> EvaluationSettings | None:
    """What is scored; nothing of random weights."""
    if weights == "synthetic":
        return None
    return EvaluationSettings(
        hellaswag_file=args.hellaswag_file, text_file=args.text_file, limit=args.limit
    )


if __name__ == "__main__":
    main()
