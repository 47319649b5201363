"""The facade: one model in one deploy format, from Python.

    with Deployer("path/to/model", backend="nf4").load() as deployed:
        print(deployed.generate("Once upon a time").text)
        print(deployed.benchmark().decode.tokens_per_s.median)
        print(deployed.evaluate().perplexity.token)

It runs in the calling process. ``llmfit.compare`` runs each format in a process of its own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, get_args

from llmfit.backends._synthetic import NO_TEXT_HINT, no_text
from llmfit.backends.base import LoadedModel, LoadInfo, Made, Progress, no_progress
from llmfit.backends.registry import get_backend, split_id
from llmfit.decode.base import GREEDY, Decoder, Sampling
from llmfit.device.cpu import set_threads
from llmfit.device.execution import Marks, pick_device
from llmfit.device.limits import cap_gpu_memory, lift_gpu_caps
from llmfit.device.memory import free_bytes, freed_tensors_returned
from llmfit.errors import DoesNotFit, LlmfitError, TaskUnavailable, UsageError
from llmfit.foreign.code import modules_run
from llmfit.measure import fit_workload, measure
from llmfit.models import local_folder, resolve
from llmfit.planning.comparing.differences import REFERENCE
from llmfit.planning.memory.kv_cache import is_llama_cpp
from llmfit.planning.memory.prediction import weights_bytes
from llmfit.quantize.pickles import with_safetensors
from llmfit.records import (
    Evaluation,
    EvaluationSettings,
    KvCacheDtype,
    Measurement,
    Plan,
    Weights,
    Workload,
)
from llmfit.units import format_bytes, gb_bytes

if TYPE_CHECKING:
    from llmfit.evaluate.divergence import Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A continuation with its timing."""

    text: str
    """The new text alone, special tokens left out."""
    token_ids: tuple[int, ...]
    """The new tokens, a final EOS included."""
    prompt_tokens: int
    new_tokens: int
    ttft_s: float
    """Seconds from the call to the first new token."""
    tokens_per_s: float | None
    """Decode rate: (new_tokens − 1) ÷ seconds after the first token; None for a single token."""
    finish: Literal["eos", "length"]


