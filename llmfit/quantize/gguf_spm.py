"""SentencePiece, and BPE with byte fallback, as a GGUF vocabulary of the kind "llama"."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

from llmfit.errors import ModelLoadError
from llmfit.foreign.json import LARGEST_TABLE_BYTES, read_bytes, shortened
from llmfit.quantize.gguf_tokens import (
    BYTE,
    CONTROL,
    NORMAL,
    OWN_IDS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Entries,
    GgufVocabulary,
    index_or_none,
    read_json,
    read_merges,
    refused,
    steps_of,
    tokens_around,
)

_LEADING_SPACE = (
    "before a text that begins with a space, llama.cpp's own tokenizer puts one more and the "
    f"model's does not; {OWN_IDS}"
)
_MOST_CUT = 10**9
"""Characters of all cuts of all pieces that are compared; Gemma 3's are a hundredth of it."""
_OTHER_SPLITS = (
    "llama.cpp's own tokenizer may split some words in another way than the model's; " + OWN_IDS
)


def sentencepiece(
    file: Path, parts: dict[str, Any] | None, folder: Path, vocab_size: int
) -> GgufVocabulary:
    """The pieces of a tokenizer.model, with what tokenizer.json (``parts``) or the folder adds.

    Raises ModelLoadError for a model that is not BPE or that normalises its text.
    """
    proto = _sentencepiece_proto(file)
    if proto.trainer_spec.model_type != proto.trainer_spec.BPE:
        raise refused("a SentencePiece model that is not of the BPE kind")
    normalizer = proto.normalizer_spec
    if normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces:
        raise refused(f"the SentencePiece normalizer {shortened(normalizer.name)}")
    entries = Entries.empty(vocab_size)
    scores = [-1e4] * vocab_size
    for token_id, piece in enumerate(proto.pieces):
        entries.put(token_id, piece.piece, piece.type)
        if not math.isfinite(piece.score):
            raise ValueError(f"the piece {shortened(piece.piece)} has the score {piece.score}")
        if token_id < vocab_size:
            scores[token_id] = piece.score
    for token_id, content, special in _added_tokens(parts, folder):
        if token_id >= vocab_size or entries.types[token_id] in (NORMAL, UNUSED, USER_DEFINED):
            entries.put(token_id, content, CONTROL if special else USER_DEFINED)
    add_bos, add_eos = tokens_around(parts) if parts else _tokens_around_by_settings(folder)
    return GgufVocabulary(
        model="llama",
        pre="default",
        tokens=tuple(entries.tokens),
        types=tuple(entries.types),
        scores=tuple(scores),
        unk_id=index_or_none(proto.trainer_spec.unk_id, vocab_size),
        bos_id=index_or_none(proto.trainer_spec.bos_id, vocab_size),
        eos_id=index_or_none(proto.trainer_spec.eos_id, vocab_size),
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=normalizer.add_dummy_prefix,
        notes=entries.notes(),
    )


def _sentencepiece_proto(file: Path) -> Any:
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2 as model_pb2
    except ImportError as exc:
        raise ModelLoadError(
            f"{file} is read through sentencepiece and protobuf: {exc}.",
            hint="pip install sentencepiece protobuf",
        ) from exc
    proto = model_pb2.ModelProto()
    try:
        proto.ParseFromString(read_bytes(file, largest=LARGEST_TABLE_BYTES))
    except DecodeError as exc:
        raise ModelLoadError(f"{file} is no SentencePiece model: {exc}.") from exc
    return proto


def _added_tokens(parts: dict[str, Any] | None, folder: Path) -> list[tuple[int, str, bool]]:
    """(id, text, special) of the tokens that transformers adds to a SentencePiece model."""
    if parts is not None:
        added = parts.get("added_tokens") or ()
        return [(token["id"], token["content"], token["special"]) for token in added]
    settings = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
    found = [(int(i), token["content"], token["special"]) for i, token in settings.items()]
    plain = read_json(folder / "added_tokens.json")
    known = {token_id for token_id, _, _ in found}
    return found + [(i, text, False) for text, i in plain.items() if i not in known]


def byte_fallback_bpe(entries: Entries, parts: dict[str, Any]) -> GgufVocabulary:
    """The vocabulary of a tokenizer.json, with scores that stand in the order of its merges.

    Raises ModelLoadError for another kind of model, normalizer or pre-tokenizer.
    """
    model = parts["model"]
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        raise refused(f"a {shortened(model.get('type'))} model without byte fallback")
    ranked = read_merges(model)
    first_rank: dict[str, int] = {}
    for rank, (left, right) in enumerate(ranked):
        first_rank.setdefault(left + right, rank)
    unk = model.get("unk_token")
    for token_id, token in enumerate(entries.tokens):
        if token == unk:
            entries.types[token_id] = UNKNOWN
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            entries.types[token_id] = BYTE
    add_bos, add_eos = tokens_around(parts)
    prefix, notes = _space_prefix(parts)
    # A piece that no merge makes must lose against all others.
    last = len(ranked)
    return GgufVocabulary(
        model="llama",
        pre="default",
        tokens=tuple(entries.tokens),
        types=tuple(entries.types),
        scores=tuple(-float(first_rank.get(token, last)) for token in entries.tokens),
        unk_id=entries.tokens.index(unk) if unk in entries.tokens else None,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=prefix,
        notes=entries.notes() + notes + _merge_notes(entries, ranked),
    )


def _merge_notes(entries: Entries, ranked: list[tuple[str, str]]) -> tuple[str, ...]:
    """A note where scores cannot say what the merges say.

    SentencePiece joins any two pieces whose concatenation is a piece, the best score first.
    That equals the merges when each piece's merges are all its splits into two pieces, and
    stand together in the ranking.
    """
    normal = {t for t, kind in zip(entries.tokens, entries.types, strict=True) if kind == NORMAL}
    listed = set(ranked)
    complete = sum(len(piece) ** 2 for piece in normal) <= _MOST_CUT and all(
        (piece[:cut], piece[cut:]) in listed
        for piece in normal
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    )
    results = [left + right for left, right in ranked]
    runs = 1 + sum(a != b for a, b in itertools.pairwise(results))
    if complete and (not results or runs == len(set(results))):
        return ()
    return (_OTHER_SPLITS,)


def _space_prefix(parts: dict[str, Any]) -> tuple[bool, tuple[str, ...]]:
    """Whether a space is put before the text, and a note where only llama.cpp always does.

    Raises ModelLoadError for other normalizers and pre-tokenizers.
    """
    prefix = False
    notes: tuple[str, ...] = ()
    to_metaspace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    for step in steps_of(parts.get("normalizer"), "normalizers"):
        if step == {"type": "Prepend", "prepend": "▁"}:
            prefix = True
        elif step != to_metaspace:
            raise refused(f"the normalizer step {shortened(step)}")
    for step in steps_of(parts.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] == "Split" and step["pattern"] == {"String": " "}:
            continue  # Gemma's: the normalizer has left no space to split at
        if step["type"] != "Metaspace" or step.get("split", True) or step["replacement"] != "▁":
            raise refused(f"the pre-tokenizer step {shortened(step)}")
        prefix = step.get("prepend_scheme", "always") != "never"
        notes = (_LEADING_SPACE,) if prefix else ()
    return prefix, notes


def _tokens_around_by_settings(folder: Path) -> tuple[bool, bool]:
    settings = read_json(folder / "tokenizer_config.json")
    # transformers' Llama tokenizer adds BOS and no EOS unless it is told otherwise.
    return bool(settings.get("add_bos_token", True)), bool(settings.get("add_eos_token", False))
