"""The comparison: rows that cannot run are rows, and what is finished is kept."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

import llmfit
from llmfit.backends.base import Package
from llmfit.backends.nf4 import Nf4
from llmfit.backends.registry import default_backends
from llmfit.comparison import compare
from llmfit.errors import ModelNotFound, StoreError, UsageError
from llmfit.executors.local import Local, LocalSite
from llmfit.job import ComparisonInterrupted
from llmfit.keeping import Keeping
from llmfit.models import data_path
from llmfit.records import (
    Comparison,
    EvaluationSettings,
    ModelSpec,
    Plan,
    RunRecord,
    Workload,
    read_record,
)

QUICK = Workload(prompt_tokens=16, new_tokens=8)
FEW = EvaluationSettings(limit=4)


class Watcher:
    """Notes what a comparison tells, and may act on it."""

    def __init__(self, on_progress: Any = None) -> None:
        self.started: list[str] = []
        self.done: list[RunRecord] = []
        self.on_progress = on_progress

    def row_started(self, backend: str, label: str, index: int, total: int) -> None:
        self.started.append(backend)

    def progress(self, backend: str, stage: str, done: int, total: int) -> None:
        if self.on_progress is not None:
            self.on_progress(backend, stage, done)

    def row_done(self, record: RunRecord) -> None:
        self.done.append(record)


def kept(folder: Path) -> Keeping:
    """Runs' files in ``folder``."""
    return Keeping(runs_dir=str(folder))


