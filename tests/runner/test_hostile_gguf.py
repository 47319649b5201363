"""A GGUF that passes the check of its header and is wrong inside: a failed row that says why."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.fuzz.gguf_bytes import (
    ARRAY,
    FLOAT32,
    INT32,
    STRING,
    UINT16,
    GgufBytes,
    numbers,
    parse,
    strings,
    text,
)
from llmfit.foreign.files import check_gguf
from llmfit.models import data_path
from llmfit.records import ModelSpec, Plan, RunRecord, Workload
from llmfit.runner.forkserver import ForkServer
from llmfit.runner.isolate import fork_server, run_isolated

pytest.importorskip("llama_cpp")
gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The embedded model as GGUF."""
    from llmfit.quantize.gguf_convert import convert

    file = tmp_path_factory.mktemp("whole") / "whole.gguf"
    convert(data_path("embedded"), file, dtype="f16")
    return file.read_bytes()


@pytest.fixture(scope="module")
def server(embedded: ModelSpec) -> Iterator[ForkServer | None]:
    """One warm process for all rows here."""
    with fork_server(_plan(embedded, Path("x"))) as warm:
        yield warm


def _plan(spec: ModelSpec, file: Path) -> Plan:
    return Plan(
        backend="gguf",
        model=spec,
        device="cpu",
        threads=1,
        workload=Workload(prompt_tokens=8, new_tokens=4, repeats=1, warmup=0),
        evaluation=None,
        checkpoint=str(file),
    )


def _no_blocks(file: GgufBytes) -> None:
    file.set_number("llama.block_count", 0)


def _a_billion_blocks(file: GgufBytes) -> None:
    file.set_number("llama.block_count", 10**9)


def _a_million_experts(file: GgufBytes) -> None:
    file.set_number("llama.expert_count", 10**6)


def _no_width(file: GgufBytes) -> None:
    file.set_number("llama.embedding_length", 0)


def _other_rope(file: GgufBytes) -> None:
    file.set_number("llama.rope.dimension_count", 7)


def _same_tokens(file: GgufBytes) -> None:
    file.set("tokenizer.ggml.tokens", ARRAY, strings([b"a"] * 2048))


def _few_tokens(file: GgufBytes) -> None:
    file.set("tokenizer.ggml.tokens", ARRAY, strings([b"a", b"b"]))


def _few_types(file: GgufBytes) -> None:
    file.set("tokenizer.ggml.token_type", ARRAY, numbers(INT32, "i", [1, 1]))


def _norm_of_nan(file: GgufBytes) -> None:
    file.set("llama.attention.layer_norm_rms_epsilon", FLOAT32, struct.pack("<f", float("nan")))


def _number_as_text(file: GgufBytes) -> None:
    file.set("llama.block_count", STRING, text(b"six"))


def _notes_as_number(file: GgufBytes) -> None:
    file.set_number("llmfit.notes", 3)
    file.tensors[0].name = b"other"


CASES = [
    (_no_blocks, "killed by SIGABRT"),
    (_a_billion_blocks, "killed by SIGABRT"),
    (_a_million_experts, "killed by SIGABRT"),
    (_same_tokens, "killed by SIGABRT"),
    (_norm_of_nan, "killed by SIGABRT"),
    (_no_width, "wrong shape"),
    (_other_rope, "invalid n_rot: 7"),
    (_few_tokens, "cannot load"),
    (_few_types, "toktypes"),
    (_number_as_text, "wrong type str"),
    (_notes_as_number, "token_embd.weight"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "said"), CASES, ids=[make.__name__[1:] for make, _ in CASES])
def test_the_row_fails_and_says_why(
    damage: object,
    said: str,
    whole: bytes,
    embedded: ModelSpec,
    server: ForkServer | None,
    tmp_path: Path,
) -> None:
    """llama.cpp refuses it in its own words, or a check of its own ends the worker."""
    assert callable(damage)
    file = parse(whole)
    damage(file)
    path = tmp_path / "damaged.gguf"
    path.write_bytes(file.build())
    assert check_gguf(path) == (path,)
    record = run_isolated(_plan(embedded, path), server=server, log_path=tmp_path / "row.log")
    assert record.status == "failed"
    assert said in str(record.reason)
    if "SIGABRT" in said:
        assert "ASSERT" in str(record.reason)  # llama.cpp's own line, not its debugger's


_SCRIPT = """
import json, sys
import llmfit
from llmfit.keeping import Keeping
from llmfit.records import Workload, to_builtins
found = llmfit.compare(
    backends=["gguf"], checkpoints={"gguf": sys.argv[1]}, evaluation=None,
    keeping=Keeping(runs_dir=sys.argv[2]),
    workload=Workload(prompt_tokens=8, new_tokens=4, repeats=1, warmup=0),
)
maps = open("/proc/self/maps").read()
native = [name for name in ("libllama", "libggml") if name in maps]
print(json.dumps({"rows": to_builtins(found.rows), "native": native,
                  "imported": "llama_cpp" in sys.modules}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is mapped")
def test_native_code_reads_a_gguf_only_in_a_worker(whole: bytes, tmp_path: Path) -> None:
    """The process that compares maps no library of llama.cpp, and lives on when one ends a row."""
    damaged = parse(whole)
    _a_billion_blocks(damaged)
    path = tmp_path / "model.gguf"
    path.write_bytes(damaged.build())
    ran = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(path), str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        env=os.environ | {"LLMFIT_STORE": str(tmp_path / "store.db")},
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    (row,) = found["rows"]
    assert row["status"] == "failed" and "SIGABRT" in row["reason"]
    assert not found["native"] and not found["imported"]


def _parts(whole: bytes, folder: Path, second: bytes) -> Path:
    """A model in two files, the first of which is whole but for what it claims."""
    first = parse(whole)
    first.set("split.count", UINT16, struct.pack("<H", 2))
    path = folder / "m-00001-of-00002.gguf"
    path.write_bytes(first.build())
    (folder / "m-00002-of-00002.gguf").write_bytes(second)
    return path


def test_every_file_of_a_split_model_is_checked(whole: bytes, tmp_path: Path) -> None:
    """llama.cpp opens the others by itself, so a damaged second one is refused with the first."""
    from llmfit.errors import ModelLoadError

    path = _parts(whole, tmp_path, whole)
    assert [each.name for each in check_gguf(path)] == [
        "m-00001-of-00002.gguf",
        "m-00002-of-00002.gguf",
    ]
    path = _parts(whole, tmp_path, whole[:2000])
    with pytest.raises(ModelLoadError, match="m-00002-of-00002"):
        check_gguf(path)
    renamed = path.rename(tmp_path / "m.gguf")
    with pytest.raises(ModelLoadError, match="one of 2 files"):
        check_gguf(renamed)


@pytest.mark.slow
def test_the_row_of_a_whole_file_is_ok(
    whole: bytes, embedded: ModelSpec, server: ForkServer | None, tmp_path: Path
) -> None:
    """The same way, undamaged."""
    path = tmp_path / "whole.gguf"
    path.write_bytes(parse(whole).build())
    record: RunRecord = run_isolated(_plan(embedded, path), server=server)
    assert record.status == "ok", record.reason
