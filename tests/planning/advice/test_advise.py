"""The decision guide's rules, one by one, and that each command it names is a real one."""

from __future__ import annotations

import itertools
import shlex

import pytest

from llmfit.cli.main import _parser
from llmfit.errors import UsageError
from llmfit.planning.advice.advise import Advice, recommend_optimization
from llmfit.planning.advice.measured_effects import measured_effect
from llmfit.planning.advice.situation import HARDWARE_KINDS, TASKS
from llmfit.planning.advice.techniques import TECHNIQUES
from llmfit.records import Environment, Plan, Workload
from llmfit.studies.registry import STUDIES
from llmfit.testing import make_model, make_record

ALWAYS = ["mixed precision", "flash attention", "torch.compile", "KV cache"]


def names(vram_gb: float, task: str, critical: bool, hardware: str) -> list[str]:
    """Names of the techniques beyond those that are always there."""
    advice = recommend_optimization(vram_gb, task, critical, hardware)  # type: ignore[arg-type]
    assert [a.technique for a in advice[:4]] == ALWAYS
    assert all(a.strength == "always" for a in advice[:4])
    return [a.technique for a in advice[4:]]


def everything() -> list[Advice]:
    """All advice there is, of every combination."""
    grid = itertools.product((0, 8, 16, 24), TASKS, (True, False), HARDWARE_KINDS)
    return [advice for case in grid for advice in recommend_optimization(*case)]


def test_training_below_24_gb() -> None:
    """Below 24 GB, and not at 24, training is told to checkpoint and to accumulate."""
    saving = ["gradient checkpointing", "gradient accumulation"]
    assert names(23.9, "training", False, "server_gpu") == saving
    assert names(24, "training", False, "server_gpu") == []
    assert names(24, "training", True, "cpu") == []


def test_training_on_small_hardware_is_by_qlora() -> None:
    """On a consumer GPU and on the edge, whatever the memory and the need for accuracy."""
    for hardware, critical in itertools.product(("consumer_gpu", "edge"), (True, False)):
        assert names(24, "training", critical, hardware) == ["QLoRA"]
        assert names(8, "training", critical, hardware)[-1] == "QLoRA"


@pytest.mark.parametrize(
    ("hardware", "formats"),
    [
        ("server_gpu", ["GPTQ INT4"]),
        ("consumer_gpu", ["AWQ INT4", "GGUF Q4_K_M"]),
        ("cpu", ["GGUF Q4_K_M", "AWQ INT4"]),
        ("edge", ["GGUF Q3_K_M", "GGUF Q4_K_M"]),
    ],
)
def test_inference_takes_the_format_of_the_place(hardware: str, formats: list[str]) -> None:
    """Where accuracy is not critical, the 4-bit format goes by hardware; else it is INT8."""
    assert names(16, "inference", False, hardware) == formats
    assert names(16, "inference", True, hardware) == ["INT8 (bitsandbytes)"]
    assert names(16, "edge", False, hardware) == ["GGUF Q3_K_M", "GGUF Q4_K_M"]
    assert names(16, "edge", True, hardware) == ["INT8 (bitsandbytes)"]


def test_below_16_gb_there_are_options() -> None:
    """ONNX export and distillation are options below 16 GB, not at 16, and not for training."""
    for task, critical in itertools.product(("inference", "edge"), (True, False)):
        advice = recommend_optimization(15.9, task, critical, "cpu")  # type: ignore[arg-type]
        options = [a.technique for a in advice if a.strength == "option"]
        assert options == ["ONNX export", "distillation"]
        assert not {"ONNX export", "distillation"} & set(names(16, task, critical, "cpu"))
    assert "ONNX export" not in names(8, "training", False, "cpu")


def test_flash_attention_and_the_cache_say_when() -> None:
    """Flash attention names its 512 tokens; training is told that its steps have no cache."""
    advice = {a.technique: a for a in recommend_optimization(8, "training", False, "edge")}
    assert "beyond 512 tokens" in advice["flash attention"].why
    assert "a training step has no cache" in advice["KV cache"].why


def test_every_effect_has_a_source_and_a_way_to_see_it() -> None:
    """No advice without source or without what measures it."""
    for advice in everything():
        assert advice.expected.source and advice.why and advice.command
        for figure in (advice.expected.memory, advice.expected.speed, advice.expected.quality):
            assert figure is None or figure


