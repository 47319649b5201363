"""The model's own tokenizer, for every row of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmfit.backends._synthetic import NoTokenizer
from llmfit.backends.base import Tokenizer
from llmfit.foreign.errors import LibraryErrors
from llmfit.foreign.files import check_tokenizer
from llmfit.foreign.json import read_json
from llmfit.records import Plan


class HfTokenizer(Tokenizer):
    """A transformers tokenizer behind llmfit's three methods."""

    def __init__(self, tokenizer: Any, more_ends: frozenset[int] = frozenset()) -> None:
        self.hf = tokenizer
        self.more_ends = more_ends
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
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    return HfTokenizer(tokenizer, _ends(Path(path)))


def _ends(folder: Path) -> frozenset[int]:
    """Ids by which transformers ends a generation: ``generation_config.json``'s, if it is there.

    Else those of ``config.json``. Raises ModelLoadError for a file that cannot be read.
    """
    files = [folder / name for name in ("generation_config.json", "config.json")]
    told = next((read_json(file) for file in files if file.is_file()), {}).get("eos_token_id")
    each = told if isinstance(told, list) else [told]
    return frozenset(end for end in each if type(end) is int and end >= 0)
