"""``llmfit serve``: the server that there is for a format, with settings that fit this machine."""

from __future__ import annotations

import argparse
import os
import shlex
import sys

from llmfit.cli import _args, _serving_options
from llmfit.cli._console import emit, is_terminal, quieten_libraries, results, say
from llmfit.errors import UsageError
from llmfit.report._text import plain, visible

_DESCRIPTION = """\
Serve a model in a deploy format by a server that others keep: vLLM where it is
installed and there is a GPU, `transformers serve`, llama-server, or
llama-cpp-python's server. The files are quantised first where they are not in
the cache. Then this process becomes the server: nothing stands between it and
its users.
"""

_EPILOG = """\
examples:
  llmfit serve ./my-model --backend awq
  llmfit serve --backend gguf --port 8080         the embedded model
  llmfit serve ./my-model --backend gguf --print  only the command
"""


def add_parser(verbs: _args.Subparsers[_args.Parser]) -> None:
    """Add the verb and its options."""
    parser = verbs.add_parser(
        "serve",
        usage="llmfit serve [MODEL] --backend ID [options]",
        help="serve a model in one format by an existing server",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    _serving_options.add(parser, engine_required=False)
    _args.add_offline(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="H",
        help="address to listen on (default: %(default)s)",
    )
    parser.add_argument(
        "--port",
        type=_args.whole(1, 65535),
        default=8000,
        metavar="N",
        help="port to listen on (default: %(default)s)",
    )
    parser.add_argument(
        "--print", action="store_true", dest="only_print", help="print the command, start nothing"
    )


def run(args: argparse.Namespace) -> int:
    """Settle, make the files, and become the server."""
    quieten_libraries()
    from llmfit.engines.registry import engine_for, get_engine
    from llmfit.serving.settling import settle, with_path

    plan, machine = _serving_options.plan_of(args)
    engine = get_engine(args.engine) if args.engine else engine_for(args.backend, plan.device)
    settled = settle(
        plan, engine, machine, context=args.context, name=args.name, host=args.host, port=args.port
    )
    if not engine.serves:
        raise UsageError(
            f"{engine.label} serves what it was given: llmfit makes a bundle for it.",
            hint=f"llmfit deploy MODEL --backend {args.backend} --engine {engine.id} --out DIR",
        )
    if engine.missing() is not None and not args.only_print:
        raise UsageError(f"{engine.label} is not installed.", hint=engine.install)
    made = _serving_options.make(plan)
    settled = with_path(settled, made.path, made.notes)
    served = settled.served
    command = engine.command_here(served)
    if args.only_print:
        words = shlex.join(command)
        emit((visible(words) if is_terminal(results()) else words) + "\n")
        return 0
    bound = f", context {served.context}" if "context" in engine.takes else ""
    say(f"llmfit: {engine.label}: {plain(engine.asked_as(served))}{bound}")
    for note in settled.notes:
        say(f"llmfit: {plain(note)}")
    say(f"llmfit: measure it: {plain(_measuring(args, engine.asked_as(served)))}")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe(command[0], command, _environment(args))
    return 1


def _measuring(args: argparse.Namespace, asked_as: str) -> str:
    words = ["llmfit", "bench-server", f"http://{args.host}:{args.port}"]
    words += ["--served-model", asked_as, "--backend", args.backend]
    if args.model is not None:
        words += ["--model", args.model]
    return shlex.join(words)


def _environment(args: argparse.Namespace) -> dict[str, str]:
    from llmfit.child import environment

    return environment(offline=args.offline)
