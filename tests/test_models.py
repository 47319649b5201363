"""What a model is, read from its config and file headers."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from llmfit.errors import ModelLoadError, ModelNotFound
from llmfit.foreign.files import weight_files
from llmfit.hub import _IGNORED
from llmfit.models import (
    _WEIGHT_FILES,
    UNTOLD_CONTEXT_TOKENS,
    config_of,
    count_parameters,
    data_path,
    local_folder,
    resolve,
)
from llmfit.quantization import stored_quantization
from llmfit.records import ModelSpec


def test_no_name_is_the_embedded_model(embedded: ModelSpec) -> None:
    """Without a model the one inside the package is used, complete and on disk."""
    assert embedded.source == "embedded"
    assert embedded.shape is not None
    assert embedded.parameters == embedded.shape.parameters
    assert local_folder(embedded) is embedded


def test_facts_of_a_real_folder(stories260k: ModelSpec) -> None:
    """stories260K's published shape: 260,032 parameters, width 64 and 172, 8 heads over 4."""
    assert stories260k.parameters == 260_032
    assert (stories260k.hidden_size, stories260k.intermediate_size) == (64, 172)
    assert (stories260k.num_attention_heads, stories260k.num_key_value_heads) == (8, 4)
    assert stories260k.tie_word_embeddings


def test_parameter_counts_equal_transformers(shared_data: Path) -> None:
    """Counts by shape equal what transformers builds, to the last parameter."""
    with (shared_data / "configs" / "param_counts.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    built = {row["name"]: int(row["parameters"]) for row in rows if row["parameters"]}
    assert len(built) == 14  # all but one, which transformers cannot build
    counted = {name: resolve(str(shared_data / "configs" / name)).parameters for name in built}
    assert counted == built


def test_a_model_of_unequal_layers_is_read(shared_data: Path) -> None:
    """Nemotron-NAS, whose config has no single MLP width, counts NVIDIA's published 49.9 B."""
    folder = shared_data / "configs" / "nvidia--Llama-3_3-Nemotron-Super-49B-v1"
    spec = resolve(str(folder))
    assert spec.parameters == pytest.approx(49.9e9, rel=1e-3)
    assert spec.intermediate_size == 28_672  # the widest, of 5.25 times two thirds of 8192


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("Qwen--Qwen3-32B-FP8", "fp8"),
        ("deepseek-ai--DeepSeek-V3", "fp8"),
        ("openai--gpt-oss-20b", "mxfp4"),
    ],
)
def test_quantised_checkpoints_are_known(name: str, method: str, shared_data: Path) -> None:
    """The method of a published checkpoint's quantization_config is read."""
    assert resolve(str(shared_data / "configs" / name)).quantization == method


