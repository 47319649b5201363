"""What ``serve`` and ``deploy`` share: which model in which format, by which engine, how large."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING

from llmfit.cli import _args
from llmfit.cli._console import is_terminal

if TYPE_CHECKING:
    from llmfit.backends.base import Made
    from llmfit.planner import Machine
    from llmfit.records import Plan


def add(parser: argparse.ArgumentParser, *, engine_required: bool) -> None:
    """Add MODEL and the options."""
    _args.add_model(parser)
    parser.add_argument(
        "--backend", required=True, metavar="ID", help="deploy format, see `llmfit backends`"
    )
    parser.add_argument(
        "--engine",
        required=engine_required,
        metavar="NAME",
        help="vllm, transformers, llama-server, llama-cpp-python or ollama"
        + ("" if engine_required else " (default: the first that is here and serves the format)"),
    )
    parser.add_argument(
        "--context",
        type=_args.whole(16),
        metavar="N",
        help="tokens of prompt and answer together (default: as many as fit, at most the model's)",
    )
    parser.add_argument(
        "--name", type=_args.word, metavar="NAME", help="what requests call it (default: MODEL-ID)"
    )
    parser.add_argument(
        "--checkpoint",
        type=_args.checkpoint_place,
        metavar="PATH_OR_ID",
        help="a ready checkpoint of a gptq, awq or gguf backend (default: quantised here)",
    )
    machine = parser.add_argument_group("machine")
    _args.add_machine(machine, where="where it is to run")
    machine.add_argument(
        "--gpu",
        metavar="NAME",
        help='plan for this card, e.g. "RTX 4060", where it is to run elsewhere',
    )
    machine.add_argument(
        "--gpu-gb",
        type=_args.number(above=0),
        metavar="GB",
        help="GPU memory that it may take, in GB of 10⁹ bytes (default: all)",
    )
    machine.add_argument(
        "--ram-gb",
        type=_args.number(above=0),
        metavar="GB",
        help="RAM that it may take on the CPU (default: all)",
    )
    _args.add_llama_cpp(machine)
    _args.add_cache_dir(machine)
    _args.add_trust(machine)


def plan_of(args: argparse.Namespace) -> tuple[Plan, Machine]:
    """The plan and the machine of the arguments. Raises UsageError or ModelNotFound."""
    from llmfit.deployer import Deployer
    from llmfit.planner import find_machine

    device = None if args.device == "auto" else args.device
    deployer = Deployer(
        args.model,
        backend=args.backend,
        checkpoint=args.checkpoint,
        device=device,
        threads=args.threads,
        gpu_gb=args.gpu_gb,
        cache_dir=args.cache_dir,
        llama_cpp_dir=args.llama_cpp,
        allow_pickle=args.allow_pickle,
        trust_remote_code=args.trust_remote_code,
    )
    machine = find_machine(gpu=args.gpu, gpu_gb=args.gpu_gb, ram_gb=args.ram_gb, device=device)
    return deployer.plan, machine


def make(plan: Plan) -> Made:
    """The format's files, made in a child; a bar on a terminal, since quantising takes minutes."""
    from llmfit.cli._progress import Silent, observer
    from llmfit.runner.apart import make_apart

    with observer(quiet=False) if is_terminal(sys.stderr) else Silent() as watching:
        watching.row_started(plan.backend, f"making {plan.backend}", 0, 1)
        return make_apart(plan, partial(watching.progress, plan.backend))
