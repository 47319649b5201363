"""The gguf-gpu row: which builds it takes, and what of a file lies on the GPU."""

from __future__ import annotations

import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from llmfit.backends.base import no_progress
from llmfit.backends.gguf_gpu import GgufGpu, has_gpu_build
from llmfit.backends.registry import get_backend
from llmfit.device.memory import PeakMemory
from llmfit.errors import BackendUnavailable, ModelNotFound, UsageError
from llmfit.planning.memory.prediction import predict_memory, weights_bytes
from llmfit.quantize.cache import ArtifactCache
from llmfit.quantize.gguf import make_gguf
from llmfit.records import ModelSpec, Plan, Workload
from llmfit.runner.worker import blank_record


def build_with(folder: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A llama_cpp package whose folder of libraries holds ``library``."""
    place = folder / "llama_cpp" / "lib"
    place.mkdir(parents=True)
    (place.parent / "__init__.py").write_text("raise RuntimeError('nobody may import it')\n")
    for name in ("libllama.so", "libggml-cpu.so", library):
        (place / name).touch()
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.parametrize(
    ("library", "found"),
    [
        ("libggml-cuda.so", True),
        ("ggml-cuda.dll", True),
        ("libggml-hip.so.0", True),
        ("libggml-blas.so", False),
        ("libggml-metal.dylib", False),
    ],
)
def test_a_build_is_known_by_its_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, found: bool
) -> None:
    """CUDA's and HIP's, which torch calls CUDA devices too; nothing is imported to see it."""
    build_with(tmp_path, library, monkeypatch)
    assert has_gpu_build() is found
    assert bool(get_backend("gguf-gpu").missing()) is not found


def test_the_install_line_builds_the_version_that_is_here(
    embedded: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU build the row is unavailable, with a line that pip takes; a GPU build may run."""
    pytest.importorskip("llama_cpp")
    build_with(tmp_path, "libggml-cpu-haswell.so", monkeypatch)
    backend = get_backend("gguf-gpu")
    plan = Plan(backend="gguf-gpu", model=embedded, device="cuda")
    reason = str(backend.check(plan).unavailable)
    assert reason.startswith("llama-cpp-python built for a GPU not installed: pip install ")
    words = shlex.split(reason.partition(": ")[2])
    assert words[-1] == f"llama-cpp-python=={version('llama-cpp-python')}"
    assert words[words.index("-C") + 1] == "cmake.args=-DGGML_CUDA=on"
    with pytest.raises(BackendUnavailable, match="gguf-gpu"):
        backend.load(plan)
    (tmp_path / "llama_cpp" / "lib" / "libggml-cuda.so").touch()
    assert backend.check(plan).unavailable is None and backend.check(plan).skipped is None
    on_cpu = Plan(backend="gguf-gpu", model=embedded, device="cpu")
    assert "CUDA GPU" in str(backend.check(on_cpu).unavailable)


def test_it_takes_what_gguf_takes() -> None:
    """Types and ready files; it is named after where it runs."""
    plain, gpu = get_backend("gguf"), get_backend("gguf-gpu:q8_0")
    assert isinstance(gpu, GgufGpu) and gpu.variants == plain.variants and gpu.takes_checkpoint
    assert gpu.describe("q8_0") == "GGUF Q8_0 (GPU)" and plain.describe(None).endswith("(CPU)")
    with pytest.raises(UsageError, match="gguf-gpu has no type 'q9'"):
        get_backend("gguf-gpu:q9")


def test_a_missing_checkpoint_is_told_with_the_rows_own_id(
    embedded: ModelSpec, tmp_path: Path
) -> None:
    """The next command to try is the one for this row."""
    plan = Plan(
        backend="gguf-gpu", model=embedded, device="cuda", checkpoint=str(tmp_path / "none.gguf")
    )
    with pytest.raises(ModelNotFound, match=r"--checkpoint with one \.gguf file for gguf-gpu"):
        GgufGpu().make(plan)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_the_table_of_the_input_stays_in_ram(tmp_path: Path, tied: bool) -> None:
    """Predicted on the GPU is every tensor of the real file, but an embedding that is not the head.

    So llama.cpp places them: its input layer is never on a GPU, and a shared one is copied there.
    """
    gguf: Any = pytest.importorskip("gguf")
    transformers = pytest.importorskip("transformers")
    from llmfit.models import data_path, resolve

    config = transformers.LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=2048, max_position_embeddings=256,
        tie_word_embeddings=tied,
    )  # fmt: skip
    folder = tmp_path / "model"
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    for file in data_path("embedded").glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    spec = resolve(str(folder))
    cache = ArtifactCache(tmp_path / "cache")
    made = make_gguf(folder, "q8_0", cache=cache, threads=1, progress=no_progress)
    tensors = {each.name: each.n_bytes for each in gguf.GGUFReader(made.path).tensors}
    assert ("output.weight" in tensors) is not tied
    in_ram = 0 if tied else tensors["token_embd.weight"]
    assert weights_bytes(spec, "gguf:q8_0") == sum(tensors.values())
    assert weights_bytes(spec, "gguf-gpu:q8_0") == sum(tensors.values()) - in_ram


def test_its_cache_and_buffers_are_llama_cpps(embedded: ModelSpec) -> None:
    """Contexts of whole steps of 256 tokens, K and V in the types of its blocks, as on the CPU."""
    work = Workload(prompt_tokens=200, new_tokens=57)
    for dtype in (None, "q8_0", "q4_0"):
        rows = [
            predict_memory(embedded, name, work, place, kv_cache_dtype=dtype)  # type: ignore[arg-type]
            for name, place in (("gguf", "cpu"), ("gguf-gpu", "cuda"))
        ]
        on_cpu, on_gpu = rows
        assert on_cpu is not None and on_gpu is not None
        assert on_gpu.kv_cache_bytes == on_cpu.kv_cache_bytes
        attention = (embedded.num_key_value_heads, embedded.head_dim, embedded.num_hidden_layers)
        values = 512 * 2 * attention[0] * attention[1] * attention[2]
        bits = {None: 16, "q8_0": 8.5, "q4_0": 4.5}[dtype]
        assert on_gpu.kv_cache_bytes == values * bits / 8


def test_its_peak_is_the_drivers_beyond_the_context(embedded: ModelSpec) -> None:
    """What torch's allocator counts is no figure of llama.cpp's; unknown stays unknown."""
    from llmfit.runner.worker import _memory

    for name, expected in (("gguf-gpu", 700), ("bf16", 30)):
        plan = Plan(backend=name, model=embedded, device="cuda")
        told = PeakMemory(
            idle_ram_bytes=1, peak_ram_bytes=2, peak_allocated_bytes=30, driver_peak_bytes=1000,
            beyond_context_bytes=700,
        )  # fmt: skip
        assert _memory(blank_record(plan), plan, told).peak_bytes == expected
    plan = Plan(backend="gguf-gpu", model=embedded, device="cuda")
    untold = PeakMemory(idle_ram_bytes=1, peak_ram_bytes=2, peak_allocated_bytes=0)
    memory = _memory(blank_record(plan), plan, untold)
    assert memory.peak_bytes is None and memory.error_pct is None
