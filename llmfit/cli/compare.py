"""``llmfit compare``: every deploy format of a model, measured here, in one table."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from llmfit.cli import _args
from llmfit.cli._console import emit, say, terminal_width, wants_color, write_file
from llmfit.errors import UsageError
from llmfit.report import FORMATS, render

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
  llmfit compare --format json --out result.json

A row that cannot run is shown with its reason and does not end the comparison.
Exit code: 0 when at least one row ran, 1 when none did, 2 for a wrong
argument, 130 when interrupted (the finished rows are kept and printed).
"""

_EVALUATION_OPTIONS = ("hellaswag_file", "text_file", "limit", "ppl_window")


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
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a folder with config.json, or a Hugging Face id (default: the embedded model)",
    )
    parser.add_argument(
        "--backends",
        type=_args.backend_list,
        metavar="A,B",
        help="only these rows, in this order, e.g. bf16,nf4,gguf:q3_k_m (default: all eight)",
    )
    _add_workload(parser)
    _add_machine(parser)
    _add_quality(parser)
    _add_artifacts(parser)
    _add_output(parser)


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
            flag = "--" + next(iter(given)).replace("_", "-")
            raise UsageError(f"--no-eval scores nothing, so {flag} means nothing.", hint="drop one")
        return None
    return EvaluationSettings(**given)


# ---------------------------------------------------------------- options


def _add_workload(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is timed")
    group.add_argument(
        "--prompt-tokens",
        type=_args.whole(1),
        metavar="N",
        help="length of the prompt (default: 512, less where the model's context is shorter)",
    )
    group.add_argument(
        "--new-tokens",
        type=_args.whole(2),
        metavar="N",
        help="tokens to generate, 2 or more (default: 128, likewise)",
    )
    group.add_argument(
        "--batch",
        type=_args.whole(1),
        default=1,
        metavar="N",
        help="sequences at once (default: %(default)s)",
    )
    group.add_argument(
        "--repeats",
        type=_args.whole(1),
        default=5,
        metavar="N",
        help="timed runs; fewer than 5 leave a wide interval (default: %(default)s)",
    )
    group.add_argument(
        "--warmup",
        type=_args.whole(0),
        default=1,
        metavar="N",
        help="runs before the timed ones (default: %(default)s)",
    )


def _add_machine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("machine")
    group.add_argument(
        "--gpu-gb",
        type=_args.number(above=0),
        metavar="G",
        help="GPU memory to stay within, in GB of 10^9 bytes (default: all of it)",
    )
    _args.add_machine(group, where="where the PyTorch rows run")
    group.add_argument(
        "--seed",
        type=_args.whole(0, _args.MAX_SEED),
        default=0,
        metavar="N",
        help="seed of the prompt and of calibration (default: %(default)s)",
    )
    group.add_argument(
        "--time-limit",
        type=_args.number(above=0),
        default=3600,
        metavar="SECONDS",
        help="a row that takes longer has failed (default: %(default)s)",
    )


def _add_quality(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("quality")
    group.add_argument(
        "--hellaswag-file",
        type=_args.readable_file,
        metavar="FILE",
        help="questions in HellaSwag's JSON-lines form (default: the embedded questions for "
        "the embedded model, else lm-eval's hellaswag from the hub)",
    )
    group.add_argument(
        "--text-file",
        type=_args.readable_file,
        metavar="FILE",
        help="text for perplexity (default: the embedded text, else lm-eval's wikitext)",
    )
    group.add_argument(
        "--limit",
        type=_args.whole(1),
        metavar="N",
        help="score only the first N questions and N texts (default: all)",
    )
    group.add_argument(
        "--ppl-window",
        type=_args.whole(2),
        metavar="N",
        help="tokens per perplexity window (default: 2048, or the model's limit)",
    )
    group.add_argument(
        "--no-eval", dest="eval", action="store_false", help="measure memory and speed only"
    )


def _add_artifacts(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("quantised artifacts")
    group.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        type=_args.checkpoint,
        metavar="ID=PATH_OR_ID",
        help="a ready gptq, awq or gguf checkpoint instead of quantising here; may be repeated",
    )
    group.add_argument(
        "--calibration",
        type=_args.readable_file,
        metavar="FILE",
        help="text for GPTQ and AWQ calibration (default: the embedded text)",
    )
    _args.add_cache_dir(group)


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--format",
        choices=FORMATS,
        default="table",
        help="form of the result (default: %(default)s)",
    )
    group.add_argument(
        "--out",
        type=_args.output_file,
        metavar="FILE",
        help="write the result here in that form, and the table to stdout",
    )
    group.add_argument(
        "--runs-dir",
        type=_args.folder,
        metavar="DIR",
        help="where each finished row is kept (default: the user's data folder)",
    )
    group.add_argument("--quiet", action="store_true", help="no progress on stderr")
