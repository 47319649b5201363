"""Pickles and Python code that come with a model: refused, and what --allow and --trust then do."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmfit.comparison import compare
from llmfit.deployer import Deployer
from llmfit.errors import ModelLoadError, UsageError
from llmfit.foreign.code import own_modules, pickles, require_no_pickles
from llmfit.keeping import Keeping
from llmfit.models import data_path
from llmfit.quantize.cache import ArtifactCache
from llmfit.quantize.pickles import as_safetensors
from llmfit.records import Comparison, Workload
from llmfit.reproduction import reproduce

pytestmark = pytest.mark.usefixtures("imported_once")
QUICK = Workload(prompt_tokens=8, new_tokens=4, repeats=1, warmup=0)
EMBEDDED = data_path("embedded")


class Evil:
    """A pickle that makes a file when it is read as pickles are."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def without_weights(folder: Path) -> Path:
    """The embedded model's folder without its weights."""
    shutil.copytree(EMBEDDED, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def pickled(folder: Path) -> Path:
    """The embedded model with its weights in a pickle."""
    torch.save(
        load_file(EMBEDDED / "model.safetensors"), without_weights(folder) / "pytorch_model.bin"
    )
    return folder


def run(folder: Path, tmp_path: Path, *backends: str, **options: bool) -> Comparison:
    """A short comparison whose files are below ``tmp_path``."""
    return compare(
        str(folder),
        backends=backends,
        workload=QUICK,
        evaluation=None,
        cache_dir=str(tmp_path / "cache"),
        keeping=Keeping(runs_dir=str(tmp_path / "runs")),
        **options,  # type: ignore[arg-type]
    )


def text(folder: Path, tmp_path: Path, **options: bool) -> str:
    """What the model in ``folder`` writes."""
    cache = str(tmp_path / "cache")
    with Deployer(str(folder), cache_dir=cache, **options).load() as deployed:  # type: ignore[arg-type]
        return deployed.generate("Once upon a time", max_new_tokens=8).text


# ---------------------------------------------------------------- pickles


def test_a_pickle_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """The error names the file, what it could do, and the option."""
    folder = pickled(tmp_path / "model")
    with pytest.raises(ModelLoadError, match=r"pickle \(pytorch_model\.bin\).*run code") as caught:
        run(folder, tmp_path, "bf16")
    assert "--allow-pickle" in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_safetensors_beside_a_pickle_are_taken(tmp_path: Path) -> None:
    """Many repositories hold both; the pickle is then nobody's business."""
    folder = pickled(tmp_path / "model")
    shutil.copyfile(EMBEDDED / "model.safetensors", folder / "model.safetensors")
    assert pickles(folder) == ()
    require_no_pickles(folder)


def test_other_bin_files_are_no_weights(tmp_path: Path) -> None:
    """training_args.bin is a pickle too, and is never opened."""
    (tmp_path / "training_args.bin").write_bytes(b"")
    assert pickles(tmp_path) == ()


@pytest.mark.slow
def test_an_allowed_pickle_gives_the_same_model_and_is_recorded(tmp_path: Path) -> None:
    """Text and rows are those of the safetensors, and the record says where the weights were."""
    folder = pickled(tmp_path / "model")
    assert text(folder, tmp_path, allow_pickle=True) == text(EMBEDDED, tmp_path)
    comparison = run(folder, tmp_path, "sdpa", "gguf", allow_pickle=True)
    for row in comparison.rows:
        assert row.status == "ok", row.reason
        assert any("pickle (--allow-pickle): pytorch_model.bin" in note for note in row.notes)
        assert row.plan is not None and row.plan.allow_pickle
        assert row.plan.model.path == str(folder.resolve())
    with pytest.raises(UsageError, match="a record can come from anyone"):
        reproduce(comparison, keeping=Keeping(runs_dir=str(tmp_path / "runs")))


@pytest.mark.slow
def test_a_pickle_with_more_than_tensors_runs_nothing(tmp_path: Path) -> None:
    """Even where pickles are allowed, what is not a tensor is refused, and not run."""
    marker = tmp_path / "ran"
    folder = without_weights(tmp_path / "model")
    torch.save({"weight": torch.zeros(2), "evil": Evil(marker)}, folder / "pytorch_model.bin")
    comparison = run(folder, tmp_path, "bf16", allow_pickle=True)
    (row,) = comparison.rows
    assert row.status == "failed"
    assert "is no pickle of tensors alone: it calls posix.mkdir." in str(row.reason)
    assert not marker.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)  # the pickle is what it claims
    assert marker.is_dir()


