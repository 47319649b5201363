"""Row ``gguf``: llama.cpp on the CPU, Q4_K_M by default, any other type as ``gguf:q3_k_m``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmfit.backends._llama_amx import why_not_amx
from llmfit.backends._synthetic import NOTE as SYNTHETIC_NOTE
from llmfit.backends._tokenizer import tokenizer_of
from llmfit.backends.base import (
    TORCH,
    Backend,
    Check,
    LoadedModel,
    LoadInfo,
    Made,
    Package,
    Progress,
    Tokenizer,
    no_progress,
)
from llmfit.backends.registry import split_id
from llmfit.device.cpu import physical_cores
from llmfit.device.memory import restart_peak, return_freed_memory
from llmfit.errors import ModelLoadError, ModelNotFound, UsageError
from llmfit.models import config_of
from llmfit.planning.memory.gguf_mix import gguf_bytes
from llmfit.planning.memory.gguf_mixtures import DEFAULT_TYPE
from llmfit.planning.memory.gguf_mixtures import FILE_TYPES as PLANNED
from llmfit.planning.memory.kv_cache import unsuited
from llmfit.quantize.cache import ArtifactCache
from llmfit.quantize.gguf import FILE_TYPES, make_gguf
from llmfit.quantize.gguf_architectures import ARCHITECTURES
from llmfit.quantize.gguf_checkout import Checkout
from llmfit.quantize.gguf_synthetic import plan_synthetic, write_synthetic
from llmfit.quantize.gguf_types import fallback_note, read_types
from llmfit.records import Kernel, ModelSpec, Plan

if TYPE_CHECKING:
    from llmfit.decode.base import Decoder, LogitsVisitor, Window, WindowScore
    from llmfit.decode.llama_cpp import LlamaCppModel


class GgufModel(LoadedModel):
    """A GGUF file in llama.cpp, with the model's own tokenizer."""

    def __init__(
        self, model: LlamaCppModel, *, tokenizer: Tokenizer, info: LoadInfo, context_length: int
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.info = info
        self.vocab_size = model.vocab_size
        self.context_length = context_length

    def decoder(self, *, batch: int, capacity: int, prefill_chunk: int | None = None) -> Decoder:
        """See ``LoadedModel.decoder``."""
        from llmfit.decode.llama_cpp import LlamaCppDecoder

        self.check_capacity(capacity)
        return LlamaCppDecoder(
            self.model, batch=batch, capacity=capacity, prefill_chunk=prefill_chunk
        )

    def score(
        self, windows: Sequence[Window], *, batch_tokens: int, visit: LogitsVisitor | None = None
    ) -> Iterator[WindowScore]:
        """See ``LoadedModel.score``."""
        from llmfit.decode.llama_scoring import score_windows

        self.check_windows(windows)
        return score_windows(self.model, windows, batch_tokens=batch_tokens, visit=visit)

    def close(self) -> None:
        """See ``LoadedModel.close``."""
        self.model.close()


@dataclass(frozen=True, slots=True)
class _Artifact:
    """The file to load, and how it came about."""

    file: Path
    file_type: str | None
    """As asked for; None where the file is someone else's."""
    seconds: float | None
    """That making it took; None where it was there."""
    notes: tuple[str, ...] = ()
    kept: bool = True
    """False for a file of synthetic weights, which is gone once it is loaded."""
    check_s: float = 0.0


class Gguf(Backend):
    """GGUF through llama-cpp-python, always on the CPU; ``gguf-gpu`` is the same on a GPU."""

    id = "gguf"
    place = "CPU"
    """Where it runs, for people."""
    label = f"GGUF {DEFAULT_TYPE.upper()} (CPU)"
    one_gpu = "it runs on the CPU"
    packages = (*TORCH, Package("llama_cpp", "llama-cpp-python"), Package("gguf", "gguf"))
    extra = "gguf"
    devices = frozenset({"cpu"})
    takes_checkpoint = True
    variants = PLANNED
    """More than are made here: the others are planned, and loaded from ``--checkpoint``."""

    def describe(self, variant: str | None) -> str:
        """See ``Backend.describe``."""
        return self.label if variant is None else f"GGUF {variant.upper()} ({self.place})"

    def check(self, plan: Plan) -> Check:
        """See ``Backend.check``."""
        outcome = super().check(plan)
        if outcome.unavailable is not None:
            return outcome
        if (reason := unsuited(plan.model, plan.kv_cache_dtype)) is not None:
            return Check(skipped=reason)
        synthetic = plan.weights == "synthetic"
        if plan.checkpoint is not None:  # then the model's own files are not converted
            return Check(skipped=_TWO_FILES) if synthetic else Check()
        if outcome.skipped is not None:
            return outcome
        file_type = split_id(plan.backend)[1] or DEFAULT_TYPE
        if file_type not in FILE_TYPES:
            return Check(
                skipped=f"llmfit makes no {file_type.upper()} files: --checkpoint {self.id}=FILE "
                "takes a ready one"
            )
        if plan.llama_cpp_dir is not None and not synthetic:
            return _check_checkout(plan.llama_cpp_dir)
        if plan.model.architecture not in ARCHITECTURES:
            if synthetic:
                return Check(skipped=f"no GGUF of synthetic weights for {plan.model.architecture}")
            return Check(
                skipped=f"no GGUF converter here for {plan.model.architecture}: --checkpoint "
                f"{self.id}=FILE takes a ready file, --llama-cpp DIR the converter of a llama.cpp "
                "checkout"
            )
        return outcome

    def prepare(self, plan: Plan) -> None:
        """As the base; also what transformers imports only once a tokenizer is loaded."""
        super().prepare(plan)
        from llmfit.decode.llama_log import llama_log

        llama_log()
        if plan.weights == "real" and Path(plan.model.path).is_dir():
            with suppress(ModelLoadError):  # load meets the same and says it
                tokenizer_of(plan)

    def make(self, plan: Plan, progress: Progress = no_progress) -> Made:
        """See ``Backend.make``."""
        with _artifact(plan, plan.threads or physical_cores(), progress) as artifact:
            return Made(path=str(artifact.file), notes=artifact.notes)

    def load(self, plan: Plan, progress: Progress = no_progress) -> LoadedModel:
        """See ``Backend.load``."""
        from llmfit.decode.llama_cpp import LlamaCppModel, attention_kernel

        self.require(plan)
        on_gpu = plan.device == "cuda"
        threads = plan.threads or physical_cores()
        tokenizer = tokenizer_of(plan)
        with _artifact(plan, threads, progress) as artifact:
            without_amx = None if on_gpu else why_not_amx()
            notes = _without_making(artifact)
            if without_amx is not None:
                notes = (*notes, without_amx)
            progress("load", 0, 0)  # what was made before is no part of the row's memory
            types = read_types(artifact.file)
            model = LlamaCppModel(
                artifact.file,
                threads=threads,
                head_dim=plan.model.head_dim,
                kv_cache_dtype=plan.kv_cache_dtype,
                on_gpu=on_gpu,
                repack=without_amx is None,
            )
        try:
            _require_same_model(model, plan.model, artifact.file, self.id)
        except ModelLoadError:
            model.close()
            raise
        note = fallback_note(artifact.file_type, types) if artifact.file_type else types.shares()
        info = LoadInfo(
            kernel=Kernel(
                linear=f"llama.cpp {types.linear()}",
                attention=attention_kernel(plan.model.head_dim, plan.kv_cache_dtype, on_gpu=on_gpu),
            ),
            dtype=artifact.file_type.upper() if artifact.file_type else types.linear(),
            weights_bytes=types.weights_bytes,
            quantized_share=types.quantized_share,
            notes=(*([note] if note else []), *artifact.notes, *types.notes, *notes),
            artifact=str(artifact.file) if artifact.kept else None,
            quantize_s=artifact.seconds,
            check_s=artifact.check_s,
        )
        context_length = min(model.context_length, plan.model.max_position_embeddings)
        return GgufModel(model, tokenizer=tokenizer, info=info, context_length=context_length)


_TWO_FILES = "synthetic weights and a checkpoint exclude each other: leave one of them out"


@contextmanager
def _artifact(plan: Plan, threads: int, progress: Progress) -> Iterator[_Artifact]:
    """The file to load: a ready checkpoint, random weights, or the model's through the cache."""
    file_type = split_id(plan.backend)[1] or DEFAULT_TYPE
    cache = ArtifactCache(Path(plan.cache_dir) if plan.cache_dir else None)
    if plan.weights == "synthetic":
        with _synthetic(plan, file_type, cache, progress) as artifact:
            yield artifact
    elif plan.checkpoint is not None:
        backend = split_id(plan.backend)[0]
        yield _Artifact(_checkpoint_file(Path(plan.checkpoint), backend), None, None)
    else:
        checkout = Checkout.at(plan.llama_cpp_dir) if plan.llama_cpp_dir else None
        made = make_gguf(
            Path(plan.model.path),
            file_type,
            cache=cache,
            threads=threads,
            progress=progress,
            checkout=checkout,
        )
        notes = (f"converted by the llama.cpp checkout {checkout.folder}",) if checkout else ()
        yield _Artifact(
            made.path, file_type, made.make_s, (*notes, *made.notes), check_s=made.check_s
        )


@contextmanager
def _synthetic(
    plan: Plan, file_type: str, cache: ArtifactCache, progress: Progress
) -> Iterator[_Artifact]:
    """A file of random weights, which is not kept.

    Writing it takes hardly longer than reading it, and keeping the file of every model that
    somebody was curious about would fill the disk.
    """
    shape = plan.model.shape
    size_bytes = None if shape is None else gguf_bytes(shape, file_type)
    if shape is None or size_bytes is None:
        raise ModelLoadError(
            f"the layers of {plan.model.name} are not known, so none can be made.",
            hint="a config.json of one of " + ", ".join(ARCHITECTURES),
        )
    with cache.scratch("gguf", size_bytes) as folder:
        start = time.perf_counter()
        file = folder / "synthetic.gguf"
        planned = plan_synthetic(
            config_of(plan.model),
            shape,
            architecture=plan.model.architecture,
            file_type=file_type,
        )
        write_synthetic(planned, file, name=plan.model.name, seed=plan.seed, progress=progress)
        seconds = time.perf_counter() - start
        yield _Artifact(file, file_type, seconds, (SYNTHETIC_NOTE,), kept=False)


def _check_checkout(folder: str) -> Check:
    try:
        Checkout.at(folder)
    except UsageError as exc:
        return Check(unavailable=str(exc))
    return Check()


def _without_making(artifact: _Artifact) -> tuple[str, ...]:
    """Take the memory of making the artifact out of the row's peak, or note that it is in it."""
    if artifact.seconds is None:
        return ()
    return_freed_memory()
    if restart_peak():
        return ()
    return ("the peak of RAM includes converting and quantising; a second run shows it without",)


def _checkpoint_file(path: Path, backend: str) -> Path:
    """The .gguf file that ``path`` is, or the only one in the folder that it is."""
    hint = f"--checkpoint with one .gguf file for {backend}"
    if path.is_file():
        return path
    if not path.is_dir():
        raise ModelNotFound(f"the GGUF checkpoint {path} does not exist.", hint=hint)
    files = sorted(path.glob("*.gguf"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise ModelNotFound(f"{path} must hold one .gguf file; found: {names}.", hint=hint)
    return files[0]


def _require_same_model(model: LlamaCppModel, spec: ModelSpec, file: Path, backend: str) -> None:
    for what, found, expected in (
        ("tokens in the vocabulary", model.vocab_size, spec.vocab_size),
        ("layers", model.layers, spec.num_hidden_layers),
    ):
        if found != expected:
            raise ModelLoadError(
                f"{file} is not {spec.name}: it has {found} {what}, the model {expected}.",
                hint=f"--checkpoint {backend}=FILE with a file made from this model",
            )
