"""``llmfit path``: the ladder from FP32 down to a memory target, predicted and measured."""

from __future__ import annotations

import argparse

from llmfit.cli import _args
from llmfit.cli._console import emit, results, terminal_width, wants_color
from llmfit.cli.plan import workload_asked
from llmfit.errors import UsageError

_DESCRIPTION = """\
Go down from FP32 until a model fits a memory target: BF16, a better attention
kernel, INT8, the 4-bit formats, smaller GGUF types, a quantised KV cache and a
shorter context. Each step with the memory that it takes, predicted from the
model's config, and with --measure also measured on this machine.
"""

_EPILOG = """\
examples:
  llmfit path meta-llama/Llama-3.1-8B --to-gb 8
  llmfit path qwen2.5-7b --to-gb 6 --device cuda --context 32768
  llmfit path ./my-model --to-gb 4 --measure
  llmfit path llama-3.1-8b --to-gb 12 --measure --weights synthetic

GB means 10^9 bytes. The target is of the memory that a step runs in: a GPU's,
or the RAM; GGUF runs from RAM. Exit code: 0 when the path was found or shown to
end above the target, 2 for a wrong argument.
"""


def add_parser(verbs: _args.Subparsers[_args.Parser]) -> None:
    """Add the verb and its options."""
    parser = verbs.add_parser(
        "path",
        usage="llmfit path [MODEL] --to-gb G [options]",
        help="the steps from FP32 down to a memory target, predicted and measured",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    _args.add_model(parser)
    parser.add_argument(
        "--to-gb",
        type=_args.number(above=0),
        required=True,
        metavar="G",
        help="memory to get down to, in GB of 10^9 bytes, driver or interpreter included",
    )
    workload = parser.add_argument_group("workload")
    _args.add_workload(workload)
    _args.add_context(workload)
    machine = parser.add_argument_group("measuring")
    machine.add_argument(
        "--measure", action="store_true", help="run each step and go by the measured memory"
    )
    machine.add_argument(
        "--weights",
        choices=("real", "synthetic"),
        default="real",
        help="synthetic: measure with random weights, for a model that is not here (default: "
        "%(default)s)",
    )
    _args.add_machine(machine, where="where the PyTorch steps run")
    _args.add_cache_dir(machine)
    _args.add_keeping(machine)
    _args.add_time_limit(machine, "step")
    machine.add_argument("--quiet", action="store_true", help="no progress on stderr")
    _args.add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Find the path and print it."""
    if args.weights == "synthetic" and not args.measure:
        raise UsageError(
            "--weights synthetic is of what is measured, and nothing is.", hint="--measure"
        )
    from llmfit.cli._progress import observer
    from llmfit.path import Measuring, find_path
    from llmfit.report.path import render_path

    with observer(quiet=args.quiet or not args.measure) as watching:
        measuring = Measuring(
            weights=args.weights,
            threads=args.threads,
            cache_dir=args.cache_dir,
            keeping=_args.keeping(args),
            time_limit_s=args.time_limit,
            observer=watching,
        )
        path = find_path(
            args.model,
            to_gb=args.to_gb,
            workload=workload_asked(args),
            shorten=args.prompt_tokens is None and args.new_tokens is None,
            context=args.context,
            device=None if args.device == "auto" else args.device,
            measuring=measuring if args.measure else None,
            command=args.command,
        )
    emit(render_path(path, args.format, width=terminal_width(), color=wants_color(results())))
    return 0
