"""``llmfit study``: what each optimisation technique costs and gives on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llmfit.cli import _args
from llmfit.cli._console import emit, is_terminal, results, say, terminal_width, wants_color
from llmfit.errors import LlmfitError, UsageError
from llmfit.files import expanded
from llmfit.report._text import plain
from llmfit.studies.registry import STUDIES, check_study

if TYPE_CHECKING:
    from llmfit.study import StudyOptions
    from llmfit.study_records import StudyResult

_DESCRIPTION = """\
Measure an optimisation technique on this machine: time, memory and what must
not change, beside published figures. Each study prints its tables and writes
JSON, Markdown and a plot (PNG, SVG).

studies:
"""

_EPILOG = """\
examples:
  llmfit study attention
  llmfit study all --out ./studies            every study, and the files there
  llmfit study techniques --temperature 4 --mixing 0.9
  llmfit study precision --preset reference   the published sizes, for a GPU

Exit code: 0 when every study ran and all that must hold held, 1 otherwise, 2
for a wrong argument.
"""

_ALL = "all"


def add_parser(verbs: _args.Subparsers[_args.Parser]) -> None:
    """Add the verb and its options."""
    width = max(map(len, STUDIES))
    listed = "".join(f"  {name:{width}}  {what}\n" for name, what in STUDIES.items())
    parser = verbs.add_parser(
        "study",
        usage="llmfit study NAME [options]",
        help="measure a technique: attention, compile, pruning …",
        description=_DESCRIPTION + listed + f"  {_ALL:{width}}  all of them, one after the other",
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    parser.add_argument("study", metavar="NAME", help="the study, or all")
    parser.add_argument(
        "--preset",
        choices=("default", "reference"),
        default="default",
        help="sizes: default runs in two minutes on two cores, reference are those of the "
        "published figures, for a GPU (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=_args.folder,
        metavar="DIR",
        help="where the files go, and the models that a study makes (default: the user's data "
        "folder, which keeps no models)",
    )
    techniques = parser.add_argument_group("distillation, in the study techniques")
    techniques.add_argument(
        "--temperature",
        type=_args.number(above=0),
        metavar="T",
        help="divides the logits of teacher and student (default: 2)",
    )
    techniques.add_argument(
        "--mixing",
        type=_args.number(least=0, most=1),
        metavar="SHARE",
        help="share of the loss that is the teacher's, 0 to 1 (default: 0.5)",
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="where it runs (default: %(default)s, a GPU where there is one)",
    )
    machine.add_argument(
        "--threads",
        type=_args.whole(1, 4096),
        metavar="N",
        help="CPU threads (default: one per physical core)",
    )
    machine.add_argument(
        "--seed",
        type=_args.whole(0, _args.MAX_SEED),
        default=0,
        metavar="N",
        help="seed of weights and data (default: %(default)s)",
    )
    _args.add_cache_dir(machine)
    _args.add_time_limit(machine, "study")
    machine.add_argument("--quiet", action="store_true", help="no progress on stderr")
    _args.add_format(parser, ("table", "md", "json"))


def run(args: argparse.Namespace) -> int:
    """Run one study or all, print each as it ends, and write its files."""
    from llmfit.study import default_study_dir, make_folder

    names = tuple(STUDIES) if args.study == _ALL else (args.study,)
    for name in names:
        check_study(name)
    options = _options(args, names)
    folder = default_study_dir() if args.out is None else expanded(args.out)
    make_folder(folder)  # before hours of work that would have nowhere to go
    done: list[StudyResult] = []
    failed: list[str] = []
    with _list_closed(args, done):
        for number, name in enumerate(names, start=1):
            say_title = f"[{number}/{len(names)}] {name}" if len(names) > 1 else name
            try:
                done.append(_run_one(name, options, args, say_title))
            except LlmfitError as exc:
                if len(names) == 1:
                    raise
                failed.append(name)
                say(f"{say_title}: failed: {exc}")
                continue
            _show(done[-1], args, folder, first=len(done) == 1)
    broken = [result.study for result in done if any(c.holds is False for c in result.checks)]
    if broken:
        say(f"llmfit: what must hold did not in: {', '.join(broken)}; see ✗ above.")
    if failed:
        say(f"llmfit: not run to the end: {', '.join(failed)}.")
    return 1 if broken or failed else 0


@contextmanager
def _list_closed(args: argparse.Namespace, done: Sequence[StudyResult]) -> Iterator[None]:
    """Make JSON of several studies a list, also where an interrupt ends it early."""
    try:
        yield
    finally:
        if args.format == "json" and args.study == _ALL:
            emit("\n]\n" if done else "[]\n")


def _options(args: argparse.Namespace, names: tuple[str, ...]) -> StudyOptions:
    from llmfit.studies.base import Distilling
    from llmfit.study import StudyOptions

    given = {
        option: value
        for option in ("temperature", "mixing")
        if (value := getattr(args, option)) is not None
    }
    if given and "techniques" not in names:
        raise UsageError(
            f"--{next(iter(given))} is of distillation, which the study {names[0]} has not.",
            hint="llmfit study techniques",
        )
    models = None if args.out is None else str(expanded(args.out).absolute() / "models")
    return StudyOptions(
        preset=args.preset,
        device=None if args.device == "auto" else args.device,
        threads=args.threads,
        seed=args.seed,
        models_dir=models,
        cache_dir=args.cache_dir,
        distilling=Distilling(**given),
    )


def _run_one(name: str, options: StudyOptions, args: argparse.Namespace, title: str) -> StudyResult:
    from llmfit.study import run_study

    if not args.quiet:
        say(f"{title} …")
    live = not args.quiet and is_terminal(sys.stderr)

    def progress(stage: str, done: int, total: int) -> None:
        if live:
            count = f" {done}/{total}" if total else ""
            sys.stderr.write(f"\r\x1b[K{title}: {plain(stage)}{count}")
            sys.stderr.flush()

    try:
        return run_study(
            name, options, time_limit_s=args.time_limit, progress=progress, command=args.command
        )
    finally:
        if live:
            sys.stderr.write("\r\x1b[K")


def _show(result: StudyResult, args: argparse.Namespace, folder: Path, *, first: bool) -> None:
    """Print a study, write its files and say where they are."""
    from llmfit.report.plots import plots_possible
    from llmfit.report.study import checks_held, render_study
    from llmfit.study import write_study
    from llmfit.units import format_seconds

    text = render_study(result, args.format, width=terminal_width(), color=wants_color(results()))
    if args.format == "json" and args.study == _ALL:
        emit(("[\n" if first else ",\n") + text.rstrip())
    else:
        emit(text if first else "\n" + text)
    files = write_study(result, folder)
    if args.quiet:
        return
    took = "" if result.seconds is None else f"{format_seconds(result.seconds)} · "
    say(f"{result.study}: {took}{checks_held(result)} checks held · {files[0].with_suffix('')}.*")
    if not plots_possible():
        say('No plot: matplotlib is missing. Try: pip install "llmfit[studies]"')
