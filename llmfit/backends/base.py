"""What a deploy format is to the rest of llmfit.

    Plan ─► Backend.check  ─► None, or why it cannot run here
         └► Backend.load   ─► LoadedModel ─► decoder()  (timed by measure, read by generate)
                                          └► score()    (HellaSwag and perplexity through lm-eval)

A backend is one file with one subclass of ``Backend`` and one line in ``registry``. Heavy
imports happen inside ``load``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from llmfit.errors import BackendUnavailable, EvaluationError, UsageError
from llmfit.planning.memory.tensor_plan import why_not

if TYPE_CHECKING:
    from types import TracebackType

    from llmfit.decode.base import Decoder, LogitsVisitor, Window, WindowScore
    from llmfit.records import Kernel, Plan, Split

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``; ``total`` is 0 where it is not known."""


def no_progress(stage: str, done: int, total: int) -> None:
    """A ``Progress`` that shows nothing."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package that a backend needs: the module to import and the name on the index."""

    module: str
    distribution: str

    def installed(self) -> str | None:
        """The installed version, or None; imports nothing."""
        if find_spec(self.module) is None:
            return None
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return "unknown"


TORCH = (Package("torch", "torch"), Package("transformers", "transformers"))


class Tokenizer(ABC):
    """Text to token ids and back; the same for every row of a comparison."""

    bos_id: int | None
    eos_id: int | None
    more_ends: frozenset[int] = frozenset()
    """Other ids that end a text, as instruct models have for the end of a turn."""

    @property
    def end_ids(self) -> frozenset[int]:
        """All ids that end a text."""
        return self.more_ends if self.eos_id is None else self.more_ends | {self.eos_id}

    @abstractmethod
    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of ``text``; with ``special`` the model's own BOS (and no EOS) is added."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadInfo:
    """What loading turned out to be; copied into the row's record."""

    kernel: Kernel
    dtype: str
    weights_bytes: int | None = None
    huge_page_bytes: int | None = None
    quantized_share: float | None = None
    notes: tuple[str, ...] = ()
    artifact: str | None = None
    quantize_s: float | None = None
    check_s: float = 0.0
    """Seconds before loading, beside quantising: a kept artifact was checked, or waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A format's own files."""

    path: str
    """A folder as transformers writes it, or a GGUF file."""
    notes: tuple[str, ...] = ()