@pytest.mark.slow
def test_shards_of_pickles(tmp_path: Path) -> None:
    """Two shards, one with a tensor that is a view of another, hold what was stored."""
    folder = without_weights(tmp_path / "model")
    stored = load_file(EMBEDDED / "model.safetensors")
    names = sorted(stored)
    halves = {"00001": names[: len(names) // 2], "00002": names[len(names) // 2 :]}
    places = {}
    for number, part in halves.items():
        file = f"pytorch_model-{number}-of-00002.bin"
        tensors = {name: stored[name] for name in part}
        tensors["view." + number] = stored[part[0]].t() if stored[part[0]].dim() == 2 else None
        torch.save({k: v for k, v in tensors.items() if v is not None}, folder / file)
        places |= dict.fromkeys(part, file)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    cache = ArtifactCache(tmp_path / "cache")
    made, note = as_safetensors(folder, cache)
    assert note is not None and note.count("pytorch_model") == 2
    found = {}
    for shard in made.glob("*.safetensors"):
        found |= load_file(shard)
    assert all(torch.equal(found[name], stored[name]) for name in names)
    said = json.loads((made / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(said) == set(found)
    assert as_safetensors(folder, cache)[0] == made  # and the next one finds it
    index.write_text(json.dumps({"weight_map": {"a": "../outside.bin"}}))
    with pytest.raises(ModelLoadError, match=r"not a file of its own folder"):
        as_safetensors(folder, cache)


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(100)])
def test_damaged_pickles_are_one_error(tmp_path: Path, content: bytes) -> None:
    """Whatever the bytes are: the error names the file, and nothing is left in the cache."""
    folder = without_weights(tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(content)
    cache = ArtifactCache(tmp_path / "cache")
    with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin"):
        as_safetensors(folder, cache)
    assert [
        each for each in cache.root.iterdir() if not each.name.startswith((".locks", ".hash"))
    ] == []


# ---------------------------------------------------------------- code

_CONFIGURATION = """
from pathlib import Path
from transformers import LlamaConfig
Path({marker!r}).touch()
class StrangeConfig(LlamaConfig):
    model_type = "strange"
"""
_MODELING = """
from transformers import LlamaForCausalLM
from .configuration_strange import StrangeConfig
class StrangeForCausalLM(LlamaForCausalLM):
    config_class = StrangeConfig
"""


def with_own_code(folder: Path, marker: Path) -> Path:
    """The embedded model under a type that only its own code knows; importing it leaves a mark."""
    shutil.copytree(EMBEDDED, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "strange",
        "architectures": ["StrangeForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_strange.StrangeConfig",
            "AutoModelForCausalLM": "modeling_strange.StrangeForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_strange.py").write_text(_CONFIGURATION.format(marker=str(marker)))
    (folder / "modeling_strange.py").write_text(_MODELING)
    return folder


def test_a_models_own_modules_are_found(tmp_path: Path) -> None:
    """In whichever form an auto_map names them, those of other repositories too."""
    (tmp_path / "config.json").write_text(
        json.dumps({"auto_map": {"AutoConfig": "configuration_a.A", "AutoModel": "o/n--model_b.B"}})
    )
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["tok_c.C", None]}})
    )
    assert own_modules(tmp_path) == ("configuration_a", "o/n--model_b", "tok_c")


@pytest.mark.slow
def test_own_code_is_not_run_unless_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row runs it; those that cannot do without say what it could do, and the option."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    marker = tmp_path / "ran"
    folder = with_own_code(tmp_path / "model", marker)
    comparison = run(folder, tmp_path, "bf16", "nf4", "gptq", "gguf")
    assert not marker.exists()
    statuses = {row.backend: row.status for row in comparison.rows}
    assert statuses == {"bf16": "failed", "nf4": "failed", "gptq": "failed", "gguf": "skipped"}
    for row in comparison.rows[:3]:
        assert "configuration_strange" in str(row.reason) and "read your files" in str(row.reason)
        assert "--trust-remote-code" in str(row.reason)


@pytest.mark.slow
def test_trusted_code_is_run_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows run by it, and the notes name the modules."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    marker = tmp_path / "ran"
    folder = with_own_code(tmp_path / "model", marker)
    comparison = run(folder, tmp_path, "bf16", "nf4", trust_remote_code=True)
    assert marker.exists()
    for row in comparison.rows:
        assert row.status == "ok", row.reason
        assert any("configuration_strange, modeling_strange" in note for note in row.notes)
        assert row.plan is not None and row.plan.trust_remote_code
    with pytest.raises(UsageError, match="a model's own code"):
        reproduce(comparison, keeping=Keeping(runs_dir=str(tmp_path / "runs")))


def test_a_trainings_files_are_no_weights(tmp_path: Path) -> None:
    """The optimizer's state beside the model: only the weights are taken out."""
    for name in ("pytorch_model.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (tmp_path / name).write_bytes(b"")
    assert [file.name for file in pickles(tmp_path)] == ["pytorch_model.bin"]
    (tmp_path / "pytorch_model.bin").unlink()
    assert [file.name for file in pickles(tmp_path)] == ["optimizer.pt", "scheduler.pt"]
