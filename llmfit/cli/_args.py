"""Command-line values: parsed, checked before anything long begins, errors naming the value."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from llmfit.errors import UsageError
from llmfit.files import expanded
from llmfit.units import MOST_GB

if TYPE_CHECKING:
    from llmfit.keeping import Keeping

MAX_COUNT = 10**9
MAX_SEED = 2**32 - 1
"""The largest seed that torch, numpy and llama.cpp all take."""

Subparsers = argparse._SubParsersAction  # argparse has no public name for what add_parser is on


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises UsageError, and takes no abbreviated options."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise the message as UsageError; argparse itself would print and exit."""
        raise UsageError(message.rstrip(".") + ".", hint=f"{self.prog} --help")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add MODEL to a parser."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a folder with config.json, or a Hugging Face id (default: the embedded model)",
    )


def add_backends(parser: argparse.ArgumentParser) -> None:
    """Add --backends to a parser."""
    parser.add_argument(
        "--backends",
        type=backend_list,
        metavar="A,B",
        help="only these rows, in this order, e.g. bf16,nf4,gguf:q3_k_m, or all: also those that "
        "are off by default (default: the eight)",
    )


def add_format(
    group: argparse._ActionsContainer, choices: Sequence[str] = ("table", "json")
) -> None:
    """Add --format to a parser or a group of its options; the first of ``choices`` is default."""
    group.add_argument(
        "--format",
        choices=choices,
        default=choices[0],
        help="form of the result (default: %(default)s)",
    )


def add_out(group: argparse._ActionsContainer) -> None:
    """Add --out to a group of options."""
    group.add_argument(
        "--out",
        type=output_file,
        metavar="FILE",
        help="write the result here in that form, and the table to stdout",
    )


def add_context(group: argparse._ActionsContainer) -> None:
    """Add --context, which stands for a workload, to the group that has it."""
    group.add_argument(
        "--context",
        type=whole(3),
        metavar="N",
        help="instead of prompt and new tokens: fill a context of N tokens",
    )


def add_keeping(group: argparse._ActionsContainer, *, new_runs: bool = True) -> None:
    """``--runs-dir`` and ``--store``, and with ``new_runs`` ``--tag``."""
    group.add_argument(
        "--runs-dir",
        type=folder,
        metavar="DIR",
        help="where files of a running comparison are kept (default: the user's data folder)",
    )
    add_store(group)
    if new_runs:
        add_tag(group)


def add_tag(group: argparse._ActionsContainer) -> None:
    """``--tag``."""
    group.add_argument(
        "--tag",
        type=word,
        metavar="NAME",
        help="a name for this run in the store, e.g. to compare later ones with",
    )


def add_store(group: argparse._ActionsContainer) -> None:
    """``--store``, and ``--offline``."""
    add_offline(group)
    group.add_argument(
        "--store",
        metavar="PLACE",
        help="the results store: a file, or postgresql://user@host/database (default: "
        "LLMFIT_STORE, or a file in the user's data folder)",
    )


def add_offline(group: argparse._ActionsContainer) -> None:
    """``--offline``, which ``main`` obeys."""
    group.add_argument(
        "--offline",
        action="store_true",
        help="use no network at all: no hub, no store or tracker on another host, no webhook",
    )


def keeping(args: argparse.Namespace, *, resume: str | None = None) -> Keeping:
    """Where the arguments say that records go."""
    from llmfit.keeping import Keeping

    tag = getattr(args, "tag", None)
    return Keeping(runs_dir=args.runs_dir, store=args.store, tag=tag, resume=resume)


def word(text: str) -> str:
    """A name without spaces at its ends."""
    if not text.strip() or text != text.strip():
        raise argparse.ArgumentTypeError(f"must be a name, not {text!r}")
    return text


def add_time_limit(group: argparse._ActionsContainer, what: str) -> None:
    """Add --time-limit to a group of options; ``what`` is what has failed beyond it."""
    group.add_argument(
        "--time-limit",
        type=number(above=0),
        default=3600,
        metavar="SECONDS",
        help=f"a {what} that takes longer has failed (default: %(default)s)",
    )