def quantised_copy(tmp_path: Path, method: dict[str, Any]) -> Path:
    """A folder whose config says that its weights are quantised."""
    folder = tmp_path / "quantised"
    folder.mkdir()
    config = json.loads((data_path("embedded") / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": method}))
    return folder


@pytest.mark.slow
def test_rows_and_verdict_are_on_disk(warm: Local, tmp_path: Path) -> None:
    """Each row is a file as soon as it is done, and the whole is one too."""
    watcher = Watcher()
    seen: list[list[str]] = []
    watcher.row_done = lambda record: seen.append(  # type: ignore[method-assign]
        sorted(path.name for path in tmp_path.glob("*/*.json"))
    )
    comparison = compare(
        backends=["sdpa", "nf4"], workload=QUICK, evaluation=FEW, keeping=kept(tmp_path),
        executor=warm, observer=watcher,
    )  # fmt: skip
    assert seen == [["sdpa.json"], ["nf4.json", "sdpa.json"]]
    assert [row.status for row in comparison.rows] == ["ok", "ok"]
    folder = tmp_path / comparison.run_id
    assert read_record(Comparison, folder / "comparison.json") == comparison
    # A row is written as it ends; what it is beside the reference row is known once all have.
    alone = replace(comparison.rows[1], difference=None)
    assert read_record(RunRecord, folder / "nf4.json") == alone
    for row in comparison.rows:
        assert row.hellaswag is not None and row.hellaswag.n == 4
        assert row.perplexity is not None and row.perplexity.token > 1
        assert row.memory is not None and row.memory.predicted_bytes is not None
    assert comparison.verdict.backend in ("sdpa", "nf4")


@pytest.mark.slow
def test_the_reference_runs_first_and_the_others_are_held_against_it(
    warm: Local, tmp_path: Path
) -> None:
    """Named last, bf16 still runs first; rows keep the order asked for; its logits do not stay."""
    watcher = Watcher()
    comparison = compare(
        backends=["sdpa", "bf16"], workload=QUICK, evaluation=FEW, keeping=kept(tmp_path),
        executor=warm, observer=watcher,
    )  # fmt: skip
    assert watcher.started == ["bf16", "sdpa"]
    sdpa, bf16 = comparison.rows
    assert (sdpa.backend, bf16.backend) == ("sdpa", "bf16")
    assert bf16.divergence is None and bf16.difference is None
    assert sdpa.divergence is not None and sdpa.divergence.reference == "bf16"
    assert sdpa.perplexity is not None and sdpa.divergence.n_tokens == sdpa.perplexity.n_tokens
    assert sdpa.kl_divergence == sdpa.divergence.mean and 0 < sdpa.divergence.mean < 0.01
    assert sdpa.top1_agreement == sdpa.divergence.top1_agreement > 0.95
    assert sdpa.difference is not None and sdpa.difference.reference == "bf16"
    folder = tmp_path / comparison.run_id
    assert {path.suffix for path in folder.iterdir()} == {".json", ".log"}


@pytest.mark.slow
def test_a_record_says_what_made_it(warm: Local, tmp_path: Path) -> None:
    """Machine, content hashes of model and inputs, seed, settings and command are in each row."""
    comparison = compare(
        backends=["sdpa"], workload=QUICK, evaluation=FEW, keeping=kept(tmp_path), seed=7,
        executor=warm, command="llmfit compare --seed 7",
    )  # fmt: skip
    (row,) = comparison.rows
    assert row.environment == comparison.environment
    assert row.plan is not None and row.plan.model.content_hash is not None
    assert (row.plan.seed, row.plan.command) == (7, "llmfit compare --seed 7")
    assert row.plan.evaluation == FEW and row.plan.workload == QUICK
    texts = {data_path("hellaswag.jsonl"), data_path("text.txt")}
    assert set(row.plan.inputs) == {str(path) for path in texts}
    for path, digest in row.plan.inputs.items():
        content = hashlib.blake2b(Path(path).read_bytes(), digest_size=20).hexdigest()
        listed = f"{Path(path).name}\0{content}\n".encode()
        assert digest == hashlib.blake2b(listed, digest_size=20).hexdigest()


@pytest.mark.slow
def test_a_short_context_shortens_the_default_workload(tmp_path: Path, user_folders: Path) -> None:
    """Nothing asked: the rows are timed with what fits, and say so; asked for, it is refused."""
    folder = tmp_path / "short"
    folder.mkdir()
    for file in data_path("embedded").glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    (folder / "model.safetensors").symlink_to(data_path("embedded") / "model.safetensors")
    comparison = compare(str(folder), backends=["sdpa"], evaluation=None)
    assert comparison.workload == Workload(prompt_tokens=48, new_tokens=16)
    (row,) = comparison.rows
    assert row.status == "ok", row.reason
    assert any("48 prompt + 16 new tokens instead of 512 + 128" in note for note in row.notes)
    with pytest.raises(UsageError, match="context of 64"):
        compare(str(folder), backends=["sdpa"], evaluation=None, workload=Workload())


@pytest.mark.slow
def test_a_missing_package_is_an_unavailable_row(
    warm: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row says the exact pip line, and the others run."""
    absent = (*Nf4.packages, Package("no_such_module", "no-such-package"))
    monkeypatch.setattr(Nf4, "packages", absent)
    comparison = compare(
        backends=["nf4", "sdpa"],
        workload=QUICK,
        evaluation=None,
        keeping=kept(tmp_path),
        executor=warm,
    )
    assert [row.status for row in comparison.rows] == ["unavailable", "ok"]
    assert "no-such-package" in str(comparison.rows[0].reason)
    assert "pip install 'llmfit[bnb]'" in str(comparison.rows[0].reason)
    assert comparison.verdict.backend == "sdpa"


@pytest.mark.slow
def test_a_quantised_model_leaves_the_other_rows_out(warm: Local, tmp_path: Path) -> None:
    """Rows of other formats say why they were skipped."""
    folder = quantised_copy(tmp_path, {"quant_method": "eetq"})
    comparison = compare(
        str(folder), workload=QUICK, evaluation=None, keeping=kept(tmp_path), executor=warm
    )
    assert {row.status for row in comparison.rows} == {"skipped"}
    stored, *others = comparison.rows
    assert stored.backend == "stored" and "loads compressed-tensors" in str(stored.reason)
    assert len(others) == 8
    assert all("already quantised (eetq)" in str(row.reason) for row in others)
    assert comparison.verdict.backend is None


@pytest.mark.slow
def test_a_budget_that_is_too_small_rules_rows_out(
    warm: Local, tmp_path: Path, artifact_cache: Path
) -> None:
    """Rows that need more than --gpu-gb are not tried; the CPU row has no such bound."""
    comparison = compare(
        backends=["bf16", "gguf"], workload=QUICK, evaluation=None, gpu_gb=0.001,
        keeping=kept(tmp_path), executor=warm, cache_dir=str(artifact_cache),
    )  # fmt: skip
    bf16, gguf = comparison.rows
    assert bf16.status == "does_not_fit" and "budget is 1.00 MB" in str(bf16.reason)
    assert gguf.status == "ok", gguf.reason


@pytest.mark.slow
def test_a_killed_worker_costs_only_its_row(warm: Local, tmp_path: Path) -> None:
    """kill -9 of the second row's process: that row failed with its reason, the others are ok."""

    def kill(backend: str, stage: str, done: int) -> None:
        if backend == "bf16" and stage == "measure":
            for child in psutil.Process().children(recursive=True):
                if "llmfit.runner" in " ".join(child.cmdline()) and not child.children():
                    child.kill()  # the worker, and not the server that it was forked from

    comparison = compare(
        backends=["sdpa", "bf16", "nf4"], workload=QUICK, evaluation=None,
        keeping=kept(tmp_path), executor=warm, observer=Watcher(kill),
    )  # fmt: skip
    assert [row.status for row in comparison.rows] == ["ok", "failed", "ok"]
    assert "SIGKILL" in str(comparison.rows[1].reason)


@pytest.mark.slow
def test_all_formats_of_a_real_model(
    warm: Local, stories260k: ModelSpec, shared_data: Path, tmp_path: Path, artifact_cache: Path
) -> None:
    """stories260K, whose width of 172 suits no block: eight rows are ok and say what they did."""
    settings = EvaluationSettings(
        hellaswag_file=str(shared_data / "hellaswag_val_sample1000.jsonl"),
        text_file=str(shared_data / "tinystories_sample.txt"),
        limit=20,
    )
    comparison = compare(
        stories260k.path,
        backends=[*default_backends(stories260k), "gguf:f16"],
        workload=QUICK,
        evaluation=settings,
        keeping=kept(tmp_path),
        executor=warm,
        cache_dir=str(artifact_cache),
    )
    rows = {row.backend: row for row in comparison.rows}
    assert {row.status for row in comparison.rows} == {"ok"}, [r.reason for r in comparison.rows]
    loss = {name: math.log(row.perplexity.token) for name, row in rows.items() if row.perplexity}
    assert len(loss) == 9
    assert rows["gguf:f16"].perplexity is not None and rows["bf16"].perplexity is not None
    ratio = rows["gguf:f16"].perplexity.token / rows["bf16"].perplexity.token
    assert ratio == pytest.approx(1.0, abs=0.03)
    for name in ("int8", "nf4", "gptq", "awq", "gguf"):
        assert loss[name] != loss["bf16"], f"{name} is really quantised"
        assert loss[name] == pytest.approx(loss["bf16"], rel=0.15)
    for name in ("gptq", "awq"):  # 172 divides by no group size: those layers stay in bf16
        assert 0 < (rows[name].quantized_share or 0) < 0.9
        assert "bf16, as their shape does not divide" in " ".join(rows[name].notes)
        assert "23.6 % of parameters quantised" in rows[name].notes
    assert "172" in " ".join(rows["gguf"].notes)


@pytest.mark.slow
def test_an_interrupt_keeps_the_finished_rows(warm: Local, tmp_path: Path) -> None:
    """Ctrl-C in the second row: the first is kept, the rest are skipped, all is on disk."""

    def interrupt(backend: str, stage: str, done: int) -> None:
        if backend == "bf16" and stage == "measure":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(ComparisonInterrupted) as caught:
        compare(
            backends=["sdpa", "bf16", "nf4"], workload=QUICK, evaluation=None,
            keeping=kept(tmp_path), executor=warm, observer=Watcher(interrupt),
        )  # fmt: skip
    rows = caught.value.comparison.rows
    assert [row.status for row in rows] == ["ok", "skipped", "skipped"]
    assert rows[1].reason == "interrupted"
    stored = read_record(Comparison, next(tmp_path.glob("*/comparison.json")))
    assert stored == caught.value.comparison


def test_an_interrupt_after_the_last_row_costs_nothing(warm: Local, tmp_path: Path) -> None:
    """While processes end, say: all rows are measured and kept by then, and are told."""

    class Interrupted(Local):
        @contextmanager
        def open(self, asked: Plan, *, device: str | None, measure: bool) -> Iterator[LocalSite]:
            with warm.open(asked, device=device, measure=measure) as site:
                yield site
            raise KeyboardInterrupt

    with pytest.raises(ComparisonInterrupted) as caught:
        compare(
            backends=["sdpa"], workload=QUICK, evaluation=None, keeping=kept(tmp_path),
            executor=Interrupted(),
        )  # fmt: skip
    found = caught.value.comparison
    assert [row.status for row in found.rows] == ["ok"] and found.verdict.backend == "sdpa"


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on(tmp_path: Path) -> None:
    """Its finished reference row is not run again, and its logits give the others' divergence."""
    keeping = Keeping(runs_dir=str(tmp_path), store=str(tmp_path / "s.db"))

    def interrupt(backend: str, stage: str, done: int) -> None:
        if backend == "sdpa" and stage == "measure":
            os.kill(os.getpid(), signal.SIGINT)

    def run(observer: Watcher, resume: str | None) -> Comparison:
        return compare(
            backends=["sdpa", "bf16"], workload=QUICK, evaluation=FEW,
            keeping=replace(keeping, resume=resume), observer=observer,
        )  # fmt: skip

    with pytest.raises(ComparisonInterrupted) as caught:
        run(Watcher(interrupt), None)
    first = caught.value.comparison
    assert [row.status for row in first.rows] == ["skipped", "ok"]
    watcher = Watcher()
    whole = run(watcher, "last")
    assert watcher.started == ["sdpa"] and whole.run_id == first.run_id
    assert [row.status for row in whole.rows] == ["ok", "ok"]
    assert whole.rows[0].divergence is not None and whole.rows[0].divergence.reference == "bf16"
    assert whole.rows[0].difference is not None
    assert list(tmp_path.glob("*/reference-logits*")) == []


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"backends": ["bf17"]}, UsageError, "bf17"),
        ({"backends": []}, UsageError, "no backend"),
        ({"backends": ["nf4", "nf4"]}, UsageError, "twice"),
        ({"backends": ["gguf:q9_x"]}, UsageError, "q9_x"),
        ({"checkpoints": {"nf4": "x"}}, UsageError, "nf4 takes no checkpoint"),
        ({"backends": ["nf4"], "checkpoints": {"awq": "x"}}, UsageError, "not among the rows"),
        ({"backends": ["nf4"], "calibration_file": "x"}, UsageError, "no row is gptq or awq"),
        ({"weights": "synthetic", "calibration_file": "x"}, UsageError, "are not calibrated"),
        ({"device": "tpu"}, UsageError, "tpu"),
        ({"objective": "fastest"}, UsageError, "unknown objective 'fastest'"),
        ({"backends": "gguf"}, UsageError, "a list of ids, not a text"),
        (
            {"workload": Workload(prompt_tokens=1.5)},
            UsageError,
            "Workload: Expected int, got float",
        ),
        ({"workload": Workload(prompt_tokens=0)}, UsageError, "prompt_tokens must be 1 or more"),
        ({"workload": Workload(warmup=-1)}, UsageError, "warmup must be 0 or more, not -1"),
        ({"evaluation": EvaluationSettings(limit=0)}, UsageError, "limit must be 1 or more"),
        ({"evaluation": EvaluationSettings(tasks="x")}, UsageError, "got str - at tasks"),
        ({"evaluation": EvaluationSettings(ppl_protocol="x")}, UsageError, "'x' - at ppl_protoc"),
        ({"kv_cache_dtype": "q5"}, UsageError, "'q5' - at kv_cache_dtype"),
        ({"gpu_gb": math.nan}, UsageError, "gpu_gb must be a number of GB above 0, at most"),
        ({"ram_gb": 1e300}, UsageError, "ram_gb must be a number of GB above 0, at most"),
        ({"ram_gb": "8"}, UsageError, "not .8."),
        ({"workload": Workload(prompt_tokens=5000)}, UsageError, "5000 prompt"),
        ({"workload": Workload(new_tokens=1)}, UsageError, "1 new tokens"),
        ({"model": "./absent"}, ModelNotFound, "absent"),
        pytest.param(
            {"keeping": Keeping(runs_dir="/proc/none")},
            StoreError,
            "/proc/none",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    """Each mistake is one error that names the value."""
    with pytest.raises(error, match=says):
        compare(**({"keeping": kept(tmp_path)} | options))


def test_public_names_resolve() -> None:
    """Every name of ``llmfit.__all__`` is there, and an unknown one is an AttributeError."""
    for name in llmfit.__all__:
        assert getattr(llmfit, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = llmfit.no_such_name  # type: ignore[attr-defined]
