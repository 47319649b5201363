"""llmfit's kernels for GPUs: Triton's interpreter runs them here, a GPU where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CASES = Path(__file__).with_name("gpu_cases.py")
ROUNDED = 2**-7
"""Outputs and, on a GPU, sums of 16 products are rounded to 16 bits."""


def _errors(device: str, **variables: str) -> dict[str, float]:
    ended = subprocess.run(
        [sys.executable, str(CASES), device],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    errors: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return errors


def test_the_interpreted_kernels_give_what_torch_gives() -> None:
    """bf16, int4, int8, NF4 and attention; joined products are one launch."""
    pytest.importorskip("triton", reason="Triton is not made for this system")
    errors = _errors("cpu", TRITON_INTERPRET="1")
    assert len(errors) == 17, errors
    assert all(error <= ROUNDED for error in errors.values()), errors


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_the_compiled_kernels_give_what_torch_gives() -> None:
    """The same with what is NVIDIA's own: shuffled bytes, pairs of float16."""
    errors = _errors("cuda")
    assert all(error <= ROUNDED for error in errors.values()), errors
