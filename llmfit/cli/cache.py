"""``llmfit cache``: the quantised artifacts that were kept, and how to free them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from llmfit.cli import _args
from llmfit.cli._console import emit, say
from llmfit.errors import UsageError
from llmfit.report._text import plain
from llmfit.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmfit.quantize.cache import ArtifactCache, CacheEntry

_DESCRIPTION = """\
GPTQ, AWQ and GGUF artifacts are made once per model and kept. `list` shows
them, `clear` removes them; they are made again when they are needed.
"""

_EPILOG = """\
examples:
  llmfit cache list
  llmfit cache clear KEY
  llmfit cache clear --all
"""


def add_parser(verbs: _args.Subparsers[_args.Parser]) -> None:
    """Add the verb, its two actions and their options."""
    parser = verbs.add_parser(
        "cache",
        help="list or free the quantised artifacts",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    listing = actions.add_parser(
        "list",
        help="what is kept, and its size",
        description="Show what is kept.",
        epilog="example:\n  llmfit cache list --format json",
    )
    listing.set_defaults(run=run_list)
    listing.add_argument(
        "--verify",
        action="store_true",
        help="read everything over and hold it against its checksums, as is done before loading",
    )
    _args.add_format(listing)
    clearing = actions.add_parser(
        "clear",
        help="remove artifacts",
        description="Remove artifacts by their key, or all.",
        epilog="examples:\n  llmfit cache clear KEY\n  llmfit cache clear --all",
    )
    clearing.set_defaults(run=run_clear)
    clearing.add_argument(
        "keys",
        nargs="*",
        metavar="KEY",
        help="a key that `cache list` shows, or its beginning where no other begins so",
    )
    clearing.add_argument("--all", action="store_true", help="remove every artifact")
    for action in (listing, clearing):
        _args.add_cache_dir(action)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One artifact, as ``llmfit cache list --format json`` shows it."""

    key: str
    kind: str
    model: str
    path: str
    size_bytes: int
    created_at: datetime | None
    settings: dict[str, str | int | float | bool | None]
    damaged: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The answer of ``llmfit cache list --format json``."""

    schema_version: int = 1
    root: str
    total_bytes: int
    entries: tuple[Item, ...]


def run_list(args: argparse.Namespace) -> int:
    """Print what the cache holds."""
    from llmfit.records import to_json

    cache = _cache(args)
    entries = cache.entries(read_over=args.verify)
    total_bytes = sum(entry.size_bytes for entry in entries)
    if args.format == "json":
        root, items = str(cache.root), tuple(map(_item, entries))
        emit(to_json(Listing(root=root, total_bytes=total_bytes, entries=items)) + "\n")
        return 0
    if entries:
        emit(_table(entries))
    emit(f"{_count(entries)}, {format_bytes(total_bytes)}, in {plain(str(cache.root))}\n")
    return 0


def run_clear(args: argparse.Namespace) -> int:
    """Remove artifacts and say what was freed."""
    if bool(args.keys) == args.all:
        wrong = "KEY and --all exclude each other" if args.all else "KEY or --all is missing"
        raise UsageError(f"cache clear: {wrong}.", hint="llmfit cache list, or cache clear --all")
    cache = _cache(args)
    before = len(cache.entries())
    removed = cache.clear(None if args.all else args.keys)
    freed = format_bytes(sum(entry.size_bytes for entry in removed))
    emit(f"removed {_count(removed)}, {freed} freed\n")
    wanted = before if args.all else len(set(args.keys))
    if len(removed) < wanted:
        say(f"llmfit: {wanted - len(removed)} left alone: another process is making them.")
    return 0


def _cache(args: argparse.Namespace) -> ArtifactCache:
    from llmfit.quantize.cache import ArtifactCache

    return ArtifactCache(Path(args.cache_dir) if args.cache_dir else None)


def _item(entry: CacheEntry) -> Item:
    return Item(
        key=entry.key,
        kind=entry.kind,
        model=entry.model,
        path=str(entry.path),
        size_bytes=entry.size_bytes,
        created_at=entry.created_at,
        settings=dict(entry.settings),
        damaged=entry.damaged,
    )


def _count(entries: Sequence[CacheEntry]) -> str:
    return f"{len(entries)} artifact{'' if len(entries) == 1 else 's'}"


def _table(entries: Sequence[CacheEntry]) -> str:
    from llmfit.cli._tables import simple_table

    rows = [
        (
            entry.key,
            entry.model,
            format_bytes(entry.size_bytes),
            entry.created_at.strftime("%Y-%m-%d %H:%M") if entry.created_at else "–",
            f"damaged: {entry.damaged}" if entry.damaged else "ok",
        )
        for entry in entries
    ]
    return simple_table(("key", "model", "size", "made (UTC)", "state"), rows) + "\n"