class LoadedModel(ABC):
    """A model in memory, in one deploy format. Lives in one process; close it after use."""

    info: LoadInfo
    tokenizer: Tokenizer
    vocab_size: int
    context_length: int
    """Tokens that the model can attend to."""
    gives_logits: bool = True
    """False for an engine that tells the probabilities of given tokens alone: ``score`` has nothing
    to show a visitor then, and the row no divergence."""

    @abstractmethod
    def decoder(self, *, batch: int, capacity: int, prefill_chunk: int | None = None) -> Decoder:
        """A decoder for ``batch`` sequences of up to ``capacity`` tokens each.

        ``prefill_chunk`` is the most tokens of a prompt that run at once: less is live, the tokens
        chosen are the same. None is the engine's own way: PyTorch runs a prompt in one pass,
        llama.cpp 512 tokens of all prompts at a time. Raises UsageError when ``capacity`` exceeds
        ``context_length`` or ``prefill_chunk`` is below 1.
        """

    @abstractmethod
    def score(
        self, windows: Sequence[Window], *, batch_tokens: int, visit: LogitsVisitor | None = None
    ) -> Iterator[WindowScore]:
        """Score each window, in order; at most ``batch_tokens`` tokens in flight at once.

        ``visit`` is given the logits of the scored tokens on their way. Raises EvaluationError
        for a window that feeds more than ``context_length`` tokens; its last is only predicted.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the memory."""

    def check_capacity(self, capacity: int) -> None:
        """Raise UsageError where ``capacity`` exceeds the context."""
        if capacity > self.context_length:
            raise UsageError(
                f"{capacity} tokens a sequence are asked for, the model's context is "
                f"{self.context_length}.",
                hint="fewer prompt or new tokens",
            )

    def check_windows(self, windows: Sequence[Window]) -> None:
        """Raise EvaluationError for more tokens than the context, or one without an embedding."""
        longest = max((len(window.ids) - 1 for window in windows), default=0)
        if longest > self.context_length:
            raise EvaluationError(
                f"a window of {longest} tokens exceeds the model's context of "
                f"{self.context_length}.",
                hint="a smaller --ppl-window",
            )
        for window in windows:
            self.check_ids(window.ids)

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raise EvaluationError where a token is outside the model's vocabulary.

        Tokenizers may have tokens that were added and never given an embedding; a GPU's kernels
        would read beyond the table.
        """
        worst = max(ids, default=0)
        if worst >= self.vocab_size or min(ids, default=0) < 0:
            raise EvaluationError(
                f"the tokenizer gives the token {worst}, the model has {self.vocab_size}.",
                hint="the tokenizer that the model was trained with",
            )

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Check:
    """Outcome of ``Backend.check``: None reasons mean that the row can run."""

    unavailable: str | None = None
    """A package or device is missing; says the ``pip install`` line."""
    skipped: str | None = None
    """The row has no meaning for this model, e.g. it is already quantised in another format."""


class Backend(ABC):
    """One deploy format."""

    id: str
    """Lower-case id used on the command line and in JSON."""
    label: str
    """The row's name in tables."""
    packages: tuple[Package, ...] = TORCH
    extra: str | None = None
    """llmfit's own extra that installs ``packages``: ``pip install 'llmfit[extra]'``."""
    loads_quantized: frozenset[str] = frozenset()
    """``quant_method`` values of already quantised checkpoints that this backend loads."""
    devices: frozenset[str] = frozenset({"cpu", "cuda"})
    gpu_memory: Literal["torch", "driver"] = "torch"
    """Who counts the row's memory on a GPU: torch's allocator, whose cap ``--gpu-gb`` sets; or the
    driver, for an engine that takes memory itself and is held against the budget after the run."""
    files_of: str | None = None
    """Id of the format whose files it loads, where those are not its own."""
    takes_checkpoint: bool = False
    """True where ``--checkpoint ID=PATH`` gives a ready artifact."""
    calibrated: bool = False
    """True where it is quantised with ``--calibration``'s text."""
    variants: frozenset[str] = frozenset()
    """Other types, picked as ``id:variant``."""
    splits: frozenset[Split] = frozenset()
    """The ways in which ``load`` spreads a model over several GPUs."""
    one_gpu: str = "it runs on one GPU alone"
    """Why there is no other way; ends a sentence."""

    def describe(self, variant: str | None) -> str:
        """The row's name for people, with the variant where there is one."""
        return self.label if variant is None else f"{self.label} {variant}"

    def why_not_split(self, plan: Plan) -> str | None:
        """Why ``plan.model`` cannot be spread over ``plan.gpus`` GPUs so; None where it can."""
        if plan.gpus == 1:
            return None
        if not self.splits:
            return self.one_gpu
        if plan.split not in self.splits:
            return f"{self.one_gpu}; --split {sorted(self.splits)[0]} is possible"
        if plan.split == "balanced":
            if plan.device == "cpu":
                return "layers are spread over GPUs alone, and none is used here"
            return None
        if plan.kv_cache_dtype is not None:
            return "a quantised KV cache is not shared out over the GPUs of a tensor split"
        if plan.weights == "synthetic":
            return "a tensor split cuts the weights of the model's files; synthetic ones have none"
        shape = plan.model.shape
        if shape is None:
            return f"the shape of a {plan.model.architecture} is not known"
        return why_not(shape, plan.gpus)

    def install_hint(self) -> str:
        """The exact ``pip install`` line for what is missing."""
        return f"pip install 'llmfit[{self.extra}]'" if self.extra else "pip install llmfit"

    def missing(self) -> tuple[Package, ...]:
        """The packages that are not installed."""
        return tuple(package for package in self.packages if package.installed() is None)

    def check(self, plan: Plan) -> Check:
        """Can this backend make a row of ``plan`` here? Imports nothing heavy."""
        missing = self.missing()
        if missing:
            names = ", ".join(package.distribution for package in missing)
            return Check(unavailable=f"{names} not installed: {self.install_hint()}")
        if plan.device not in self.devices:
            return Check(unavailable="it runs on a CUDA GPU alone, and none is used here")
        method = plan.model.quantization
        if method is not None and plan.weights == "synthetic":
            return Check(
                skipped=f"{plan.model.name} is stored quantised ({method}); synthetic weights are "
                "made for unquantised models"
            )
        if method is not None and method not in self.loads_quantized:
            return Check(
                skipped=f"it needs the unquantised model, and {plan.model.name} is already "
                f"quantised ({method})"
            )
        return Check(skipped=self.why_not_split(plan))

    def require(self, plan: Plan) -> None:
        """Raise BackendUnavailable where ``check`` says that the row cannot run."""
        outcome = self.check(plan)
        reason = outcome.unavailable or outcome.skipped
        if reason is not None:
            raise BackendUnavailable(f"{self.id}: {reason}.", hint="llmfit backends")

    def prepare(self, plan: Plan) -> None:
        """Import what ``load`` needs, so that the imports' memory is not taken for the model's."""
        for package in self.packages:
            import_module(package.module)

    def make(self, plan: Plan, progress: Progress = no_progress) -> Made | None:
        """The files of ``plan.model`` in this format, made where they are missing.

        None where the format is made at loading, from the model's own files. Nothing is loaded.
        Raises ModelLoadError, QuantizationError or ModelNotFound.
        """
        return None

    @abstractmethod
    def load(self, plan: Plan, progress: Progress = no_progress) -> LoadedModel:
        """Load ``plan.model`` in this format, quantising it first where that is needed.

        ``progress`` is told the stage ``load`` once what is to be loaded has been made: from then
        on memory counts as the row's.

        Raises ModelLoadError, QuantizationError or ModelNotFound.
        """