class Deployer:
    """One model in one deploy format; a context manager that frees the memory at its end."""

    def __init__(
        self,
        model: str | None = None,
        *,
        backend: str = "sdpa",
        checkpoint: str | None = None,
        calibration_file: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        gpu_gb: float | None = None,
        seed: int = 0,
        cache_dir: str | None = None,
        kv_cache_dtype: KvCacheDtype | None = None,
        llama_cpp_dir: str | None = None,
        weights: Weights = "real",
        allow_pickle: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        """Plan a deployment of ``model``: a folder, a hub id, or None for the embedded model.

        ``backend`` is an id such as ``nf4`` or ``gguf:q3_k_m``; ``checkpoint`` a ready artifact
        for gptq, awq or gguf; ``gpu_gb`` a hard limit of GPU memory in GB (10⁹ bytes);
        ``kv_cache_dtype`` ``q8_0`` or ``q4_0`` quantises the KV cache; ``llama_cpp_dir`` is a
        llama.cpp checkout whose converter makes the GGUF. ``weights="synthetic"`` makes random
        ones from the config alone: they can be timed, and neither scored nor asked for text.
        ``allow_pickle`` reads weights in pickles, their tensors alone; ``trust_remote_code`` runs
        Python code that comes with the model, which can do whatever you can.
        Raises UsageError or ModelNotFound; nothing is loaded yet.
        """
        self._backend = get_backend(backend)
        if checkpoint is not None and not self._backend.takes_checkpoint:
            raise UsageError(f"{backend} takes no checkpoint: it loads the model itself.")
        if calibration_file is not None and not self._backend.calibrated:
            raise UsageError(f"{backend} is not calibrated: it needs no calibration text.")
        if llama_cpp_dir is not None and not is_llama_cpp(self._backend.id):
            raise UsageError(f"{backend} is not converted to GGUF: it needs no llama.cpp checkout.")
        if weights not in get_args(Weights):
            known = ", ".join(get_args(Weights))
            raise UsageError(f"unknown weights {weights!r}; known are {known}.")
        if checkpoint is not None and weights == "synthetic":
            raise UsageError(f"the checkpoint {checkpoint} has weights of its own: not synthetic.")
        spec = resolve(model, weights=weights == "real")
        self.plan = Plan(
            backend=backend,
            model=spec,
            workload=fit_workload(Workload(), spec.max_position_embeddings),
            device="cpu" if "cuda" not in self._backend.devices else pick_device(device),
            checkpoint=checkpoint,
            calibration_file=calibration_file,
            budget_bytes=None if gpu_gb is None else gb_bytes("gpu_gb", gpu_gb),
            threads=threads,
            seed=seed,
            cache_dir=cache_dir,
            kv_cache_dtype=kv_cache_dtype,
            llama_cpp_dir=llama_cpp_dir,
            weights=weights,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
        )
        self._loaded: LoadedModel | None = None
        self.load_s: float | None = None
        """Seconds that ``load`` took, making and checking an artifact apart; None before it."""

    @classmethod
    def from_plan(cls, plan: Plan) -> Deployer:
        """A deployer of a ready plan, as a worker process gets it."""
        deployer = cls.__new__(cls)
        deployer._backend = get_backend(plan.backend)
        deployer.plan = plan
        deployer._loaded = None
        deployer.load_s = None
        return deployer

    def load(self, progress: Progress = no_progress) -> Deployer:
        """Load the model, quantising or converting it first where that is needed; returns self.

        With glibc, blocks above 32 MiB are mapped apart from then on, as they would come to be.
        Raises BackendUnavailable, ModelNotFound, ModelLoadError or QuantizationError, and
        DoesNotFit for synthetic weights that are more than what is free.
        """
        if self._loaded is not None:
            return self
        self._backend.require(self.plan)
        if self.plan.weights == "synthetic":
            _require_room(self.plan)
        notes = self._get_files()
        if "torch" in {package.module for package in self._backend.packages}:
            set_threads(self.plan.threads)
        lift_gpu_caps()
        if self.plan.device == "cuda" and self.plan.budget_bytes is not None:
            # Of a tensor split each process has one GPU.
            gpus = self.plan.gpus if self.plan.split == "balanced" else 1
            cap_gpu_memory(self.plan.budget_bytes, gpus)
        started = time.perf_counter()
        with freed_tensors_returned():
            loaded = self._loaded = self._backend.load(self.plan, progress)
        before_s = (self.info.quantize_s or 0.0) + self.info.check_s
        self.load_s = time.perf_counter() - started - before_s
        ran = modules_run(Path(self.plan.model.path)) if self.plan.trust_remote_code else ()
        if ran:
            notes += (f"ran the model's own Python code (--trust-remote-code): {', '.join(ran)}",)
        loaded.info = replace(loaded.info, notes=(*notes, *loaded.info.notes))
        return self

    def make(self, progress: Progress = no_progress) -> Made:
        """Have the files of this format on disk, made where they are missing; nothing is loaded.

        Of a format that is made at loading they are the model's own. What loads another format's
        files needs that one alone. Raises BackendUnavailable, ModelNotFound, ModelLoadError or
        QuantizationError.
        """
        maker, plan = self._backend, self.plan
        if maker.files_of is not None:
            variant = split_id(plan.backend)[1]
            backend = maker.files_of if variant is None else f"{maker.files_of}:{variant}"
            maker, plan = get_backend(backend), replace(plan, backend=backend, device="cpu")
        maker.require(plan)
        notes = self._get_files()
        made = maker.make(replace(plan, model=self.plan.model), progress)
        if made is None:
            return Made(path=self.plan.model.path, notes=notes)
        return Made(path=made.path, notes=(*notes, *made.notes))

    def _get_files(self) -> tuple[str, ...]:
        """Have real weights on disk, in a form that every format reads; notes of what it took."""
        plan = self.plan
        if plan.weights != "real":
            return ()
        spec = local_folder(
            plan.model, allow_pickle=plan.allow_pickle, trust_remote_code=plan.trust_remote_code
        )
        notes: tuple[str, ...] = ()
        if plan.checkpoint is None:  # its own weights are read, not the model's
            spec, notes = with_safetensors(spec, plan)
        self.plan = replace(plan, model=spec)
        return notes

    @property
    def model(self) -> LoadedModel:
        """The loaded model. Raises LlmfitError before ``load`` and after ``close``."""
        if self._loaded is None:
            raise LlmfitError("the model is not loaded.", hint="Deployer(…).load()")
        return self._loaded

    @property
    def info(self) -> LoadInfo:
        """What loading turned out to be: kernel, bytes, share quantised, notes."""
        return self.model.info

    def generate(
        self, prompt: str, *, max_new_tokens: int = 128, sampling: Sampling = GREEDY
    ) -> Generation:
        """Continue ``prompt`` until EOS or ``max_new_tokens``.

        Raises UsageError where prompt and new tokens exceed the model's context, and for synthetic
        weights; EvaluationError for a token that the model has no embedding of.
        """
        if self.plan.weights == "synthetic":
            raise no_text()
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens must be at least 1, not {max_new_tokens}.")
        model = self.model
        ids = model.tokenizer.encode(prompt)
        if not ids:
            raise UsageError("the prompt is empty and the model has no BOS token to start from.")
        model.check_ids(ids)
        decoder = model.decoder(batch=1, capacity=len(ids) + max_new_tokens)
        try:
            return self._continue(decoder, ids, max_new_tokens, sampling)
        finally:
            decoder.close()

    def _continue(
        self, decoder: Decoder, ids: list[int], max_new_tokens: int, sampling: Sampling
    ) -> Generation:
        tokenizer = self.model.tokenizer
        marks = Marks("cpu" if decoder.on_host_clock else self.plan.device)
        marks.mark()
        decoder.prefill([ids], sampling)
        produced = decoder.tokens()
        marks.mark()
        while len(produced) < max_new_tokens and produced[-1] not in tokenizer.end_ids:
            decoder.step()
            produced += decoder.tokens()
        marks.mark()
        first_s, rest_s = marks.seconds()
        return Generation(
            text=tokenizer.decode(produced),
            token_ids=tuple(produced),
            prompt_tokens=len(ids),
            new_tokens=len(produced),
            ttft_s=first_s,
            tokens_per_s=(len(produced) - 1) / rest_s if len(produced) > 1 else None,
            finish="eos" if produced[-1] in tokenizer.end_ids else "length",
        )

    def benchmark(
        self, workload: Workload | None = None, progress: Progress = no_progress
    ) -> Measurement:
        """Time prefill and decode under ``workload``.

        By default 512 prompt and 128 new tokens, fewer where the model's context is shorter.
        """
        return measure(
            self.model,
            workload or self.plan.workload,
            device=self.plan.device,
            seed=self.plan.seed,
            progress=progress,
        )

    def evaluate(
        self, settings: EvaluationSettings | None = None, progress: Progress = no_progress
    ) -> Evaluation:
        """Score HellaSwag and perplexity with lm-eval. Raises EvaluationError.

        Synthetic weights raise TaskUnavailable: they are random and have no quality.
        """
        if self.plan.weights == "synthetic":
            raise TaskUnavailable("synthetic weights are random.", hint=NO_TEXT_HINT)
        from llmfit.evaluate.score import evaluate

        chosen = settings or self.plan.evaluation or EvaluationSettings()
        return evaluate(self.model, self.plan.model, chosen, progress, reference=self._reference())

    def _reference(self) -> Reference | None:
        """Where the reference row's logits are, for a row of a comparison."""
        from llmfit.evaluate.divergence import Reference

        if self.plan.reference_file is None:
            return None
        return Reference(
            path=Path(self.plan.reference_file),
            writes=self.plan.backend == REFERENCE,
            backend=REFERENCE,
        )

    def close(self) -> None:
        """Free the memory; closing twice does nothing."""
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None

    def __enter__(self) -> Deployer:
        return self.load()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _require_room(plan: Plan) -> None:
    """Raise DoesNotFit where random weights alone need more memory than is free.

    A config can ask for any size; real weights are at least as large on disk.
    """
    need = weights_bytes(plan.model, plan.backend, plan.device)
    free = free_bytes(plan.device) * plan.gpus  # of equal GPUs
    if need is not None and need > free:
        raise DoesNotFit(
            f"the weights of {plan.model.name} take {format_bytes(need)}, {format_bytes(free)} of "
            "memory are free.",
            hint=f"llmfit plan {plan.model.name}, which makes none",
        )
