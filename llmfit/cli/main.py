"""Entry point of ``llmfit``: picks the verb, and turns errors into one message and an exit code.

Exit codes: 0 done, 1 failed, 2 usage, 3 a figure became worse, 130 interrupted (143 by SIGTERM,
129 by SIGHUP).
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING

from llmfit import __version__
from llmfit.cli._console import complain, emit, results_apart, say, tolerate_narrow_encodings
from llmfit.cli._signals import Interrupts, open_standard_streams
from llmfit.errors import LlmfitError, UsageError
from llmfit.network import NO_TELEMETRY, OFFLINE, offline

if TYPE_CHECKING:
    from llmfit.cli._args import Parser

_DESCRIPTION = """\
Which deploy format of a language model fits your GPU, how fast it is, and what
quality you pay: measured on your machine, not guessed.
"""

_EPILOG = """\
examples:
  llmfit compare                              the embedded model, offline
  llmfit compare meta-llama/Llama-3.1-8B --gpu-gb 8
  llmfit plan meta-llama/Llama-3.1-8B --gpu "RTX 4060"
  llmfit history                              what was measured before
  llmfit report --config nightly.toml         measure a list: what became worse?
  llmfit reproduce result.json                run again: do the figures hold?
  llmfit deploy ./my-model --backend awq --engine vllm --out bundle
  llmfit serve ./my-model --backend awq       by an existing server
  llmfit bench-server http://127.0.0.1:8000   a running server under load
  llmfit study attention                      a technique, measured here
  llmfit generate ./my-model --backend nf4 --prompt "Once upon a time"
  llmfit backends                             what works here, what to install

`llmfit COMMAND --help` tells a command's options.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; nothing that llmfit raises gets out."""
    open_standard_streams()
    tolerate_narrow_encodings()
    sys.excepthook = _tell_fault
    with Interrupts() as interrupts:
        try:
            code = _run(list(sys.argv[1:] if argv is None else argv))
            emit("")  # what argparse wrote
        except LlmfitError as exc:
            complain(exc)
            return exc.exit_code
        except KeyboardInterrupt:
            say("llmfit: interrupted.")
            return interrupts.exit_code()
        except BrokenPipeError:
            return 1  # the reader has gone, e.g. `llmfit backends | head`
        return interrupts.exit_code(code)


def _run(argv: list[str]) -> int:
    parser = _parser()
    if not argv:
        parser.print_help(sys.stderr)
        return UsageError.exit_code
    _check_verb(argv[0])
    _check_words(argv)
    try:
        args, unknown = parser.parse_known_args(argv)
    except SystemExit as exc:  # argparse's way out of --help and --version
        return exc.code if isinstance(exc.code, int) else 0
    if unknown:
        what = "option" if unknown[0].startswith("-") else "argument"
        raise UsageError(
            f"unknown {what} {unknown[0]!r} of `llmfit {args.verb}`.",
            hint=f"llmfit {args.verb} --help",
        )
    from llmfit.redaction import secrets_of, without_password

    # Records keep the command: a database's password is no part of them.
    words = ["llmfit", *map(without_password, argv)]
    args.command = secrets_of(os.environ, argv).hide(shlex.join(words))
    asked = getattr(args, "offline", False)
    os.environ.update(NO_TELEMETRY | (OFFLINE if asked else {}))  # before any library is imported
    with results_apart(), offline(asked):
        code: int = args.run(args)
    return code


@cache
def _verbs() -> Mapping[str, ModuleType]:
    """The verbs' modules, imported only where Ctrl-C is heeded already."""
    from llmfit.cli import (
        advise,
        backends,
        bench_server,
        cache,
        compare,
        deploy,
        export,
        generate,
        history,
        path,
        plan,
        report,
        reproduce,
        serve,
        show,
        study,
    )

    return {
        "compare": compare,
        "plan": plan,
        "advise": advise,
        "path": path,
        "history": history,
        "show": show,
        "export": export,
        "import": export,
        "report": report,
        "reproduce": reproduce,
        "generate": generate,
        "study": study,
        "deploy": deploy,
        "serve": serve,
        "bench-server": bench_server,
        "backends": backends,
        "cache": cache,
    }


def _check_verb(word: str) -> None:
    if word.startswith("-") or word in _verbs():
        return
    close = get_close_matches(word, _verbs(), n=1)
    raise UsageError(
        f"unknown command {word!r}; known are {', '.join(_verbs())}.",
        hint=f"llmfit {close[0]}" if close else "llmfit --help",
    )


def _check_words(argv: Sequence[str]) -> None:
    """Raise UsageError for what no record can hold, and for a secret that no command should."""
    for word in argv:
        if any("\ud800" <= char <= "\udfff" for char in word):  # Python's sign for other bytes
            raise UsageError(
                f"the argument {word!r} is not UTF-8, which records are written in.",
                hint="another name for that file or folder",
            )
        if word.startswith("--webhook="):
            raise UsageError(
                "--webhook takes no address: it is a secret, which a command line tells everyone.",
                hint="LLMFIT_WEBHOOK_URL=https://… llmfit report --webhook",
            )


def _tell_fault(
    kind: type[BaseException], fault: BaseException, trace: TracebackType | None
) -> None:
    """A traceback, without the secrets that a library's message may hold."""
    import traceback

    from llmfit.redaction import known_secrets

    sys.stderr.write(known_secrets().hide("".join(traceback.format_exception(kind, fault, trace))))


def _parser() -> Parser:
    from llmfit.cli._args import Parser

    parser = Parser(prog="llmfit", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"llmfit {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", title="commands", required=True)
    for verb in dict.fromkeys(_verbs().values()):
        verb.add_parser(verbs)
    return parser
