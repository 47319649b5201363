"""The frozen records that flow through llmfit, and their JSON.

``ModelSpec`` → ``Plan`` → (worker process) → ``RunRecord`` → ``Comparison``. Units are in the
names: bytes, seconds, tokens per second. None means "not known"; it is never written as 0.
Field names are the JSON's keys, so there is no second mapping to keep in step.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from llmfit.errors import StoreError, UsageError
from llmfit.shape import ModelShape

SCHEMA_VERSION = 1

Status = Literal["ok", "failed", "unavailable", "does_not_fit", "skipped"]
NOT_FINISHED = "interrupted"
"""Reason of a row that an interrupt kept from its end."""
Device = Literal["cpu", "cuda"]
Source = Literal["embedded", "local", "hub", "catalogue"]
Weights = Literal["real", "synthetic"]
PplProtocol = Literal["window", "llama.cpp"]
KvCacheDtype = Literal["q8_0", "q4_0"]
Split = Literal["balanced", "tensor"]
"""A model over several GPUs: whole layers on each, by accelerate's balanced device map; or a part
of every matrix on each, by transformers' plan for tensor parallelism."""


# ---------------------------------------------------------------- what is asked


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Facts about a model that its config and file headers tell; no tensor is read for them."""

    name: str
    """What the user typed, or the folder's name."""
    path: str
    """Folder on disk, or the hub id while ``source`` is "hub" (nothing is downloaded yet) or
    "catalogue" (only the embedded facts are here)."""
    source: Source
    architecture: str
    """The class name in config.json's ``architectures``, e.g. ``LlamaForCausalLM``."""
    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    parameters: int | None = None
    dtype: str | None = None
    """Storage type of the checkpoint, e.g. ``bfloat16``."""
    quantization: str | None = None
    """Method of the checkpoint's ``quantization_config``: gptq, awq, bitsandbytes_4bit …"""
    attention_bias: bool = False
    shape: ModelShape | None = None
    """Layer by layer; None for an architecture that not even its plain numbers describe."""
    content_hash: str | None = None
    """BLAKE2b-160 over names and contents of the model's files; None before they are on disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is timed: ``batch`` prompts of ``prompt_tokens``, each continued by ``new_tokens``."""

    prompt_tokens: int = 512
    new_tokens: int = 128
    batch: int = 1
    repeats: int = 5
    warmup: int = 1
    prefill_chunk: int | None = None
    """Tokens of the prompt that run at once; None runs all of it in one pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """What is scored. No file: the embedded set for the embedded model, else lm-eval's own task."""

    tasks: tuple[str, ...] = ("hellaswag", "wikitext")
    """lm-eval task names. ``hellaswag`` and ``wikitext`` read the two files below where given, and
    ``wikitext`` stands for everything measured on the text: perplexity and divergence."""
    include_path: str | None = None
    """Folder with task definitions (YAML) of one's own."""
    hellaswag_file: str | None = None
    """HellaSwag JSON-lines file, or a dataset folder of the datasets library."""
    text_file: str | None = None
    """Text file, or a dataset folder of the datasets library."""
    limit: int | None = None
    """Number of items of each task and of text documents to score; None scores all."""
    ppl_protocol: PplProtocol = "window"
    ppl_window: int | None = None
    """Tokens per perplexity window: 2048 (512 for llama.cpp's protocol) where None; the model's
    own limit where that is smaller."""
    batch_tokens: int = 4096
    """Upper bound of tokens in one scoring batch, padding included."""
    fewshot_seed: int = 1234
    """Seed of the draw of few-shot examples; lm-eval's default, which published figures used."""
    reference_bytes: int = 2**30
    """Upper bound of the file of reference logits: the divergence is over as many of the text's
    first tokens as fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPrediction:
    """Predicted peak memory in bytes, by part, in the memory of the row's device.

    Weights, KV cache and activations are what an allocator counts (torch's
    ``max_memory_allocated``); runtime is what lies beyond: CUDA context and allocator slack on a
    GPU, interpreter and libraries on a CPU.
    """

    weights_bytes: int
    kv_cache_bytes: int
    activation_bytes: int
    runtime_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedPrediction:
    """A predicted rate in tokens per second, with its range and what it rests on."""

    estimate: float
    low: float
    high: float
    basis: str
    """For people: e.g. ``own records: 5 rows of nf4 on this machine``."""
    limit: float | None = None
    """The roofline itself: what the bandwidth, or the arithmetic, would allow at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A GPU, or a machine's CPU with its RAM: what the roofline needs of it."""

    name: str
    kind: Literal["gpu", "cpu", "unified"]
    """``unified``: one memory for CPU and GPU, as in Apple's chips."""
    memory_bytes: int | None
    bandwidth: float | None
    """Memory bandwidth, bytes per second."""
    flops: float | None
    """Dense bf16 multiply-adds × 2, per second, without sparsity."""
    source: str
    """Data sheet, or ``measured on this machine``, or ``assumed for --gpu-gb 8``."""
    assumed: bool = False
    """True where the user named a size and not a card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPlan:
    """What is predicted of one format over several equal GPUs, in one of the two ways."""

    split: Split
    gpus: int
    per_gpu: tuple[MemoryPrediction, ...] = ()
    """Peak memory of each GPU, in their order; empty where that cannot be or is not known."""
    fullest_bytes: int | None = None
    """The largest total of them; None where ``per_gpu`` is empty."""
    fits: bool | None = None
    """Whether the fullest GPU's budget holds it; False where the format cannot be split so, None
    where that or the budget is not known."""
    fewest_gpus: int | None = None
    """The fewest GPUs from 1 to ``gpus`` that hold it; None where none of these numbers does, or
    that is not known."""
    reason: str | None = None
    """Why it cannot be split so, or is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """What is predicted of one format, nothing loaded."""

    backend: str
    label: str
    device: Device
    """Where the row would run: ``cuda`` stands for the GPU that is planned for."""
    fits: bool | None
    """None where the memory is not known."""
    memory: MemoryPrediction | None
    max_context: int | None
    """Tokens of prompt and continuation that fit at this batch; None where that is not known."""
    tokens_per_s: SpeedPrediction | None
    """Decode rate as ``Decode`` defines it."""
    prefill_tokens_per_s: SpeedPrediction | None = None
    reason: str | None = None
    """Why it does not fit or is not known, with the first thing to change."""
    notes: tuple[str, ...] = ()
    splits: tuple[SplitPlan, ...] = ()
    """Over ``ModelPlan.gpus`` GPUs, one a way to split; empty for a plan of one GPU. The fields
    above are always of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """The prediction for one model, workload and hardware, a row per format."""

    schema_version: int = SCHEMA_VERSION
    model: ModelSpec
    parameters: int | None
    active_parameters: int | None
    workload: Workload
    gpu: Hardware | None
    """None: no GPU, every row is planned on the CPU."""
    gpus: int = 1
    """Number of such GPUs; each has the budget."""
    cpu: Hardware
    gpu_budget_bytes: int | None
    ram_budget_bytes: int | None
    kv_cache_dtype: KvCacheDtype | None = None
    rows: tuple[PlanRow, ...]
    notes: tuple[str, ...] = ()
    command: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything a worker process needs to make one row, and nothing else."""

    backend: str
    """Id as given: ``nf4``, or ``gguf:q3_k_m`` with a variant."""
    model: ModelSpec
    device: Device
    workload: Workload = field(default_factory=Workload)
    evaluation: EvaluationSettings | None = field(default_factory=EvaluationSettings)
    """None: quality is not scored (``--no-eval``)."""
    checkpoint: str | None = None
    """A ready artifact for this backend (folder, .gguf file or hub id); None quantises here."""
    calibration_file: str | None = None
    """Text for GPTQ and AWQ calibration; None uses the embedded text."""
    predicted: MemoryPrediction | None = None
    predicted_tokens_per_s: SpeedPrediction | None = None
    budget_bytes: int | None = None
    """Hard limit of GPU memory (``--gpu-gb`` × 10⁹); None for all of it."""
    ram_budget_bytes: int | None = None
    """Hard limit of the worker's RAM (``--ram-gb`` × 10⁹); None for all of it."""
    weights: Weights = "real"
    """``synthetic``: random weights made in the row's packed layout; nothing is scored."""
    threads: int | None = None
    """CPU threads; None for one per physical core."""
    seed: int = 0
    cache_dir: str | None = None
    """Where artifacts are kept; None for the user's cache folder."""
    notes: tuple[str, ...] = ()
    """What was changed from what was asked, before the row began; goes to its record."""
    allow_pickle: bool = False
    """Weights in pickles are read, their tensors alone; False refuses them."""
    trust_remote_code: bool = False
    """Python code that comes with the model is run where transformers has none for it."""
    offline: bool = False
    """The hub was not reached, or is not to be: what is downloaded already still serves."""
    kv_cache_dtype: KvCacheDtype | None = None
    """Type of the quantised KV cache; None keeps it in the row's 16-bit type."""
    offload_dir: str | None = None
    """Folder for weights that ``offload`` writes, removed after the row; None: one of its own."""
    reference_file: str | None = None
    """Logits of the reference row: written by that row, read by all others for the divergence."""
    llama_cpp_dir: str | None = None
    """A llama.cpp checkout whose converter then makes the GGUF, for every architecture."""
    gpus: int = 1
    """GPUs that the model is spread over, the first ones that are visible; on a CPU, processes that
    share it by tensor parallelism. The budget is of each, and ``predicted`` of the fullest."""
    split: Split = "balanced"
    """How it is spread where ``gpus`` is above 1."""
    profile: bool = False
    """Profile some decode steps after they were timed."""
    command: str | None = None
    """The command line that makes this row again."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Content hash of each local file or folder that the row reads beside the model, by path."""


