"""The model's own tokenizer, for every row of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmfit.backends._synthetic import NoTokenizer
from llmfit.backends.base import Tokenizer
from llmfit.foreign.errors import LibraryErrors
from llmfit.foreign.files import check_tokenizer
from llmfit.records import Plan


class HfTokenizer(Tokenizer):
    """A transformers tokenizer behind llmfit's three methods."""

    def __init__(self, tokenizer: Any) -> None:
        self.hf = tokenizer
        self.bos_id = tokenizer.bos_token_id
        self.eos_id = tokenizer.eos_token_id

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """See ``Tokenizer.encode``."""
        with LibraryErrors("the model's tokenizer fails"):
            ids: list[int] = self.hf.encode(text, add_special_tokens=special)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See ``Tokenizer.decode``."""
        with LibraryErrors("the model's tokenizer fails"):
            text: str = self.hf.decode(list(ids), skip_special_tokens=True)
        return text


def tokenizer_of(plan: Plan) -> Tokenizer:
    """The tokenizer of the plan's model; synthetic weights have none. Raises ModelLoadError."""
    if plan.weights == "synthetic":
        return NoTokenizer()
    return load_tokenizer(plan.model.path, trust_remote_code=plan.trust_remote_code)


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> HfTokenizer:
    """The tokenizer of the model folder ``path``. Raises ModelLoadError where there is none."""
    from transformers import AutoTokenizer

    check_tokenizer(Path(path))
    with LibraryErrors(
        f"{path} has no tokenizer that transformers can load",
        folder=path,
        hint="put the model's tokenizer.json or tokenizer.model into that folder",
    ):
        return HfTokenizer(AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code))
