"""``llmfit report``: what is stored as a page, and a night's measuring before it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llmfit.cli import _args
from llmfit.cli._console import emit, say, write_file
from llmfit.errors import LlmfitError, StoreError, UsageError
from llmfit.files import expanded

if TYPE_CHECKING:
    from llmfit.job import Observer
    from llmfit.nightly.config import Cell, NightlyConfig
    from llmfit.trend_records import Report

REGRESSION_EXIT = 3

_DESCRIPTION = """\
Show how figures went and what became worse, as one HTML file that opens
offline, with Markdown, JUnit XML and JSON beside it. Without --config of what
is stored; with --config everything in that file is measured first.
"""

_EPILOG = """\
examples:
  llmfit report --out report
  llmfit report meta-llama/Llama-3.1-8B --baseline v1.0
  llmfit report --config nightly.toml --out report
  LLMFIT_WEBHOOK_URL=https://… llmfit report --config nightly.toml --webhook

A figure became worse where its level stepped by more than its interval and 5 %,
and has not recovered. --baseline last, a tag or a run's id holds the newest run
against that one instead. A night that was interrupted goes on where it stopped.
Exit code: 0 when nothing became worse, 1 when something was not measured, 2 for
a wrong argument or setting, 3 when a figure became worse, 130 when interrupted.
"""


def add_parser(verbs: _args.Subparsers[_args.Parser]) -> None:
    """Add the verb and its options."""
    parser = verbs.add_parser(
        "report",
        usage="llmfit report [MODEL] [options]",
        help="history and regressions as a page; with --config, measure first",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="only this model")
    parser.add_argument(
        "--config",
        type=_args.readable_file,
        metavar="FILE",
        help="a TOML file of models, formats, workloads and tasks to measure first",
    )
    parser.add_argument(
        "--baseline",
        metavar="WHAT",
        help="what figures are held against: history, last, a tag, or a run's id (default: "
        "history, or what the config says)",
    )
    parser.add_argument(
        "--machine",
        metavar="NAME",
        help="only runs of this machine (default: all); with --config, what the new figures are "
        "filed under (default: the config's, or the host's name)",
    )
    parser.add_argument(
        "--last",
        type=_args.whole(1),
        metavar="N",
        help="show so many runs at most (default: 20; with --config the night's)",
    )
    parser.add_argument(
        "--out",
        type=_args.folder,
        default="llmfit-report",
        metavar="DIR",
        help="where report.html, .md, .json and junit.xml go (default: %(default)s)",
    )
    _args.add_keeping(parser)
    _args.add_cache_dir(parser)
    sinks = parser.add_argument_group("also send it to")
    sinks.add_argument(
        "--webhook",
        action="store_true",
        help='post some lines as {"text": …} to the address in LLMFIT_WEBHOOK_URL',
    )
    sinks.add_argument(
        "--mlflow", metavar="URI", help="log the rows to this MLflow tracking server"
    )
    sinks.add_argument(
        "--wandb", metavar="PROJECT", help="log the rows to this Weights & Biases project"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(args: argparse.Namespace) -> int:
    """Measure where asked, write the files, send them, and say what became worse."""
    from llmfit.nightly.message import webhook_url
    from llmfit.nightly.sinks import check_sinks

    address = webhook_url() if args.webhook else None
    check_sinks(mlflow=args.mlflow, wandb=args.wandb)
    folder = expanded(args.out)
    report = _of_store(args) if args.config is None else _of_night(args)
    _write(report, folder)
    emit(_text(report, folder))
    sent = _send(report, args, address)
    if report.regressions:
        return REGRESSION_EXIT
    return 0 if sent and (report.night is None or report.night.complete) else 1


def _of_store(args: argparse.Namespace) -> Report:
    from llmfit.nightly.stored import MOST_RUNS, report_of_store
    from llmfit.store.store import Store

    for name in ("tag", "runs_dir", "cache_dir"):
        if getattr(args, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} means nothing without --config.", hint="drop it")
    title = "llmfit report" if args.model is None else f"llmfit report: {args.model}"
    with Store(args.store, to_read=True) as store:
        report = report_of_store(
            store,
            title=title,
            model=args.model,
            machine=args.machine,
            baseline=args.baseline or "history",
            most_runs=args.last or MOST_RUNS,
            command=args.command,
        )
        if not report.comparisons:
            of = "" if args.model is None else f" of {args.model}"
            of += "" if args.machine is None else f" of the machine {args.machine!r}"
            raise UsageError(f"there is no run{of} in {store.name}.", hint="llmfit history")
    return report


def _of_night(args: argparse.Namespace) -> Report:
    from llmfit.nightly.session import run_night
    from llmfit.nightly.stored import report_of_night
    from llmfit.store.store import Store

    config = _config(args)
    from llmfit.cli._progress import observer

    def watch(cell: Cell, number: int, total: int) -> Observer | None:
        if not args.quiet:
            say(f"[{number}/{total}] {cell.name}")
        return watching if cell.kind is None else watching.beside(f"{cell.kind} ")

    try:
        with observer(quiet=args.quiet) as watching:
            night = run_night(
                config,
                runs_dir=args.runs_dir,
                cache_dir=args.cache_dir,
                watch=watch,
                command=args.command,
            )
    except KeyboardInterrupt:
        say("llmfit: what was finished is kept; the same command goes on from there.")
        raise
    with Store(config.store) as store:
        return report_of_night(store, night)


def _config(args: argparse.Namespace) -> NightlyConfig:
    """The file's settings, and what the command line says otherwise."""
    from dataclasses import replace

    from llmfit.nightly.config import read_config

    for name in ("model", "last"):
        if getattr(args, name) is not None:
            word = "MODEL" if name == "model" else f"--{name}"
            raise UsageError(f"{word} means nothing with --config.", hint="drop one")
    config = read_config(Path(args.config))
    given = {
        name: value
        for name in ("store", "machine", "baseline", "tag")
        if (value := getattr(args, name)) is not None
    }
    return replace(config, **given)


