"""``llmfit plan``: memory, largest context and speed of each format, before anything is loaded."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from llmfit.cli import _args
from llmfit.cli._console import emit, results, say, terminal_width, wants_color, write_file
from llmfit.errors import UsageError
from llmfit.planning.memory import MOST_GPUS

if TYPE_CHECKING:
    from llmfit.records import Workload
    from llmfit.report.plan import PlanFormat

_DESCRIPTION = """\
Predict, from a model's config alone, the memory that each deploy format takes,
whether it fits, the largest context that fits, and its speed. Nothing is
loaded, nothing is downloaded but a config that is not known here.
"""

_EPILOG = """\
examples:
  llmfit plan meta-llama/Llama-3.1-8B --gpu-gb 8
  llmfit plan qwen2.5-7b --gpu "RTX 4060" --context 32768
  llmfit plan ./my-model --prompt-tokens 8000 --prefill-chunk 512 --batch 4
  llmfit plan llama-3.3-70b --gpu "RTX 4090" --gpus 8
  llmfit plan mixtral-8x7b --ram-gb 32 --device cpu --format json

MODEL is a folder with config.json, a hub id, or a name of the embedded
catalogue. GB means 10^9 bytes. Exit code: 0 when the plan was made, whether or
not anything fits; 2 for a wrong argument.
"""


def add_parser(verbs: _args.Subparsers[_args.Parser]) -> None:
    """Add the verb and its options."""
    parser = verbs.add_parser(
        "plan",
        usage="llmfit plan [MODEL] [options]",
        help="predict memory, largest context and speed of each format, without loading it",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    _args.add_model(parser)
    _args.add_backends(parser)
    workload = parser.add_argument_group("workload")
    _args.add_workload(workload)
    _args.add_context(workload)
    machine = parser.add_argument_group("hardware")
    machine.add_argument(
        "--gpu",
        metavar="NAME",
        help='a card of the embedded table, e.g. "RTX 4060" (default: the one in this machine)',
    )
    machine.add_argument(
        "--gpus",
        type=_args.whole(1, MOST_GPUS),
        default=1,
        metavar="N",
        help="plan for up to N such GPUs, 64 at most: memory of each by the two ways to split a "
        "model, and the fewest that hold it (default: %(default)s)",
    )
    _args.add_budgets(machine)
    machine.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where the PyTorch rows would run (default: %(default)s, a GPU where one is named or "
        "here)",
    )
    _args.add_kv_cache_dtype(machine)
    output = parser.add_argument_group("output")
    _args.add_format(output)
    _args.add_out(output)
    _args.add_offline(output)
    output.add_argument(
        "--runs-dir",
        type=_args.readable_folder,
        metavar="DIR",
        help="records of earlier runs here, which calibrate the speeds (default: the user's data "
        "folder)",
    )


def run(args: argparse.Namespace) -> int:
    """Predict and print."""
    workload = workload_asked(args)
    from llmfit.planner import plan
    from llmfit.report.plan import render_plan

    planned = plan(
        args.model,
        backends=args.backends,
        workload=workload,
        shorten=args.prompt_tokens is None and args.new_tokens is None,
        context=args.context,
        gpu=args.gpu,
        gpu_gb=args.gpu_gb,
        ram_gb=args.ram_gb,
        device=None if args.device == "auto" else args.device,
        gpus=args.gpus,
        kv_cache_dtype=args.kv_cache_dtype,
        runs_dir=args.runs_dir,
        command=args.command,
    )
    form: PlanFormat = "table" if args.out is not None else args.format
    width, color = terminal_width(), wants_color(results())
    emit(render_plan(planned, form, width=width, color=color))
    if args.out is not None:
        write_file(args.out, render_plan(planned, args.format, width=width))
        say(f"llmfit: {args.format} written to {args.out}")
    return 0


def workload_asked(args: argparse.Namespace) -> Workload:
    """The workload of prompt, new tokens and batch as given. Raises UsageError."""
    from llmfit.records import Workload

    sizes = [name for name in ("prompt_tokens", "new_tokens") if getattr(args, name) is not None]
    if args.context is not None and sizes:
        raise UsageError(
            f"--context is prompt and new tokens together, so --{sizes[0].replace('_', '-')} "
            "cannot stand beside it.",
            hint="drop one",
        )
    names = ("prompt_tokens", "new_tokens", "batch", "prefill_chunk")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    return Workload(**given)