def test_every_command_is_one_of_llmfit() -> None:
    """Each command is taken by the command line as it stands, and names a study that there is."""
    parser = _parser()
    commands = {advice.command for advice in everything()}
    assert len(commands) > 10
    for found in sorted(commands):
        words = shlex.split(found)[1:]
        args = parser.parse_args(words)
        assert args.verb == words[0]
        assert args.verb != "study" or args.study in STUDIES


def test_the_budget_is_in_the_command() -> None:
    """On a GPU the commands measure within the memory that was named."""
    advice = recommend_optimization(12, "inference", False, "consumer_gpu")
    assert advice[4].command == "llmfit compare MODEL --backends bf16,awq --gpu-gb 12"
    on_cpu = recommend_optimization(0, "inference", True, "cpu")
    assert on_cpu[4].command == "llmfit compare MODEL --backends bf16,int8,gguf:q8_0"


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ((-1, "inference", False, "cpu"), "vram_available_gb .* not -1"),
        ((float("nan"), "inference", False, "cpu"), "vram_available_gb .* not nan"),
        (("8", "inference", False, "cpu"), "vram_available_gb .* not '8'"),
        ((True, "inference", False, "cpu"), "vram_available_gb .* not True"),
        ((8, "sleeping", False, "cpu"), "'sleeping'; known are training, inference, edge"),
        ((8, "inference", False, "tpu"), "'tpu'; known are server_gpu, consumer_gpu, cpu, edge"),
    ],
)
def test_values_that_cannot_be_meant(case: tuple[object, ...], words: str) -> None:
    """Each is a usage error with the value and what is known."""
    with pytest.raises(UsageError, match=words):
        recommend_optimization(*case)  # type: ignore[arg-type]


# ---------------------------------------------------------------- measured here


def test_own_records_stand_beside_what_was_published() -> None:
    """The ratio of two comparable rows is given with the workload that it was measured on."""
    plan = Plan(backend="bf16", model=make_model(), device="cuda", workload=Workload())
    rows = [
        make_record("awq", tokens_per_s=52, peak_gb=4.7, perplexity=6.35, plan=plan),
        make_record("bf16", tokens_per_s=38, peak_gb=16.0, perplexity=6.14, plan=plan),
    ]
    advice = recommend_optimization(16, "inference", False, "consumer_gpu", records=rows)
    measured = next(a.measured for a in advice if a.technique == "AWQ INT4")
    assert measured is not None
    assert measured.memory == "−71 %"  # 4.7 ÷ 16.0
    assert measured.speed == "1.37×"  # 52 ÷ 38
    assert measured.quality == "perplexity +3.4 %"  # 6.35 ÷ 6.14
    assert "meta-llama/Llama-3.1-8B, 512 + 128 tokens" in measured.source
    assert all(a.measured is None for a in advice if a.technique != "AWQ INT4")


def test_records_that_do_not_compare_give_no_effect() -> None:
    """Rows of two workloads or machines, or a row alone, measure nothing."""
    plan = Plan(backend="bf16", model=make_model(), device="cuda", workload=Workload())
    longer = Plan(
        backend="awq", model=make_model(), device="cuda", workload=Workload(prompt_tokens=4096)
    )
    here = Environment(
        platform="Linux", python="3.12.1", cpu="Example", cpu_cores=8, ram_bytes=None
    )
    bf16 = make_record("bf16", plan=plan)
    assert measured_effect([make_record("awq", plan=longer), bf16], "bf16", "awq") is None
    assert measured_effect([make_record("awq", environment=here), bf16], "bf16", "awq") is None
    assert measured_effect([bf16], "bf16", "awq") is None
    assert measured_effect([make_record("awq", plan=plan), bf16], "bf16", "awq") is not None


def test_memory_of_two_places_is_not_compared() -> None:
    """GGUF's RAM says nothing about what bf16 takes on the GPU."""
    rows = [make_record("gguf", device="cpu"), make_record("bf16", device="cuda")]
    effect = measured_effect(rows, "bf16", "gguf")
    assert effect is not None and effect.memory is None and effect.speed == "1.00×"


def test_pairs_are_of_backends_that_there_are() -> None:
    """Each pair that own records are searched for can be in a record."""
    from llmfit.backends.registry import get_backend

    for technique in TECHNIQUES.values():
        for backend in technique.pair or ():
            assert get_backend(backend)
