"""A model whose layers are on several devices gives what it gives on one, and goes where it is to.

There is one CPU here, and it stands for both devices; maps are made for GPUs that are not there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llmfit.backends import _several
from llmfit.backends.base import LoadedModel
from llmfit.backends.registry import get_backend
from llmfit.decode.base import Window
from llmfit.decode.placement import execution_device, is_spread, layers_by_place
from llmfit.decode.step_linears import StepLinears
from llmfit.decode.torch_decoder import TorchDecoder
from llmfit.errors import DoesNotFit, UsageError
from llmfit.models import data_path, resolve
from llmfit.planning.memory.prediction import weights_bytes
from llmfit.planning.memory.split import predict_split, working_bytes
from llmfit.records import ModelSpec, Plan, Workload

pytest.importorskip("accelerate")

PROMPTS = [list(range(20, 45)), list(range(300, 307))]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """Six random layers in bf16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=2048, max_position_embeddings=256,
        tie_word_embeddings=request.param,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("several") / "model"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(data_path("embedded")).save_pretrained(folder)
    return resolve(str(folder))


def answers(model: LoadedModel) -> tuple[Any, Any]:
    """Greedy tokens of a ragged batch, and scores of windows with a shared beginning."""
    decoder = model.decoder(batch=2, capacity=40, prefill_chunk=10)
    decoder.prefill(PROMPTS)
    tokens = [decoder.tokens()]
    for _ in range(4):
        decoder.step()
        tokens.append(decoder.tokens())
    decoder.close()
    windows = [Window(tuple(range(9, 40)), 3), *(Window((5, 6, 7, last), 3) for last in (1, 2))]
    return tokens, list(model.score(windows, batch_tokens=256))


def spread_on_paper(model: Any) -> None:
    """Have accelerate's hooks run every part, as they do over GPUs; its map names two devices."""
    from accelerate.hooks import attach_align_device_hook_on_blocks

    layers = {f"model.layers.{index}": "cpu:0" if index < 4 else "cpu:1" for index in range(6)}
    places = {
        "model.embed_tokens": "cpu:0", **layers,
        "model.norm": "cpu:1", "model.rotary_emb": "cpu:1", "lm_head": "cpu:1",
    }  # fmt: skip
    attach_align_device_hook_on_blocks(
        model,
        execution_device={"": "cpu"} | dict.fromkeys(places, "cpu"),
        offload=dict.fromkeys(["", *places], False),
        skip_keys=model._skip_keys_device_placement,
    )
    model.hf_device_map = places


@pytest.mark.parametrize("backend", ["bf16", "sdpa"])
def test_layers_on_two_devices_give_the_same(spec: ModelSpec, backend: str) -> None:
    """Tokens and scores through accelerate's hooks are exactly those without; no graph is made."""
    plan = Plan(backend=backend, model=spec, device="cpu", threads=1)
    with get_backend(backend).load(plan) as model:
        module: Any = model.model  # type: ignore[attr-defined]
        assert not is_spread(module)
        model._linears = StepLinears()  # type: ignore[attr-defined]
        expected = answers(model)
        spread_on_paper(module)
        assert is_spread(module) and execution_device(module) == torch.device("cpu:0")
        assert layers_by_place(module) == {"cpu:0": 4, "cpu:1": 2}
        assert hasattr(module.model.layers[5], "_hf_hook")
        assert answers(model) == expected
        graphless = TorchDecoder(module, batch=1, capacity=16, compiled=True)
        graphless.prefill([[1, 2, 3]])
        graphless.step()
        assert not graphless._graphs


def meta_model(spec: ModelSpec) -> Any:
    from transformers import AutoConfig

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(spec.path), dtype=torch.bfloat16
        )


def mapped(spec: ModelSpec, rooms: dict[int, int]) -> Any:
    """The model without values, with the device map that transformers makes within ``rooms``."""
    from transformers.integrations.accelerate import _get_device_map

    model = meta_model(spec)
    model.hf_device_map = _get_device_map(model, "balanced", dict(rooms), None)
    return model


def test_the_rooms_make_the_map_that_was_predicted(spec: ModelSpec) -> None:
    """Weights on each of three GPUs, with free memory that is less than an equal share needs."""
    work = Workload(prompt_tokens=200, new_tokens=20)
    plan = Plan(backend="sdpa", model=spec, device="cuda", workload=work, gpus=3)
    unbounded = predict_split(spec, "sdpa", work, 3, "balanced")
    assert unbounded is not None
    runtime = unbounded[0].runtime_bytes
    working = working_bytes(spec, "sdpa", work, 3)
    total = weights_bytes(spec, "sdpa")
    assert working is not None and total is not None
    for share in (9.0, 0.5, 0.4):
        free = working + int(share * total)
        model = mapped(spec, _several.rooms(plan, [free, free, 10**9]))
        predicted = predict_split(spec, "sdpa", work, 3, "balanced", budget_bytes=free + runtime)
        assert predicted is not None
        places = {**model.hf_device_map}
        tied = set(model.all_tied_weights_keys)
        held = [0, 0, 0]
        for name, parameter in model.named_parameters():
            prefix = max((k for k in places if name.startswith(f"{k}.") or name == k), key=len)
            if name not in tied:
                held[places[prefix]] += parameter.nbytes
        assert held == [gpu.weights_bytes for gpu in predicted]
        layers = layers_by_place(model)
        assert sum(layers.values()) == 6
        assert _several.require_on_gpus(model, plan)[0].startswith(
            "accelerate's balanced device map over 3 GPUs, layers: "
        )


def test_what_is_left_to_the_disk_does_not_fit(spec: ModelSpec) -> None:
    """Where not even the last GPU holds the rest, the row says how to find out how many would."""
    plan = Plan(
        backend="sdpa", model=spec, device="cuda", gpus=2, budget_bytes=700_000,
        workload=Workload(prompt_tokens=16, new_tokens=8),
    )  # fmt: skip
    model = mapped(spec, {0: 700_000, 1: 700_000})
    assert "disk" in model.hf_device_map.values()
    with pytest.raises(DoesNotFit, match="more than 2 GPUs of 700 kB hold"):
        _several.require_on_gpus(model, plan)


def test_fewer_gpus_than_asked_is_an_error_with_both_numbers(spec: ModelSpec) -> None:
    """And a plan of one GPU goes where it always went."""
    asked = 1 + torch.cuda.device_count()
    plan = Plan(backend="sdpa", model=spec, device="cuda", gpus=max(2, asked))
    with pytest.raises(UsageError, match=f"{plan.gpus} GPUs are asked for, torch sees {asked - 1}"):
        _several.placement(plan)
    assert _several.placement(replace(plan, gpus=1)) == {"device_map": {"": "cuda"}}


def test_a_plan_of_several_gpus_is_a_record(tmp_path: Path, spec: ModelSpec) -> None:
    """It reads back, and one of before, without the fields, is of one GPU."""
    from llmfit.records import from_json, to_json

    plan = Plan(backend="sdpa", model=spec, device="cuda", gpus=4, split="tensor")
    assert from_json(Plan, to_json(plan)) == plan
    old = to_json(Plan(backend="sdpa", model=spec, device="cuda"))
    old = old.replace('"gpus": 1,', "").replace('"split": "balanced",', "")
    assert "gpus" not in old
    assert from_json(Plan, old).gpus == 1
