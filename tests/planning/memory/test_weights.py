"""Predicted bytes of weights against what the backends really hold, and in closed form."""

from __future__ import annotations

import json
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest

from llmfit.backends.registry import BACKENDS, get_backend
from llmfit.errors import ModelLoadError, QuantizationError
from llmfit.models import resolve
from llmfit.planning.architectures import read_shape
from llmfit.planning.memory.prediction import weights_bytes
from llmfit.planning.memory.weights import expected_copies, packed_names, weights_read_bytes
from llmfit.planning.memory.weights import weights_bytes as of_shape
from llmfit.quantize._gptqmodel import plan_layers
from llmfit.records import ModelSpec, Plan
from llmfit.shape import Matrix
from llmfit.testing import make_model

BASE: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
    "max_position_embeddings": 256, "tie_word_embeddings": False,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "tied": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True,
    },
    "biases": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "odd": {  # groups of 32 suit most weights
        "model_type": "llama", "architectures": ["LlamaForCausalLM"],
        "hidden_size": 192, "intermediate_size": 352, "head_dim": 48,
    },
    "fused": {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "pad_token_id": 0},
    "experts": {
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"],
        "num_local_experts": 4, "num_experts_per_tok": 2,
    },
    "latent": {
        "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"],
        "num_key_value_heads": 4, "moe_intermediate_size": 64, "n_routed_experts": 8,
        "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
        "kv_lora_rank": 64, "q_lora_rank": 96, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
        "v_head_dim": 32,
    },
    "transposed": {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "tie_word_embeddings": True,
    },
}  # fmt: skip
NAMES_OF_GPT2 = {
    "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions", "intermediate_size": "n_inner",
}  # fmt: skip


def facts(kind: str) -> dict[str, Any]:
    """A small config."""
    said = {**BASE, **CONFIGS[kind]}
    if said["model_type"] == "gpt2":
        said = {NAMES_OF_GPT2.get(name, name): value for name, value in said.items()}
        del said["num_key_value_heads"], said["n_inner"]
    return said


@pytest.fixture(params=list(CONFIGS))
def small(request: pytest.FixtureRequest, tmp_path: Path) -> ModelSpec:
    """A model of which only the config is there."""
    (tmp_path / "config.json").write_text(json.dumps(facts(request.param)))
    return resolve(str(tmp_path), weights=False)


def held_bytes(model: Any) -> int:
    """What the backends count, with what torch's int4 kernel keeps outside of module buffers."""
    pairs = [getattr(module, "scales_and_zeros", None) for module in model.model.modules()]
    beside = sum(each.numel() * each.element_size() for each in pairs if each is not None)
    assert model.info.weights_bytes is not None
    return int(model.info.weights_bytes) + beside


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend", ["bf16", "int8", "nf4", "nf4:double", "gptq", "awq", "int8wo", "hqq"]
)
def test_weights_are_what_the_backend_holds(small: ModelSpec, backend: str) -> None:
    """Every format's bytes, for dense, fused, sparse and latent models, within 1 KiB a layer.

    The rest is small buffers: rotary frequencies, routing corrections, shift tables of GPTQ.
    """
    plan = Plan(backend=backend, model=small, device="cpu", weights="synthetic")
    if (backend, small.model_type) == ("int8", "deepseek_v3"):
        # bitsandbytes 0.50 multiplies inputs of four dimensions wrongly on a CPU.
        with pytest.raises(ModelLoadError, match="Linear8bitLt cannot run this model"):
            get_backend(backend).load(plan)
        return
    if backend in ("int8wo", "hqq") and small.model_type == "gpt2":  # its layers are Conv1D
        with pytest.raises(ModelLoadError, match=f"nothing of .* is quantised by {backend}"):
            get_backend(backend).load(plan)
        return
    try:
        loaded = get_backend(backend).load(plan)
    except QuantizationError:
        assert packed_names(shape_of(small))[1] == frozenset()
        return
    with loaded as model:
        held = held_bytes(model)
    predicted = weights_bytes(small, backend, "cpu")
    assert predicted is not None
    assert 0 <= held - predicted <= 1024 * len(shape_of(small).layers)


def shape_of(spec: ModelSpec) -> Any:
    assert spec.shape is not None
    return spec.shape