def add_workload(group: argparse._ActionsContainer) -> None:
    """Add the size of prompt, continuation and batch, and how the prompt is run."""
    group.add_argument(
        "--prompt-tokens",
        type=whole(1),
        metavar="N",
        help="length of the prompt (default: 512, less where the model's context is shorter)",
    )
    group.add_argument(
        "--new-tokens",
        type=whole(2),
        metavar="N",
        help="tokens to generate, 2 or more (default: 128, likewise)",
    )
    group.add_argument(
        "--batch",
        type=whole(1),
        default=1,
        metavar="N",
        help="sequences at once (default: %(default)s)",
    )
    group.add_argument(
        "--prefill-chunk",
        type=prefill_chunk,
        default=None,
        metavar="N|full",
        help="tokens of the prompt that run at once: fewer need less memory (default: full, the "
        "whole prompt in one pass)",
    )


def add_budgets(group: argparse._ActionsContainer) -> None:
    """Add --gpu-gb and --ram-gb."""
    group.add_argument(
        "--gpu-gb",
        type=number(above=0, most=MOST_GB),
        metavar="G",
        help="GPU memory to stay within, in GB of 10^9 bytes (default: all of it)",
    )
    group.add_argument(
        "--ram-gb",
        type=number(above=0, most=MOST_GB),
        metavar="G",
        help="RAM to stay within, likewise, the program itself included (default: all of it)",
    )


def add_machine(group: argparse._ActionsContainer, *, where: str) -> None:
    """Add --device (``where`` says of what) and --threads to a group of options."""
    group.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help=f"{where} (default: %(default)s, the GPU where there is one)",
    )
    group.add_argument(
        "--threads",
        type=whole(1, 4096),
        metavar="N",
        help="CPU threads (default: one per physical core)",
    )


def add_cache_dir(group: argparse._ActionsContainer) -> None:
    """Add --cache-dir to a parser or a group of its options."""
    group.add_argument(
        "--cache-dir",
        type=folder,
        metavar="DIR",
        help="where artifacts are kept (default: the user's cache folder)",
    )


def add_trust(group: argparse._ActionsContainer) -> None:
    """Add --allow-pickle and --trust-remote-code to a group of options."""
    group.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read weights in pickles too: their tensors are taken out in a process of its own, "
        "which refuses all else (default: safetensors and GGUF alone)",
    )
    group.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code that comes with the model, which can do whatever you can (default: "
        "never)",
    )


def add_kv_cache_dtype(group: argparse._ActionsContainer) -> None:
    """Add --kv-cache-dtype to a group of options."""
    group.add_argument(
        "--kv-cache-dtype",
        choices=("q8_0", "q4_0"),
        help="quantise the KV cache: llama.cpp's own types in gguf rows, 8 or 4 bits by HQQ "
        "through transformers' quantised cache in the others; compiled is skipped, and bf16 stays "
        "the 16-bit reference of a comparison (default: 16 bits)",
    )


def add_llama_cpp(group: argparse._ActionsContainer) -> None:
    """Add --llama-cpp to a group of options."""
    group.add_argument(
        "--llama-cpp",
        type=readable_folder,
        metavar="DIR",
        help="a llama.cpp checkout, whose own converter then makes the GGUF of any architecture",
    )


