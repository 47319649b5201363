"""GPTQ and AWQ quantising: calibration text, legal shapes, and weights checked by closed forms."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import Tensor

from llmfit.errors import QuantizationError, UsageError
from llmfit.models import data_path
from llmfit.quantize import awq, gptq
from llmfit.quantize._gptqmodel import import_gptqmodel, plan_layers
from llmfit.quantize.apart import Job, quantize_apart
from llmfit.quantize.calibration import MIN_TOKENS, load_calibration

pytest.importorskip("gptqmodel")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

GROUP = 128
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where output 0…7 sits among the eight nibbles. Source: AutoAWQ, the GEMM layout's packing."""


class Bytes:
    """A tokenizer of bytes."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return list(text.encode())


# ---------------------------------------------------------------- calibration text


def test_calibration_is_deterministic_and_follows_the_seed(tmp_path: Path) -> None:
    """The same seed gives the same sequences, another seed other ones; all have full length."""
    file = tmp_path / "text.txt"
    file.write_text("\n<|endoftext|>\n".join(f"document {i} " * 20 for i in range(100)))
    first, again, other = (
        load_calibration(str(file), Bytes(), samples=8, tokens=256, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again != other
    assert [len(sequence) for sequence in first] == [256] * 8
    assert "<|" not in bytes(token for sequence in first for token in sequence).decode()


def test_calibration_takes_what_a_short_text_has(tmp_path: Path) -> None:
    """A text shorter than asked for gives fewer whole sequences."""
    file = tmp_path / "text.txt"
    file.write_text("a" * 1500)
    assert len(load_calibration(str(file), Bytes(), samples=128, tokens=512, seed=0)) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no calibration file"),
        (b" \n ", "is empty"),
        (b"abc\xff\xfe", "not UTF-8"),
        (b"short", f"has 5 tokens; calibration needs {MIN_TOKENS}"),
    ],
)
def test_unusable_calibration_is_a_usage_error(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    """A missing, empty, binary or too short file is named, with the flag to give another."""
    file = tmp_path / "calibration.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        load_calibration(str(file), Bytes(), seed=0)
    assert str(file) in str(caught.value)
    assert "--calibration" in str(caught.value)


# ---------------------------------------------------------------- which layers


def llama_config(folder: Path, hidden: int, mlp: int, heads: int, kv_heads: int) -> Path:
    transformers.LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=128,
    ).save_pretrained(folder)
    return folder


ATTENTION = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
MLP = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}


@pytest.mark.parametrize(
    ("shape", "group_size", "kept"),
    [
        ((256, 768, 8, 4), 128, set()),
        ((320, 832, 5, 5), 64, set()),  # both are odd multiples of 64
        ((256, 288, 8, 8), 32, set()),  # 288 = 9 × 32
        ((64, 172, 8, 4), 64, MLP),  # 172 = 5.4 × 32
        ((256, 700, 8, 8), 128, MLP),
        ((256, 768, 8, 1), 128, set()),  # one KV head of 32
        ((128, 256, 8, 1), 128, ATTENTION - {"self_attn.o_proj"}),  # of 16: q, k, v go together
    ],
)
def test_group_size_and_kept_layers(
    shape: tuple[int, int, int, int], group_size: int, kept: set[str], tmp_path: Path
) -> None:
    """The group size is the one that divides most weights; what still does not fit stays bf16."""
    layers = plan_layers(llama_config(tmp_path, *shape))
    assert (layers.group_size, set(layers.kept)) == (group_size, kept)
    assert set(layers.quantized) == (ATTENTION | MLP) - kept


def test_nothing_to_quantise_is_an_error(tmp_path: Path) -> None:
    """A model whose layers all refuse is told so with its shapes."""
    with pytest.raises(QuantizationError, match=r"\(48, 48\)"):
        plan_layers(llama_config(tmp_path, 48, 100, 4, 4))


# ---------------------------------------------------------------- the weights


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of random weights with the embedded model's tokenizer, some columns salient."""
    folder = tmp_path_factory.mktemp("source")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=256,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=2048,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config)
    model.model.embed_tokens.weight.data[:, ::16] *= 8  # a few inputs count more, as in real models
    model.to(torch.bfloat16).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(data_path("embedded")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sequences(source: Path) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 2048, (16, 128), generator=generator).tolist()


