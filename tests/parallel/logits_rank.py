"""A rank that loads a model in float32 as rows load it, and tells what it computes.

    torchrun … -m logits_rank FOLDER

``FOLDER`` has the plan and the prompt's ids; logits go to ``logits-RANK.pt`` there, the rest as a
line of JSON to the rank's pipe.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from llmfit.backends._several import placement
from llmfit.backends._weights import weights_bytes
from llmfit.decode.torch_decoder import TorchDecoder
from llmfit.parallel import group
from llmfit.parallel.agent import PARENT, follows
from llmfit.parallel.launch import pipe_of
from llmfit.records import Plan, read_record

NEW_TOKENS = 12


def greedy(model: torch.nn.Module, ids: list[int]) -> list[int]:
    """Tokens that llmfit's decoder gives."""
    decoder = TorchDecoder(model, batch=1, capacity=len(ids) + NEW_TOKENS)
    decoder.prefill([ids])
    tokens = decoder.tokens()
    for _ in range(NEW_TOKENS - 1):
        decoder.step()
        tokens += decoder.tokens()
    decoder.close()
    return tokens


def main(folder: Path) -> None:
    assert follows(int(os.environ[PARENT]))
    plan = read_record(Plan, folder / "plan.json")
    ids = json.loads((folder / "ids.json").read_text())
    rank, size = group.join(plan.device)
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(
        plan.model.path, dtype=torch.float32, attn_implementation="sdpa", **placement(plan)
    ).eval()
    with torch.inference_mode():
        torch.save(model(torch.tensor([ids])).logits[0], folder / f"logits-{rank}.pt")
    told = {
        "size": size,
        "weights": weights_bytes(model),
        "vectors": sum(p.to_local().nbytes if hasattr(p, "to_local") else p.nbytes
                       for p in model.parameters() if p.dim() == 1)
        + sum(buffer.nbytes for buffer in model.buffers()),
        "tokens": greedy(model, ids),
        "of_all": group.of_all(rank * 10),
    }  # fmt: skip
    with pipe_of(folder, rank).open("wb") as pipe:
        pipe.write(json.dumps(told).encode() + b"\n")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
