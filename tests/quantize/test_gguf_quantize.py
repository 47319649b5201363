"""Quantising through llama.cpp: legal files, honest shares, one making per model and type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmfit.backends.base import no_progress
from llmfit.decode.base import Window
from llmfit.errors import ModelLoadError, QuantizationError
from llmfit.quantize.cache import ArtifactCache
from llmfit.quantize.gguf import FILE_TYPES, make_gguf, quantize
from llmfit.quantize.gguf_types import GgufTypes, fallback_note, read_types

pytest.importorskip("llama_cpp")
gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights whose rows are multiples of 256, so that K-quants fit."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("wide")
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, **{letter: i for i, letter in enumerate(alphabet, start=1)}, "ab": 257}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>"
    ).save_pretrained(folder)
    return folder


def make(folder: Path, file_type: str, root: Path) -> Path:
    """The artifact of one type, on one thread."""
    return make_gguf(
        folder, file_type, cache=ArtifactCache(root), threads=1, progress=no_progress
    ).path


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_every_type_gives_a_legal_file(file_type: str, shared_data: Path, tmp_path: Path) -> None:
    """Rows of 64 and 172 fit few types; each still ends as a file that llama.cpp scores with,
    and the note tells the shares that the file's own tensors have."""
    from llmfit.decode.llama_cpp import LlamaCppModel
    from llmfit.decode.llama_scoring import score_windows

    file = make(shared_data / "stories260k", file_type, tmp_path)
    types = read_types(file)
    assert sum(types.parameters.values()) == 260_032
    assert types.weights_bytes == sum(int(t.n_bytes) for t in gguf.GGUFReader(file).tensors)
    note = fallback_note(file_type, types)
    assert (note is None) == (file_type in ("f16", "bf16", "f32"))
    if note is not None:
        # The down projections, 5 × 172 × 64 parameters, fit no block.
        assert f"F16 {100 * 5 * 172 * 64 / 260_032:.3g} %" in note
        assert types.quantized_share == pytest.approx(1 - (5 * 172 * 64 + 11 * 64) / 260_032)
    model = LlamaCppModel(file, threads=1)
    ids = (1, 403, 407, 261, 378, 300, 301)
    (score,) = score_windows(model, [Window(ids, 1)], batch_tokens=64)
    model.close()
    assert all(-20 < logprob < 0 for logprob in score.logprobs)


def test_k_quants_where_they_fit(wide: Path, tmp_path: Path) -> None:
    """At rows of 256 and 512, Q4_K_M is Q4_K and Q6_K alone, without a note."""
    types = read_types(make(wide, "q4_k_m", tmp_path))
    assert set(types.parameters) == {"Q4_K", "Q6_K", "F32"}
    assert types.linear() == "Q4_K/Q6_K"
    assert types.quantized_share > 0.99
    assert fallback_note("q4_k_m", types) is None
    # Blocks of 256: 144 bytes of Q4_K, 210 of Q6_K.
    by_type = types.parameters
    expected = by_type["Q4_K"] * 144 / 256 + by_type["Q6_K"] * 210 / 256 + by_type["F32"] * 4
    assert types.weights_bytes == expected


def test_quantised_weights_are_near_the_originals(wide: Path, tmp_path: Path) -> None:
    """Q8_0's values lie within half a step of the checkpoint's, in the checkpoint's order.

    Source: Q8_0 scales blocks of 32 by their largest magnitude over 127; the scale is a float16,
    whose rounding moves 127 steps by up to 127 / 2048.
    """
    file = make(wide, "q8_0", tmp_path)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    down = tensors["blk.3.ffn_down.weight"]
    values = torch.tensor(gguf.quants.dequantize(down.data, down.tensor_type))
    model = transformers.AutoModelForCausalLM.from_pretrained(wide)
    original = model.model.layers[3].mlp.down_proj.weight.detach().float()
    steps = original.reshape(-1, 32).abs().amax(1, keepdim=True) / 127
    difference = (values - original).reshape(-1, 32).abs()
    assert (difference <= (0.5 + 127 / 2048) * steps).all()


def test_made_once(wide: Path, tmp_path: Path) -> None:
    """The second call finds the file; another type, or other weights, is made anew."""
    cache = ArtifactCache(tmp_path / "cache")
    stages: list[tuple[str, int, int]] = []

    def ask(folder: Path, file_type: str) -> tuple[Path, float | None]:
        made = make_gguf(
            folder,
            file_type,
            cache=cache,
            threads=1,
            progress=lambda *call: stages.append(call),
        )
        return made.path, made.make_s

    first, seconds = ask(wide, "q4_k_m")
    assert seconds is not None
    assert [file.name for file in first.parent.glob("*.gguf")] == ["model.gguf"]
    # 8 layers of 9 tensors, the embedding, the last norm.
    assert [done for stage, done, total in stages if (stage, total) == ("convert", 74)] == list(
        range(1, 75)
    )
    assert ("quantize", 74, 74) in stages
    assert ask(wide, "q4_k_m") == (first, None)
    assert ask(wide, "q5_k_m")[0] != first


def test_the_converters_notes_survive(wide: Path, tmp_path: Path) -> None:
    """What the converter had to say is read back from the cached, quantised file."""
    folder = tmp_path / "mistral"
    folder.mkdir()
    for file in wide.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["MistralForCausalLM"], "sliding_window": 64}
    (folder / "config.json").write_text(json.dumps(config))
    types = read_types(make(folder, "q4_k_m", tmp_path / "cache"))
    assert any("window of 64 tokens" in note for note in types.notes)


def test_failures_say_why(wide: Path, shared_data: Path, tmp_path: Path) -> None:
    """llama.cpp's refusal, a file that is no GGUF, and one without tensors are errors."""
    with pytest.raises(QuantizationError, match=r"Q4_K_M.*no\.gguf"):
        quantize(
            tmp_path / "no.gguf",
            tmp_path / "out.gguf",
            "q4_k_m",
            threads=1,
            progress=no_progress,
        )
    (tmp_path / "text.gguf").write_text("not a model")
    with pytest.raises(ModelLoadError, match=r"text\.gguf"):
        read_types(tmp_path / "text.gguf")
    vocabulary = shared_data / "tokenizers" / "gguf-vocab" / "ggml-vocab-gpt-2.gguf"
    with pytest.raises(ModelLoadError, match="only a vocabulary"):
        read_types(vocabulary)
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((wide / name).read_bytes())
    with pytest.raises(ModelLoadError, match=r"model\.safetensors"):
        make(tmp_path, "f16", tmp_path / "cache")


@pytest.mark.parametrize(
    ("file_type", "widths", "expected"),
    [
        ("q4_k_m", (256, 512), None),
        ("f16", (64, 172), None),
        ("q8_0", (64, 96), None),
        ("q6_k", (96, 256), "row length 96 is not divisible by 256"),
        ("q4_0", (100, 172, 256), "row lengths 100 and 172 are not divisible by 32"),
        ("iq4_xs", (96,), "0 % of parameters in IQ4_XS"),
    ],
)
def test_fallback_note(file_type: str, widths: Any, expected: str | None) -> None:
    """The note names the rows that the type's block does not divide, and only those."""
    types = GgufTypes(parameters={"Q8_0": 3, "F16": 1}, weights_bytes=1, widths=widths, notes=())
    note = fallback_note(file_type, types)
    if expected is None:
        assert note is None
    else:
        assert note is not None
        assert expected in note
        assert "Q8_0 75 %, F16 25 %" in note
