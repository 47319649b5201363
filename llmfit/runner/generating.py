"""A continuation of a prompt by a process of its own: what loads strangers' files is not this one.

Plan, prompt ─► generate_apart ─► python -m llmfit.runner.generating ─► Deployer ─► Generation

one JSON job on the child's stdin, JSON messages on its stdout
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from llmfit.child import Message, converse, ending, job_and_send
from llmfit.errors import LlmfitError, StoreError, UsageError
from llmfit.quantize.cache import ArtifactCache
from llmfit.records import Plan, from_json, to_json
from llmfit.runner.output import Output

if TYPE_CHECKING:
    from llmfit.backends.base import Progress
    from llmfit.decode.base import Sampling
    from llmfit.deployer import Generation

_MODULE = "llmfit.runner.generating"


def generate_apart(
    plan: Plan, prompt: str, *, max_new_tokens: int, sampling: Sampling, progress: Progress
) -> Generation:
    """Load ``plan``'s format and continue ``prompt``, both in a child process.

    ``progress`` hears how far loading is, up to the stage "generate". Raises what the child says:
    UsageError or another LlmfitError, also where it crashes, with the end of what it printed. An
    interrupt kills the child, and what it left half-made is removed.
    """
    from llmfit.deployer import Generation

    job: Message = {
        "plan": to_json(plan),
        "prompt": prompt,
        "max_new_tokens": max_new_tokens,
        "sampling": asdict(sampling),
    }
    stage, found = "start", None

    def receive(message: Message) -> None:
        nonlocal stage, found
        if "failed" in message:
            kind = UsageError if message["usage"] else LlmfitError
            raise kind(message["failed"], hint=message["hint"])
        if "stage" in message:
            stage = message["stage"][0]
            progress(*message["stage"])
        found = message.get("generation", found)

    cache = ArtifactCache(Path(plan.cache_dir) if plan.cache_dir else None)
    with Output() as log:
        try:
            code = converse(_MODULE, job, receive, log=log.fileno(), own_session=True)
        finally:
            with suppress(StoreError):  # then nothing can have been left there either
                cache.sweep()
        if found is None:
            said = f": {log.tail()}" if log.tail() else "."
            raise LlmfitError(f"{plan.backend} ended with {ending(code)} during {stage!r}{said}")
    return from_json(Generation, found)


def main() -> None:
    """The child: load, generate, and report on stdout."""
    from llmfit.decode.base import Sampling
    from llmfit.deployer import Deployer

    job, send = job_and_send()
    plan = from_json(Plan, job["plan"])

    def progress(stage: str, done: int, total: int) -> None:
        send(stage=[stage, done, total])

    try:
        with Deployer.from_plan(plan).load(progress) as loaded:
            progress("generate", 0, 0)
            made = loaded.generate(
                job["prompt"],
                max_new_tokens=job["max_new_tokens"],
                sampling=Sampling(**job["sampling"]),
            )
            send(generation=to_json(made))
    except LlmfitError as exc:
        send(failed=exc.message, hint=exc.hint, usage=isinstance(exc, UsageError))


if __name__ == "__main__":
    main()
