"""``llmfit bench-server``: a server that speaks OpenAI's API, measured from outside."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llmfit.cli import _args
from llmfit.cli._console import (
    emit,
    is_terminal,
    quieten_libraries,
    results,
    say,
    terminal_width,
    wants_color,
    write_file,
)
from llmfit.report._text import plain

if TYPE_CHECKING:
    from llmfit.report.server import ServerFormat
    from llmfit.serving.load import Progress
    from llmfit.serving_records import ServerBenchmark

_KEY_VARIABLE = "OPENAI_API_KEY"

_DESCRIPTION = """\
Measure a server that speaks OpenAI's API (vLLM, llama-server, llama-cpp-python,
transformers serve, TGI …) from outside: streaming requests, so many at once,
each with a prompt of its own. Time to first token, time between tokens, tokens
per second, and from how many requests on it gives no more.
"""

_EPILOG = """\
examples:
  llmfit bench-server http://127.0.0.1:8000
  llmfit bench-server http://gpu-box:8000/v1 --concurrency 1,8,32 --prompt-tokens 512
  llmfit bench-server http://127.0.0.1:8000 --model ./my-model --backend awq

A key goes into the environment variable OPENAI_API_KEY. Exit code: 0 when
requests were answered, 1 when none was, 2 for a wrong argument.
"""


def add_parser(verbs: _args.Subparsers[_args.Parser]) -> None:
    """Add the verb and its options."""
    parser = verbs.add_parser(
        "bench-server",
        usage="llmfit bench-server URL [options]",
        help="a running server: time to first token, tokens/s, saturation",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    parser.add_argument("url", metavar="URL", help="its address, with or without /v1")
    _add_load(parser)
    _add_server(parser)
    keeping = parser.add_argument_group("keeping")
    _args.add_store(keeping)
    _args.add_tag(keeping)
    _args.add_format(parser, ("table", "md", "json"))
    _args.add_out(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _add_load(parser: argparse.ArgumentParser) -> None:
    load = parser.add_argument_group("load")
    load.add_argument(
        "--concurrency",
        type=_counts,
        default=(1, 4, 16),
        metavar="A,B",
        help="requests under way at once, one level each (default: 1,4,16)",
    )
    load.add_argument(
        "--prompt-tokens",
        type=_args.whole(1),
        default=128,
        metavar="N",
        help="length of prompts, as the server counts (default: %(default)s)",
    )
    load.add_argument(
        "--new-tokens",
        type=_args.whole(1),
        default=64,
        metavar="N",
        help="length of answers (default: %(default)s)",
    )
    load.add_argument(
        "--requests",
        type=_args.whole(1),
        metavar="N",
        help="of each level (default: four times its concurrency, at least eight)",
    )
    load.add_argument(
        "--seed",
        type=_args.whole(0, _args.MAX_SEED),
        default=0,
        metavar="N",
        help="the same seed gives the same prompts (default: %(default)s)",
    )
    load.add_argument(
        "--timeout",
        type=_args.number(above=0),
        default=600.0,
        metavar="S",
        help="how long a request may take, in seconds (default: %(default)g)",
    )


def _add_server(parser: argparse.ArgumentParser) -> None:
    server = parser.add_argument_group("server")
    server.add_argument(
        "--served-model", metavar="NAME", help="the model to ask for (default: the only one)"
    )
    server.add_argument(
        "--api",
        choices=("completions", "chat"),
        help="which of the two (default: completions where the server has them)",
    )
    server.add_argument(
        "--api-key-variable",
        default=_KEY_VARIABLE,
        metavar="NAME",
        help="environment variable that holds the key (default: %(default)s)",
    )
    about = parser.add_argument_group("what is served, to stand beside what `compare` measured")
    about.add_argument("--model", metavar="MODEL", help="the model, as `compare` was given it")
    about.add_argument("--backend", metavar="ID", help="its format, see `llmfit backends`")


def run(args: argparse.Namespace) -> int:
    """Measure, keep, print."""
    quieten_libraries()
    from llmfit.backends.registry import get_backend
    from llmfit.serving.load import ServerTarget, bench_server
    from llmfit.serving_records import ServerWorkload
    from llmfit.store.place import check_reachable
    from llmfit.store.store import Store

    workload = ServerWorkload(
        concurrency=args.concurrency,
        prompt_tokens=args.prompt_tokens,
        new_tokens=args.new_tokens,
        requests=args.requests,
        seed=args.seed,
        timeout_s=args.timeout,
    )
    target = ServerTarget(
        url=args.url,
        served_model=args.served_model,
        api=args.api,
        key=os.environ.get(args.api_key_variable) or None,
        model=args.model,
        backend=args.backend,
        tag=args.tag,
    )
    check_reachable(args.store)
    if args.backend is not None:
        get_backend(args.backend)
    with _progress(args.quiet) as progress:
        found = bench_server(target, workload, command=args.command, progress=progress)
    emit(_text(found, "table" if args.out is not None else args.format))
    if args.out is not None:
        write_file(args.out, _text(found, args.format))
        say(f"llmfit: {args.format} written to {args.out}")
    with Store(args.store) as store:
        store.add_server(found)
        say(f"llmfit: kept as {found.benchmark_id} in {plain(store.name)}")
    return 0


def _text(found: ServerBenchmark, fmt: ServerFormat) -> str:
    from llmfit.report.server import render_server

    return render_server(found, fmt, width=terminal_width(), color=wants_color(results()))


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    """A line that moves on a terminal, one line a level elsewhere."""
    live = not quiet and is_terminal(sys.stderr)

    def told(concurrency: int, done: int, requests: int) -> None:
        if live:
            sys.stderr.write(f"\r\x1b[K{concurrency} at once: {done}/{requests}")
            sys.stderr.flush()
        elif not quiet and done == 0:
            say(f"{requests} requests, {concurrency} at once …")

    try:
        yield told
    finally:
        if live:
            sys.stderr.write("\r\x1b[K")


def _counts(text: str) -> tuple[int, ...]:
    """Numbers from ``1,4,16``; whether a server can be put under such a load is said later."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"must be numbers like 1,4,16, not {text!r}") from exc
