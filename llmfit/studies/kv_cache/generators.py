"""A prompt ─► its continuation by a model with and without a cache, its bytes and operations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from llmfit.device.allocations import tensor_bytes
from llmfit.models import EMBEDDED_NAME, data_path, resolve
from llmfit.planning.memory.kv_cache import kv_cache_bytes
from llmfit.records import Workload
from llmfit.studies.base import StudyContext

if TYPE_CHECKING:
    from torch import Tensor

    from llmfit.studies.transformer import KvCache, Transformer, TransformerShape

OWN, HUGGING_FACE = "own decoder", EMBEDDED_NAME
_ITEM_BYTES = 4
"""Of a value: both models run in float32, where the same tokens can be asked for."""


class Generator(Protocol):
    """A model that continues a prompt greedily, with a cache and without."""

    name: str
    count_up_to: int
    """Most new tokens whose operations are counted."""

    def prompt(self) -> Tensor:
        """``int64[B, P]``."""
        ...

    def generate(self, ids: Tensor, new_tokens: int, *, cached: bool) -> Tensor:
        """``int64[B, P + new_tokens]``, the prompt first."""
        ...

    def cache_bytes(self, ids: Tensor, new_tokens: int) -> int:
        """Bytes of the cache's tensors once so many tokens are there, measured."""
        ...

    def predicted_bytes(self, new_tokens: int) -> int:
        """The same by the shape alone."""
        ...

    def flops(self, new_tokens: int, *, cached: bool) -> int | None:
        """Operations of a generation in closed form; None where there is none."""
        ...

    def logits(self, ids: Tensor) -> Tensor:
        """Logits ``[B, V]`` after all of ``ids``, without a cache."""
        ...


# ---------------------------------------------------------------- the project's own


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSizes:
    """The own decoder's shape."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int

    def shape(self) -> TransformerShape:
        """As ``transformer.py`` takes it."""
        from llmfit.studies.transformer import TransformerShape

        return TransformerShape(**asdict(self))


class OwnDecoder:
    """The project's own Transformer, with random weights from the seed."""

    name = OWN

    def __init__(
        self,
        context: StudyContext,
        sizes: DecoderSizes,
        *,
        batch: int,
        prompt_tokens: int,
        count_up_to: int,
    ) -> None:
        import torch

        from llmfit.studies.transformer import Transformer

        self._shape = sizes.shape()
        self.count_up_to = count_up_to
        self._batch, self._prompt_tokens = batch, prompt_tokens
        torch.manual_seed(context.seed)
        self._model = Transformer(self._shape).eval().to(context.device)
        self._ids = _random_ids(self._shape.vocabulary, batch, prompt_tokens, context)

    def prompt(self) -> Tensor:
        """Random tokens."""
        return self._ids

    def generate(self, ids: Tensor, new_tokens: int, *, cached: bool) -> Tensor:
        """By ``generate``."""
        import torch

        with torch.no_grad():
            cache = self._cache(new_tokens) if cached else None
            return generate(self._model, ids, new_tokens, cache)

    def cache_bytes(self, ids: Tensor, new_tokens: int) -> int:
        """Of the store that all tokens were written to."""
        import torch

        with torch.no_grad():
            cache = self._cache(new_tokens)
            generate(self._model, ids, new_tokens, cache)
        return tensor_bytes([cache.store])

    def predicted_bytes(self, new_tokens: int) -> int:
        """By the shape's closed form."""
        tokens = self._prompt_tokens + new_tokens - 1
        return self._shape.cache_bytes(self._batch, tokens, _ITEM_BYTES)

    def flops(self, new_tokens: int, *, cached: bool) -> int | None:
        """By ``generation_flops``."""
        return generation_flops(
            self._shape, self._batch, self._prompt_tokens, new_tokens, cached=cached
        )

    def logits(self, ids: Tensor) -> Tensor:
        """Of a pass over all tokens."""
        import torch

        with torch.no_grad():
            out: Tensor = self._model(ids)[:, -1]
        return out

    def _cache(self, new_tokens: int) -> KvCache:
        from llmfit.studies.transformer import KvCache

        tokens = self._prompt_tokens + new_tokens - 1
        return KvCache(self._shape, self._batch, tokens, like=self._model.embedding.weight)


