"""What NVIDIA's assembler makes of the GPU kernels of decode steps. Needs Triton, and no GPU.

For each kernel the instructions of its loop, of one warp and for 128 bytes of weights, by the units
that take them, and the cycles that a multiprocessor of compute capability 8.0 to 9.0 needs for them
at least: it starts four instructions a cycle, two of them logic ones. Where those take longer than
128 bytes need from memory, the kernel is bound by them, and not by its weights.

    python benchmarks/gpu_instructions.py
    python benchmarks/gpu_instructions.py --capability 80 --format json
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from llmfit.kernels import gpu

LOGIC = ("LOP3", "PRMT", "SHF", "ISETP", "SEL", "IADD3", "LEA", "PLOP3", "VIADD")
MULTIPLY = ("HFMA2", "HADD2", "HMUL2", "FFMA", "FADD", "FMUL", "IMAD", "IDP")
MEMORY = ("LDG", "LDS", "STS", "STG", "SHFL")
"""NVIDIA's assembler's names, by the units that take them on GA100 to GH100."""
_BYTES = 128
_LOADED = re.compile(r"LDG\S*\.EF\S*")
"""A load of weights, 16 bytes a thread: only they are not to stay in the caches."""
_H200 = {"bytes_per_s": 4.3e12, "multiprocessors": 132, "clock_hz": 1.98e9}
"""As read by ``decode_gpu.py``, and by NVIDIA's data sheet."""
_SHAPE = (4_096, 14_336)
"""Of Llama-3.1-8B's largest matrices."""
_FIELDS = {
    "int8": gpu.int8_fields_of, "int4": gpu.int4_fields_of, "nf4": gpu.nf4_fields_of,
}  # fmt: skip
_GROUPS = {
    "int8": None, "int4 bfloat16": 16, "int4 float16": 16, "nf4": 8, "nf4 signed": 8,
}  # fmt: skip
"""Words that share a scale; None for a whole row."""


@dataclass(frozen=True, slots=True)
class Loop:
    """Instructions of one warp for 128 bytes of weights."""

    kernel: str
    logic: float
    multiply: float
    memory: float
    other: float

    @property
    def cycles(self) -> float:
        """The least that a multiprocessor takes for them."""
        total = self.logic + self.multiply + self.memory + self.other
        return max(self.logic / 2, total / 4)


@contextmanager
def compiled_for(capability: int) -> Iterator[list[Any]]:
    """Launches of Triton's kernels compile them for such a GPU, and do nothing else.

    Yields what was compiled.
    """
    target = GPUTarget("cuda", capability, 32)
    run, made = JITFunction.run, []

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        made.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    before = driver._active
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: capability,  # what Triton keeps kernels by
            get_current_stream=lambda device: 0,
            get_current_target=lambda: target,
        )
    )
    try:
        with patch.object(JITFunction, "run", compile_only):
            yield made
    finally:
        driver._active = before


def products(capability: int) -> dict[str, Any]:
    """The kernels of a product with two of Llama-3.1-8B's largest matrices, compiled for a GPU."""
    rows, inputs = _SHAPE
    x = torch.ones(1, inputs, dtype=torch.bfloat16)
    packed = torch.ops.llmfit_gpu.linears_packed
    with compiled_for(capability) as made:
        torch.ops.llmfit_gpu.linears_bf16(x, [x.new_empty(rows, inputs)] * 2, [])
        for kind, group in _GROUPS.items():
            width = inputs // (4 if kind == "int8" else 8)
            words = torch.empty(rows, width, dtype=torch.int32)
            scales = torch.empty(rows, width // (group or width))
            table = gpu.table_of(torch.ones(16)) if "nf4" in kind else None
            packed(
                _FIELDS[kind.split()[0]](x), [words] * 2,
                [scales.int() if "int4" in kind else scales] * 2, [], table, kind,
                group or width, x.dtype,
            )  # fmt: skip
    return dict(zip(("bf16", *_GROUPS), made, strict=True))


def loops(capability: int) -> list[Loop]:
    """What their loops are made of."""
    return [_loop(name, kernel) for name, kernel in products(capability).items()]


def _loop(name: str, kernel: Any) -> Loop:
    """Of the longest stretch that a branch leads back over: the loop over the inputs."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    longest = range(0)
    for line in kernel.asm["sass"].splitlines():
        if label := re.match(r"\s*(LBB\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.search(r"\t(?:@!?U?P\w+ )?([A-Z]\S*)(.*);", line):
            instructions.append(found[1])
            target = re.search(r"LBB\d+", found[2]) if found[1].startswith("BRA") else None
            start = labels.get(target[0], len(instructions)) if target else len(instructions)
            if len(instructions) - start > len(longest):
                longest = range(start, len(instructions))
    body = [instructions[at] for at in longest]
    counted = Counter(_unit(each.split(".")[0]) for each in body)
    loaded = sum(16 * 32 for each in body if _LOADED.match(each))
    return Loop(
        name,
        *(counted[unit] * _BYTES / loaded for unit in ("logic", "multiply", "memory", "other")),
    )


def _unit(name: str) -> str:
    for unit, names in (("logic", LOGIC), ("multiply", MULTIPLY), ("memory", MEMORY)):
        if name in names:
            return unit
    return "other"


def main() -> None:
    """Print the kernels, or write them as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--capability", type=int, choices=(80, 86, 89, 90), default=90)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    args = parser.parse_args()
    found = loops(args.capability)
    if args.format == "json":
        print(json.dumps([asdict(loop) | {"cycles": loop.cycles} for loop in found], indent=2))
        return
    print(f"sm_{args.capability}, Triton {triton.__version__}; of one warp, for {_BYTES} bytes\n")
    print(f"{'kernel':<14}{'logic':>8}{'multiply':>10}{'memory':>8}{'other':>7}{'cycles':>9}")
    for loop in found:
        print(
            f"{loop.kernel:<14}{loop.logic:>8.1f}{loop.multiply:>10.1f}{loop.memory:>8.1f}"
            f"{loop.other:>7.1f}{loop.cycles:>9.1f}"
        )
    cycles = _BYTES * _H200["multiprocessors"] * _H200["clock_hz"] / _H200["bytes_per_s"]
    print(f"\nAn H200's memory delivers as much to each multiprocessor in {cycles:.1f} cycles.")


if __name__ == "__main__":
    main()
