"""A model folder's tokenizer as the vocabulary of a GGUF file.

    tokenizer.json, byte-level BPE ────────────► "gpt2"  tokens, merges, name of the pre-tokenizer
    tokenizer.model (SentencePiece BPE) ───────► "llama" pieces with their scores
    tokenizer.json, BPE with byte fallback ────► "llama" the scores made from the merges' ranks

Everything else is refused: a file that tokenises in another way would mislead its users.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmfit.errors import ModelLoadError
from llmfit.foreign.json import read_bytes, shortened
from llmfit.quantize.gguf_bpe import byte_level_bpe, is_byte_level
from llmfit.quantize.gguf_spm import byte_fallback_bpe, sentencepiece
from llmfit.quantize.gguf_tokens import (
    OWN_IDS,
    Entries,
    GgufVocabulary,
    index_or_none,
    read_json,
    refused,
)

_OTHER_FORM = (AttributeError, LookupError, OverflowError, StopIteration, TypeError, ValueError)
"""What reading a value of another type than expected raises."""
_LARGEST_TEMPLATE = 2**20


def read_vocabulary(folder: Path, *, vocab_size: int) -> GgufVocabulary:
    """The tokenizer of the model folder as a vocabulary of ``vocab_size`` tokens.

    Ids without a token are filled with unused ones. Raises ModelLoadError where there is no
    tokenizer, or one that llama.cpp has no equal of.
    """
    json_file = folder / "tokenizer.json"
    parts = read_json(json_file) if json_file.is_file() else None
    try:
        vocabulary = _read_tokenizer(folder, parts, vocab_size)
        vocabulary = replace(vocabulary, notes=vocabulary.notes + _strip_notes(parts))
        vocabulary = _with_special_ids(vocabulary, folder)
    except _OTHER_FORM as exc:
        raise ModelLoadError(
            f"the tokenizer in {folder} is not of the form that tokenizers writes "
            f"({type(exc).__name__}: {str(exc)[:200]})."
        ) from exc
    _require_different(vocabulary.tokens)
    return vocabulary


def _require_different(tokens: tuple[str, ...]) -> None:
    """Raise ModelLoadError where two tokens are one text: llama.cpp ends the process then."""
    if len(set(tokens)) == len(tokens):
        return
    twice = next(token for token, count in Counter(tokens).items() if count > 1)
    raise refused(f"the token {shortened(twice)} under two ids")


def _read_tokenizer(folder: Path, parts: dict[str, Any] | None, vocab_size: int) -> GgufVocabulary:
    model_file = folder / "tokenizer.model"
    if parts is not None and is_byte_level(parts):
        return byte_level_bpe(Entries.of(parts, vocab_size), parts)
    if model_file.is_file():
        return sentencepiece(model_file, parts, folder, vocab_size)
    if parts is not None:
        return byte_fallback_bpe(Entries.of(parts, vocab_size), parts)
    raise ModelLoadError(
        f"{folder} holds neither tokenizer.json nor tokenizer.model.",
        hint="put the model's tokenizer.json into that folder",
    )


def _strip_notes(parts: dict[str, Any] | None) -> tuple[str, ...]:
    """A note on added tokens that take the spaces beside them, for which GGUF has no key."""
    added = (parts or {}).get("added_tokens") or ()
    greedy = [token["content"] for token in added if token.get("rstrip") or token.get("lstrip")]
    if not greedy:
        return ()
    return (
        f"llama.cpp's own tokenizer may keep the spaces beside {shortened(greedy[0])} and "
        f"{len(greedy) - 1} other added tokens, which the model's drops; {OWN_IDS}",
    )


def _with_special_ids(vocabulary: GgufVocabulary, folder: Path) -> GgufVocabulary:
    """Fill in the ids that the folder's settings name, which outrank the tokenizer's own."""
    settings = read_json(folder / "special_tokens_map.json")
    settings |= read_json(folder / "tokenizer_config.json")
    config = read_json(folder / "config.json")
    vocab_size = len(vocabulary.tokens)
    by_text = {token: i for i, token in enumerate(vocabulary.tokens)}

    def token_id(kind: str, own: int | None) -> int | None:
        named = settings.get(f"{kind}_token")
        text = named.get("content") if isinstance(named, dict) else named
        if text in by_text:
            return by_text[text]
        configured = config.get(f"{kind}_token_id")
        first = configured[0] if isinstance(configured, list) and configured else configured
        return index_or_none(first, vocab_size) if own is None and isinstance(first, int) else own

    template = settings.get("chat_template")
    if (folder / "chat_template.jinja").is_file():
        template = read_bytes(folder / "chat_template.jinja", largest=_LARGEST_TEMPLATE).decode()
    filled = replace(
        vocabulary,
        bos_id=token_id("bos", vocabulary.bos_id),
        eos_id=token_id("eos", vocabulary.eos_id),
        unk_id=token_id("unk", vocabulary.unk_id),
        pad_id=token_id("pad", vocabulary.pad_id),
        chat_template=template if isinstance(template, str) else None,
    )
    # llama.cpp stops the process when it is to add a token that the file does not name.
    return replace(
        filled,
        add_bos=filled.add_bos and filled.bos_id is not None,
        add_eos=filled.add_eos and filled.eos_id is not None,
    )