# ---------------------------------------------------------------- what is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A measured quantity: the raw samples, their median, and a 95 % interval of the median."""

    median: float
    low: float
    high: float
    samples: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """What really ran: class of the linear layers, and the attention kernel's name."""

    linear: str
    attention: str
    step: str | None = None
    """Kernels of linear layers and norms in decode steps of one sequence; None where the
    library's."""
    trial_s: dict[str, dict[str, float]] = field(default_factory=dict)
    """Seconds that a trial measured for all layers, by the kernel: of one step by the class of the
    layers, or, for 4-bit kernels on a GPU, by the number of tokens run at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Predicted and measured memory of one row, in bytes."""

    device: Device
    """The memory that ``predicted_bytes`` and ``peak_bytes`` are of: the GPU's, or the host's."""
    predicted_bytes: int | None = None
    predicted: MemoryPrediction | None = None
    peak_bytes: int | None = None
    """GPU: peak allocated by torch, or, of an engine that takes its memory itself, what the driver
    gave beyond torch's context. CPU: peak resident set less the idle worker's."""
    error_pct: float | None = None
    """100 × (predicted − peak) ÷ peak."""
    peak_ram_bytes: int | None = None
    """Peak resident set of the worker less that of the idle worker, on every device."""
    idle_ram_bytes: int | None = None
    """Resident set of the worker after its imports and before the model."""
    allocated_bytes: int | None = None
    """GPU, of several the first: allocated right after loading."""
    reserved_bytes: int | None = None
    """GPU, of several the first: peak reserved by the allocator."""
    driver_peak_bytes: int | None = None
    """GPU, of several the first: what the driver gave to this process, where it tells."""
    per_gpu_peak_bytes: tuple[int, ...] = ()
    """Over several GPUs ``peak_bytes`` of each, in their order; ``peak_bytes`` is the largest. Of
    processes that share a CPU, each one's. Empty for a row on one device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Distribution of decode-step latency in seconds, over all steps of all repeats."""

    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    samples_s: tuple[tuple[float, ...], ...]
    """Raw step times, one tuple per repeat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """Decode rate: batch × (new_tokens − 1) ÷ seconds after the first token; and its steps."""

    tokens_per_s: Sampled
    step: Latency


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """Prefill rate: batch × prompt_tokens ÷ seconds to the first token."""

    tokens_per_s: Sampled


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Energy of decode steps; None where the machine counts none."""

    joules_per_token: float | None = None
    source: str | None = None
    """What counted, e.g. ``NVML's energy counter``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Timing of one loaded model under one workload."""

    decode: Decode
    prefill: Prefill
    ttft_s: Sampled
    warmup_s: tuple[float, ...]
    """Wall time of each warm-up run; the first includes compilation."""
    warnings: tuple[MeasurementWarning, ...] = ()
    notes: tuple[str, ...] = ()
    """What the decoder did otherwise than it should."""
    energy: Energy = field(default_factory=Energy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """The bandwidth limit of decode at this workload and the share of it reached."""

    limit_tokens_per_s: float | None = None
    fraction: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileGroup:
    """Kernels of one kind in a decode step, or what is between all of them."""

    name: str
    step_s: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProfile:
    """Where the time of a decode step goes."""

    step_s: float
    """Of a step without the profiler."""
    steps: int
    """Profiled, after as many that were timed."""
    groups: tuple[ProfileGroup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HellaSwag:
    """HellaSwag by lm-eval: accuracies in 0…1, standard error of acc_norm, number of items."""

    acc: float
    acc_norm: float
    stderr: float
    n: int
    acc_stderr: float | None = None
    correct: tuple[bool, ...] = ()
    """Per item, in the file's order: was the acc_norm choice right? For paired comparisons."""
    task: str = "hellaswag"


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """Perplexity of a text: per token over windows, per word and byte by lm-eval."""

    token: float
    protocol: str
    """Window, what is scored, and BOS convention of ``token``."""
    n_tokens: int
    low: float | None = None
    high: float | None = None
    """95 % bootstrap interval of ``token`` over the blocks; None for fewer than two blocks."""
    block_nll: tuple[float, ...] = ()
    """Summed negative log-likelihood, in nats, of each block of scored tokens, in text order."""
    block_tokens: tuple[int, ...] = ()
    """Number of scored tokens in each block."""
    word: float | None = None
    byte: float | None = None
    bits_per_byte: float | None = None
    n_documents: int | None = None
    task: str = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """How far the next-token distributions are from the reference's, token by token.

    KL(reference ‖ row) in nats; its mean stands in ``RunRecord.kl_divergence``.
    """

    reference: str
    """Backend id of the reference row."""
    n_tokens: int
    mean: float
    low: float | None
    high: float | None
    """95 % bootstrap interval of the mean, over blocks of neighbouring tokens."""
    median: float
    p99: float
    top1_agreement: float
    """Share of tokens for which both find the same token most likely, 0…1."""
    top1_low: float | None
    top1_high: float | None
    """95 % interval of ``top1_agreement``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskMetric:
    """One metric of an lm-eval task, as lm-eval names it, e.g. ``acc`` with filter ``none``."""

    name: str
    filter: str
    value: float
    stderr: float | None = None
    higher_is_better: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """An lm-eval task or group other than the two that have columns of their own."""

    task: str
    version: str | None
    n: int | None
    num_fewshot: int | None
    metrics: tuple[TaskMetric, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Quality of one loaded model."""

    hellaswag: HellaSwag | None = None
    perplexity: Perplexity | None = None
    divergence: Divergence | None = None
    tasks: tuple[TaskResult, ...] = ()
    notes: tuple[str, ...] = ()
    """What could not be scored, and why."""
    seconds: float | None = None


# ---------------------------------------------------------------- what is compared


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A figure of a row minus the reference's, paired, with its 95 % interval."""

    mean: float
    low: float
    high: float
    p_value: float | None = None
    """Two-sided, of no difference at all; None where the method gives none."""
    method: str = ""

    @property
    def tie(self) -> bool:
        """True when the interval holds 0: the data do not tell the two apart."""
        return self.low <= 0.0 <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityDifference:
    """A row's quality against the reference row's on the same items; None: not comparable."""

    reference: str
    """Backend id of the reference row."""
    acc_norm: Difference | None = None
    """HellaSwag acc_norm, as shares of the items."""
    perplexity: Difference | None = None
    """Token perplexity."""
    perplexity_ratio: Difference | None = None
    """Token perplexity ÷ the reference's − 1."""


# ---------------------------------------------------------------- a row


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementWarning:
    """Something about the machine or the samples that puts a figure in doubt."""

    code: str
    """Stable name: few_samples, drift, unsteady, busy_cpu, busy_gpu, throttled, power_cap, swap."""
    message: str
    """What was seen, with its figure."""
    hint: str
    """What to do about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Machine and versions of a run."""

    platform: str
    python: str
    cpu: str
    cpu_cores: int
    ram_bytes: int | None
    gpu: str | None = None
    gpu_memory_bytes: int | None = None
    gpu_count: int | None = None
    """GPUs that torch sees; ``gpu`` is the first of them."""
    cuda: str | None = None
    driver: str | None = None
    packages: dict[str, str] = field(default_factory=dict)
    cpu_bandwidth: float | None = None
    """Read bandwidth of the RAM by all cores, bytes per second, measured just before the rows."""
    gpu_bandwidth: float | None = None
    """Likewise of the GPU's memory."""
    kind: str | None = None
    """Of a fleet's node: its GPU by the fleet's name, such as H100, or cpu; None outside one."""
    node: str | None = None
    """The fleet's node; None outside one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One row: what was asked, what happened, what was measured."""

    schema_version: int = SCHEMA_VERSION
    backend: str
    label: str
    """The row's name for people, e.g. ``GGUF Q4_K_M (CPU)``."""
    status: Status
    reason: str | None = None
    """Why the row is not ok, with the next command; None for an ok row."""
    notes: tuple[str, ...] = ()
    """What was done instead of what was asked, and other facts a reader needs."""
    device: Device | None = None
    kernel: Kernel | None = None
    dtype: str | None = None
    quantized_share: float | None = None
    """Share of all parameters held in the quantised format, 0…1."""
    weights_bytes: int | None = None
    """Bytes of all parameters and quantisation constants as loaded."""
    huge_page_bytes: int | None = None
    """Of them, what lies in huge pages of a CPU's memory; None where there are no such pages, or
    the row's library does not ask for them."""
    artifact: str | None = None
    """Path of the checkpoint that was loaded, where it is not the model itself."""
    memory: Memory | None = None
    predicted_tokens_per_s: SpeedPrediction | None = None
    """Decode rate, predicted before the row ran."""
    predicted_only: bool = False
    """True for a row that was not to be run: its figures are predictions."""
    decode: Decode | None = None
    prefill: Prefill | None = None
    ttft_s: Sampled | None = None
    load_s: float | None = None
    quantize_s: float | None = None
    """Seconds to make the artifact in this run; None when it was ready."""
    compile_s: float | None = None
    warmup_s: tuple[float, ...] = ()
    roofline: Roofline = field(default_factory=Roofline)
    energy: Energy = field(default_factory=Energy)
    hellaswag: HellaSwag | None = None
    perplexity: Perplexity | None = None
    kl_divergence: float | None = None
    """Mean KL divergence from the reference row, nats a token; None for that row itself."""
    top1_agreement: float | None = None
    divergence: Divergence | None = None
    tasks: tuple[TaskResult, ...] = ()
    difference: QualityDifference | None = None
    """Against the reference row; None for that row itself and where nothing is comparable."""
    warnings: tuple[MeasurementWarning, ...] = ()
    profile: StepProfile | None = None
    """Only where it was asked for, and PyTorch runs the row."""
    measure_s: float | None = None
    """Seconds of warm-ups and timed runs, compilation included."""
    evaluate_s: float | None = None
    total_s: float | None = None
    started_at: str | None = None
    """UTC, ISO 8601."""
    plan: Plan | None = None
    """What was asked: model with content hash, workload, evaluation, seed, command."""
    environment: Environment | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why a row was not picked."""

    backend: str
    reason: str
    bound: str | None = None
    """What turned it down: run, device, memory, known rate, rate, accuracy or perplexity. None: it
    is within all bounds, and another is better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The pick, or None where no row can be recommended, with the reasons."""

    backend: str | None
    reasons: tuple[str, ...]
    rejected: tuple[Rejection, ...] = ()
    tied: tuple[str, ...] = ()
    """Other rows that are as good as the pick by the objective."""
    pareto: tuple[str, ...] = ()
    """Rows that no other row beats in speed, memory and quality at once."""
    changes: tuple[str, ...] = ()
    """What would change the choice."""
    predicted: bool = False
    """True where the choice rests on predictions, nothing was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All rows of one model on one machine, with the verdict."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    model: ModelSpec
    workload: Workload
    budget_bytes: int | None
    rows: tuple[RunRecord, ...]
    verdict: Verdict
    environment: Environment
    command: str | None = None
    """The command line that makes this comparison again."""
    record: str | None = None
    """What ``llmfit reproduce`` finds it by: the run's id, or its folder where that was chosen."""
    ram_budget_bytes: int | None = None
    gpu: Hardware | None = None
    """The GPU that predictions are for, where none is in the machine or another was named."""
    total_s: float | None = None
    """Seconds from the call to the verdict; None where nothing ran."""
    store_error: str | None = None
    """Why the run is not in the results store, and how to add it; None where it is."""


# ---------------------------------------------------------------- JSON

T = TypeVar("T")
_UNSEEN = re.compile(
    "[\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\uffff"
    "\U000e0001-\U000e007f]"
)
"""What a terminal or a script would obey; the other control characters JSON escapes by itself."""


def to_json(record: object, *, indent: int = 2) -> str:
    """Return a record as JSON text, keys in the order of its fields.

    Texts read back as they are; in the file no control character stands for itself.
    """
    text = msgspec.json.format(msgspec.json.encode(record), indent=indent).decode()
    return _UNSEEN.sub(lambda found: json.dumps(found[0])[1:-1], text)


def require_types(record: object) -> None:
    """Raise UsageError where a field of a record holds what its type does not take.

    Python takes anything: it would be written, and not be read again.
    """
    try:
        msgspec.convert(msgspec.to_builtins(record), type(record))
    except (msgspec.ValidationError, TypeError) as exc:
        said = str(exc).replace("$.", "").replace("`", "")
        raise UsageError(f"{type(record).__name__}: {said}.") from exc


def to_builtins(record: object) -> Any:
    """Return a record as dicts, lists and scalars."""
    return msgspec.to_builtins(record)


def from_json(kind: type[T], text: str | bytes, *, source: str = "JSON") -> T:
    """Read a record of type ``kind`` back.

    Raises StoreError naming ``source`` and the offending key when the text does not fit.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise StoreError(f"{source} is not a {kind.__name__}: {exc}.") from exc


def keys_of(text: str | bytes, *, source: str) -> frozenset[str]:
    """The keys of a JSON object, by which kinds of records are told apart; none of another value.

    Raises StoreError naming ``source`` for what is no JSON.
    """
    try:
        return frozenset(msgspec.json.decode(text, type=dict[str, msgspec.Raw]))
    except msgspec.ValidationError:
        return frozenset()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise StoreError(f"{source} is no record: it is not JSON ({exc}).") from exc


def read_record(kind: type[T], path: Path) -> T:
    """Read a record from a file; raises StoreError when it is missing or does not fit."""
    try:
        text = path.read_bytes()
    except OSError as exc:
        raise StoreError(f"cannot read {path}: {exc.strerror}.") from exc
    return from_json(kind, text, source=str(path))
