"""``llmfit history``: what was measured before, the newest first."""

from __future__ import annotations

import argparse
import textwrap
from typing import TYPE_CHECKING

from llmfit.cli import _args
from llmfit.cli._console import emit, terminal_width
from llmfit.report._text import plain
from llmfit.units import format_bytes, format_number, format_percent, format_rate

if TYPE_CHECKING:
    from llmfit.store.heads import RowLine, RunLine

_DESCRIPTION = """\
List the runs in the results store, the newest first: every comparison that ran
is there, whatever became of it. Nothing in the store is ever overwritten.
"""

_EPILOG = """\
examples:
  llmfit history
  llmfit history meta-llama/Llama-3.1-8B --last 5
  llmfit history --store postgresql://user@host/database
  llmfit show RUN              a run's whole table
  llmfit report                how the figures went, as a page
"""


def add_parser(verbs: _args.Subparsers[_args.Parser]) -> None:
    """Add the verb and its options."""
    parser = verbs.add_parser(
        "history",
        usage="llmfit history [MODEL] [options]",
        help="what was measured before",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="only runs of this model, by its name or the last part of it (default: all)",
    )
    parser.add_argument(
        "--last",
        type=_args.whole(1),
        default=20,
        metavar="N",
        help="so many runs at most (default: %(default)s)",
    )
    parser.add_argument(
        "--servers",
        action="store_true",
        help="list what `llmfit bench-server` measured instead of comparisons",
    )
    _args.add_store(parser)
    _args.add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Print the runs."""
    from llmfit.records import to_json
    from llmfit.store.store import Store

    if args.servers:
        return _servers(args)
    with Store(args.store, to_read=True) as store:
        lines = store.history(args.model, limit=args.last)
        name = plain(store.name)
    if args.format == "json":
        emit(to_json(lines) + "\n")
    elif lines:
        emit(_blocks(lines))
    else:
        of = "" if args.model is None else f" of {plain(args.model)}"
        emit(f"No run{of} in {name}.\n")
    return 0


def _servers(args: argparse.Namespace) -> int:
    """Print the servers that were measured."""
    from llmfit.records import to_json
    from llmfit.report.server import history_line
    from llmfit.store.store import Store

    with Store(args.store, to_read=True) as store:
        found = store.servers(args.model, limit=args.last)
        name = plain(store.name)
    if args.format == "json":
        emit(to_json(found) + "\n")
    elif found:
        width = terminal_width()
        lines = (textwrap.fill(history_line(e), width, subsequent_indent="    ") for e in found)
        emit("\n".join(lines) + "\n")
    else:
        of = "" if args.model is None else f" of {plain(args.model)}"
        emit(f"No server{of} in {name}.\n")
    return 0


def _blocks(lines: tuple[RunLine, ...]) -> str:
    """Each run's facts, and below them a line for each row."""
    width = terminal_width()
    told = []
    for line in lines:
        told.append(textwrap.fill(_facts(line), width, subsequent_indent="    "))
        widest = max((len(plain(row.label)) for row in line.rows), default=0)
        for row in line.rows:
            text = f"  {plain(row.label):<{widest}}  {_figures(row)}"
            told.append(textwrap.fill(text, width, subsequent_indent=" " * (widest + 4)))
    return "\n".join(told) + "\n"


def _facts(line: RunLine) -> str:
    parts = [plain(line.run_id), plain(line.model), plain(line.machine)]
    if line.tag is not None:
        parts.append(f"tag {plain(line.tag)}")
    if not line.ended:
        parts.append("not ended")
    elif line.pick is not None:
        parts.append(f"pick {plain(line.pick)}")
    return " · ".join(parts)


def _figures(row: RowLine) -> str:
    """Speed, memory and quality as far as they are known, else why the row did not run."""
    if row.status != "ok":
        return f"{row.status}: {plain(row.reason or 'no reason recorded')}"
    shown = (
        ("decode.tokens_per_s", lambda value: f"{format_rate(value)} tokens/s"),
        ("memory.peak_bytes", format_bytes),
        ("hellaswag.acc_norm", lambda value: f"HellaSwag {format_percent(value)}"),
        ("perplexity.token", lambda value: f"perplexity {format_number(value)}"),
    )
    return ", ".join(text(row.figures[name]) for name, text in shown if name in row.figures)
