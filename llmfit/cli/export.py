"""``llmfit export`` and ``llmfit import``: runs out of a results store, and into one."""

from __future__ import annotations

import argparse
from pathlib import Path

from llmfit.cli import _args
from llmfit.cli._console import emit
from llmfit.report._text import plain

_EXPORT = """\
Write all stored runs, or those of one model, to a file. JSON and Parquet hold
whole records and can be imported again; CSV holds every figure of every row.
"""

_EXPORT_EPILOG = """\
examples:
  llmfit export --format json --out runs.json
  llmfit export meta-llama/Llama-3.1-8B --format parquet --out llama.parquet
  llmfit export --format csv --out figures.csv
"""

_IMPORT = """\
Add runs to the results store: exports (JSON, Parquet), what `llmfit compare
--format json` wrote, runs' folders. What is there already stays as it is.
"""

_IMPORT_EPILOG = """\
examples:
  llmfit import runs.json
  llmfit import ~/.local/share/llmfit/runs
  llmfit import result.json --machine lab-4090 --store postgresql://user@host/db
"""


def add_parser(verbs: _args.Subparsers[_args.Parser]) -> None:
    """Add both verbs and their options."""
    exporting = verbs.add_parser(
        "export",
        usage="llmfit export [MODEL] --out FILE [options]",
        help="stored runs as JSON, CSV or Parquet",
        description=_EXPORT,
        epilog=_EXPORT_EPILOG,
    )
    exporting.set_defaults(run=run_export)
    exporting.add_argument("model", nargs="?", metavar="MODEL", help="only runs of this model")
    exporting.add_argument(
        "--format",
        choices=("json", "csv", "parquet"),
        default="json",
        help="form of the file (default: %(default)s)",
    )
    exporting.add_argument(
        "--out", type=_args.output_file, metavar="FILE", required=True, help="the file to write"
    )
    importing = verbs.add_parser(
        "import",
        usage="llmfit import FILE [FILE …] [options]",
        help="add runs to the results store",
        description=_IMPORT,
        epilog=_IMPORT_EPILOG,
    )
    importing.set_defaults(run=run_import)
    importing.add_argument(
        "files", nargs="+", type=_args.readable_path, metavar="FILE", help="files or folders"
    )
    importing.add_argument(
        "--machine",
        type=_args.word,
        metavar="NAME",
        help="machine of runs that do not name theirs (default: LLMFIT_MACHINE, or this host)",
    )
    for parser in (exporting, importing):
        _args.add_store(parser)


def run_export(args: argparse.Namespace) -> int:
    """Write the file and say how much is in it."""
    from llmfit.store.exchange import export_runs
    from llmfit.store.store import Store

    with Store(args.store, to_read=True) as store:
        count = export_runs(store, args.format, args.out, model=args.model)
        emit(f"{_runs(count)} of {plain(store.name)} written to {plain(str(args.out))}\n")
    return 0


def run_import(args: argparse.Namespace) -> int:
    """Add what is new and say how much that was."""
    from llmfit.store.exchange import import_runs
    from llmfit.store.store import Store

    with Store(args.store) as store:
        done = import_runs(store, [Path(file) for file in args.files], machine=args.machine)
        emit(f"{_runs(done.added)} added to {plain(store.name)}, {done.known} there already\n")
    return 0


def _runs(count: int) -> str:
    return f"{count:,} run{'' if count == 1 else 's'}"
