"""``llmfit show``: a run or a row of it, as it was recorded."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from llmfit.cli import _args
from llmfit.cli._console import emit, results, terminal_width, wants_color
from llmfit.errors import UsageError
from llmfit.report import FORMATS, render

if TYPE_CHECKING:
    from llmfit.serving_records import ServerBenchmark

_DESCRIPTION = """\
Print a recorded run as `llmfit compare` did, one row's whole record, or a
server's figures. RECORD is an id, RUN/ROW, a JSON file, or a run's folder.
"""

_EPILOG = """\
examples:
  llmfit show 20260102-030405-my-model-abcdef
  llmfit show 20260102-030405-my-model-abcdef/nf4
  llmfit show result.json --format md
"""


def add_parser(verbs: _args.Subparsers[_args.Parser]) -> None:
    """Add the verb and its options."""
    parser = verbs.add_parser(
        "show",
        usage="llmfit show RECORD [options]",
        help="a recorded run or row",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    parser.add_argument("record", metavar="RECORD", help="an id, RUN/ROW, a JSON file or a folder")
    _args.add_keeping(parser, new_runs=False)
    _args.add_format(parser, FORMATS)


def run(args: argparse.Namespace) -> int:
    """Print the run, or the row as JSON."""
    from llmfit.lookup import find_record
    from llmfit.records import to_json

    found = find_record(args.record, _args.keeping(args))
    if found.server is not None:
        emit(_server(found.server, args.format))
        return 0
    if found.comparison is not None:
        width, color = terminal_width(), wants_color(results())
        emit(render(found.comparison, args.format, width=width, color=color))
        return 0
    if args.format not in ("table", "json"):
        raise UsageError(
            f"a single row has no table: {args.format} is of a whole run.", hint="--format json"
        )
    emit(to_json(found.rows[0] if len(found.rows) == 1 else found.rows) + "\n")
    return 0


def _server(found: ServerBenchmark, fmt: str) -> str:
    from llmfit.report.server import SERVER_FORMATS, render_server

    for known in SERVER_FORMATS:
        if known == fmt:
            width, color = terminal_width(), wants_color(results())
            return render_server(found, known, width=width, color=color)
    raise UsageError(
        f"a server's figures have no form {fmt}; there are {', '.join(SERVER_FORMATS)}.",
        hint="--format json",
    )
