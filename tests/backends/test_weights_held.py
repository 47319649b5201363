"""Where the weights of a row on a CPU lie once it is loaded, and what its record says of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llmfit.deployer import Deployer
from llmfit.device.huge_pages import bytes_in_huge_pages, huge_page_bytes
from llmfit.models import resolve
from llmfit.records import Plan, Workload, to_json
from llmfit.runner.isolate import run_isolated

pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(
    huge_page_bytes() is None, reason="this system gives no huge pages to who asks for them"
)


def write_model(folder: Path, *, tied: bool) -> None:
    """A Llama whose matrices are larger than a huge page."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=2048, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=tied,
        max_position_embeddings=256,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for file in Path(resolve(None).path).glob("tokenizer*"):
        shutil.copy(file, folder)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_of_a_checkpoint_lie_in_huge_pages(tmp_path: Path, tied: bool) -> None:
    """All that a step reads whole, and the model computes what transformers does on its files.

    An embedding apart from the output head is looked up a row at a time, and stays in its file.
    """
    import torch
    from transformers import AutoModelForCausalLM

    write_model(tmp_path, tied=tied)
    from_files = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    with Deployer(str(tmp_path), backend="sdpa", device="cpu").load() as deployer:
        model = deployer.model.model  # type: ignore[attr-defined]
        ids = torch.arange(64)[None]
        with torch.inference_mode():
            assert torch.equal(model(ids).logits, from_files(ids).logits)
        embedding, head = (
            module.weight
            for module in (model.get_input_embeddings(), model.get_output_embeddings())
        )
        page = 4096  # the first and the last may be its neighbours' too
        lookup = [(embedding.data_ptr() + page, embedding.nbytes - 2 * page)]
        product = [(head.data_ptr(), head.nbytes)]
        told = deployer.info.huge_page_bytes
        assert told is not None and deployer.info.weights_bytes is not None
        read = deployer.info.weights_bytes - (0 if tied else embedding.nbytes)
        assert read - 8 * (huge_page_bytes() or 0) <= told <= read
        assert bytes_in_huge_pages(product)
        if not tied:
            assert bytes_in_huge_pages(lookup) == 0


def test_the_record_tells_the_bytes(tmp_path: Path) -> None:
    """Of a row in a worker, whose peak of memory is still that of one copy of the weights."""
    write_model(tmp_path, tied=True)
    work = Workload(prompt_tokens=16, new_tokens=4, repeats=2, warmup=0)
    row = Plan(
        backend="sdpa", model=resolve(str(tmp_path)), device="cpu", workload=work, evaluation=None,
    )  # fmt: skip
    record = run_isolated(row)
    assert record.status == "ok", record.reason
    told, held = record.huge_page_bytes, record.weights_bytes
    assert told is not None and held is not None and 0.5 * held < told <= held
    assert json.loads(to_json(record))["huge_page_bytes"] == told
    assert record.memory is not None and record.memory.peak_bytes is not None
    assert record.memory.peak_bytes < 2 * held + 40e6


def test_tensors_whose_values_lie_elsewhere_are_left_alone() -> None:
    """One value that stands for 64 MiB of them, and shared memory: nothing beside them is read."""
    import torch

    from llmfit.backends._weights import put_into_huge_pages

    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("expanded", torch.ones(1).expand(1 << 24))
            self.register_buffer("shared", torch.ones(1 << 22).share_memory_())
            self.register_buffer("whole", torch.ones(1 << 22))

        def get_input_embeddings(self) -> None:
            return None

        get_output_embeddings = get_input_embeddings

    model = Odd()
    told = put_into_huge_pages(model)
    assert told is not None and 0.8 * model.whole.nbytes < told <= model.whole.nbytes
    assert float(model.whole.sum()) == 1 << 22 and float(model.shared.sum()) == 1 << 22
