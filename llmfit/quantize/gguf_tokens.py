"""What every kind of tokenizer needs on its way into a GGUF vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmfit.errors import ModelLoadError
from llmfit.foreign import json as foreign_json
from llmfit.foreign.json import shortened

if TYPE_CHECKING:
    from gguf import GGUFWriter

# GGUF's token types. Source: the GGUF specification, tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

OWN_IDS = "token ids here always come from the model's own"
"""Why a difference of llama.cpp's tokenizer changes no figure of a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufVocabulary:
    """What a GGUF file says of its tokenizer; sequences are indexed by token id."""

    model: str
    """llama.cpp's tokenizer family: ``gpt2`` (byte-level BPE) or ``llama`` (SentencePiece)."""
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] | None = None
    merges: tuple[str, ...] = ()
    bos_id: int | None = None
    eos_id: int | None = None
    unk_id: int | None = None
    pad_id: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False
    chat_template: str | None = None
    notes: tuple[str, ...] = ()

    def write(self, writer: GGUFWriter) -> None:
        """Add all of it to ``writer``'s metadata."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.add_space_prefix)
        writer.add_token_merges(self.merges)
        for add, token_id in (
            (writer.add_bos_token_id, self.bos_id),
            (writer.add_eos_token_id, self.eos_id),
            (writer.add_unk_token_id, self.unk_id),
            (writer.add_pad_token_id, self.pad_id),
        ):
            if token_id is not None:
                add(token_id)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


@dataclass(slots=True)
class Entries:
    """Tokens, types and scores by id, being filled."""

    tokens: list[str]
    types: list[int]
    left_out: int = 0

    @classmethod
    def empty(cls, vocab_size: int) -> Entries:
        """A vocabulary of unused tokens."""
        return cls([f"[PAD{i}]" for i in range(vocab_size)], [UNUSED] * vocab_size)

    @classmethod
    def of(cls, parts: dict[str, Any], vocab_size: int) -> Entries:
        """The tokens of a tokenizer.json."""
        entries = cls.empty(vocab_size)
        for token, token_id in parts["model"].get("vocab", {}).items():
            entries.put(token_id, token, NORMAL)
        for added in parts.get("added_tokens") or ():
            entries.put(
                added["id"], added["content"], CONTROL if added["special"] else USER_DEFINED
            )
        return entries

    def put(self, token_id: int, token: str, kind: int) -> None:
        """Set one token; one beyond the vocabulary is counted and left out.

        Raises ValueError for what is no id or no text.
        """
        if type(token_id) is not int or token_id < 0 or not isinstance(token, str):
            raise ValueError(f"the token {shortened(token)} has the id {shortened(token_id)}")
        if token_id >= len(self.tokens):
            self.left_out += 1
            return
        self.tokens[token_id] = token
        self.types[token_id] = kind

    def notes(self) -> tuple[str, ...]:
        """What was left out, if anything."""
        if not self.left_out:
            return ()
        return (
            f"{self.left_out} tokens of the tokenizer lie beyond the model's vocabulary of "
            f"{len(self.tokens)} and are not in the GGUF file",
        )


def tokens_around(parts: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the tokenizer puts a token before the text, and one after it."""
    for step in steps_of(parts.get("post_processor"), "processors"):
        if step["type"] == "TemplateProcessing":
            single = step["single"]
            at = next(i for i, piece in enumerate(single) if "Sequence" in piece)
            return at > 0, at < len(single) - 1
    return False, False


def index_or_none(token_id: int, vocab_size: int) -> int | None:
    """``token_id``, or None where the vocabulary has no such token (SentencePiece says −1)."""
    return token_id if 0 <= token_id < vocab_size else None


def read_merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges as pairs; files hold them as ``"a b"`` or as ``["a", "b"]``."""
    pairs = []
    for merge in model.get("merges", ()):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        if not isinstance(left, str) or not isinstance(right, str):
            raise ValueError(f"the merge {shortened(merge)}")
        pairs.append((left, right))
    return pairs


def steps_of(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The steps of a component that may be absent, one step, or a (nested) Sequence."""
    if step is None:
        return []
    if step.get("type") != "Sequence":
        return [step]
    return [inner for part in step[key] for inner in steps_of(part, key)]


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object, {} where there is no such file. Raises ModelLoadError for a broken one."""
    if not file.exists():
        return {}
    return foreign_json.read_json(file, largest=foreign_json.LARGEST_TABLE_BYTES)


def refused(what: str) -> ModelLoadError:
    """The error for a tokenizer that has ``what``, of which llama.cpp has no equal."""
    return ModelLoadError(
        f"the model's tokenizer has {what}, of which llama.cpp has no equal.",
        hint="--checkpoint gguf=FILE with a GGUF file of this model made elsewhere",
    )
