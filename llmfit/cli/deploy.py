"""``llmfit deploy``: a folder that serves what was chosen, by an engine, wherever it is carried."""

from __future__ import annotations

import argparse
from pathlib import Path

from llmfit.cli import _args, _serving_options
from llmfit.cli._console import emit, quieten_libraries, say
from llmfit.files import expanded
from llmfit.report._text import plain
from llmfit.units import format_bytes

_DESCRIPTION = """\
Make a folder with a model in a deploy format, as an engine wants it: the files,
a script that starts the engine with a context and a share of the memory that
fit, and a README with what was measured. The engine is started on it where it
is installed; else the files are read as it would read them.
"""

_EPILOG = """\
examples:
  llmfit deploy ./my-model --backend awq --engine vllm --out my-model-awq
  llmfit deploy --backend gguf --engine llama-server --out bundle
  llmfit deploy ./my-model --backend gguf:q5_k_m --engine ollama --out bundle
"""


def add_parser(verbs: _args.Subparsers[_args.Parser]) -> None:
    """Add the verb and its options."""
    parser = verbs.add_parser(
        "deploy",
        usage="llmfit deploy [MODEL] --backend ID --engine NAME --out DIR [options]",
        help="a folder that serves one format by an engine",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    _serving_options.add(parser, engine_required=True)
    parser.add_argument(
        "--out", required=True, type=_args.folder, metavar="DIR", help="the folder, new or empty"
    )
    parser.add_argument(
        "--no-start", action="store_true", help="only read the files, start no engine on them"
    )
    _args.add_store(parser)
    _args.add_format(parser, ("text", "json"))


def run(args: argparse.Namespace) -> int:
    """Settle, make the files, copy, try, print."""
    quieten_libraries()
    from llmfit.engines.registry import get_engine
    from llmfit.records import to_json
    from llmfit.serving.bundle import check_place, deploy
    from llmfit.serving.measured import find_measured
    from llmfit.serving.settling import settle, with_path

    engine = get_engine(args.engine)
    out = expanded(args.out).absolute()
    check_place(out)  # before minutes of quantising
    plan, machine = _serving_options.plan_of(args)
    settled = settle(plan, engine, machine, context=args.context, name=args.name)
    measured = find_measured(args.store, plan)
    made = _serving_options.make(plan)
    bundle = deploy(
        plan,
        with_path(settled, made.path, made.notes),
        engine,
        Path(out),
        measured=measured,
        start=not args.no_start,
        command=args.command,
        progress=lambda stage: say(f"llmfit: {stage} …"),
    )
    if args.format == "json":
        emit(to_json(bundle) + "\n")
        return 0
    size = format_bytes(sum(file.size_bytes for file in bundle.files))
    emit(f"{plain(bundle.name)} for {engine.label}: {size} in {plain(str(out))}\n")
    for note in bundle.notes:
        emit(f"- {plain(note)}\n")
    by = plain(bundle.validated_by)
    emit(f"tried: {by} answered\n" if bundle.validation == "started" else f"not started: {by}\n")
    if measured is None:
        emit("no stored run has its figures: llmfit compare measures them\n")
    emit(f"start it: {plain(str(out / 'serve.sh'))}\n")
    return 0
