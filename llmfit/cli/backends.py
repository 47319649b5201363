"""``llmfit backends``: which rows can run here, with which versions, and what to install."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING

from llmfit.cli import _args
from llmfit.cli._console import emit
from llmfit.report._text import plain

if TYPE_CHECKING:
    from llmfit.backends.base import Backend

_DESCRIPTION = """\
List the deploy formats, whether the packages of each are installed here and in
which version, and the command that installs what is missing.
"""

_WIDTH = 78
"""Columns of a command, before the sign that it goes on."""

_EPILOG = """\
example:
  llmfit backends --format json
"""


def add_parser(verbs: _args.Subparsers[_args.Parser]) -> None:
    """Add the verb and its options."""
    parser = verbs.add_parser(
        "backends",
        help="what works here, in which versions, and what to install",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    _args.add_format(parser)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one deploy format, or the scoring of quality, needs."""

    id: str
    label: str
    works: bool
    """True when every package is installed, and a GPU is here where it runs on nothing else."""
    packages: dict[str, str | None]
    """Installed version by name; None where it is missing."""
    install: str | None
    """The command that installs what is missing; None where nothing is."""
    devices: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    takes_checkpoint: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The answer of ``llmfit backends --format json``."""

    schema_version: int = 1
    backends: tuple[Part, ...]
    evaluation: Part


def run(args: argparse.Namespace) -> int:
    """Look at what is installed, without importing any of it, and print."""
    from llmfit.backends.registry import backend_ids, get_backend
    from llmfit.device.detect import detect_gpu
    from llmfit.records import to_json

    gpu = detect_gpu() is not None
    parts = tuple(_part(get_backend(name), gpu=gpu) for name in backend_ids())
    if args.format == "json":
        emit(to_json(Listing(backends=parts, evaluation=_evaluation())) + "\n")
    else:
        emit(_table(parts, _evaluation()))
    return 0


def _part(backend: Backend, *, gpu: bool) -> Part:
    return Part(
        id=backend.id,
        label=backend.label,
        works=not backend.missing() and (gpu or "cpu" in backend.devices),
        packages={package.distribution: package.installed() for package in backend.packages},
        install=backend.install_hint() if backend.missing() else None,
        devices=tuple(sorted(backend.devices)),
        variants=tuple(sorted(backend.variants)),
        takes_checkpoint=backend.takes_checkpoint,
    )


def _evaluation() -> Part:
    """lm-eval is of no backend, and without it the quality columns stay empty."""
    from llmfit.backends.base import Package

    version = Package("lm_eval", "lm_eval").installed()
    return Part(
        id="(quality)",
        label="HellaSwag, perplexity",
        works=version is not None,
        packages={"lm_eval": version},
        install=None if version else "pip install 'llmfit[eval]'",
    )


def _table(backends: tuple[Part, ...], evaluation: Part) -> str:
    from llmfit.cli._tables import simple_table

    shared = [name for name in backends[0].packages if all(name in b.packages for b in backends)]
    parts = (*backends, evaluation)
    rows = [
        (part.id, part.label, _works(part), _versions(part, leave_out=shared)) for part in parts
    ]
    all_rows = ", ".join(f"{name} {backends[0].packages[name] or 'missing'}" for name in shared)
    missing = dict.fromkeys(part.install for part in parts if part.install)
    lines = [
        simple_table(("id", "format", "works here", "packages"), rows),
        f"Every row: {plain(all_rows)}",
        *(_folded(f"To install what is missing: {plain(command)}") for command in missing),
    ]
    return "\n".join(lines) + "\n"


def _folded(line: str) -> str:
    """``line``, its command continued on others where it is wide, as a shell takes it."""
    lines = wrap(
        line, _WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return " \\\n".join(lines)


def _works(part: Part) -> str:
    if part.works:
        return "yes"
    return "no" if part.install else "needs a GPU"


def _versions(part: Part, *, leave_out: list[str]) -> str:
    own = [
        f"{name} {version or 'missing'}"
        for name, version in part.packages.items()
        if name not in leave_out
    ]
    return ", ".join(own) or "–"