@pytest.fixture(scope="module")
def checkpoints(
    source: Path, sequences: Sequence[Sequence[int]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The model quantised by each method, as ``quantize_*`` writes it."""
    made = {}
    for name, quantize in (("gptq", gptq.quantize_gptq), ("awq", awq.quantize_awq)):
        made[name] = tmp_path_factory.mktemp(name)
        seen: list[tuple[int, int]] = []
        with contextlib.chdir(made[name].parent):  # GPTQModel writes a folder "logs" there
            quantize(
                source,
                made[name],
                plan_layers(source),
                sequences,
                device="cpu",
                progress=lambda done, total, seen=seen: seen.append((done, total)),
            )
        assert seen == [(1, 2), (2, 2)], "one progress call a layer"
    return made


def nibbles(packed: Tensor) -> Tensor:
    """int32[R, C] to its 4-bit values, lowest first: int32[R, C, 8]."""
    return packed.unsqueeze(-1) >> torch.arange(0, 32, 4) & 15


def dequantise(method: str, tensors: dict[str, Tensor], name: str) -> Tensor:
    """[out, in] weights by the published layouts of the two formats."""
    qweight, qzeros = tensors[f"{name}.qweight"], tensors[f"{name}.qzeros"]
    scales = tensors[f"{name}.scales"].float()
    if method == "gptq":  # eight inputs in an int32; zero points stored less one
        quants = nibbles(qweight).transpose(1, 2).flatten(0, 1)
        zeros = nibbles(qzeros).flatten(1) + 1
        groups = tensors[f"{name}.g_idx"].long()
    else:  # eight outputs in an int32, interleaved
        quants = nibbles(qweight)[..., AWQ_ORDER].flatten(1)
        zeros = nibbles(qzeros)[..., AWQ_ORDER].flatten(1)
        groups = torch.arange(len(quants)) // GROUP
    return (scales[groups] * (quants - zeros[groups])).T


def round_to_nearest(weight: Tensor) -> Tensor:
    """Symmetric 4 bits, groups of 128 inputs."""
    groups = weight.reshape(-1, GROUP)
    step = groups.abs().amax(dim=1, keepdim=True) / 7
    return ((groups / step).round().clamp(-8, 7) * step).reshape(weight.shape)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_plain_transformers_computes_with_the_published_layout(
    method: str, checkpoints: dict[str, Path]
) -> None:
    """Plain transformers loads the checkpoint, and its logits are those of the unpacked weights."""
    folder = checkpoints[method]
    tensors = safetensors_torch.load_file(folder / "model.safetensors")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    config = transformers.AutoConfig.from_pretrained(folder)
    del config.quantization_config
    plain = transformers.LlamaForCausalLM(config).eval()
    state = {
        name: dequantise(method, tensors, name.removesuffix(".weight"))
        if f"{name.removesuffix('.weight')}.qweight" in tensors
        else tensors[name].float()
        for name in plain.state_dict()
        if name != "lm_head.weight"
    }
    plain.load_state_dict(state, strict=False)
    ids = torch.randint(0, 2048, (2, 40), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        got, wanted = loaded(ids).logits.float(), plain(ids).logits
    assert (got - wanted).norm() / wanted.norm() < 0.02  # bf16 keeps 8 bits


@pytest.mark.slow
def test_gptq_errs_less_than_rounding(
    source: Path, checkpoints: dict[str, Path], sequences: list[list[int]]
) -> None:
    """On the calibration inputs GPTQ's first layer is nearer to the original than rounding is."""
    original = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tensors = safetensors_torch.load_file(checkpoints["gptq"] / "model.safetensors")
    with torch.inference_mode():
        inputs = original.model.embed_tokens(torch.tensor(sequences))
        inputs = original.model.layers[0].input_layernorm(inputs).reshape(-1, 256)
    for name in ("q_proj", "k_proj", "v_proj"):
        weight = getattr(original.model.layers[0].self_attn, name).weight.detach()
        made = dequantise("gptq", tensors, f"model.layers.0.self_attn.{name}")
        error = (inputs @ (made - weight).T).norm()
        rounding = (inputs @ (round_to_nearest(weight) - weight).T).norm()
        assert 0 < error < 0.9 * rounding


@pytest.mark.slow
def test_checkpoint_names_no_folder_of_this_machine(checkpoints: dict[str, Path]) -> None:
    """The checkpoint's configs hold the format's keys and no temporary path."""
    for method, folder in checkpoints.items():
        config = json.loads((folder / "config.json").read_text())["quantization_config"]
        assert (config["quant_method"], config["bits"], config["group_size"]) == (method, 4, 128)
        for file in folder.glob("*.json"):
            assert str(folder) not in file.read_text()
        assert not (folder / ".offload").exists()


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("outputs", [64, 256])
def test_clip_search_agrees_with_gptqmodel(sym: bool, outputs: int) -> None:
    """Our closed form of AWQ's clip search finds the bounds that GPTQModel's own search finds."""
    import_gptqmodel()
    from gptqmodel.looper.awq_processor import AWQProcessor

    processor = SimpleNamespace(qcfg=SimpleNamespace(group_size=GROUP, bits=4, sym=sym))
    processor._pseudo_quantize_tensor_into = AWQProcessor._pseudo_quantize_tensor_into.__get__(
        processor
    )
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(outputs, 256, generator=generator) ** 3  # long tails: clipping pays
    inputs = torch.randn(4, 128, 256, generator=generator)
    wanted = AWQProcessor._compute_best_clip(processor, weight, inputs)
    got = awq._best_clip(processor, weight, inputs)
    assert got.shape == wanted.shape == (outputs, 2, 1)
    assert (wanted < weight.reshape(outputs, 2, GROUP).abs().amax(-1, keepdim=True)).any()
    # Candidates of equal error up to rounding may be told apart differently.
    assert torch.isclose(got, wanted).float().mean() > 0.99


# ---------------------------------------------------------------- the process apart


def job(model_path: Path, folder: Path, source: Path) -> Job:
    return Job(
        method="gptq",
        model_path=str(model_path),
        folder=str(folder),
        layers=plan_layers(source),
        sequences=[[1] * 64],
        device="cpu",
        threads=1,
    )


def children(process: psutil.Process) -> list[psutil.Process]:
    """The quantising processes below ``process``, once there is one."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = [c for c in process.children() if "llmfit.quantize.apart" in c.cmdline()]
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("no quantising process appeared")


@pytest.mark.slow
def test_failure_inside_gptqmodel_is_translated(tmp_path: Path, source: Path) -> None:
    """What GPTQModel raises in the child comes out as a QuantizationError naming the model."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in source.glob("*.json"):
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")  # no tensor
    with pytest.raises(QuantizationError, match=r"could not quantise .*broken"):
        quantize_apart(job(broken, tmp_path, source), lambda done, total: None)


def test_killed_quantising_is_an_error(tmp_path: Path, source: Path) -> None:
    """A child killed for want of memory gives an error that says so, and no hang."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            quantize_apart(job(source, tmp_path, source), lambda done, total: None)
        except QuantizationError as exc:
            failures.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    children(psutil.Process())[0].kill()
    thread.join(timeout=60)
    assert "signal SIGKILL (out of memory?)" in str(failures[0])


@pytest.mark.slow
def test_quantising_ends_with_its_parent(tmp_path: Path, source: Path) -> None:
    """No quantising process outlives a worker that is killed."""
    code = (
        "import sys; from pathlib import Path\n"
        "from llmfit.quantize._gptqmodel import plan_layers\n"
        "from llmfit.quantize.apart import Job, quantize_apart\n"
        "quantize_apart(Job(method='gptq', model_path=sys.argv[1], folder=sys.argv[2],\n"
        "    layers=plan_layers(Path(sys.argv[1])), sequences=[[1] * 512] * 128, device='cpu',\n"
        "    threads=1), lambda done, total: None)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(source), str(tmp_path)], env=environment
    )
    child = children(psutil.Process(parent.pid))[0]
    parent.kill()
    parent.wait()
    child.wait(timeout=30)
    assert not child.is_running()
