"""``llmfit compare``: every deploy format of a model, measured here, in one table."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from llmfit.cli import _args, _compare_options
from llmfit.cli._console import emit, say, terminal_width, wants_color, write_file
from llmfit.errors import UsageError
from llmfit.report import render

if TYPE_CHECKING:
    from llmfit.records import Comparison, EvaluationSettings, Workload

_DESCRIPTION = """\
Run a model in every deploy format on this machine, each in a process of its
own, and print memory, tokens/s and quality side by side, then a verdict.
Without MODEL the embedded model is used: no network is needed.
"""

_EPILOG = """\
examples:
  llmfit compare
  llmfit compare meta-llama/Llama-3.1-8B --gpu-gb 8
  llmfit compare ./my-model --backends bf16,nf4,gguf --limit 200
  llmfit compare ./my-model --checkpoint awq=./my-model-awq
  llmfit compare ./my-model --tasks hellaswag,arc_easy,wikitext
  llmfit compare ./my-model --ppl-protocol llama.cpp --text-file wiki.test.raw
  llmfit compare --format json --out result.json

A row that cannot run is shown with its reason and does not end the comparison.
Exit code: 0 when at least one row ran, 1 when none did, 2 for a wrong
argument, 130 when interrupted (the finished rows are kept and printed).
"""

_EVALUATION_OPTIONS = (
    "tasks",
    "include_path",
    "hellaswag_file",
    "text_file",
    "limit",
    "ppl_protocol",
    "ppl_window",
)
_OF_TEXT = ("ppl_protocol", "ppl_window")


def add_parser(verbs: _args.Subparsers[_args.Parser]) -> None:
    """Add the verb and its options."""
    parser = verbs.add_parser(
        "compare",
        usage="llmfit compare [MODEL] [options]",
        help="measure every deploy format of a model, and recommend one",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    _args.add_model(parser)
    parser.add_argument(
        "--backends",
        type=_args.backend_list,
        metavar="A,B",
        help="only these rows, in this order, e.g. bf16,nf4,gguf:q3_k_m (default: all eight)",
    )
    _compare_options.add_workload(parser)
    _compare_options.add_machine(parser)
    _compare_options.add_quality(parser)
    _compare_options.add_artifacts(parser)
    _compare_options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Compare, print, write; the exit code tells whether any row ran."""
    checkpoints = _checkpoints(args)
    evaluation = _evaluation(args)
    from llmfit.cli._progress import observer
    from llmfit.comparison import compare
    from llmfit.job import ComparisonInterrupted

    try:
        with observer(quiet=args.quiet) as watching:
            comparison = compare(
                args.model,
                backends=args.backends,
                workload=_workload(args),
                shorten=args.prompt_tokens is None and args.new_tokens is None,
                evaluation=evaluation,
                checkpoints=checkpoints,
                calibration_file=args.calibration,
                gpu_gb=args.gpu_gb,
                device=None if args.device == "auto" else args.device,
                threads=args.threads,
                seed=args.seed,
                cache_dir=args.cache_dir,
                runs_dir=args.runs_dir,
                time_limit_s=args.time_limit,
                observer=watching,
                command=args.command,
                kv_cache_dtype=args.kv_cache_dtype,
                llama_cpp_dir=args.llama_cpp,
            )
    except ComparisonInterrupted as exc:
        _publish(exc.comparison, args)
        rows = exc.comparison.rows
        done = sum(row.status != "skipped" for row in rows)
        say(f"llmfit: interrupted; {done} of {len(rows)} rows were finished, and are kept.")
        return 130
    _publish(comparison, args)
    return 0 if any(row.status == "ok" for row in comparison.rows) else 1


def _publish(comparison: Comparison, args: argparse.Namespace) -> None:
    """Results to stdout; with --out the chosen format to the file and the table to stdout."""
    table = args.out is not None or args.format == "table"
    emit(
        render(
            comparison,
            "table" if table else args.format,
            width=terminal_width(),
            color=wants_color(sys.stdout),
        )
    )
    if args.out is not None:
        write_file(args.out, render(comparison, args.format))
        say(f"llmfit: {args.format} written to {args.out}")


def _workload(args: argparse.Namespace) -> Workload:
    from llmfit.records import Workload

    names = ("prompt_tokens", "new_tokens", "batch", "repeats", "warmup")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    return Workload(**given)


def _checkpoints(args: argparse.Namespace) -> dict[str, str]:
    checkpoints: dict[str, str] = {}
    for backend, place in args.checkpoint:
        if backend in checkpoints:
            raise UsageError(f"--checkpoint names {backend!r} twice.", hint="name each row once")
        checkpoints[backend] = place
    return checkpoints


def _evaluation(args: argparse.Namespace) -> EvaluationSettings | None:
    from llmfit.records import EvaluationSettings

    given = {name: value for name in _EVALUATION_OPTIONS if (value := getattr(args, name))}
    if not args.eval:
        if given:
            raise UsageError(
                f"--no-eval scores nothing, so {_flag(next(iter(given)))} means nothing.",
                hint="drop one",
            )
        return None
    tasks = given.get("tasks", EvaluationSettings().tasks)
    for name in _OF_TEXT:
        if name in given and "wikitext" not in tasks:
            raise UsageError(
                f"{_flag(name)} means nothing, as --tasks does not name wikitext.", hint="drop one"
            )
    if args.include_path and args.tasks is None:
        raise UsageError(
            "--include-path means nothing without --tasks.", hint="--tasks NAME of a task there"
        )
    return EvaluationSettings(**given)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
