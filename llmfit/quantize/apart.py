"""GPTQ and AWQ quantising in a process of its own.

    python -m llmfit.quantize.apart      one JSON job on stdin, JSON messages on stdout

Quantising takes several times the quantised model's memory and leaves thread pools behind; in
the process that then measures the row, both would be taken for the row's own. What the
libraries print goes to stderr.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from llmfit.child import Message, converse, ending, job_and_send
from llmfit.device.limits import limit_private_memory
from llmfit.errors import QuantizationError
from llmfit.quantize._gptqmodel import LayerProgress, Layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the child is to do."""

    method: str
    """``gptq`` or ``awq``."""
    model_path: str
    """The model's folder, absolute."""
    folder: str
    """Where the checkpoint goes, absolute; it exists and is empty."""
    layers: Layers
    sequences: Sequence[Sequence[int]]
    device: str
    threads: int
    trust_remote_code: bool = False


class Quantize(Protocol):
    """``quantize_gptq`` or ``quantize_awq``."""

    def __call__(
        self,
        model_path: Path,
        folder: Path,
        layers: Layers,
        sequences: Sequence[Sequence[int]],
        *,
        device: str,
        progress: LayerProgress,
        trust_remote_code: bool = False,
    ) -> None: ...


def quantize_apart(job: Job, progress: LayerProgress) -> None:
    """Do ``job`` in a child process and wait for it.

    Raises QuantizationError, also when the child is killed (memory), and OSError where the disk
    refuses.
    """
    # GPTQModel writes a folder "logs" into the current one. Inside the checkpoint's own folder it
    # goes with that one when this process is killed.
    with tempfile.TemporaryDirectory(prefix=".scratch-", dir=job.folder) as scratch:
        _run_child(job, progress, scratch)


def _run_child(job: Job, progress: LayerProgress, cwd: str) -> None:
    done = False

    def receive(message: Message) -> None:
        nonlocal done
        done = _receive(message, progress) or done

    code = converse("llmfit.quantize.apart", asdict(job), receive, cwd=cwd)
    if not done:
        raise QuantizationError(
            f"quantising {job.model_path} by {job.method} ended with {ending(code)}.",
            hint="a machine with more memory, or --checkpoint for a ready one",
        )


def _receive(message: Message, progress: LayerProgress) -> bool:
    """Act on a message of the child; True for its last one."""
    if "failed" in message:
        raise QuantizationError(message["failed"], hint=message["hint"])
    if "refused" in message:
        raise OSError(*message["refused"])
    if "layer" in message:
        progress(*message["layer"])
    return "done" in message


def main() -> None:
    """The child: do the job on stdin and report on stdout."""
    job, send = job_and_send()
    limit_private_memory(None)  # the row's budget is for running the model, not for making it
    try:
        _work(job, lambda done, total: send(layer=[done, total]))
    except QuantizationError as exc:
        send(failed=exc.message, hint=exc.hint)
    except OSError as exc:
        send(refused=[exc.errno, exc.strerror or str(exc), exc.filename])
    else:
        send(done=True)


def _work(job: dict[str, Any], progress: LayerProgress) -> None:
    import torch

    from llmfit.quantize.awq import quantize_awq
    from llmfit.quantize.gptq import quantize_gptq

    torch.set_num_threads(job["threads"])
    methods: dict[str, Quantize] = {"gptq": quantize_gptq, "awq": quantize_awq}
    methods[job["method"]](
        Path(job["model_path"]),
        Path(job["folder"]),
        Layers(**job["layers"]),
        job["sequences"],
        device=job["device"],
        progress=progress,
        trust_remote_code=job["trust_remote_code"],
    )


if __name__ == "__main__":
    main()
