"""A decoder-only Transformer small enough to read, with and without a KV cache.

    ids: int64[B, T] ─► embedding ─► blocks (attention, feed-forward; pre-norm) ─► logits[B, T, V]

The studies measure techniques on it where a model of one's own shows more than a library's: each
technique is a few lines here. Llama's shape: RMSNorm, rotary positions, SwiGLU, grouped queries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's own name for it


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerShape:
    """Sizes of the model."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    inner: int
    """Width inside the feed-forward part."""
    vocabulary: int

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.width // self.heads

    def parameters(self) -> int:
        """Number of parameters, embedding and head tied."""
        attention = self.width * self.head_width * 2 * (self.heads + self.kv_heads)
        block = attention + 3 * self.width * self.inner + 2 * self.width
        return self.vocabulary * self.width + self.layers * block + self.width

    def forward_flops(self, batch: int, tokens: int) -> int:
        """Operations of a pass over ``tokens`` without a cache, a multiply-add as two.

        Attention is counted whole, causal or not, as torch's counter does.
        """
        linear = self.parameters() - (2 * self.layers + 1) * self.width  # no norms; the head once
        attention = 2 * self.layers * self.width * tokens
        return 2 * batch * tokens * (linear + attention)

    def cache_bytes(self, batch: int, tokens: int, itemsize: int) -> int:
        """Bytes of the keys and values of so many tokens."""
        return 2 * self.layers * batch * self.kv_heads * tokens * self.head_width * itemsize


class KvCache:
    """Keys and values of all layers, preallocated: ``[layers, 2, B, kv_heads, T, head_width]``."""

    def __init__(self, shape: TransformerShape, batch: int, tokens: int, *, like: Tensor) -> None:
        self.store = like.new_empty(
            shape.layers, 2, batch, shape.kv_heads, tokens, shape.head_width
        )
        self.length = 0

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the layer with the new ones, ``[B, kv_heads, T, head_width]``."""
        end = self.length + key.shape[2]
        self.store[layer, 0, :, :, self.length : end] = key
        self.store[layer, 1, :, :, self.length : end] = value
        return self.store[layer, 0, :, :, :end], self.store[layer, 1, :, :, :end]


def rotary(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, ``[T, width]``. Source: Su et al. 2021, arXiv:2104.09864."""
    half = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    angles = torch.outer(positions.float(), 10000.0**-half)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x: [B, heads, T, width]`` turned by its positions."""
    a, b = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-b, a), dim=-1) * sin.to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention with grouped queries, by scaled_dot_product_attention."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.shape = shape
        narrow = shape.kv_heads * shape.head_width
        self.query = nn.Linear(shape.width, shape.width, bias=False)
        self.key = nn.Linear(shape.width, narrow, bias=False)
        self.value = nn.Linear(shape.width, narrow, bias=False)
        self.output = nn.Linear(shape.width, shape.width, bias=False)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], cache: KvCache | None, layer: int
    ) -> Tensor:
        """``x: [B, T, C]`` → ``[B, T, C]``."""
        batch, tokens, _ = x.shape

        def heads(y: Tensor) -> Tensor:
            return y.view(batch, tokens, -1, self.shape.head_width).transpose(1, 2)

        query = rotate(heads(self.query(x)), *turn)
        key, value = rotate(heads(self.key(x)), *turn), heads(self.value(x))
        if cache is not None:
            key, value = cache.append(layer, key, value)
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=tokens > 1,
            enable_gqa=self.shape.kv_heads != self.shape.heads,
        )
        out: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return out


class Block(nn.Module):
    """Attention and feed-forward, each after a norm and added to its input."""

    def __init__(self, shape: TransformerShape, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.before = nn.RMSNorm(shape.width)
        self.attention = Attention(shape)
        self.between = nn.RMSNorm(shape.width)
        self.gate = nn.Linear(shape.width, shape.inner, bias=False)
        self.up = nn.Linear(shape.width, shape.inner, bias=False)
        self.down = nn.Linear(shape.inner, shape.width, bias=False)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], cache: KvCache | None = None
    ) -> Tensor:
        """``x: [B, T, C]`` → ``[B, T, C]``."""
        x = x + self.attention(self.before(x), turn, cache, self.layer)
        y = self.between(x)
        out: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return out


class Transformer(nn.Module):
    """The whole model. ``run_block`` decides how a block is run; None runs it plainly."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape, layer) for layer in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width)
        self.run_block: Callable[..., Tensor] | None = None
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor, cache: KvCache | None = None) -> Tensor:
        """Logits ``[B, T, V]`` of ``ids: int64[B, T]``; a prompt may only begin an empty cache."""
        start = 0 if cache is None else cache.length
        positions = torch.arange(start, start + ids.shape[1], device=ids.device)
        turn = rotary(positions, self.shape.head_width)
        x = self.embedding(ids)
        for block in self.blocks:
            run = block if self.run_block is None else self.run_block
            x = run(x, turn, cache) if run is block else run(block, x, turn)
        if cache is not None:
            cache.length += ids.shape[1]
        return F.linear(self.norm(x), self.embedding.weight)
