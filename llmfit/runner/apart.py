"""One task of a Deployer in a process of its own: what loads strangers' files is not this one.

Plan ─► generate_apart, make_apart ─► python -m llmfit.runner.apart ─► Deployer ─► its answer

one JSON job on the child's stdin, JSON messages on its stdout
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from llmfit.child import Message, converse, ending, job_and_send
from llmfit.errors import LlmfitError, StoreError, UsageError
from llmfit.quantize.cache import ArtifactCache
from llmfit.records import Plan, from_json, to_json
from llmfit.runner.output import Output

if TYPE_CHECKING:
    from llmfit.backends.base import Made, Progress
    from llmfit.decode.base import Sampling
    from llmfit.deployer import Deployer, Generation

T = TypeVar("T")
_Task = Literal["generate", "make"]
_MODULE = "llmfit.runner.apart"


def generate_apart(
    plan: Plan, prompt: str, *, max_new_tokens: int, sampling: Sampling, progress: Progress
) -> Generation:
    """Load ``plan``'s format and continue ``prompt``, both in a child process.

    ``progress`` hears how far loading is, up to the stage "generate". Raises what the child says:
    UsageError or another LlmfitError, also where it crashes, with the end of what it printed. An
    interrupt kills the child, and what it left half-made is removed.
    """
    from llmfit.deployer import Generation

    asked: Message = {
        "prompt": prompt,
        "max_new_tokens": max_new_tokens,
        "sampling": asdict(sampling),
    }
    return _apart("generate", plan, asked, Generation, progress)


def make_apart(plan: Plan, progress: Progress) -> Made:
    """Have the files of ``plan``'s format on disk, made by a child process; nothing is loaded.

    Raises as ``generate_apart``.
    """
    from llmfit.backends.base import Made

    return _apart("make", plan, {}, Made, progress)


def _apart(task: _Task, plan: Plan, asked: Message, kind: type[T], progress: Progress) -> T:
    job = {"task": task, "plan": to_json(plan), **asked}
    stage, found = "start", None

    def receive(message: Message) -> None:
        nonlocal stage, found
        if "failed" in message:
            wrong = UsageError if message["usage"] else LlmfitError
            raise wrong(message["failed"], hint=message["hint"])
        if "stage" in message:
            stage = message["stage"][0]
            progress(*message["stage"])
        found = message.get("done", found)

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
    return from_json(kind, found)


def main() -> None:
    """The child: do the task, and report on stdout."""
    from llmfit.deployer import Deployer

    job, send = job_and_send()
    deployer = Deployer.from_plan(from_json(Plan, job["plan"]))

    def progress(stage: str, done: int, total: int) -> None:
        send(stage=[stage, done, total])

    try:
        if job["task"] == "make":
            send(done=to_json(deployer.make(progress)))
        else:
            with deployer.load(progress) as loaded:
                progress("generate", 0, 0)
                send(done=to_json(_generate(loaded, job)))
    except LlmfitError as exc:
        send(failed=exc.message, hint=exc.hint, usage=isinstance(exc, UsageError))


def _generate(loaded: Deployer, job: Message) -> Generation:
    from llmfit.decode.base import Sampling

    return loaded.generate(
        job["prompt"],
        max_new_tokens=job["max_new_tokens"],
        sampling=Sampling(**job["sampling"]),
    )


if __name__ == "__main__":
    main()
