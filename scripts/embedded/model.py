"""Tokenizer and network of the embedded model, before any training."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .corpus import SEPARATOR, documents

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

VOCAB_SIZE = 2048
MAX_POSITIONS = 1024
TOKENIZER_DOCUMENTS = 20_000


def train_tokenizer(folder: Path) -> Tokenizer:
    """Train the byte-level BPE on training stories and save it as ``folder/tokenizer.json``.

    Words are split by GPT-2's rule, which llama.cpp knows under the name ``gpt-2``. One special
    token begins and ends a text; encoding puts it in front.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=1,
        show_progress=False,
    )
    texts = itertools.islice(documents("train"), TOKENIZER_DOCUMENTS)
    tokenizer.train_from_iterator(texts, trainer)
    begin = (SEPARATOR, tokenizer.token_to_id(SEPARATOR))
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{SEPARATOR} $A",
                pair=f"{SEPARATOR} $A {SEPARATOR} $B",
                special_tokens=[begin],
            ),
        ]
    )
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise ValueError(f"the tokenizer has {tokenizer.get_vocab_size()} tokens: too little text")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SEPARATOR,
        "eos_token": SEPARATOR,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_POSITIONS,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return tokenizer


def token_stream(tokenizer: Tokenizer, count: int) -> np.ndarray:
    """Return the first ``count`` tokens of the training stream, uint16[count].

    Documents follow one another, each with the special token in front. Raises ValueError when
    the stream ends before.
    """
    found = np.empty(count, dtype=np.uint16)
    filled = 0
    source = documents("train")
    while filled < count:
        texts = list(itertools.islice(source, 4096))
        if not texts:
            raise ValueError(f"the training stream has {filled:,} tokens, fewer than {count:,}")
        batch = tokenizer.encode_batch(texts)
        ids = np.concatenate([np.asarray(item.ids, dtype=np.uint16) for item in batch])
        part = ids[: count - filled]
        found[filled : filled + len(part)] = part
        filled += len(part)
    return found


def new_model(seed: int) -> LlamaForCausalLM:
    """Return the untrained network, float32, its weights drawn from ``seed``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    # Every width is a multiple of 256: K-quant blocks and groups of 128 divide each matrix.
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        rms_norm_eps=1e-5,
    )
    return LlamaForCausalLM(config)
