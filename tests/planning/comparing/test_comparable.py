"""Records are compared only where machine, versions and task are the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmfit.errors import UsageError
from llmfit.planning.comparing.comparable import difference_in, require_comparable
from llmfit.records import Environment, EvaluationSettings, Plan, RunRecord, Workload
from llmfit.testing import make_model, make_record

HERE = Environment(
    platform="Linux-6.1-x86_64",
    python="3.12.1",
    cpu="Example CPU",
    cpu_cores=8,
    ram_bytes=32 * 2**30,
    gpu="NVIDIA GeForce RTX 3090",
    gpu_memory_bytes=24 * 2**30,
    cuda="13.0",
    driver="580.10",
    packages={"torch": "2.13.0", "transformers": "5.23.0"},
)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"cpu": "Other CPU"}, "cpu is 'Example CPU' in one and 'Other CPU' in the other"),
        ({"cpu_cores": 4}, "cpu_cores is 8 in one and 4 in the other"),
        ({"ram_bytes": 16 * 2**30}, "ram_bytes is"),
        ({"gpu": None, "gpu_memory_bytes": None, "cuda": None}, "gpu is 'NVIDIA GeForce RTX 3090'"),
        ({"gpu_memory_bytes": 12 * 2**30}, "gpu_memory_bytes is"),
        ({"cuda": "12.8"}, "cuda is '13.0' in one and '12.8' in the other"),
        ({"driver": "570.01"}, "driver is '580.10' in one and '570.01' in the other"),
        ({"python": "3.11.1"}, "python is '3.12' in one and '3.11' in the other"),
        ({"packages": {"torch": "2.12.0", "transformers": "5.23.0"}}, "torch is '2.13.0'"),
        ({"packages": {"torch": "2.13.0"}}, "transformers is '5.23.0' in one and None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_the_differing_field_is_named(change: dict[str, Any], names: str) -> None:
    """Each field that counts is named with both values, and the same from either side."""
    other = replace(HERE, **change)
    assert names in str(difference_in(HERE, other))
    assert str(difference_in(other, HERE)).split()[0] == names.split()[0]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"platform": "Linux-6.2-x86_64"},
        {"python": "3.12.9"},
        {"ram_bytes": 32 * 2**30 - 2**27},
        {"ram_bytes": None},
        {"driver": None},
    ],
    ids=str,
)
def test_what_does_not_move_a_figure_is_no_difference(change: dict[str, Any]) -> None:
    """A bug-fix release of Python, some MB of RAM, or what a machine did not tell."""
    assert difference_in(HERE, replace(HERE, **change)) is None


def row(backend: str, **plan: Any) -> RunRecord:
    """An ok row with its plan, run here."""
    asked = {"model": make_model(content_hash="00ff"), "device": "cuda", **plan}
    return make_record(backend, environment=HERE, plan=Plan(backend=backend, **asked))


def test_rows_of_one_comparison_are_comparable() -> None:
    """Formats may differ, also in cache type, checkpoint and limits on memory; so may no plan."""
    first = row("bf16")
    require_comparable(first, row("nf4", kv_cache_dtype="q8_0", checkpoint="here"))
    require_comparable(first, row("nf4", evaluation=None))
    require_comparable(first, row("nf4", evaluation=EvaluationSettings(batch_tokens=512)))
    require_comparable(make_record("bf16"), make_record("nf4"))


@pytest.mark.parametrize(
    ("other", "names"),
    [
        (row("nf4", model=make_model(content_hash="01")), "model.content_hash is '00ff' in one"),
        (row("nf4", model=make_model(name="b")), "model.name is 'meta-llama/Llama-3.1-8B' in one"),
        (row("nf4", workload=Workload(batch=2)), "workload.batch is 1 in one and 2 in the other"),
        (
            row("nf4", evaluation=EvaluationSettings(limit=5)),
            "evaluation.limit is None in one and 5 in the other",
        ),
        (
            row("nf4", evaluation=EvaluationSettings(ppl_protocol="llama.cpp")),
            "evaluation.ppl_protocol is 'window' in one",
        ),
        (make_record("nf4"), "the environment is recorded in only one"),
        (
            make_record("nf4", environment=replace(HERE, gpu="NVIDIA H200")),
            "gpu is 'NVIDIA GeForce RTX 3090' in one and 'NVIDIA H200' in the other",
        ),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_other_records_are_refused(other: RunRecord, names: str) -> None:
    """The error names both rows and the field, and says what to do."""
    with pytest.raises(UsageError) as caught:
        require_comparable(row("bf16"), other)
    assert caught.value.message.startswith("records of bf16 and nf4 are not compared: ")
    assert names in caught.value.message
    assert caught.value.hint is not None
