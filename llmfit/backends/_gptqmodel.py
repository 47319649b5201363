"""What the GPTQ and AWQ rows share: find or make the checkpoint, load it through transformers."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmfit.backends._checkpoint import given_checkpoint, quantized_config
from llmfit.backends._hf import (
    SYNTHETIC_NOTE,
    HfModel,
    TorchBackend,
    fused_attention,
    linear_kernel,
    load_causal_lm,
    plan_config,
    run_one_token,
    share_note,
)
from llmfit.backends._packed import loadable
from llmfit.backends._synthetic import MadeTensor, Noise, Packed, random_causal_lm, spread
from llmfit.backends._tokenizer import tokenizer_of
from llmfit.backends._weights import weights_bytes
from llmfit.backends.base import (
    TORCH,
    LoadedModel,
    LoadInfo,
    Made,
    Package,
    Progress,
    no_progress,
)
from llmfit.errors import ModelLoadError
from llmfit.files import file_hash
from llmfit.quantization import Facts, stored_quantization
from llmfit.quantize._gptqmodel import (
    BITS,
    Layers,
    choose_layers,
    empty_model,
    import_gptqmodel,
    in_block,
    linear_names,
    plan_layers,
)
from llmfit.quantize.apart import Job, quantize_apart
from llmfit.quantize.cache import ArtifactCache, Setting
from llmfit.quantize.calibration import calibration_file, load_calibration
from llmfit.records import Kernel, Plan

if TYPE_CHECKING:
    from torch import nn

    from llmfit.backends._int4_trial import KernelChoice

PACKAGES = (
    *TORCH,
    Package("gptqmodel", "GPTQModel"),
    Package("optimum", "optimum"),
    Package("accelerate", "accelerate"),
)
_CODES = (1, 15)
"""Random 4-bit codes, around the zero point 8."""
_CODE_SPREAD = math.sqrt((15**2 - 1) / 12)
"""Standard deviation of evenly distributed codes."""
SEQUENCE_TOKENS = 512
"""Length of a calibration sequence; the model's context where that is shorter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Artifact:
    """The checkpoint to load, and what making it turned out to be."""

    folder: Path
    quantize_s: float | None = None
    check_s: float = 0.0
    notes: tuple[str, ...] = ()

    def config(self, plan: Plan) -> Any:
        """transformers' config with which it loads for ``plan``. Raises ModelLoadError."""
        said = stored_quantization(self.folder) or {}
        facts = loadable(self.folder, said, device=plan.device)
        return quantized_config(self.folder, facts, plan)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    """A model in memory, and what is to be said of it."""

    model: nn.Module
    attention: str
    notes: tuple[str, ...]
    artifact: _Artifact | None = None
    choice: KernelChoice | None = None
    """The 4-bit kernel that was chosen by a trial."""


