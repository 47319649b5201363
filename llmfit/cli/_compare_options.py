"""The options of ``llmfit compare``, in the groups of its help."""

from __future__ import annotations

import argparse

from llmfit.cli import _args
from llmfit.planning.memory import MOST_GPUS
from llmfit.planning.verdict.constraints import (
    ACC_NORM_TOLERANCE,
    OBJECTIVES,
    PERPLEXITY_TOLERANCE,
)
from llmfit.report import FORMATS


def add_workload(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is timed")
    _args.add_workload(group)
    group.add_argument(
        "--repeats",
        type=_args.whole(1),
        default=5,
        metavar="N",
        help="timed runs; fewer than 5 leave a wide interval (default: %(default)s)",
    )
    group.add_argument(
        "--warmup",
        type=_args.whole(0),
        default=1,
        metavar="N",
        help="runs before the timed ones (default: %(default)s)",
    )
    group.add_argument(
        "--profile",
        action="store_true",
        help="say where a decode step of each PyTorch row spends its time, by groups of kernels",
    )


def add_machine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("machine")
    _args.add_budgets(group)
    _args.add_machine(group, where="where the PyTorch rows run")
    group.add_argument(
        "--gpus",
        type=_args.whole(1, MOST_GPUS),
        default=1,
        metavar="N",
        help="spread the model over so many GPUs, of which --gpu-gb bounds each (default: "
        "%(default)s)",
    )
    group.add_argument(
        "--split",
        choices=("balanced", "tensor"),
        help="how: whole layers on each GPU by accelerate's balanced device map, or a part of "
        "every matrix by transformers' tensor parallelism (default: balanced)",
    )
    _args.add_kv_cache_dtype(group)
    group.add_argument(
        "--seed",
        type=_args.whole(0, _args.MAX_SEED),
        default=0,
        metavar="N",
        help="seed of the prompt and of calibration (default: %(default)s)",
    )
    _args.add_time_limit(group, "row")


def add_fleet(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("fleet")
    group.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="where rows run: one after the other on this machine, or as tasks of Ray on the nodes "
        "of a cluster (default: %(default)s)",
    )
    group.add_argument(
        "--ray-address",
        type=_args.word,
        metavar="HOST:PORT",
        help="the cluster's head, or auto for the one that this machine is in (default: "
        "RAY_ADDRESS, else a Ray of its own on this machine)",
    )
    group.add_argument(
        "--gpu-kind",
        type=_args.word,
        metavar="KIND",
        help="nodes to run on: a GPU's name in Ray, such as H100, or cpu (default: the only kind "
        "that there is)",
    )


def add_quality(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("quality")
    group.add_argument(
        "--tasks",
        type=_args.task_list,
        metavar="A,B",
        help="lm-eval tasks or groups to score; wikitext stands for everything measured on the "
        "text: perplexity and divergence (default: hellaswag,wikitext)",
    )
    group.add_argument(
        "--include-path",
        type=_args.readable_folder,
        metavar="DIR",
        help="folder with task definitions (YAML) of your own, for --tasks",
    )
    group.add_argument(
        "--hellaswag-file",
        type=_args.readable_path,
        metavar="PATH",
        help="questions in HellaSwag's JSON-lines form, or a folder of the datasets library "
        "(default: the embedded questions for the embedded model, else lm-eval's hellaswag "
        "from the hub or its cache)",
    )
    group.add_argument(
        "--text-file",
        type=_args.readable_path,
        metavar="PATH",
        help="text for perplexity and divergence, or a folder of the datasets library (default: "
        "the embedded text, else lm-eval's wikitext)",
    )
    group.add_argument(
        "--limit",
        type=_args.whole(1),
        metavar="N",
        help="score only the first N items of each task and N texts (default: all)",
    )
    group.add_argument(
        "--ppl-protocol",
        choices=("window", "llama.cpp"),
        help="window: every token scored once; llama.cpp: the second half of each window, for "
        "comparing with its published tables (default: window)",
    )
    group.add_argument(
        "--ppl-window",
        type=_args.whole(2),
        metavar="N",
        help="tokens per perplexity window (default: 2048, for llama.cpp's protocol 512, or the "
        "model's limit)",
    )
    group.add_argument(
        "--no-eval", dest="eval", action="store_false", help="measure memory and speed only"
    )


def add_verdict(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("verdict")
    group.add_argument(
        "--objective",
        choices=OBJECTIVES,
        default="speed",
        help="what is best within the bounds below (default: %(default)s)",
    )
    group.add_argument(
        "--min-tokens-per-s",
        type=_args.number(above=0),
        metavar="R",
        help="turn down rows that decode slower than this",
    )
    group.add_argument(
        "--max-accuracy-loss",
        type=_args.number(least=0, most=100),
        default=100 * ACC_NORM_TOLERANCE,
        metavar="POINTS",
        help="points of HellaSwag acc_norm that a row may lose against bf16 (default: %(default)g)",
    )
    group.add_argument(
        "--max-perplexity-rise",
        type=_args.number(least=0),
        default=100 * PERPLEXITY_TOLERANCE,
        metavar="PERCENT",
        help="by how much a row's perplexity may be above bf16's (default: %(default)g)",
    )
    group.add_argument(
        "--margin",
        type=_args.number(least=0, most=99),
        default=0,
        metavar="PERCENT",
        help="share of --gpu-gb and --ram-gb that is to stay free (default: %(default)g)",
    )
    group.add_argument(
        "--pick-on",
        choices=("gpu", "cpu"),
        help="pick only among rows that run there (default: either)",
    )
    group.add_argument(
        "--reference",
        metavar="TABLE",
        help="a published table to print beside ours, with the ratio of each figure, e.g. "
        "rtx3090-llama-3.1-8b; its model, workload and rows are then the defaults",
    )


def add_artifacts(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("weights and quantised artifacts")
    group.add_argument(
        "--weights",
        choices=("real", "synthetic"),
        help="synthetic: random weights made straight in each format's packed layout; memory and "
        "speed are real, nothing is scored, nothing is downloaded (default: real; with "
        "--reference synthetic where the real ones cannot be had)",
    )
    group.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        type=_args.checkpoint,
        metavar="ID=PATH_OR_ID",
        help="a ready gptq, awq, gguf or stored checkpoint instead of quantising here; may be "
        "repeated",
    )
    group.add_argument(
        "--calibration",
        type=_args.readable_file,
        metavar="FILE",
        help="text for GPTQ and AWQ calibration (default: the embedded text)",
    )
    _args.add_llama_cpp(group)
    _args.add_cache_dir(group)
    _args.add_trust(group)


def add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    _args.add_format(group, FORMATS)
    _args.add_out(group)
    _args.add_keeping(group)
    group.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with an interrupted run, whose finished rows are not run again: its id, or "
        "last for the newest one of this model",
    )
    group.add_argument("--quiet", action="store_true", help="no progress on stderr")
