"""INT4 by onnxruntime-genai, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
from llmfit.device.cpu import physical_cores
from llmfit.quantize.cache import Artifact, ArtifactCache
from llmfit.records import Kernel, Plan

if TYPE_CHECKING:
    from llmfit.decode.base import Decoder, LogitsVisitor, Window, WindowScore
    from llmfit.decode.onnx_genai import OnnxModel


class OnnxLoaded(LoadedModel):
    """A model of onnxruntime-genai's in memory."""

    def __init__(
        self,
        model: OnnxModel,
        *,
        tokenizer: Tokenizer,
        info: LoadInfo,
        vocab_size: int,
        context_length: int,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.info = info
        self.vocab_size = vocab_size
        self.context_length = context_length

    def decoder(self, *, batch: int, capacity: int, prefill_chunk: int | None = None) -> Decoder:
        """See ``LoadedModel.decoder``."""
        from llmfit.decode.onnx_genai import OnnxDecoder

        self.check_capacity(capacity)
        return OnnxDecoder(self.model, batch=batch, capacity=capacity, prefill_chunk=prefill_chunk)

    def score(
        self, windows: Sequence[Window], *, batch_tokens: int, visit: LogitsVisitor | None = None
    ) -> Iterator[WindowScore]:
        """See ``LoadedModel.score``."""
        from llmfit.decode.onnx_genai import score_windows

        self.check_windows(windows)
        return score_windows(self.model, windows, batch_tokens=batch_tokens, visit=visit)

    def close(self) -> None:
        """See ``LoadedModel.close``."""
        self.model.close()


class Onnx(Backend):
    """4-bit weights in blocks of 32 with a scale each, by onnxruntime's CPU kernels.

    As onnxruntime-genai's model builder makes it: rounded to the nearest, without calibration.
    """

    id = "onnx"
    label = "ONNX INT4 (CPU)"
    one_gpu = "it runs on the CPU"
    packages = (*TORCH, Package("onnxruntime_genai", "onnxruntime-genai"), Package("onnx", "onnx"))
    extra = "onnx"
    devices = frozenset({"cpu"})

    def check(self, plan: Plan) -> Check:
        """See ``Backend.check``."""
        outcome = super().check(plan)
        if outcome != Check():
            return outcome
        if plan.weights == "synthetic":
            return Check(skipped="its builder makes a model of real weights alone")
        if plan.kv_cache_dtype is not None:
            return Check(skipped="onnxruntime-genai's KV cache is not quantised here")
        return outcome

    def make(self, plan: Plan, progress: Progress = no_progress) -> Made:
        """See ``Backend.make``."""
        artifact = self._artifact(plan, progress)
        return Made(path=str(artifact.path), notes=artifact.notes)

    def load(self, plan: Plan, progress: Progress = no_progress) -> LoadedModel:
        """See ``Backend.load``."""
        from llmfit.decode.onnx_genai import OnnxModel

        self.require(plan)
        artifact = self._artifact(plan, progress)
        progress("load", 0, 0)
        share, kernels = _inside(artifact.path, plan.model.parameters)
        model = OnnxModel(artifact.path, threads=plan.threads or physical_cores())
        info = LoadInfo(
            kernel=Kernel(linear=kernels, attention="GroupQueryAttention (onnxruntime), KV f32"),
            dtype="int4",
            weights_bytes=sum(f.stat().st_size for f in artifact.path.glob("model.onnx*")),
            quantized_share=share,
            notes=("blocks of 32, made by onnxruntime-genai's builder", *artifact.notes),
            artifact=str(artifact.path),
            quantize_s=artifact.make_s,
            check_s=artifact.check_s,
        )
        return OnnxLoaded(
            model,
            tokenizer=tokenizer_of(plan),
            info=info,
            vocab_size=plan.model.vocab_size,
            context_length=plan.model.max_position_embeddings,
        )

    def _artifact(self, plan: Plan, progress: Progress) -> Artifact:
        from llmfit.quantize.onnx_genai import make_onnx

        progress("quantize", 0, 0)
        cache = ArtifactCache(Path(plan.cache_dir) if plan.cache_dir else None)
        return make_onnx(Path(plan.model.path), cache, trust_remote_code=plan.trust_remote_code)


def _inside(folder: Path, parameters: int | None) -> tuple[float | None, str]:
    """Share of the parameters in 4-bit products, and those products' operators."""
    import onnx

    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    packed, kinds = 0, []
    for node in graph.node:
        if "MatMul" not in node.op_type:
            continue
        kinds.append(node.op_type)
        sizes = {each.name: each.i for each in node.attribute}
        packed += sizes.get("K", 0) * sizes.get("N", 0)
    share = None if parameters is None else min(1.0, packed / parameters)
    return share, " + ".join(dict.fromkeys(kinds)) + " (onnxruntime)"
