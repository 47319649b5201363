"""Entry point of ``llmfit``: picks the verb, and turns errors into one message and an exit code.

Exit codes: 0 done, 1 failed, 2 usage, 3 a figure became worse, 130 interrupted.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from llmfit import __version__
from llmfit.cli import (
    advise,
    backends,
    cache,
    compare,
    export,
    generate,
    history,
    path,
    plan,
    report,
    reproduce,
    show,
    study,
)
from llmfit.cli._args import Parser
from llmfit.cli._console import complain, tolerate_narrow_encodings
from llmfit.errors import LlmfitError, UsageError

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
  llmfit study attention                      a technique, measured here
  llmfit generate ./my-model --backend nf4 --prompt "Once upon a time"
  llmfit backends                             what works here, what to install

`llmfit COMMAND --help` tells a command's options.
"""

_PASSWORD = re.compile(r"(://[^/\s:@]+):[^@\s]*@")
"""Of an address like ``postgresql://user:password@host``."""

_VERBS = {
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
    "backends": backends,
    "cache": cache,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; nothing that llmfit raises gets out."""
    tolerate_narrow_encodings()
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except LlmfitError as exc:
        complain(exc)
        return exc.exit_code
    except KeyboardInterrupt:
        print("llmfit: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has gone, e.g. `llmfit backends | head`. What the interpreter still wants to
        # flush at its exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _run(argv: list[str]) -> int:
    parser = _parser()
    if not argv:
        parser.print_help(sys.stderr)
        return UsageError.exit_code
    _check_verb(argv[0])
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
    # Records keep the command: a database's password is no part of them.
    args.command = _PASSWORD.sub(r"\1@", shlex.join(["llmfit", *argv]))
    code: int = args.run(args)
    return code


def _check_verb(word: str) -> None:
    if word.startswith("-") or word in _VERBS:
        return
    close = get_close_matches(word, _VERBS, n=1)
    raise UsageError(
        f"unknown command {word!r}; known are {', '.join(_VERBS)}.",
        hint=f"llmfit {close[0]}" if close else "llmfit --help",
    )


def _parser() -> Parser:
    parser = Parser(prog="llmfit", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"llmfit {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", title="commands", required=True)
    for verb in dict.fromkeys(_VERBS.values()):
        verb.add_parser(verbs)
    return parser
