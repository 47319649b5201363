"""Byte-level BPE of a tokenizer.json as a GGUF vocabulary of the kind "gpt2".

llama.cpp knows pre-tokenizers by name only, so a definition that is none of those below is
refused rather than guessed.
"""

from __future__ import annotations

from typing import Any

from llmfit.foreign.json import shortened
from llmfit.quantize.gguf_tokens import (
    Entries,
    GgufVocabulary,
    read_merges,
    refused,
    steps_of,
    tokens_around,
)

_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_QWEN2 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_CONTRACTION}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_CONTRACTION}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTE_LEVEL = "ByteLevel with its own regex"
_DIGITS = "single digits"

# (steps of the pre-tokenizer, ignore_merges) -> llama.cpp's name for it.
# Source: the regular expressions in llama.cpp's src/llama-vocab.cpp.
_PRE_TOKENIZERS: dict[tuple[tuple[str, ...], bool], str] = {
    ((_BYTE_LEVEL,), False): "gpt-2",
    ((_DIGITS, _BYTE_LEVEL), False): "smollm",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "smaug-bpe",  # GPT-4's expression, too, and so Phi-4's
    ((_QWEN2,), False): "qwen2",
    ((_TEKKEN,), True): "tekken",
    ((_GPT4O,), False): "gpt-4o",  # Phi-4-mini's, too
}

# Behaviours of a Split that make a piece of each match. The second, inverted, takes what lies
# between matches for the separator and drops it; the expressions above leave nothing between.
_WHOLE = frozenset((("Isolated", False), ("Removed", True)))


def is_byte_level(parts: dict[str, Any]) -> bool:
    """Whether a tokenizer.json works on bytes."""
    steps = steps_of(parts.get("pre_tokenizer"), "pretokenizers")
    return any(step.get("type") == "ByteLevel" for step in steps)


def byte_level_bpe(entries: Entries, parts: dict[str, Any]) -> GgufVocabulary:
    """The vocabulary of a byte-level tokenizer.json (``parts``), its tokens being ``entries``.

    Raises ModelLoadError for another kind of model, a normalizer other than NFC, or a
    pre-tokenizer that llama.cpp does not know.
    """
    model = parts["model"]
    if model.get("type") != "BPE":
        raise refused(f"a {shortened(model.get('type'))} model behind a byte-level pre-tokenizer")
    for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(affix):
            raise refused(f"{affix} {shortened(model[affix])}")
    notes = entries.notes()
    for step in steps_of(parts.get("normalizer"), "normalizers"):
        if step["type"] != "NFC":
            raise refused(f"the normalizer {shortened(step['type'])}")
        notes += ("llama.cpp's own tokenizer leaves out the NFC normalisation of the model's",)
    add_bos, add_eos = tokens_around(parts)
    return GgufVocabulary(
        model="gpt2",
        pre=_pre_tokenizer(parts),
        tokens=tuple(entries.tokens),
        types=tuple(entries.types),
        merges=tuple(" ".join(pair) for pair in read_merges(model)),
        add_bos=add_bos,
        add_eos=add_eos,
        notes=notes,
    )


def _pre_tokenizer(parts: dict[str, Any]) -> str:
    """llama.cpp's name of the pre-tokenizer. Raises ModelLoadError where it has none."""
    steps: list[str] = []
    for step in steps_of(parts["pre_tokenizer"], "pretokenizers"):
        kind = step["type"]
        if kind == "ByteLevel" and not step.get("add_prefix_space"):
            steps += [_BYTE_LEVEL] if step.get("use_regex", True) else []
        elif kind == "Digits" and step.get("individual_digits"):
            steps.append(_DIGITS)
        elif kind == "Split" and (step.get("behavior"), bool(step.get("invert"))) in _WHOLE:
            steps.append(step["pattern"].get("Regex", ""))
        else:
            raise refused(f"the pre-tokenizer step {shortened(step)}")
    ignore_merges = bool(parts["model"].get("ignore_merges"))
    name = _PRE_TOKENIZERS.get((tuple(steps), ignore_merges))
    if name is None:
        said = shortened(" + ".join(steps), length=600)
        raise refused(f"the pre-tokenizer {said} (ignore_merges {ignore_merges})")
    return name
