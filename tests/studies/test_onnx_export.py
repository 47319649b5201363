"""ONNX: the exported graph against transformers, token by token and logit by logit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llmfit.benchmark import Benchmark
from llmfit.studies import onnx_export
from llmfit.studies.base import StudyContext
from llmfit.studies.onnx_export import measuring
from llmfit.studies.onnx_export.comparing import compare, other_sizes, validity, whole_pass
from llmfit.studies.onnx_export.export import Exported, export
from llmfit.studies.onnx_export.judging import (
    likeness_checks,
    other_sizes_check,
    valid_check,
    whole_pass_check,
)
from llmfit.studies.onnx_export.measuring import PACKAGES, Sizes
from llmfit.studies.onnx_export.runners import EagerRunner, Generated, OnnxRunner, greedy
from llmfit.studies.tuning import keep_layers, load_model

TINY = Sizes(prompt_tokens=12, new_tokens=6, prompt_runs=1, step_runs=1)


@pytest.fixture(scope="module")
def model() -> Any:
    """The embedded model's first layer, in float32."""
    return keep_layers(load_model("cpu", in_float32=True), [0]).float()


@pytest.fixture(scope="module")
def exported(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Its graph, made once."""
    for package in PACKAGES:
        pytest.importorskip(package)
    return export(model, tmp_path_factory.mktemp("onnx") / "model.onnx")


@pytest.fixture
def prompt() -> Iterator[torch.Tensor]:
    """Tokens of which none is special."""
    yield torch.arange(40, 52)[None]


def test_eager_steps_are_what_transformers_generates(model: Any, prompt: torch.Tensor) -> None:
    """The baseline itself: greedy tokens of ``generate``."""
    wanted = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=6,
        min_new_tokens=6,
        pad_token_id=0,
        eos_token_id=None,
    )
    found = greedy(EagerRunner(model), prompt, 6)
    assert list(found.tokens) == wanted[0, prompt.shape[1] :].tolist()


@pytest.mark.slow
def test_the_graph_generates_what_the_model_does(
    model: Any, exported: Exported, prompt: torch.Tensor
) -> None:
    """Prompt and steps by the graph's cache; the same by one pass over everything."""
    runner = OnnxRunner(exported.path, model.config)
    ours, theirs = greedy(EagerRunner(model), prompt, 6), greedy(runner, prompt, 6)
    assert theirs.tokens == ours.tokens
    assert all(check.holds for check in likeness_checks(compare(ours, theirs)))
    assert whole_pass_check(whole_pass(runner, prompt, theirs)).holds
    whole = model(torch.cat((prompt, torch.tensor([theirs.tokens[:-1]])), dim=1)).logits
    torch.testing.assert_close(torch.cat(theirs.logits), whole[0, -6:], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_batch_length_and_cache_are_free(model: Any, exported: Exported) -> None:
    """One graph for other sizes than it was exported with, valid by onnx's own checker."""
    assert other_sizes_check(other_sizes(model, exported.path)).holds
    assert valid_check(validity(exported.path)).holds
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert weights < exported.file_bytes < 1.2 * weights


@pytest.mark.slow
def test_names_say_what_goes_in_and_out(exported: Exported) -> None:
    """A user of the file finds the layers' keys and values by name, and their free sizes."""
    import onnx

    graph = onnx.load(exported.path).graph
    assert [value.name for value in graph.input] == ["input_ids", "past.0.key", "past.0.value"]
    assert [value.name for value in graph.output] == [
        "logits",
        "present.0.key",
        "present.0.value",
    ]
    sizes = [size.dim_param or size.dim_value for size in graph.input[1].type.tensor_type.shape.dim]
    assert sizes == ["batch", 4, "past", 32]


@pytest.mark.slow
def test_the_whole_study_holds_and_keeps_the_file(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """From sizes to tables; the exporter writes nothing to stdout, which is the child's channel."""
    for package in PACKAGES:
        pytest.importorskip(package)
    monkeypatch.setattr(onnx_export, "DEFAULT", TINY)
    monkeypatch.setattr(measuring, "load_model", lambda device, in_float32: model)
    result = onnx_export.run(StudyContext(bench=Benchmark("cpu"), out=str(tmp_path)))
    assert all(check.holds for check in result.checks)
    assert result.artifacts == (str(tmp_path / "onnx"),)
    assert (tmp_path / "onnx" / "model.onnx").is_file()
    assert [row.status for table in result.tables for row in table.rows] == ["ok"] * 3
    assert capfd.readouterr().out == ""


def test_tokens_that_differ_are_told() -> None:
    """Logits are compared as far as they have the same tokens before them."""
    logits = tuple(torch.tensor([[0.0, 1.0, 0.5]]) for _ in range(3))
    ours = Generated(tokens=(1, 1, 1), logits=logits)
    theirs = Generated(tokens=(1, 2, 0), logits=(logits[0], logits[1] + 1e-6, logits[2] + 100.0))
    tokens, close = likeness_checks(compare(ours, theirs))
    assert tokens.holds is False
    assert tokens.detail == "1 of 3 tokens"
    assert close.holds is True
    far = Generated(tokens=(1, 1, 1), logits=(*logits[:2], logits[2] + 0.01))
    assert [check.holds for check in likeness_checks(compare(ours, far))] == [True, False]


def test_without_its_packages_the_study_says_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows are unavailable with the command, checks could not be tried; nothing is raised."""
    monkeypatch.setattr(
        measuring, "find_spec", lambda name: None if name == "onnxruntime" else object()
    )
    result = onnx_export.run(StudyContext(bench=Benchmark("cpu")))
    rows = [row for table in result.tables for row in table.rows]
    assert {row.status for row in rows} == {"unavailable"}
    reason = 'onnxruntime not installed: pip install "llmfit[studies]"'
    assert {row.reason for row in rows} == {reason}
    assert {check.holds for check in result.checks} == {None}
