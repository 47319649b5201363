"""From a study's name to its result, in a process of its own, and to its files.

    name, options ─► child process ─► StudyResult ─► DIR/name.json, .md, .png, .svg
                        └ ends otherwise: StudyError

    python -m llmfit.study      the child: one JSON job on stdin, JSON messages on stdout

A process of its own keeps one study's memory, compiled code and failures from the next one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmfit.child import Message, Send, converse, ending, job_and_send
from llmfit.errors import LlmfitError, StoreError, StudyError, UsageError
from llmfit.files import write_atomically
from llmfit.private_code import compile_privately
from llmfit.records import from_json, to_json
from llmfit.redaction import known_secrets
from llmfit.runner.output import Output
from llmfit.studies.base import Distilling, StudyContext, StudyProgress, no_progress
from llmfit.studies.registry import check_study, get_study
from llmfit.study_records import Preset, StudyResult


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyOptions:
    """How a study is run."""

    preset: Preset = "default"
    """``reference``: the sizes of the published figures, for a GPU."""
    device: str | None = None
    """cpu, cuda or mps; None takes a GPU where there is one."""
    threads: int | None = None
    """CPU threads; None for one per physical core."""
    seed: int = 0
    models_dir: str | None = None
    """Folder for the models that a study makes; None: they are not kept."""
    cache_dir: str | None = None
    distilling: Distilling = field(default_factory=Distilling)


def run_study(
    name: str,
    options: StudyOptions | None = None,
    *,
    time_limit_s: float | None = None,
    progress: StudyProgress = no_progress,
    command: str | None = None,
) -> StudyResult:
    """Run the study ``name`` in a process of its own and return what it found.

    Raises UsageError for an unknown study or a wrong option, and StudyError where it does not
    come to its end.
    """
    check_study(name)
    chosen = options or StudyOptions()
    found: list[StudyResult] = []

    def receive(message: Message) -> None:
        if "stage" in message:
            progress(*message["stage"])
        elif "result" in message:
            found.append(from_json(StudyResult, message["result"], source=f"the study {name}"))
        else:
            kind = UsageError if message["usage"] else StudyError
            raise kind(message["failed"], hint=message["hint"])

    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="llmfit-study-", ignore_cleanup_errors=True) as scratch,
        Output() as log,
    ):
        code = converse(
            "llmfit.study",
            {"name": name, "options": asdict(chosen), "scratch": scratch},
            receive,
            time_limit_s=time_limit_s,
            log=log.fileno(),
            own_session=True,
        )
        said = f": {last.rstrip('.')}" if (last := log.tail()) else ""
    if found:
        return known_secrets().hide_in(replace(found[0], command=command))
    if time_limit_s is not None and time.monotonic() - started >= time_limit_s:
        raise StudyError(
            f"the study {name} took longer than {time_limit_s:g} s.", hint="a larger --time-limit"
        )
    raise StudyError(
        f"the study {name} ended with {ending(code)}{said}.",
        hint="a machine with more memory, or --preset default",
    )


# ---------------------------------------------------------------- files


def default_study_dir() -> Path:
    """Where results of studies are kept unless told otherwise: the user's data folder."""
    from platformdirs import user_data_path

    return user_data_path("llmfit") / "studies"


def make_folder(folder: Path) -> None:
    """Make the folder for a study's files. Raises StoreError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StoreError(f"cannot make {folder}: {exc.strerror}.", hint="another --out") from exc


def write_study(result: StudyResult, folder: Path) -> tuple[Path, ...]:
    """Write a study's JSON, its tables as Markdown, and its plots as PNG and SVG.

    Returns the files; the plots are not among them where matplotlib is missing. Raises StoreError.
    """
    from llmfit.report.plots import draw, plots_possible
    from llmfit.report.study import render_study

    make_folder(folder)
    try:
        texts = {".json": to_json(result) + "\n", ".md": render_study(result, "md")}
        files = [folder / f"{result.study}{ending}" for ending in texts]
        for file, text in zip(files, texts.values(), strict=True):
            write_atomically(file, text)
        if result.plots and plots_possible():
            pictures = [folder / f"{result.study}{ending}" for ending in (".png", ".svg")]
            draw(result, pictures)
            files += pictures
    except OSError as exc:
        reason = f"cannot write to {folder}: {exc.strerror}."
        raise StoreError(reason, hint="another --out") from exc
    return tuple(files)


# ---------------------------------------------------------------- the child


def main() -> None:
    """The child: run the study of the job on stdin and report on stdout."""
    job, send = job_and_send(before_end=lambda job: _remove(job["scratch"]))
    os.environ["TMPDIR"] = job["scratch"]  # for what libraries write, which a kill would leave
    try:
        _tell(job, send)
    except BrokenPipeError:  # the parent is gone, and nothing waits for the thread that saw it
        _remove(job["scratch"])
        raise


def _tell(job: Message, send: Send) -> None:
    try:
        result = _run(job["name"], job["options"], lambda *stage: send(stage=stage))
    except LlmfitError as exc:
        send(failed=exc.message, hint=exc.hint, usage=isinstance(exc, UsageError))
    else:
        send(result=to_json(result))


def _remove(scratch: str) -> None:
    """Remove a folder in which the study may still be making files: by now it has another name."""
    gone = f"{scratch}-gone"
    with suppress(OSError):  # another has been quicker
        Path(scratch).rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _run(name: str, options: dict[str, Any], progress: Callable[..., None]) -> StudyResult:
    import torch

    from llmfit.benchmark import Benchmark
    from llmfit.device.cpu import physical_cores
    from llmfit.device.environment import environment

    compile_privately()
    started, moment = time.perf_counter(), datetime.now(UTC)
    torch.set_num_threads(options["threads"] or physical_cores())
    torch.manual_seed(options["seed"])
    context = StudyContext(
        bench=Benchmark(options["device"]),
        preset=options["preset"],
        seed=options["seed"],
        out=options["models_dir"],
        cache_dir=options["cache_dir"],
        threads=options["threads"],
        distilling=Distilling(**options["distilling"]),
        progress=progress,
    )
    result = get_study(name).run(context)
    return replace(
        result,
        settings={**result.settings, "threads": torch.get_num_threads(), "seed": context.seed},
        seconds=time.perf_counter() - started,
        started_at=moment.isoformat(timespec="seconds"),
        environment=environment(),
    )


if __name__ == "__main__":
    main()
