"""A model folder's tokenizer as the vocabulary of a GGUF file.

    tokenizer.json, byte-level BPE ────────────► "gpt2"  tokens, merges, name of the pre-tokenizer
    tokenizer.model (SentencePiece BPE) ───────► "llama" pieces with their scores
    tokenizer.json, BPE with byte fallback ────► "llama" the scores made from the merges' ranks

llama.cpp knows pre-tokenizers by name only, so a definition that is none of those below is
refused rather than guessed.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmfit.errors import ModelLoadError

if TYPE_CHECKING:
    from gguf import GGUFWriter

# GGUF's token types. Source: the GGUF specification, tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_QWEN2 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTE_LEVEL = "ByteLevel with its own regex"
_DIGITS = "single digits"

# (steps of the pre-tokenizer, ignore_merges) -> llama.cpp's name for it.
# Source: the regular expressions in llama.cpp's src/llama-vocab.cpp.
_PRE_TOKENIZERS: dict[tuple[tuple[str, ...], bool], str] = {
    ((_BYTE_LEVEL,), False): "gpt-2",
    ((_DIGITS, _BYTE_LEVEL), False): "smollm",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "smaug-bpe",
    ((_QWEN2,), False): "qwen2",
    ((_TEKKEN,), True): "tekken",
}


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


def read_vocabulary(folder: Path, *, vocab_size: int) -> GgufVocabulary:
    """The tokenizer of the model folder as a vocabulary of ``vocab_size`` tokens.

    Ids without a token are filled with unused ones. Raises ModelLoadError where there is no
    tokenizer, or one that llama.cpp has no equal of.
    """
    json_file, model_file = folder / "tokenizer.json", folder / "tokenizer.model"
    parts = _read_json(json_file) if json_file.is_file() else None
    if parts is not None and _is_byte_level(parts):
        vocabulary = _byte_level_bpe(_Entries.of(parts, vocab_size), parts)
    elif model_file.is_file():
        vocabulary = _sentencepiece(model_file, parts, folder, vocab_size)
    elif parts is not None:
        vocabulary = _byte_fallback_bpe(_Entries.of(parts, vocab_size), parts)
    else:
        raise ModelLoadError(
            f"{folder} holds neither tokenizer.json nor tokenizer.model.",
            hint="put the model's tokenizer.json into that folder",
        )
    return _with_special_ids(vocabulary, folder)


# ---------------------------------------------------------------- tokens and their types


@dataclass(slots=True)
class _Entries:
    """Tokens, types and scores by id, being filled."""

    tokens: list[str]
    types: list[int]
    left_out: int = 0

    @classmethod
    def empty(cls, vocab_size: int) -> _Entries:
        return cls([f"[PAD{i}]" for i in range(vocab_size)], [UNUSED] * vocab_size)

    @classmethod
    def of(cls, parts: dict[str, Any], vocab_size: int) -> _Entries:
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
        if token_id >= len(self.tokens):
            self.left_out += 1
            return
        self.tokens[token_id] = token
        self.types[token_id] = kind

    def notes(self) -> tuple[str, ...]:
        if not self.left_out:
            return ()
        return (
            f"{self.left_out} tokens of the tokenizer lie beyond the model's vocabulary of "
            f"{len(self.tokens)} and are not in the GGUF file",
        )


# ---------------------------------------------------------------- byte-level BPE


def _is_byte_level(parts: dict[str, Any]) -> bool:
    steps = _sequence(parts.get("pre_tokenizer"), "pretokenizers")
    return any(step.get("type") == "ByteLevel" for step in steps)


def _byte_level_bpe(entries: _Entries, parts: dict[str, Any]) -> GgufVocabulary:
    model = parts["model"]
    if model.get("type") != "BPE":
        raise _refused(f"a {model.get('type')} model behind a byte-level pre-tokenizer")
    for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(affix):
            raise _refused(f"{affix} {model[affix]!r}")
    notes = entries.notes()
    for step in _sequence(parts.get("normalizer"), "normalizers"):
        if step["type"] != "NFC":
            raise _refused(f"the normalizer {step['type']}")
        notes += ("llama.cpp's own tokenizer leaves out the NFC normalisation of the model's",)
    add_bos, add_eos = _template(parts)
    return GgufVocabulary(
        model="gpt2",
        pre=_pre_tokenizer(parts),
        tokens=tuple(entries.tokens),
        types=tuple(entries.types),
        merges=tuple(" ".join(pair) for pair in _merges(model)),
        add_bos=add_bos,
        add_eos=add_eos,
        notes=notes,
    )


def _pre_tokenizer(parts: dict[str, Any]) -> str:
    """llama.cpp's name of the pre-tokenizer. Raises ModelLoadError where it has none."""
    steps: list[str] = []
    for step in _sequence(parts["pre_tokenizer"], "pretokenizers"):
        kind = step["type"]
        if kind == "ByteLevel" and not step.get("add_prefix_space"):
            steps += [_BYTE_LEVEL] if step.get("use_regex", True) else []
        elif kind == "Digits" and step.get("individual_digits"):
            steps.append(_DIGITS)
        elif kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            steps.append(step["pattern"].get("Regex", ""))
        else:
            raise _refused(f"the pre-tokenizer step {json.dumps(step)}")
    ignore_merges = bool(parts["model"].get("ignore_merges"))
    name = _PRE_TOKENIZERS.get((tuple(steps), ignore_merges))
    if name is None:
        raise _refused(f"the pre-tokenizer {' + '.join(steps)} (ignore_merges {ignore_merges})")
    return name