@pytest.mark.parametrize(
    ("place", "said", "method"),
    [
        ("quantize_config", {"bits": 4, "group_size": 128, "desc_act": False}, "gptq"),
        ("quantize_config", {"bits": 4, "quant_method": "awq"}, "awq"),
        ("quant_config", {"w_bit": 4, "q_group_size": 128, "version": "GEMM"}, "awq"),
        ("hf_quant_config", {"quantization": {"quant_algo": "FP8"}}, "modelopt"),
        ("config", {"quantization_config": {"bits": 4, "desc_act": True}}, "gptq"),
        ("config", {"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),
        ("config", {"quantization": {"group_size": 64, "bits": 4}}, "mlx"),
        ("config", {"quantization_config": {"load_in_8bit": True}}, "bitsandbytes_8bit"),
        (
            "config",
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "bitsandbytes_4bit",
        ),
    ],
)
def test_every_tools_way_of_saying_quantised(
    place: str, said: dict[str, Any], method: str, tmp_path: Path, embedded: ModelSpec
) -> None:
    """The method is known wherever a tool writes it: config.json, or the old tools' own files."""
    config = json.loads((Path(embedded.path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert resolve(str(tmp_path)).quantization is None
    content = {**config, **said} if place == "config" else said
    (tmp_path / f"{place}.json").write_text(json.dumps(content))
    assert resolve(str(tmp_path)).quantization == method


def test_old_autoawq_keys_become_todays(tmp_path: Path) -> None:
    """quant_config.json's names of bits and group size are those of quantization_config."""
    (tmp_path / "config.json").write_text("{}")
    said = {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"}
    (tmp_path / "quant_config.json").write_text(json.dumps(said))
    assert stored_quantization(tmp_path) == {
        "quant_method": "awq", "zero_point": True, "group_size": 64, "bits": 4, "version": "GEMM"
    }  # fmt: skip


def test_a_quantisation_that_is_no_object_is_refused(tmp_path: Path) -> None:
    """A quantization_config that cannot be meant is named."""
    (tmp_path / "config.json").write_text('{"quantization_config": "int4"}')
    with pytest.raises(ModelLoadError, match="quantization_config = 'int4'"):
        stored_quantization(tmp_path)


class _Hub(BaseHTTPRequestHandler):
    """A hub with one ``model`` and its ``files``, which it withholds where ``gated``."""

    model: ClassVar[str] = "org/old"
    files: ClassVar[dict[str, bytes]] = {}
    gated: ClassVar[bool] = False

    def do_GET(self) -> None:
        """Answer the model's list of files, or a file."""
        name = self.path.rpartition("/")[2]
        if self.path.startswith(f"/api/models/{self.model}"):
            siblings = [{"rfilename": file} for file in self.files]
            return self._send(json.dumps({"id": self.model, "siblings": siblings}).encode())
        if self.path.startswith(f"/{self.model}/resolve/main/") and name in self.files:
            if self.gated:
                return self._send(b"", HTTPStatus.FORBIDDEN, error="GatedRepo")
            return self._send(self.files[name])
        return self._send(b"", HTTPStatus.NOT_FOUND, error="EntryNotFound")

    do_HEAD = do_GET  # noqa: N815 - the base class's names

    def _send(
        self, body: bytes, status: HTTPStatus = HTTPStatus.OK, error: str | None = None
    ) -> None:
        self.send_response(status)
        headers = {
            "X-Repo-Commit": "0" * 40,
            "ETag": f'"{hashlib.sha1(body).hexdigest()}"',
            "Content-Length": str(len(body)),
        }
        if error is not None:
            headers["X-Error-Code"] = error
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _run(code: str, tmp_path: Path, *, port: int = 1, offline: bool = False) -> str:
    """What ``code`` prints in a process of its own, whose hub is on ``port`` of this machine."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "HF_ENDPOINT": f"http://127.0.0.1:{port}",
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": str(int(offline)),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@contextmanager
def _hub(model: str, files: dict[str, bytes], *, gated: bool = False) -> Iterator[int]:
    """A hub on a port of this machine while the block runs."""
    _Hub.model, _Hub.files, _Hub.gated = model, files, gated
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as hub:
        Thread(target=hub.serve_forever, daemon=True).start()
        yield hub.server_port
        hub.shutdown()


def test_an_old_checkpoint_on_the_hub_is_known_before_its_download(
    tmp_path: Path, embedded: ModelSpec
) -> None:
    """Of a hub model only config.json and the old tool's file are fetched to know its method."""
    config = (Path(embedded.path) / "config.json").read_bytes()
    files = {"config.json": config, "quantize_config.json": b'{"bits": 4, "group_size": 128}'}
    code = "from llmfit.models import resolve; print(resolve('org/old').quantization)"
    with _hub("org/old", files) as port:
        for offline in (False, True):  # from the network, then from the cache
            assert _run(code, tmp_path, port=port, offline=offline) == "gptq"


TELL = """
from llmfit.models import config_of, resolve
spec = resolve({name!r}, weights={weights})
print(spec.source, spec.path, spec.vocab_size, config_of(spec)["vocab_size"], *spec.shape.notes)
"""


def test_a_known_model_is_the_hubs_where_the_hub_has_it(
    tmp_path: Path, embedded: ModelSpec
) -> None:
    """A short name of the catalogue is fetched under its hub id; the hub's own config counts."""
    config = json.loads((Path(embedded.path) / "config.json").read_text())
    content = json.dumps({**config, "vocab_size": 1234}).encode()
    code = TELL.format(name="llama-3.1-8b", weights=True)
    with _hub("meta-llama/Llama-3.1-8B", {"config.json": content}) as port:
        told = _run(code, tmp_path, port=port)
    assert told == "hub meta-llama/Llama-3.1-8B 1234 1234"


@pytest.mark.parametrize("gated", [False, True])
def test_a_known_model_is_read_without_the_hub(gated: bool, tmp_path: Path) -> None:
    """Offline, or gated, a known model's facts come from the catalogue, and a note says why."""
    code = TELL.format(name="meta-llama/Meta-Llama-3.1-8B", weights=True)
    with _hub("meta-llama/Meta-Llama-3.1-8B", {"config.json": b"{}"}, gated=gated) as port:
        told = _run(code, tmp_path, port=port, offline=not gated)
    facts, _, note = told.partition(" 128256 128256 ")
    assert facts == "catalogue meta-llama/Llama-3.1-8B"
    assert ("is gated on the hub" if gated else "the hub was not reached") in note


def test_a_plan_asks_the_catalogue_alone(tmp_path: Path) -> None:
    """Without weights a known model needs no hub, and nothing heavy is imported for it."""
    code = TELL.format(name="Llama-3.1-8B", weights=False) + (
        "import sys\n"
        "print({'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules))"
    )
    with _hub("meta-llama/Llama-3.1-8B", {"config.json": b"{}"}) as port:
        told = _run(code, tmp_path, port=port)
    assert told == "catalogue meta-llama/Llama-3.1-8B 128256 128256\nset()"


def test_known_names_stand_beside_a_name_that_is_not() -> None:
    """A name that neither hub nor catalogue gives is answered with the nearest known ones."""
    with pytest.raises(ModelNotFound) as caught:
        resolve("meta-llama/Llama-3.1-8")
    assert "the hub was not reached" in caught.value.message
    assert "meta-llama/Llama-3.1-8B" in str(caught.value.hint)


def test_the_weights_of_a_known_model_are_not_here() -> None:
    """Where only facts are known, what needs the files says so."""
    spec = resolve("Llama-3.1-8B", weights=False)
    with pytest.raises(ModelNotFound, match=r"weights of meta-llama/Llama-3\.1-8B are not here"):
        local_folder(spec)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Llama-3.1-8B", "gemma-3-4b-it", "falcon-7b", "mamba-130m-hf"])
def test_known_facts_make_transformers_model(name: str) -> None:
    """``config_of`` a known model builds, in transformers, a model of the spec's parameters."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    spec = resolve(name, weights=False)
    config = AutoConfig.for_model(**config_of(spec))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config.get_text_config())
    assert sum(each.numel() for each in model.parameters()) == spec.parameters


def test_configs_of_other_names_are_read(tmp_path: Path) -> None:
    """Families that call the same numbers otherwise, or have none, give the same facts."""
    facts = {
        # GPT-2's own published shape, under its own keys.
        "gpt2": ({"n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None, "n_ctx": 1024},
                 (768, 12, 12, 12, 64, 3072, 1024, 124_439_808)),
        # Falcon-7B: one key for all heads.
        "falcon": ({"hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
                    "multi_query": True, "alibi": False, "vocab_size": 65024},
                   (4544, 32, 71, 1, 64, 18176, 2048, 6_921_720_704)),
        # Mamba-130M: no attention, no MLP, no longest context.
        "mamba": ({"hidden_size": 768, "num_hidden_layers": 24, "intermediate_size": None},
                  (768, 24, 0, 0, 0, 0, UNTOLD_CONTEXT_TOKENS, 129_135_360)),
    }  # fmt: skip
    for model_type, (config, expected) in facts.items():
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **config}))
        spec = resolve(str(tmp_path))
        assert (
            spec.hidden_size,
            spec.num_hidden_layers,
            spec.num_attention_heads,
            spec.num_key_value_heads,
            spec.head_dim,
            spec.intermediate_size,
            spec.max_position_embeddings,
            spec.parameters,
        ) == expected


def test_a_model_without_a_longest_context_says_so(tmp_path: Path) -> None:
    """What stands for an untold limit is a note of the shape."""
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    shape = resolve(str(tmp_path)).shape
    assert shape is not None
    assert f"taken for {UNTOLD_CONTEXT_TOKENS} tokens" in shape.notes[0]


def test_latent_attention_tells_its_own_sizes(shared_data: Path) -> None:
    """DeepSeek-V3's heads are 192 wide, 128 of them plain and 64 rotary, as its report says."""
    spec = resolve(str(shared_data / "configs" / "deepseek-ai--DeepSeek-V3"))
    assert (spec.num_attention_heads, spec.head_dim) == (128, 128 + 64)
    assert spec.intermediate_size == 18_432


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./no-such-folder", "no folder './no-such-folder'"),
        ("/no/such/folder", "no folder '/no/such/folder'"),
        ("~nobody-of-this-name/x", "no folder '~nobody-of-this-name/x'"),
        ("org/name", "hub was not reached"),
    ],
)
def test_absent_models_are_named(name: str, says: str) -> None:
    """A path that is not there and a hub that cannot be reached are told apart."""
    with pytest.raises(ModelNotFound, match=says):
        resolve(name)


def test_folder_without_config(tmp_path: Path) -> None:
    """A folder that is no model says what it lacks."""
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        resolve(str(tmp_path))


def test_file_instead_of_folder(tmp_path: Path) -> None:
    """A GGUF given as the model names the flag it belongs to."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(ModelNotFound, match="--checkpoint gguf"):
        resolve(str(path))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{", "not readable JSON"),
        ("[1]", "not a JSON object"),
        (json.dumps({"num_attention_heads": 0}), "num_attention_heads = 0"),
        (json.dumps({"num_attention_heads": 4, "hidden_size": -8}), "hidden_size = -8"),
        (json.dumps({"num_attention_heads": "4"}), "num_attention_heads = '4'"),
    ],
)
def test_damaged_configs_are_refused(tmp_path: Path, config: str, says: str) -> None:
    """A config that cannot be meant names the value."""
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelLoadError, match=says):
        resolve(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"\x00" * 4, struct.pack("<Q", 1 << 60) + b"{}"])
def test_damaged_weights_are_refused(tmp_path: Path, content: bytes) -> None:
    """A safetensors file whose header cannot be read is named, and nothing is allocated for it."""
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors"):
        count_parameters(tmp_path)


def test_weights_that_are_there_twice_count_once(tmp_path: Path) -> None:
    """Mistral's models have theirs under other names too, which transformers does not read."""
    whole = data_path("embedded") / "model.safetensors"
    (tmp_path / "model.safetensors").symlink_to(whole)
    (tmp_path / "consolidated.safetensors").symlink_to(whole)
    assert [file.name for file in weight_files(tmp_path)] == ["model.safetensors"]
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in index["weight_map"].values():
        (tmp_path / name).symlink_to(whole)
    assert [file.name for file in weight_files(tmp_path)] == [
        "model-1.safetensors", "model-2.safetensors",
    ]  # fmt: skip
    other = tmp_path / "other"
    other.mkdir()
    (other / "consolidated.safetensors").symlink_to(whole)
    assert [file.name for file in weight_files(other)] == ["consolidated.safetensors"]


def test_of_a_repository_only_what_transformers_reads_is_fetched() -> None:
    """No exports in folders, no weights once more; a path that leads outside is not passed over."""
    from huggingface_hub.utils import filter_repo_objects

    names = [
        "config.json", "model-1.safetensors", "tokenizer.model", "chat_template.jinja",
        "consolidated.safetensors", "onnx/model.json", "original/w.safetensors", "README.md",
        "../../planted.json",
    ]  # fmt: skip
    found = filter_repo_objects(names, allow_patterns=_WEIGHT_FILES, ignore_patterns=_IGNORED)
    assert set(found) == {*names[:4], "../../planted.json"}
