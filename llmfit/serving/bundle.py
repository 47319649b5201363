"""A folder that serves one model in one format by one engine, wherever it is carried to.

Settled, engine, what was measured ─► OUT/
    model/ or model.gguf   the format's files, copied
    serve.sh, Modelfile    what starts the engine, and its settings
    README.md              how to start, what was measured and how to measure it again
    bundle.json, SHA256SUMS   the same as a record; `sha256sum -c`
─► the engine is started on it where it is here, else its files are read ─► Bundle
"""

from __future__ import annotations

import asyncio
import hashlib
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from llmfit.engines.base import Engine, Served
from llmfit.engines.llama_cpp import LlamaCppPython
from llmfit.errors import LlmfitError, StoreError, UsageError
from llmfit.files import write_atomically
from llmfit.foreign.files import check_gguf
from llmfit.models import resolve, tensor_shapes
from llmfit.records import Plan, to_json
from llmfit.report.bundle import readme
from llmfit.serving.endpoint import client, count_tokens, find
from llmfit.serving.measured import Measured
from llmfit.serving.settling import Settled
from llmfit.serving.starting import free_port, started
from llmfit.serving_records import Bundle, BundleFile, Validation

_FILES = (
    "*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "LICENSE*", "NOTICE*",
)  # fmt: skip
"""Of a model's folder, what engines read; and its licence, which goes where it goes."""
_LEFT_OUT = frozenset({"artifact.json"})
_CHECK_S = 600.0
_EXECUTABLE = 0o111


def check_place(out: Path) -> None:
    """Raise UsageError for a folder that holds something, or a file."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already, and is no empty folder.", hint="another --out")


def deploy(
    plan: Plan,
    settled: Settled,
    engine: Engine,
    out: Path,
    *,
    measured: Measured | None = None,
    start: bool = True,
    command: str | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> Bundle:
    """Make the bundle in the empty or missing folder ``out``, and see that it works.

    With ``start`` the engine is started on it where it is installed. Nothing is left where it
    fails. Raises UsageError for a folder that holds something, StoreError where it cannot be
    written, LlmfitError where the engine does not answer.
    """
    check_place(out)
    fresh = not out.exists()
    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
            return _make(plan, settled, engine, out, measured, start, command, progress)
        except OSError as exc:
            raise StoreError(f"cannot write {out}: {exc.strerror}.", hint="another --out") from exc
    except BaseException:
        _clear(out, also=fresh)
        raise


def _make(
    plan: Plan,
    settled: Settled,
    engine: Engine,
    out: Path,
    measured: Measured | None,
    start: bool,
    command: str | None,
    progress: Callable[[str], None],
) -> Bundle:
    progress("copying")
    source = Path(settled.served.path)
    inside = _copy(source, out, engine, with_code=plan.trust_remote_code)
    served = replace(settled.served, path=inside)
    for name, text in engine.settings(served).items():
        write_atomically(out / name, text)
    script = out / "serve.sh"
    write_atomically(script, _script(engine, served))
    script.chmod(script.stat().st_mode | _EXECUTABLE)
    progress("trying it")
    is_here = served.device == plan.device or engine.kind == "gguf"
    validation, by = _validated(engine, served, out, start=start and is_here)
    bundle = Bundle(
        model=plan.model.name,
        backend=plan.backend,
        engine=engine.id,
        name=served.name,
        context=served.context if "context" in engine.takes else None,
        device=served.device,
        gpu_share=served.gpu_share,
        command=engine.command(served),
        files=_listed(out, inside),
        validation=validation,
        validated_by=by,
        run_id=None if measured is None else measured.run_id,
        notes=settled.notes,
        made_by=command,
    )
    write_atomically(out / "bundle.json", to_json(bundle) + "\n")
    sums = "".join(f"{file.sha256}  {file.path}\n" for file in bundle.files)
    write_atomically(out / "SHA256SUMS", sums)
    row = None if measured is None else measured.row
    write_atomically(out / "README.md", readme(bundle, engine, served, row))
    return bundle


def _clear(out: Path, *, also: bool) -> None:
    """Remove what was made: of a folder that was there before, what is in it."""
    if also:
        shutil.rmtree(out, ignore_errors=True)
        return
    for path in out.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _copy(source: Path, out: Path, engine: Engine, *, with_code: bool) -> str:
    """Copy the format's files; where they are in the bundle.

    A link out of the model's folder is not followed: a bundle is handed on.
    """
    if engine.kind == "gguf":
        shutil.copyfile(source, out / "model.gguf")
        return "model.gguf"
    folder = out / "model"
    folder.mkdir()
    for pattern in (*_FILES, *(("*.py",) if with_code else ())):
        for file in source.glob(pattern):
            if not file.is_file() or file.name in _LEFT_OUT:
                continue
            if _is_the_models(file):
                shutil.copyfile(file, folder / file.name)
            elif file.suffix == ".safetensors":
                raise LlmfitError(
                    f"{file} is a link out of the model's folder, which a bundle does not follow.",
                    hint="a folder with the weights themselves",
                )
    return "model"


def _is_the_models(file: Path) -> bool:
    """True for a file of its folder, or of the hub's cache, whose folders are links to blobs."""
    target, folder = file.resolve(), file.parent.resolve()
    return target.parent == folder or target.parent == folder.parent.parent / "blobs"