def _write(report: Report, folder: Path) -> None:
    from llmfit.records import to_json
    from llmfit.report.html.page import render_page
    from llmfit.report.junit import render_junit
    from llmfit.report.night import render_report_markdown

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StoreError(f"cannot make the folder {folder}: {exc.strerror}.") from exc
    write_file(folder / "report.html", render_page(report))
    write_file(folder / "report.md", render_report_markdown(report))
    write_file(folder / "report.json", to_json(report) + "\n")
    write_file(folder / "junit.xml", render_junit(report))


def _text(report: Report, folder: Path) -> str:
    import textwrap

    from llmfit.cli._console import terminal_width
    from llmfit.report._text import plain
    from llmfit.report.night import not_done, summary
    from llmfit.report.regressions import cell_line, grouped

    lines = [summary(report)]
    for group in grouped(report.regressions):
        lines += [f"✗ {group.head}", *(f"    {line}" for line in group.lines)]
    lines += [f"– {cell_line(cell)}" for cell in not_done(report)]
    lines.append(f"Written: {plain(str(folder))}/report.html, .md, .json, and junit.xml")
    width = terminal_width()
    return (
        "\n".join(textwrap.fill(line, width, subsequent_indent="      ") for line in lines) + "\n"
    )


def _send(report: Report, args: argparse.Namespace, address: str | None) -> bool:
    """True where every sink took it; what did not is told and costs no file."""
    from llmfit.nightly.message import message_text, post_message
    from llmfit.nightly.sinks import log_to_mlflow, log_to_wandb

    sent = True
    for wanted, send in (
        (address, lambda: post_message(message_text(report), str(address))),
        (args.mlflow, lambda: log_to_mlflow(report, args.mlflow)),
        (args.wandb, lambda: log_to_wandb(report, args.wandb)),
    ):
        if wanted is None:
            continue
        try:
            send()
        except LlmfitError as exc:
            say(f"llmfit: {exc}")
            sent = False
    return sent