def torchao_bytes(weight: Any, backend: str) -> int:
    """Bytes of the tensors that torchao makes of a weight for the row; on the meta device too."""
    import torch

    flows = "torchao.quantization.quantize_.workflows"
    if backend == "int4wo":
        if weight.shape[1] % 128:
            return int(weight.nbytes)
        packed: Any = pytest.importorskip(f"{flows}.int4.int4_tile_packed_to_4d_tensor")
        made = packed.Int4TilePackedTo4dTensor.from_hp(weight, [1, 128])
        return int(made.qdata.nbytes + made.scale_and_zero.nbytes)
    if weight.shape[0] % 16 or weight.shape[1] % 16:
        return int(weight.nbytes)
    packed = pytest.importorskip(f"{flows}.float8.float8_tensor")
    per_row = pytest.importorskip("torchao.quantization.granularity").PerRow()
    made = packed.Float8Tensor.from_hp(weight, torch.float8_e4m3fn, per_row)
    return int(made.qdata.nbytes + made.scale.nbytes)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["int4wo", "fp8"])
def test_weights_of_rows_for_gpus_alone_are_torchaos(
    small: ModelSpec, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchao's own tensors of all linear layers but the head, made without data; the rest in bf16.

    Its int4 packing asks for a GPU of compute capability 8 before it packs: it is told of one.
    """
    import torch
    import transformers

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    with torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(small.path)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    head = model.get_output_embeddings()
    packed = {
        id(layer.weight): torchao_bytes(layer.weight.detach(), backend)
        for layer in model.modules()
        if type(layer).__name__ == "Linear" and layer is not head
    }
    held = sum(packed.get(id(each), each.nbytes) for each in model.parameters())
    assert packed or small.model_type == "gpt2"  # its layers are no linear ones
    predicted = weights_bytes(small, backend)
    assert predicted is not None
    assert abs(held - predicted) <= 1024 * len(shape_of(small).layers)


def test_a_format_of_gpus_alone_has_no_bytes_on_a_cpu() -> None:
    """As its backend's devices say; nothing is predicted of a row that cannot run there."""
    spec = make_model()
    for backend in BACKENDS:
        alone = "cpu" not in get_backend(backend).devices
        on_gpu, on_cpu = (weights_bytes(spec, backend, place) for place in ("cuda", "cpu"))  # type: ignore[arg-type]
        assert (on_cpu is None) or not alone
        assert not alone or on_gpu is not None
        assert weights_read_bytes(shape_of(spec), backend, device="cpu") is None or not alone


@pytest.mark.slow
def test_an_fp8_input_is_held_three_times_in_float32() -> None:
    """While torchao rounds it; 13 bytes a value at the peak, as the working set of a prompt has."""
    import torch

    from llmfit.device.allocations import working_bytes
    from llmfit.planning.memory.activations import Pass, _product_bytes

    module: Any = pytest.importorskip(
        "torchao.quantization.quantize_.workflows.float8.float8_tensor"
    )
    inputs = torch.randn(64, 512, dtype=torch.bfloat16)
    peak = working_bytes(lambda: module.Float8Tensor.from_hp(inputs), "cpu")
    matrix = Matrix(name="ffn_up", rows=16, columns=512)
    predicted = _product_bytes(matrix, "fp8", Pass(batch=1, new=64, context=64), "cuda")
    assert peak == pytest.approx(predicted, rel=0.02)


def test_group_and_layers_are_those_that_gptqmodel_is_given(small: ModelSpec) -> None:
    """The same group size and as many weights as quantising plans to pack."""
    group, names = packed_names(shape_of(small))
    layers = shape_of(small).of_layers()
    weights = sum(m.parameters for k in layers for m in k.matrices if m.linear and m.name in names)
    try:
        planned = plan_layers(Path(small.path))
    except QuantizationError:
        assert weights == 0
        return
    assert (planned.group_size, planned.weights) == (group, weights)


def test_published_sizes_of_four_bit_checkpoints() -> None:
    """Llama-3.1-8B: the tensors of published GPTQ and AWQ checkpoints in groups of 128.

    Each is 5.73 GB in safetensors, hugging-quants/Meta-Llama-3.1-8B-Instruct-GPTQ-INT4 and
    -AWQ-INT4: head and embeddings, 2 × 1.05 GB, stay in 16 bits.
    """
    for backend in ("gptq", "awq"):
        size = weights_bytes(make_model(), backend)
        assert size == pytest.approx(5.73e9, rel=2e-3)


def test_double_quantisation_saves_what_its_paper_says() -> None:
    """0.37 bits a quantised weight. Source: Dettmers et al., QLoRA, 2023, section 3."""
    shape = read_shape({**BASE, "model_type": "llama", "hidden_size": 4096, "head_dim": 128,
                        "num_attention_heads": 32, "intermediate_size": 14336})  # fmt: skip
    assert shape is not None
    plain, double = of_shape(shape, "nf4"), of_shape(shape, "nf4:double")
    assert plain is not None and double is not None
    linear = sum(m.parameters for kind in shape.of_layers() for m in kind.matrices)
    assert 8 * (plain - double) / linear == pytest.approx(0.373, abs=1e-3)


@pytest.mark.parametrize(("method", "device", "per_weight"), [
    ("fp8", "cuda", 1.0), ("fp8", "cpu", 2.0), ("mxfp4", "cpu", 2.0),
])  # fmt: skip
def test_stored_formats_are_packed_on_a_gpu_only(
    method: str, device: Any, per_weight: float
) -> None:
    """FP8 takes a byte a weight of the blocks on a GPU; on a CPU all is unpacked to 16 bits."""
    shape = read_shape(facts("llama"))
    assert shape is not None
    linear = sum(m.parameters for kind in shape.of_layers() for m in kind.matrices)
    size = of_shape(shape, "stored", stored=method, device=device)
    assert size is not None
    rest = 2 * (shape.parameters - linear)
    assert size - rest == pytest.approx(per_weight * linear, rel=1e-3)


def test_gpt_oss_in_its_own_format_is_its_published_size(shared_data: Path) -> None:
    """The 20 B model's checkpoint of MXFP4 experts is 13.8 GB. Source: its files on the hub."""
    spec = resolve(str(shared_data / "configs" / "openai--gpt-oss-20b"), weights=False)
    assert weights_bytes(spec, "stored", "cuda") == pytest.approx(13.76e9, rel=5e-3)


def test_an_unknown_format_is_none() -> None:
    """No guess about a layout that is not known."""
    shape = read_shape(facts("llama"))
    assert shape is not None
    assert of_shape(shape, "exl9") is None
    assert of_shape(shape, "stored", stored="compressed-tensors") is None
    assert weights_read_bytes(shape, "exl9") is None


# ---------------------------------------------------------------- what a step reads


def test_a_step_reads_all_but_the_embedding() -> None:
    """Every byte of a dense model but the lookup table, of which one row a sequence; a tied table
    is read whole as the head."""
    for kind in ("llama", "tied"):
        shape = read_shape(facts(kind))
        assert shape is not None
        whole, read = of_shape(shape, "nf4"), weights_read_bytes(shape, "nf4", 3)
        assert whole is not None and read is not None
        table = 2 * 512 * 256
        assert whole - read == (0 if shape.tied else table) - 3 * 2 * 256


@pytest.mark.parametrize("config", [
    {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2, "vocab_size": 96,
     "n_positions": 512, "architectures": ["GPT2LMHeadModel"]},
    {"model_type": "opt", "hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 128,
     "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 96,
     "max_position_embeddings": 510, "architectures": ["OPTForCausalLM"]},
])  # fmt: skip
def test_a_step_reads_a_row_of_learned_positions(config: dict[str, Any]) -> None:
    """Of a table of 512 rows, which a step does not read through."""
    shape = read_shape(config)
    assert shape is not None and shape.tied
    whole, read = of_shape(shape, "bf16"), weights_read_bytes(shape, "bf16", 3)
    assert whole is not None and read is not None
    assert whole - read == 2 * 64 * (512 - 3 - 3)  # the embedding is the head, and read as that


@pytest.mark.parametrize(("count", "active", "batch"), [(4, 2, 2), (5, 1, 3), (4, 3, 2)])
def test_distinct_experts_are_counted_as_chance_has_it(count: int, active: int, batch: int) -> None:
    """The expectation over all equally likely choices, listed one by one."""
    choices = list(combinations(range(count), active))
    drawn = [set().union(*each) for each in product(choices, repeat=batch)]
    mean = sum(map(len, drawn)) / len(drawn)
    matrix = Matrix(name="ffn_up_exps", rows=1, columns=1, count=count, active=active)
    assert expected_copies(matrix, batch=batch) == pytest.approx(mean)
