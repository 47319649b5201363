"""``llmfit generate``: continue a prompt with a model in one deploy format."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from llmfit.cli import _args
from llmfit.cli._console import emit, is_terminal, quieten_libraries, results, say
from llmfit.errors import UsageError
from llmfit.report._text import visible
from llmfit.units import format_rate, format_seconds

_DESCRIPTION = """\
Continue a prompt. The text goes to stdout, the speed to stderr. The prompt is
--prompt, --prompt-file, or what is piped in; one line break at the end of a
file or pipe is dropped.
"""

_EPILOG = """\
examples:
  llmfit generate --prompt "Once upon a time"
  llmfit generate ./my-model --backend nf4 --prompt-file prompt.txt
  echo "Once upon a time" | llmfit generate --temperature 0.8 --seed 1
"""


def add_parser(verbs: _args.Subparsers[_args.Parser]) -> None:
    """Add the verb and its options."""
    parser = verbs.add_parser(
        "generate",
        usage="llmfit generate [MODEL] [--prompt TEXT | --prompt-file FILE] [options]",
        help="continue a prompt in one format",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    _args.add_model(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="the text to continue")
    prompt.add_argument(
        "--prompt-file", type=_args.readable_file, metavar="FILE", help="a file with that text"
    )
    _add_sampling(parser)
    _add_loading(parser)
    _args.add_format(parser, ("text", "json"))


def run(args: argparse.Namespace) -> int:
    """Load, generate, print."""
    prompt = _prompt(args)
    quieten_libraries()
    from llmfit.cli._progress import Silent, observer
    from llmfit.decode.base import Sampling
    from llmfit.deployer import Deployer
    from llmfit.records import SCHEMA_VERSION, to_builtins, to_json
    from llmfit.runner.apart import generate_apart

    sampling = Sampling(
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, seed=args.seed
    )
    deployer = Deployer(
        args.model,
        backend=args.backend,
        checkpoint=args.checkpoint,
        device=None if args.device == "auto" else args.device,
        threads=args.threads,
        seed=args.seed,
        cache_dir=args.cache_dir,
        kv_cache_dtype=args.kv_cache_dtype,
        llama_cpp_dir=args.llama_cpp,
        allow_pickle=args.allow_pickle,
        trust_remote_code=args.trust_remote_code,
    )
    with observer(quiet=False) if is_terminal(sys.stderr) else Silent() as watching:
        watching.row_started(args.backend, f"loading {args.backend}", 0, 1)
        result = generate_apart(
            deployer.plan,
            prompt,
            max_new_tokens=args.max_new_tokens,
            sampling=sampling,
            progress=partial(watching.progress, args.backend),
        )
    if args.format == "json":
        answer = {"schema_version": SCHEMA_VERSION, "backend": args.backend}
        emit(to_json({**answer, **to_builtins(result)}) + "\n")
        return 0
    # A model may write control codes; a terminal would obey them, a file keeps them.
    text = visible(result.text, keep="\n\t") if is_terminal(results()) else result.text
    emit(text + "\n")
    rate = "" if result.tokens_per_s is None else f", {format_rate(result.tokens_per_s)} tokens/s"
    tokens = "1 token" if result.new_tokens == 1 else f"{result.new_tokens} tokens{rate} (decode)"
    say(f"{tokens}, {format_seconds(result.ttft_s)} to the first")
    return 0


def _prompt(args: argparse.Namespace) -> str:
    if args.prompt is not None:
        text: str = args.prompt
    elif args.prompt_file is not None:
        text = _decoded(Path(args.prompt_file).read_bytes(), args.prompt_file)
    elif sys.stdin is not None and not sys.stdin.isatty():
        text = _decoded(sys.stdin.buffer.read(), "stdin")
    else:
        raise UsageError("there is no prompt.", hint='llmfit generate --prompt "Once upon a time"')
    if not text.strip():
        raise UsageError("the prompt is empty.", hint='llmfit generate --prompt "Once upon a time"')
    return text


def _decoded(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as exc:
        wrong = f"byte {exc.start} is {data[exc.start]:#04x}"
        raise UsageError(
            f"the prompt of {source} is not UTF-8 text: {wrong}.",
            hint=f"iconv -t utf-8 {source}",
        ) from exc


# ---------------------------------------------------------------- options


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("decoding")
    group.add_argument(
        "--max-new-tokens",
        type=_args.whole(1),
        default=128,
        metavar="N",
        help="stop after so many tokens (default: %(default)s)",
    )
    group.add_argument(
        "--temperature",
        type=_args.number(least=0),
        default=0.0,
        metavar="T",
        help="0 always takes the likeliest token (default: 0)",
    )
    group.add_argument(
        "--top-k",
        type=_args.whole(0),
        default=0,
        metavar="K",
        help="choose among the K likeliest tokens; 0: no such cut (default: %(default)s)",
    )
    group.add_argument(
        "--top-p",
        type=_args.number(above=0, most=1),
        default=1.0,
        metavar="P",
        help="choose among the tokens that make up this probability (default: 1, no cut)",
    )
    group.add_argument(
        "--seed",
        type=_args.whole(0, _args.MAX_SEED),
        default=0,
        metavar="N",
        help="the same seed gives the same text (default: %(default)s)",
    )


def _add_loading(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model and machine")
    group.add_argument(
        "--backend",
        default="sdpa",
        metavar="ID",
        help="deploy format, see `llmfit backends` (default: %(default)s)",
    )
    group.add_argument(
        "--checkpoint",
        type=_args.checkpoint_place,
        metavar="PATH_OR_ID",
        help="a ready checkpoint of a gptq, awq or gguf backend (default: quantised here)",
    )
    _args.add_machine(group, where="where to run")
    _args.add_kv_cache_dtype(group)
    _args.add_llama_cpp(group)
    _args.add_cache_dir(group)
    _args.add_offline(group)
    _args.add_trust(group)
