"""``llmfit compare``: every deploy format of a model, measured here, in one table."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llmfit.cli import _args, _compare_options
from llmfit.cli._console import emit, results, say, terminal_width, wants_color, write_file
from llmfit.cli._signals import INTERRUPTED
from llmfit.errors import UsageError
from llmfit.planning.verdict.constraints import Constraints
from llmfit.report import Format, render

if TYPE_CHECKING:
    from llmfit.executors.base import Executor
    from llmfit.records import Comparison, EvaluationSettings, Split, Workload

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
  llmfit compare meta-llama/Llama-3.1-8B --weights synthetic --backends nf4,gguf
  llmfit compare --reference rtx3090-llama-3.1-8b
  llmfit compare ./my-model --executor ray --ray-address auto --gpu-kind H100
  llmfit compare ./my-model --ppl-protocol llama.cpp --text-file wiki.test.raw
  llmfit compare --format json --out result.json

A row that cannot run is shown with its reason and does not end the comparison.
Where the weights are not here and cannot be fetched, the rows are predicted.
Exit code: 0 when at least one row ran or all were predicted, 1 when none did
or the results store failed, 2 for a wrong argument, 130 when interrupted (143
by SIGTERM, 129 by a closed terminal): the finished rows are kept and printed,
and --resume last goes on.
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
    _args.add_backends(parser)
    _compare_options.add_workload(parser)
    _compare_options.add_machine(parser)
    _compare_options.add_fleet(parser)
    _compare_options.add_quality(parser)
    _compare_options.add_artifacts(parser)
    _compare_options.add_verdict(parser)
    _compare_options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Compare, print, write; the exit code tells whether any row ran."""
    checkpoints = _checkpoints(args)
    _take_reference(args)
    evaluation = _evaluation(args)
    constraints = _constraints(args)
    from llmfit.cli._progress import observer
    from llmfit.comparison import compare
    from llmfit.job import ComparisonInterrupted
    from llmfit.records import NOT_FINISHED

    comparison: Comparison | None = None
    try:
        with _executor(args) as executor, observer(quiet=args.quiet) as watching:
            comparison = compare(
                args.model,
                backends=args.backends,
                workload=_workload(args),
                shorten=args.prompt_tokens is None and args.new_tokens is None,
                evaluation=evaluation,
                checkpoints=checkpoints,
                calibration_file=args.calibration,
                gpu_gb=args.gpu_gb,
                ram_gb=args.ram_gb,
                weights=args.weights,
                device=None if args.device == "auto" else args.device,
                gpus=args.gpus,
                split=_split(args),
                threads=args.threads,
                seed=args.seed,
                cache_dir=args.cache_dir,
                keeping=_args.keeping(args, resume=args.resume),
                time_limit_s=args.time_limit,
                observer=watching,
                command=_anew(args.command),
                kv_cache_dtype=args.kv_cache_dtype,
                llama_cpp_dir=args.llama_cpp,
                constraints=constraints,
                objective=args.objective,
                profile=args.profile,
                allow_pickle=args.allow_pickle,
                trust_remote_code=args.trust_remote_code,
                executor=executor,
            )
    except ComparisonInterrupted as exc:
        _publish(exc.comparison, args)
        rows = exc.comparison.rows
        done = sum(row.reason != NOT_FINISHED for row in rows)
        say(f"llmfit: interrupted; {done} of {len(rows)} rows were finished, and are kept.")
        say("Try: the same with --resume last" if done < len(rows) else "Try: llmfit history")
        return INTERRUPTED
    except KeyboardInterrupt:
        if comparison is None:
            say("llmfit: interrupted before the first row; nothing was measured.")
        else:
            _publish(comparison, args)
        return INTERRUPTED
    _publish(comparison, args)
    if comparison.store_error is not None:
        return 1
    return 0 if any(row.status == "ok" or row.predicted_only for row in comparison.rows) else 1