class GptqModelBackend(TorchBackend):
    """A format that GPTQModel quantises and whose checkpoints transformers loads with it."""

    packages = PACKAGES
    extra = "gptq"
    takes_checkpoint = True
    calibrated = True
    samples: int
    """Calibration sequences."""
    settings: Mapping[str, bool]
    """The method's own settings, part of the artifact's key."""

    def prepare(self, plan: Plan) -> None:
        """See ``Backend.prepare``."""
        import_gptqmodel()
        super().prepare(plan)

    def make(self, plan: Plan, progress: Progress = no_progress) -> Made:
        """See ``Backend.make``."""
        import_gptqmodel()
        artifact = self._artifact(plan, progress)
        return Made(path=str(artifact.folder), notes=artifact.notes)

    def load(self, plan: Plan, progress: Progress = no_progress) -> LoadedModel:
        """See ``Backend.load``."""
        import_gptqmodel()
        loaded = self._random(plan) if plan.weights == "synthetic" else self._real(plan, progress)
        model, artifact = loaded.model, loaded.artifact
        if loaded.choice is not None:
            loaded.choice.apply(model)
        run_one_token(model)
        _take_inputs_as_they_come(model)
        share = quantized_share(model)
        info = LoadInfo(
            kernel=Kernel(
                linear=linear_kernel(model),
                attention=loaded.attention,
                trial_s={} if loaded.choice is None else loaded.choice.trial_s,
            ),
            dtype=self.id,
            weights_bytes=weights_bytes(model),
            quantized_share=share,
            notes=(*loaded.notes, share_note(share), *_arithmetic(model)),
            artifact=None if artifact is None else str(artifact.folder),
            quantize_s=None if artifact is None else artifact.quantize_s,
            check_s=0.0 if artifact is None else artifact.check_s,
        )
        return HfModel(
            model,
            tokenizer=tokenizer_of(plan),
            info=info,
            context_length=plan.model.max_position_embeddings,
            may_compile=True,
            kv_cache_dtype=plan.kv_cache_dtype,
        )

    def _real(self, plan: Plan, progress: Progress) -> _Loaded:
        artifact = self._artifact(plan, progress)
        progress("load", 0, 0)  # what was made before is no part of the row's memory
        config = artifact.config(plan)
        attention, notes = fused_attention(config)
        choice, why = self._choose_kernel(plan, config, config.quantization_config, attention)
        if choice is not None:
            config.quantization_config["backend"] = choice.backend
        model = load_causal_lm(str(artifact.folder), plan, attention=attention, config=config)
        return _Loaded(
            model=model,
            attention=attention,
            notes=(*artifact.notes, *notes, *why),
            artifact=artifact,
            choice=choice,
        )

    def _random(self, plan: Plan) -> _Loaded:
        """Random weights in the layout of a checkpoint that ``_make`` would make."""
        config = plan_config(plan)
        attention, notes = fused_attention(config)
        dense = empty_model(config)
        layers = choose_layers(dense, plan.model.name)
        linears = linear_names(dense)
        packed = [name for name in linears if in_block(name) in layers.quantized]
        kept = [name for name in linears if name not in packed]
        facts: Facts = {"quant_method": self.id, "bits": BITS, "group_size": layers.group_size}
        facts |= self.facts(packed, kept)
        choice, why = self._choose_kernel(plan, config, facts, attention)
        if choice is not None:
            facts["backend"] = choice.backend
        model = random_causal_lm(
            plan, config, attention=attention, quantization=facts, pack=self.pack
        )
        return _Loaded(
            model=model,
            attention=attention,
            notes=(SYNTHETIC_NOTE, *_layer_notes(layers), *notes, *why),
            choice=choice,
        )

    def _choose_kernel(
        self, plan: Plan, config: Any, facts: Facts, attention: str
    ) -> tuple[KernelChoice | None, tuple[str, ...]]:
        """The kernel for a GPU, with notes; None on a CPU, where a step's kernels are tried later.

        None too, and GPTQModel's own choice, for other widths than 4 bits and where a trial fails.
        """
        if plan.device != "cuda" or facts.get("bits", BITS) != BITS:
            return None, ()
        from llmfit.backends._int4_trial import choose_int4_kernel

        try:
            choice = choose_int4_kernel(plan, config, facts, attention=attention, pack=self.pack)
        except ModelLoadError as exc:
            return None, (f"kernels not tried, GPTQModel's own choice: {exc.message}",)
        return choice, choice.notes

    @abstractmethod
    def facts(self, packed: Sequence[str], kept: Sequence[str]) -> Facts:
        """What a checkpoint's ``quantization_config`` says beside bits and group size.

        ``packed`` and ``kept`` are the full names of the quantised and the other linear layers.
        """

    @abstractmethod
    def pack(self, layer: Any, noise: Noise) -> Packed:
        """Random tensors of one of GPTQModel's layers; none for another module."""

    def _artifact(self, plan: Plan, progress: Progress) -> _Artifact:
        if plan.checkpoint is None and plan.model.quantization is None:
            return self._make(plan, progress)
        spec = plan.model
        notes: tuple[str, ...] = ()
        if plan.checkpoint is not None:
            spec, notes = given_checkpoint(self.id, self.loads_quantized, plan)
        folder = Path(spec.path)
        said = _describe(stored_quantization(folder) or {})
        return _Artifact(folder=folder, notes=(said, *notes))

    def _make(self, plan: Plan, progress: Progress) -> _Artifact:
        import torch

        source = Path(plan.model.path)
        tokens = min(SEQUENCE_TOKENS, plan.model.max_position_embeddings)
        layers = plan_layers(source, trust_remote_code=plan.trust_remote_code)

        def make(folder: Path) -> None:
            progress("quantize", 0, plan.model.num_hidden_layers)
            sequences = load_calibration(
                plan.calibration_file,
                tokenizer_of(plan),
                samples=self.samples,
                tokens=tokens,
                seed=plan.seed,
            )
            job = Job(
                method=self.id,
                model_path=str(source.resolve()),
                folder=str(folder.resolve()),
                layers=layers,
                sequences=sequences,
                device=plan.device,
                threads=torch.get_num_threads(),
                trust_remote_code=plan.trust_remote_code,
            )
            quantize_apart(job, lambda done, total: progress("quantize", done, total))

        cache = ArtifactCache(Path(plan.cache_dir) if plan.cache_dir else None)
        settings: dict[str, Setting] = {
            "bits": BITS,
            "group_size": layers.group_size,
            **self.settings,
            "calibration": file_hash(calibration_file(plan.calibration_file)),
            "samples": self.samples,
            "tokens": tokens,
            "seed": plan.seed,
            "gptqmodel": version("GPTQModel"),
        }
        made = cache.get_or_make(self.id, source, settings, make)
        return _Artifact(
            folder=made.path,
            quantize_s=made.make_s,
            check_s=made.check_s,
            notes=(*_layer_notes(layers), *made.notes),
        )


