"""The model that the decoders of this folder run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmfit.models import data_path


@pytest.fixture(scope="module")
def model() -> Any:
    """The embedded model in float32, where rounding cannot decide between two tokens."""
    loaded = AutoModelForCausalLM.from_pretrained(data_path("embedded"), dtype=torch.float32)
    return loaded.eval()