# ---------------------------------------------------------------- SentencePiece


def _sentencepiece(
    file: Path, parts: dict[str, Any] | None, folder: Path, vocab_size: int
) -> GgufVocabulary:
    proto = _sentencepiece_proto(file)
    if proto.trainer_spec.model_type != proto.trainer_spec.BPE:
        raise _refused("a SentencePiece model that is not of the BPE kind")
    normalizer = proto.normalizer_spec
    if normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces:
        raise _refused(f"the SentencePiece normalizer {normalizer.name}")
    entries = _Entries.empty(vocab_size)
    scores = [-1e4] * vocab_size
    for token_id, piece in enumerate(proto.pieces):
        entries.put(token_id, piece.piece, piece.type)
        if token_id < vocab_size:
            scores[token_id] = piece.score
    for token_id, content, special in _added_tokens(parts, folder):
        if token_id >= vocab_size or entries.types[token_id] in (NORMAL, UNUSED, USER_DEFINED):
            entries.put(token_id, content, CONTROL if special else USER_DEFINED)
    add_bos, add_eos = _template(parts) if parts else _template_of_settings(folder)
    return GgufVocabulary(
        model="llama",
        pre="default",
        tokens=tuple(entries.tokens),
        types=tuple(entries.types),
        scores=tuple(scores),
        unk_id=_index(proto.trainer_spec.unk_id, vocab_size),
        bos_id=_index(proto.trainer_spec.bos_id, vocab_size),
        eos_id=_index(proto.trainer_spec.eos_id, vocab_size),
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
        proto.ParseFromString(file.read_bytes())
    except (OSError, DecodeError) as exc:
        raise ModelLoadError(f"{file} is no SentencePiece model: {exc}.") from exc
    return proto


def _added_tokens(parts: dict[str, Any] | None, folder: Path) -> list[tuple[int, str, bool]]:
    """(id, text, special) of the tokens that transformers adds to a SentencePiece model."""
    if parts is not None:
        added = parts.get("added_tokens") or ()
        return [(token["id"], token["content"], token["special"]) for token in added]
    settings = _read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
    found = [(int(i), token["content"], token["special"]) for i, token in settings.items()]
    plain = _read_json(folder / "added_tokens.json")
    known = {token_id for token_id, _, _ in found}
    return found + [(i, text, False) for text, i in plain.items() if i not in known]


def _byte_fallback_bpe(entries: _Entries, parts: dict[str, Any]) -> GgufVocabulary:
    model = parts["model"]
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        raise _refused(f"a {model.get('type')} model without byte fallback")
    merges = _merges(model)
    first_rank: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        first_rank.setdefault(left + right, rank)
    unk = model.get("unk_token")
    for token_id, token in enumerate(entries.tokens):
        if token == unk:
            entries.types[token_id] = UNKNOWN
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            entries.types[token_id] = BYTE
    add_bos, add_eos = _template(parts)
    # A piece that no merge makes must lose against all others.
    last = len(merges)
    return GgufVocabulary(
        model="llama",
        pre="default",
        tokens=tuple(entries.tokens),
        types=tuple(entries.types),
        scores=tuple(-float(first_rank.get(token, last)) for token in entries.tokens),
        unk_id=entries.tokens.index(unk) if unk in entries.tokens else None,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=_space_prefix(parts),
        notes=entries.notes() + _merge_notes(entries, merges),
    )


def _merge_notes(entries: _Entries, merges: list[tuple[str, str]]) -> tuple[str, ...]:
    """A note where scores cannot say what the merges say.

    SentencePiece joins any two pieces whose concatenation is a piece, the best score first.
    That equals the merges when each piece's merges are all its splits into two pieces, and
    stand together in the ranking.
    """
    normal = {t for t, kind in zip(entries.tokens, entries.types, strict=True) if kind == NORMAL}
    listed = set(merges)
    complete = all(
        (piece[:cut], piece[cut:]) in listed
        for piece in normal
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    )
    results = [left + right for left, right in merges]
    runs = 1 + sum(a != b for a, b in itertools.pairwise(results))
    if complete and (not results or runs == len(set(results))):
        return ()
    return (
        "llama.cpp's own tokenizer may split some words in another way than the model's; "
        "token ids here always come from the model's own",
    )


def _space_prefix(parts: dict[str, Any]) -> bool:
    """Whether a space is put before the text. Raises ModelLoadError for other normalizers."""
    prefix = False
    for step in _sequence(parts.get("normalizer"), "normalizers"):
        if step["type"] == "Prepend" and step["prepend"] == "▁":
            prefix = True
        elif step["type"] != "Replace" or (step["pattern"], step["content"]) != (
            {"String": " "},
            "▁",
        ):
            raise _refused(f"the normalizer step {json.dumps(step)}")
    for step in _sequence(parts.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] != "Metaspace" or step.get("split", True) or step["replacement"] != "▁":
            raise _refused(f"the pre-tokenizer step {json.dumps(step)}")
        prefix = step.get("prepend_scheme", "always") != "never"
    return prefix


# ---------------------------------------------------------------- special tokens


def _template(parts: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the tokenizer puts a token before the text, and one after it."""
    for step in _sequence(parts.get("post_processor"), "processors"):
        if step["type"] == "TemplateProcessing":
            single = step["single"]
            at = next(i for i, piece in enumerate(single) if "Sequence" in piece)
            return at > 0, at < len(single) - 1
    return False, False


def _template_of_settings(folder: Path) -> tuple[bool, bool]:
    settings = _read_json(folder / "tokenizer_config.json")
    # transformers' Llama tokenizer adds BOS and no EOS unless it is told otherwise.
    return settings.get("add_bos_token", True), settings.get("add_eos_token", False)


def _with_special_ids(vocabulary: GgufVocabulary, folder: Path) -> GgufVocabulary:
    """Fill in the ids that the folder's settings name, which outrank the tokenizer's own."""
    settings = _read_json(folder / "special_tokens_map.json")
    settings |= _read_json(folder / "tokenizer_config.json")
    config = _read_json(folder / "config.json")
    by_text = {token: i for i, token in enumerate(vocabulary.tokens)}

    def token_id(kind: str, own: int | None) -> int | None:
        named = settings.get(f"{kind}_token")
        text = named.get("content") if isinstance(named, dict) else named
        if text in by_text:
            return by_text[text]
        configured = config.get(f"{kind}_token_id")
        first = configured[0] if isinstance(configured, list) and configured else configured
        return _index(first, len(by_text)) if own is None and isinstance(first, int) else own

    template = settings.get("chat_template")
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text("utf-8")
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


# ---------------------------------------------------------------- small helpers


def _index(token_id: int, vocab_size: int) -> int | None:
    return token_id if 0 <= token_id < vocab_size else None


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges as pairs; files hold them as ``"a b"`` or as ``["a", "b"]``."""
    pairs = []
    for merge in model.get("merges", ()):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        pairs.append((left, right))
    return pairs


def _sequence(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The steps of a component that may be absent, one step, or a (nested) Sequence."""
    if step is None:
        return []
    if step.get("type") != "Sequence":
        return [step]
    return [inner for part in step[key] for inner in _sequence(part, key)]


def _read_json(file: Path) -> dict[str, Any]:
    """A JSON object, {} where there is no such file. Raises ModelLoadError for a broken one."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise ModelLoadError(f"{file} cannot be read as JSON: {exc}.") from exc
    return content if isinstance(content, dict) else {}


def _refused(what: str) -> ModelLoadError:
    return ModelLoadError(
        f"the model's tokenizer has {what}, which llama.cpp has no name for.",
        hint="--checkpoint gguf=FILE with a GGUF file of this model made elsewhere",
    )