def _listed(out: Path, inside: str) -> tuple[BundleFile, ...]:
    place = out / inside
    files = [place] if place.is_file() else sorted(place.iterdir())
    return tuple(
        BundleFile(
            path=file.relative_to(out).as_posix(),
            size_bytes=file.stat().st_size,
            sha256=_sha256(file),
        )
        for file in files
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _script(engine: Engine, served: Served) -> str:
    """A shell script that starts the engine, wherever the bundle lies."""
    words = list(engine.command(served))
    shown = [shlex.quote(word) for word in words]
    for option, value in (("--host", served.host), ("--port", served.port)):
        if option in words:  # HOST and PORT change them
            variable = option.removeprefix("--").upper()
            shown[words.index(option) + 1] = f'"${{{variable}:-{value}}}"'
    start = " ".join(shown)
    if not engine.serves:
        start += f'\nexec ollama run {shlex.quote(served.name)} "$@"'
    else:
        start = f'exec {start} "$@"'
    lines = (
        "#!/bin/sh",
        f"# {engine.label}. Made by llmfit.",
        'cd "$(dirname "$0")" || exit 1',
        start,
    )
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- does it work?


def _validated(engine: Engine, served: Served, out: Path, *, start: bool) -> tuple[Validation, str]:
    _read(engine, out / served.path, served)
    trying = _startable(engine) if start else None
    if trying is None:
        return "checked", _CHECKED[engine.kind]
    host, port = "127.0.0.1", free_port()
    here = replace(served, host=host, port=port)
    with started(trying.command_here(here), cwd=out, host=host, port=port) as base:
        asyncio.run(_answers(base, trying.asked_as(here)))
    return "started", trying.label


_CHECKED = {
    "folder": "config.json, the headers of all weights and the tokenizer were read",
    "gguf": "the GGUF's header was read",
}


def _startable(engine: Engine) -> Engine | None:
    """The engine, or one that reads the same files; None where neither is here."""
    if engine.serves and engine.missing() is None:
        return engine
    other = LlamaCppPython()
    return other if engine.kind == "gguf" and other.missing() is None else None


async def _answers(base: str, model: str) -> None:
    """Raise LlmfitError where the server does not answer a request."""
    async with client(base, key=None, timeout_s=_CHECK_S) as asking:
        endpoint = await find(asking, base, model=model, api=None)
        await count_tokens(asking, endpoint, "Once upon a time")


def _read(engine: Engine, place: Path, served: Served) -> None:
    """Read what the engine will read. Raises LlmfitError for what is not whole."""
    if engine.kind == "gguf":
        check_gguf(place)
        return
    spec = resolve(str(place))
    if not tensor_shapes(place):
        raise LlmfitError(f"{place} holds no weights.")
    row = served.backend.partition(":")[0]
    if row in ("gptq", "awq") and spec.quantization != row:
        raise LlmfitError(f"{place}/config.json says {spec.quantization}, not {row}.")
    if not any((place / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise LlmfitError(f"{place} holds no tokenizer, which {engine.label} needs.")
