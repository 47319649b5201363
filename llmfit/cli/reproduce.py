"""``llmfit reproduce``: run a record again, and say which figures fall inside their intervals."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from llmfit.cli import _args
from llmfit.cli._console import emit, terminal_width
from llmfit.report._text import plain
from llmfit.units import format_bytes, format_rate, format_seconds, format_signed

if TYPE_CHECKING:
    from llmfit.planning.comparing.agreement import Figure, Reproduction, RowAgreement

_DESCRIPTION = """\
Run what a record holds again, with the same model, files, workload and
settings, and say of each figure whether it falls inside its interval. RECORD
is a row's or a comparison's JSON file, a run's folder, or a run's id.
"""

_EPILOG = """\
examples:
  llmfit reproduce 20260102-030405-my-model-abcdef
  llmfit reproduce result.json
  llmfit reproduce ./runs/20260102-030405-my-model-abcdef/nf4.json

tokens/s and times agree where the two intervals of the median meet; quality
figures where the new value lies in the recorded interval. What has no interval
(memory) may differ by the share that is printed.

Nothing is run where the model, another file, this machine or a version is not
as recorded: the message names what differs.
Exit code: 0 when every figure is inside, 1 when one is not or a row failed,
2 when the record cannot be run again here, 130 when interrupted.
"""


def add_parser(verbs: _args.Subparsers[_args.Parser]) -> None:
    """Add the verb and its options."""
    parser = verbs.add_parser(
        "reproduce",
        usage="llmfit reproduce RECORD [options]",
        help="run a record again, and say whether its figures hold",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    parser.add_argument("record", metavar="RECORD", help="a JSON file, a run's folder or its id")
    _args.add_keeping(parser)
    _args.add_time_limit(parser, "row")
    _args.add_trust(parser)
    _args.add_format(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(args: argparse.Namespace) -> int:
    """Run again, print; the exit code tells whether all figures agree."""
    from llmfit.cli._progress import observer
    from llmfit.records import to_json
    from llmfit.reproduction import reproduce

    with observer(quiet=args.quiet) as watching:
        result = reproduce(
            args.record,
            keeping=_args.keeping(args),
            time_limit_s=args.time_limit,
            observer=watching,
            command=args.command,
            allow_pickle=args.allow_pickle,
            trust_remote_code=args.trust_remote_code,
        )
    emit(to_json(result) + "\n" if args.format == "json" else _table(result))
    return 0 if result.inside else 1


def _table(result: Reproduction) -> str:
    import textwrap

    from llmfit.cli._tables import simple_table

    cells = [
        (row.backend if index == 0 else "", *_cells(figure))
        for row in result.rows
        for index, figure in enumerate(row.figures)
    ]
    table = simple_table(("row", "figure", "recorded", "interval", "again", ""), cells)
    lines = (textwrap.fill(plain(line), terminal_width()) for line in _conclusion(result))
    return "\n".join([table, *lines]) + "\n"


def _name(figure: Figure) -> str:
    from llmfit.report.regressions import metric_name

    return metric_name(figure.name)


def _cells(figure: Figure) -> tuple[str, ...]:
    def show(value: float | None) -> str:
        return "–" if value is None else _value(figure.name, value)

    if figure.tolerance is not None:
        interval = f"± {show(figure.tolerance)}"
    else:
        interval = f"{show(figure.low)} to {show(figure.high)}"
    verdict = "inside" if figure.inside else "OUTSIDE"
    return _name(figure), show(figure.recorded), interval, show(figure.again), verdict


def _value(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return format_bytes(value)
    if name == "ttft_s":
        return format_seconds(value)
    if name.endswith("tokens_per_s"):
        return format_rate(value)
    # A divergence of 4-bit formats is some thousandths of a nat.
    return format_signed(value, decimals=4 if abs(value) >= 0.01 else 6, plus=False)


def _conclusion(result: Reproduction) -> list[str]:
    """What holds, then what does not and what may be why, then what was left out."""
    total = sum(len(row.figures) for row in result.rows)
    outside = sum(not figure.inside for row in result.rows for figure in row.figures)
    if outside:
        lines = [f"{outside} of {total} figures of {result.record} are outside:"]
    else:
        lines = [f"All {total} figures of {result.record} are inside."]
    for row in result.rows:
        lines += [] if row.inside else _doubts(row)
    lines += [f"Not run again: {left}." for left in result.left_out]
    lines.append("Interval: 95 %, as recorded; ± is a tolerance, where a figure has no interval.")
    lines.append(f"Records of the second run: {result.run_id}")
    return lines


def _doubts(row: RowAgreement) -> list[str]:
    """What of a row is outside, and what its second run says of itself."""
    if row.status != "ok":
        lines = [f"- {row.backend} did not run: {row.reason or row.status}"]
    else:
        names = ", ".join(_name(figure) for figure in row.figures if not figure.inside)
        lines = [f"- {row.backend}: {names}"]
    return lines + [
        f"  Warning {warning.code} · {row.backend}: {warning.message} Try: {warning.hint}"
        for warning in row.warnings
    ]
