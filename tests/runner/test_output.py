"""What a process prints is read to its end, whatever it is, and kept within bounds."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmfit.runner.output import KEPT_BYTES, Output

DIGITS = b"0123456789" * (KEPT_BYTES // 4)  # 2.5 times what is kept of either end


def printed(output: Output, command: list[str]) -> None:
    """Run a command whose stdout and stderr it is."""
    process = subprocess.Popen(command, stdout=output.fileno(), stderr=subprocess.STDOUT)
    output.given()
    assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("beyond", [-1, 0, 1, 7])
@pytest.mark.parametrize("kept", [1, 2])
def test_the_beginning_and_the_end_are_kept(tmp_path: Path, kept: int, beyond: int) -> None:
    """To the byte; what lies between is counted, and the count is in its place."""
    size = kept * KEPT_BYTES + beyond
    source, log = tmp_path / "source", tmp_path / "log"
    source.write_bytes(DIGITS[:size])
    with Output(log) as output:
        printed(output, ["cat", str(source)])
    left_out = max(0, size - 2 * KEPT_BYTES)
    assert (output.printed_bytes, output.left_out_bytes) == (size, left_out)
    said = f"\n[llmfit: {left_out} bytes are left out here]\n".encode() if left_out else b""
    second = DIGITS[max(KEPT_BYTES, size - KEPT_BYTES) : size]
    assert log.read_bytes() == DIGITS[: min(size, KEPT_BYTES)] + said + second


def test_the_last_lines_are_told_though_the_pipe_stays_open(tmp_path: Path) -> None:
    """A process that was left running holds it: it is not waited for."""
    log = tmp_path / "log"
    with Output(log) as output:
        printed(output, ["sh", "-c", "sleep 30 & printf 'a\\nb\\r50 %%\\r100 %%\\n \\n'; echo c"])
        began = time.monotonic()
        assert output.tail() == "50 % | 100 % | c"
        assert time.monotonic() - began < 10
    assert log.read_text().endswith("c\n")


def test_without_a_file_and_with_one_that_cannot_be_written() -> None:
    """The last lines are known all the same, and the process is not held up."""
    for path in (None, Path("/nowhere/log"), Path("/dev/full")):
        with Output(path) as output:
            printed(output, [sys.executable, "-c", "print('x' * 200_000); print('the end')"])
            assert output.tail().endswith("| the end")