def _take_inputs_as_they_come(model: nn.Module) -> None:
    """Keep GPTQModel's CPU kernel from gathering the inputs of layers without act-order.

    Its layers, once run, gather by an index of every input, which takes a third of the product's
    time; in order it changes nothing.
    """
    import torch

    layers: Iterable[Any] = model.modules()
    for layer in layers:
        order = getattr(layer, "ret_idx", None)
        if isinstance(order, torch.Tensor) and torch.equal(
            order, torch.arange(len(order), dtype=order.dtype, device=order.device)
        ):
            layer.ret_idx = slice(None)


def quantized_share(model: nn.Module) -> float:
    """Share of the parameters that sit in the quantised layers, 0…1, tied tensors counted once."""
    from llmfit.backends._int4_trial import int4_layers

    layers: Iterable[Any] = int4_layers(model)
    quantized = sum(layer.in_features * layer.out_features for layer in layers)
    other = sum(parameter.numel() for parameter in model.parameters())
    return float(quantized / (quantized + other))


def random_groups(layer: Any, noise: Noise, *, zeros: tuple[int, int]) -> dict[str, MadeTensor]:
    """Random tensors of one of GPTQModel's 4-bit layers, of the shapes that it holds itself.

    ``zeros`` are the least and the greatest packed zero point. None for another module.
    """
    buffers = dict(layer.named_buffers(recurse=False))
    if "qweight" not in buffers:
        return {}
    qweight, qzeros, scales = (buffers[name] for name in ("qweight", "qzeros", "scales"))
    step = spread(layer.in_features) / _CODE_SPREAD
    tensors = {
        "qweight": noise.nibbles(qweight.shape, qweight.dtype, *_CODES),
        "qzeros": noise.nibbles(qzeros.shape, qzeros.dtype, *zeros),
        "scales": noise.about(scales.shape, scales.dtype, step),
    }
    if "bias" in buffers:
        bias = buffers["bias"]
        tensors["bias"] = noise.normal(bias.shape, bias.dtype, step)
    return tensors


def _layer_notes(layers: Layers) -> tuple[str, ...]:
    """What the choice of layers was."""
    notes = [f"group size {layers.group_size}; head and embeddings in bf16"]
    if layers.kept:
        notes.append(f"in bf16, as their shape does not divide: {', '.join(layers.kept)}")
    return tuple(notes)


def _describe(said: Facts) -> str:
    """What a ready checkpoint's config says about how it was quantised."""
    facts = [f"{said.get('bits', '?')} bits", f"group size {said.get('group_size', '?')}"]
    if said.get("desc_act"):
        facts.append("activation order")
    return f"ready checkpoint: {', '.join(facts)}"


def _arithmetic(model: nn.Module) -> tuple[str, ...]:
    """A note where transformers chose another type than the other rows run in."""
    dtype = str(model.dtype).removeprefix("torch.")
    return () if dtype == "bfloat16" else (f"arithmetic in {dtype}: the kernel takes no bfloat16",)
