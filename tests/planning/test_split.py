"""Memory of each GPU against where transformers and accelerate put the weights of real models."""

from __future__ import annotations

from typing import Any

import pytest
from meta_models import SHAPES, on_meta, shape_of

from llmfit.planning.memory.split import NCCL_BYTES, place, predict_split
from llmfit.planning.memory.weights import placed_parts, weight_parts
from llmfit.records import ModelSpec, Workload
from llmfit.testing import make_model

ROOMY = 10**12


def bytes_by_device(model: Any, device_map: dict[str, Any], gpus: int) -> list[int]:
    """Bytes of the parameters that a device map puts on each GPU, a tied one once."""
    found = [0] * gpus
    tied = set(model.all_tied_weights_keys)
    for name, parameter in model.named_parameters():
        if name in tied:
            continue
        keys = [key for key in device_map if not key or name == key or name.startswith(f"{key}.")]
        found[device_map[max(keys, key=len)]] += parameter.numel() * parameter.element_size()
    return found


def placed_by_accelerate(config: dict[str, Any], room: dict[int, int]) -> list[int]:
    """What transformers' own balanced device map puts on each GPU."""
    from transformers.integrations.accelerate import _get_device_map

    model = on_meta(config)
    device_map = _get_device_map(model, "balanced", dict(room), None)
    return bytes_by_device(model, device_map, len(room))


def placed_here(config: dict[str, Any], gpus: int, room: int | None) -> list[int]:
    parts = weight_parts(shape_of(config), "bf16")
    assert parts is not None
    sizes = (parts.embedding, parts.extra, *parts.layers, parts.last, parts.head)
    places = place(parts, gpus, room)
    return [
        sum(size for size, at in zip(sizes, places, strict=True) if at == gpu)
        for gpu in range(gpus)
    ]


@pytest.mark.parametrize("gpus", [2, 3, 5])
@pytest.mark.parametrize("kind", list(SHAPES))
def test_each_gpu_holds_what_accelerate_places_there(kind: str, gpus: int) -> None:
    """The balanced map's bytes on every GPU, exactly."""
    room = dict.fromkeys(range(gpus), ROOMY)
    assert placed_here(SHAPES[kind], gpus, None) == placed_by_accelerate(SHAPES[kind], room)


@pytest.mark.parametrize("share", [0.3, 0.45, 0.55])
@pytest.mark.parametrize("kind", ["llama", "tied", "many layers"])
def test_a_budget_moves_layers_to_later_gpus(kind: str, share: float) -> None:
    """With room for less than an equal share and a layer, as accelerate moves them; the last has
    all that is left."""
    parts = weight_parts(shape_of(SHAPES[kind]), "bf16")
    assert parts is not None
    room = int(parts.total * share)
    given = {0: room, 1: room, 2: ROOMY}
    assert placed_here(SHAPES[kind], 3, room) == placed_by_accelerate(SHAPES[kind], given)


@pytest.mark.parametrize("backend", ["int8", "nf4"])
@pytest.mark.parametrize("kind", ["llama", "tied"])
def test_packed_layers_are_placed_by_their_codes(kind: str, backend: str) -> None:
    """Of bitsandbytes as many layers a GPU as transformers' own map for the quantised model."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig
    from transformers.integrations.accelerate import _get_device_map
    from transformers.quantizers import AutoHfQuantizer

    config = SHAPES[kind]
    bits = {"load_in_8bit": True} if backend == "int8" else {"load_in_4bit": True}
    quantizer = AutoHfQuantizer.from_config(BitsAndBytesConfig(**bits), pre_quantized=False)
    quantizer.validate_environment = lambda **_: None  # asks for a GPU
    model = on_meta(config)
    quantizer.preprocess_model(model, dtype=model.dtype, device_map={"": 0})
    found = _get_device_map(model, "balanced", dict.fromkeys(range(3), ROOMY), quantizer)
    parts = placed_parts(shape_of(config), backend)
    assert parts is not None
    places = place(parts, 3, None, share=0.9)
    layers = [found[f"model.layers.{index}"] for index in range(len(parts.layers))]
    assert layers == list(places[2:-2])


def test_the_parts_of_a_gpu_are_those_of_what_lies_on_it() -> None:
    """Cache of its layers, logits with the head, a CUDA context each; the weights are all there."""
    spec = make_model()
    work = Workload(prompt_tokens=2000, new_tokens=100)
    one = predict_split(spec, "sdpa", work, 1, "balanced")
    two = predict_split(spec, "sdpa", work, 2, "balanced")
    assert one is not None and two is not None and len(two) == 2
    assert sum(gpu.weights_bytes for gpu in two) == one[0].weights_bytes
    assert sum(gpu.kv_cache_bytes for gpu in two) == one[0].kv_cache_bytes
    assert all(gpu.runtime_bytes == one[0].runtime_bytes for gpu in two)
    assert max(gpu.activation_bytes for gpu in two) <= one[0].activation_bytes
    # 2,100 tokens × 8 heads × 2 × 128 × 2 bytes a layer.
    assert all(gpu.kv_cache_bytes % (2100 * 4096) == 0 for gpu in two)


def test_an_unknown_shape_or_format_is_none() -> None:
    """No guess where a single GPU's memory is not known either."""
    for split in ("balanced", "tensor"):
        assert predict_split(make_model(shape=None), "sdpa", Workload(), 2, split) is None
        assert predict_split(make_model(), "exl9", Workload(), 2, split) is None


def test_cache_and_weights_of_a_tensor_split_are_shared_out() -> None:
    """Llama-3.1-8B over four: a quarter of the cache, of the weights all but norms."""
    spec: ModelSpec = make_model()
    work = Workload(prompt_tokens=4000, new_tokens=96)
    one = predict_split(spec, "sdpa", work, 1, "tensor")
    four = predict_split(spec, "sdpa", work, 4, "tensor")
    assert one is not None and four is not None and len(four) == 4
    for gpu in four:
        assert gpu.kv_cache_bytes * 4 == one[0].kv_cache_bytes
        assert gpu.weights_bytes == pytest.approx(one[0].weights_bytes / 4, rel=1e-3)
        assert gpu.runtime_bytes == one[0].runtime_bytes + NCCL_BYTES
        assert gpu.activation_bytes < one[0].activation_bytes
