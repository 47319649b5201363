"""``llmfit advise``: which optimisation techniques to try, what they bring, how to measure them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from llmfit.cli import _args
from llmfit.cli._console import emit, results, terminal_width, wants_color
from llmfit.errors import UsageError
from llmfit.planning.advice.situation import HARDWARE_KINDS, TASKS

if TYPE_CHECKING:
    from llmfit.planning.advice.situation import HardwareKind

_DESCRIPTION = """\
Say which optimisation techniques to apply to a model for a task, the memory
that there is, the need for accuracy and the kind of hardware: with the expected
effect of each, its source, what own records of this machine measured of it, and
the llmfit command that measures it.
"""

_EPILOG = """\
examples:
  llmfit advise --vram-gb 16 --task inference --hardware consumer_gpu
  llmfit advise --vram-gb 80 --task training --hardware server_gpu
  llmfit advise --hardware cpu --accuracy-critical --format json

GB means 10^9 bytes.
"""


def add_parser(verbs: _args.Subparsers[_args.Parser]) -> None:
    """Add the verb and its options."""
    parser = verbs.add_parser(
        "advise",
        help="which optimisation techniques to try, with effect, source and command",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--vram-gb",
        type=_args.number(least=0),
        metavar="G",
        help="GPU memory that there is, in GB of 10^9 bytes (default: this machine's GPU's; 0 "
        "without one)",
    )
    parser.add_argument(
        "--task",
        choices=TASKS,
        default="inference",
        help="what is done with the model (default: %(default)s)",
    )
    parser.add_argument(
        "--accuracy-critical",
        action="store_true",
        help="a loss of quality cannot be borne: 8 bits instead of 4",
    )
    parser.add_argument(
        "--hardware",
        choices=HARDWARE_KINDS,
        help="kind of hardware (default: cpu where this machine has no GPU)",
    )
    parser.add_argument(
        "--runs-dir",
        type=_args.readable_folder,
        metavar="DIR",
        help="records of earlier runs here, for measured effects (default: the user's data folder)",
    )
    _args.add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Choose and print."""
    from llmfit.history import own_records
    from llmfit.planning.advice.advise import guide
    from llmfit.report.advice import render_guide

    vram_gb, hardware = _machine(args.vram_gb, args.hardware)
    found = guide(
        vram_gb,
        args.task,
        args.accuracy_critical,
        hardware,
        records=own_records(args.runs_dir),
    )
    emit(render_guide(found, args.format, width=terminal_width(), color=wants_color(results())))
    return 0


def _machine(vram_gb: float | None, hardware: HardwareKind | None) -> tuple[float, HardwareKind]:
    """Memory and kind as given, else this machine's. Raises UsageError where it cannot tell."""
    from llmfit.device.detect import detect_gpu
    from llmfit.units import GB

    if vram_gb is not None and hardware is not None:
        return vram_gb, hardware
    gpu = detect_gpu()
    if hardware is None:
        if gpu is not None or (vram_gb or 0) > 0:
            raise UsageError(
                "the kind of the GPU is not given.", hint="--hardware consumer_gpu or server_gpu"
            )
        hardware = "cpu"
    if vram_gb is not None:
        return vram_gb, hardware
    if gpu is not None and gpu.memory_bytes is not None:
        return gpu.memory_bytes / GB, hardware
    if hardware in ("server_gpu", "consumer_gpu"):
        raise UsageError("no GPU is in this machine, so its memory has to be given.",
                         hint="--vram-gb 16")  # fmt: skip
    return 0.0, hardware