def generate(
    model: Transformer, ids: Tensor, new_tokens: int, cache: KvCache | None = None
) -> Tensor:
    """``ids: int64[B, P]`` continued greedily: ``int64[B, P + new_tokens]``.

    With an empty ``cache`` for P + new_tokens − 1 tokens a step runs the newest token alone.
    """
    import torch

    step = ids
    for _ in range(new_tokens):
        newest = model(step, cache)[:, -1].argmax(dim=-1, keepdim=True)  # [B, 1]
        ids = torch.cat((ids, newest), dim=1)
        step = ids if cache is None else newest
    return ids


def generation_flops(
    shape: TransformerShape, batch: int, prompt_tokens: int, new_tokens: int, *, cached: bool
) -> int:
    """Operations of a generation, a multiply-add as two.

    Without a cache each new token is a pass over all tokens before it. With one, the prompt is
    a pass, and each later token one of a single query that meets all keys.
    """
    totals = range(prompt_tokens, prompt_tokens + new_tokens)
    if not cached:
        return sum(shape.forward_flops(batch, tokens) for tokens in totals)
    one = shape.forward_flops(batch, 1)
    a_key = 4 * batch * shape.layers * shape.width  # scores and mix, a multiply-add each
    steps = sum(one + a_key * (keys - 1) for keys in totals[1:])
    return shape.forward_flops(batch, prompt_tokens) + steps


# ---------------------------------------------------------------- a library's


class LibraryModel:
    """The model inside the package, run by transformers."""

    name = HUGGING_FACE
    count_up_to = 0  # generate() leaves out logits that are not used: no closed form here

    def __init__(self, context: StudyContext, *, batch: int, prompt_tokens: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._spec = resolve(None)
        self._batch, self._prompt_tokens = batch, prompt_tokens
        with _no_progress_bars():
            model = AutoModelForCausalLM.from_pretrained(
                data_path("embedded"), dtype=torch.float32, local_files_only=True
            )
        self._model: Any = model.eval().to(context.device)
        self._ids = _random_ids(self._spec.vocab_size, batch, prompt_tokens, context)

    def prompt(self) -> Tensor:
        """Random tokens."""
        return self._ids

    def generate(self, ids: Tensor, new_tokens: int, *, cached: bool) -> Tensor:
        """By transformers' ``generate``, greedily, to the full length."""
        sequences: Tensor = self._generate(ids, new_tokens, cached=cached).sequences
        return sequences

    def cache_bytes(self, ids: Tensor, new_tokens: int) -> int:
        """Of the keys and values of all layers of transformers' DynamicCache."""
        cache = self._generate(ids, new_tokens, cached=True).past_key_values
        return tensor_bytes(part for layer in cache.layers for part in (layer.keys, layer.values))

    def predicted_bytes(self, new_tokens: int) -> int:
        """By the plan's formula, which counts values of 16 bits."""
        workload = Workload(
            prompt_tokens=self._prompt_tokens, new_tokens=new_tokens - 1, batch=self._batch
        )
        return kv_cache_bytes(self._spec, workload) * _ITEM_BYTES // 2

    def flops(self, new_tokens: int, *, cached: bool) -> int | None:
        """Not known."""
        return None

    def logits(self, ids: Tensor) -> Tensor:
        """Of a pass over all tokens."""
        import torch

        with torch.no_grad():
            out: Tensor = self._model(ids, use_cache=False).logits[:, -1]
        return out

    def _generate(self, ids: Tensor, new_tokens: int, *, cached: bool) -> Any:
        import torch

        return self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            use_cache=cached,
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            pad_token_id=0,
            return_dict_in_generate=True,
        )


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """transformers draws a bar for a model of a few megabytes too."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _random_ids(vocabulary: int, batch: int, tokens: int, context: StudyContext) -> Tensor:
    import torch

    source = torch.Generator().manual_seed(context.seed)
    ids = torch.randint(0, vocabulary, (batch, tokens), generator=source)
    return ids.to(context.device)