def whole(least: int, most: int = MAX_COUNT) -> Callable[[str], int]:
    """A parser of whole numbers in ``least`` … ``most``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            limit = f"of {least} or more" if value < least else f"of at most {most}"
            raise argparse.ArgumentTypeError(f"must be a whole number {limit}, not {text!r}")
        return value

    return parse


def prefill_chunk(text: str) -> int | None:
    """A number of tokens, or None for ``full``."""
    if text == "full":
        return None
    try:
        return whole(1)(text)
    except argparse.ArgumentTypeError as exc:
        raise argparse.ArgumentTypeError(f"{exc}, or 'full'") from exc


def number(
    *, above: float | None = None, least: float | None = None, most: float = math.inf
) -> Callable[[str], float]:
    """A parser of finite numbers ``above`` one bound or from ``least`` on, up to ``most``."""
    low = f"above {above:g}" if above is not None else f"of {least:g} or more"
    limit = low if math.isinf(most) else f"{low} and at most {most:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        inside = (above is None or value > above) and (least is None or value >= least)
        if not (math.isfinite(value) and inside and value <= most):
            raise argparse.ArgumentTypeError(f"must be a number {limit}, not {text!r}")
        return value

    return parse


def readable_file(text: str) -> str:
    """The path of a file that is there and can be read."""
    path = expanded(text)
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "is not there"
        raise argparse.ArgumentTypeError(f"the file {text!r} {kind}")
    if not os.access(path, os.R_OK):
        raise argparse.ArgumentTypeError(f"the file {text!r} cannot be read: no permission")
    return str(path)


def readable_folder(text: str) -> str:
    """The path of a folder that is there and can be read."""
    path = expanded(text)
    if not path.is_dir():
        kind = "is a file, not a folder" if path.exists() else "is not there"
        raise argparse.ArgumentTypeError(f"the folder {text!r} {kind}")
    if not os.access(path, os.R_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"the folder {text!r} cannot be read: no permission")
    return str(path)


def readable_path(text: str) -> str:
    """The path of a file or folder that is there and can be read."""
    is_folder = bool(text) and expanded(text).is_dir()  # nothing is no path, though Path takes it
    return readable_folder(text) if is_folder else readable_file(text)


def output_file(text: str) -> Path:
    """A path at which a file can be written; its folder has to be there."""
    path = expanded(text)
    if not text or path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file, and {text!r} is a folder")
    target = path if path.exists() and not path.is_file() else path.parent
    if not target.exists():
        raise argparse.ArgumentTypeError(f"the folder {str(path.parent)!r} is not there")
    if not os.access(target, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write to {str(target)!r}: no permission")
    return path


def folder(text: str) -> str:
    """A folder that can be written, or that can be made."""
    path = expanded(text)
    if not text or (path.exists() and not path.is_dir()):
        raise argparse.ArgumentTypeError(f"must be a folder, and {text!r} is not one")
    nearest = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write to {str(nearest)!r}")
    return str(path)


def backend_list(text: str) -> tuple[str, ...]:
    """Backend ids from ``a,b,c``; whether there are such backends is for ``compare`` to say."""
    ids = tuple(part.strip() for part in text.split(","))
    if not all(ids):
        raise argparse.ArgumentTypeError(f"has an empty entry: {text!r}; write e.g. bf16,nf4,gguf")
    return ids


def task_list(text: str) -> tuple[str, ...]:
    """lm-eval task names from ``a,b,c``; whether there are such tasks is for ``compare`` to say."""
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"has an empty entry: {text!r}; write e.g. hellaswag,piqa")
    for name in names:
        if names.count(name) > 1:
            raise argparse.ArgumentTypeError(f"names {name!r} twice")
    return names


def checkpoint(text: str) -> tuple[str, str]:
    """``ID=PATH_OR_ID`` as a pair; the path has to be there."""
    backend, _, place = text.partition("=")
    if not backend or not place:
        raise argparse.ArgumentTypeError(f"must be like awq=./my-model-awq, not {text!r}")
    return backend, checkpoint_place(place)


def checkpoint_place(place: str) -> str:
    """A checkpoint's path, which has to be there, or a hub id."""
    path = expanded(place)
    if path.exists():
        return str(path)
    looks_local = place.startswith((".", "/", "~")) or place.count("/") != 1
    if looks_local or place.endswith((".gguf", "/")):
        raise argparse.ArgumentTypeError(
            f"{place!r} is not there; give a folder, a .gguf file, or a hub id like org/name"
        )
    return place