@contextmanager
def _executor(args: argparse.Namespace) -> Iterator[Executor | None]:
    """Where rows run; None is this machine. Raises UsageError."""
    if args.executor == "local":
        for name in ("ray_address", "gpu_kind"):
            if getattr(args, name) is not None:
                raise UsageError(
                    f"{_flag(name)} means nothing without --executor ray.", hint="--executor ray"
                )
        yield None
        return
    from llmfit.executors.ray_cluster import Fleet, RayCluster

    with RayCluster(args.ray_address) as cluster:
        yield Fleet(cluster, args.gpu_kind)


def _anew(command: str) -> str:
    """The command that measures all of it again: a run that has ended cannot be gone on with."""
    words = shlex.split(command)
    resumed = [number for number, word in enumerate(words) if word == "--resume"]
    left_out = {each for number in resumed for each in (number, number + 1)}
    kept = (word for number, word in enumerate(words) if number not in left_out)
    return shlex.join(word for word in kept if not word.startswith("--resume="))


def _publish(comparison: Comparison, args: argparse.Namespace) -> None:
    """Results to stdout; with --out the chosen format to the file and the table to stdout."""
    emit(_text(comparison, args, "table" if args.out is not None else args.format))
    if args.out is not None:
        write_file(args.out, _text(comparison, args, args.format))
        say(f"llmfit: {args.format} written to {args.out}")
    if comparison.store_error is not None:
        say(f"llmfit: not stored: {comparison.store_error}")


def _text(comparison: Comparison, args: argparse.Namespace, fmt: Format) -> str:
    """The comparison in a format, and the reference table below it where one is asked for."""
    width, color = terminal_width(), wants_color(results())
    if args.reference is None:
        return render(comparison, fmt, width=width, color=color)
    from llmfit.planning.comparing.reference import beside, find_reference
    from llmfit.records import to_builtins, to_json
    from llmfit.report.reference import render_reference

    found = beside(comparison, find_reference(args.reference))
    if fmt == "json":
        return to_json(to_builtins(comparison) | {"reference": to_builtins(found)}) + "\n"
    text = render(comparison, fmt, width=width, color=color)
    if fmt == "csv":  # one table a file
        return text
    return f"{text}\n{render_reference(found, fmt, width=width, color=color)}"


def _take_reference(args: argparse.Namespace) -> None:
    """The model, rows, workload and weights of --reference where they are not given.

    Raises UsageError.
    """
    if args.reference is None:
        args.weights = args.weights or "real"
        return
    from llmfit.models import resolve, why_no_weights
    from llmfit.planning.comparing.reference import find_reference

    table = find_reference(args.reference)
    args.model = args.model or table.model
    args.backends = args.backends or table.backends
    if args.prompt_tokens is None and args.new_tokens is None:
        args.prompt_tokens = table.workload.prompt_tokens
        args.new_tokens = table.workload.new_tokens
    if args.weights is None:
        absent = why_no_weights(resolve(args.model))
        args.weights = "real" if absent is None else "synthetic"
        if absent is not None:
            say(f"llmfit: {absent}; random ones are measured instead.")


def _constraints(args: argparse.Namespace) -> Constraints:
    return Constraints(
        margin=args.margin / 100,
        acc_norm_loss=args.max_accuracy_loss / 100,
        perplexity_rise=args.max_perplexity_rise / 100,
        min_tokens_per_s=args.min_tokens_per_s,
        device=args.pick_on,
    )


def _split(args: argparse.Namespace) -> Split:
    if args.split is not None and args.gpus == 1:
        raise UsageError("--split means nothing on one GPU.", hint="--gpus 2")
    chosen: Split = args.split or "balanced"
    return chosen


def _workload(args: argparse.Namespace) -> Workload:
    from llmfit.records import Workload

    names = ("prompt_tokens", "new_tokens", "batch", "repeats", "warmup", "prefill_chunk")
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
    if not args.eval or args.weights == "synthetic":
        why = "--weights synthetic" if args.eval else "--no-eval"
        if given:
            raise UsageError(
                f"{why} scores nothing, so {_flag(next(iter(given)))} means nothing.",
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
