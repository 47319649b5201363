"""The shape of a decoder-only model, layer by layer: what arithmetic about it needs.

    config.json ─► planning/architectures ─► ModelShape ─► bytes per format, KV cache, FLOPs, counts

A matrix carries llama.cpp's tensor name, which says what it is for in one word of the field.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Basis = Literal["architecture", "plain numbers"]

LOOKUPS = frozenset({"per_layer_token_embd", "position_embd", "token_types"})
"""Matrices of which a token reads one row: tables beside the embedding, by llama.cpp's names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A weight matrix [rows, columns], or ``count`` of them (experts) of which ``active`` run."""

    name: str
    """llama.cpp's name of it without ``blk.N.`` and ``.weight``: attn_q, ffn_down_exps …"""
    rows: int
    """Outputs."""
    columns: int
    """Inputs: the length of a row, along which formats make their groups."""
    count: int = 1
    active: int = 1
    linear: bool = True
    """Whether transformers holds it as ``nn.Linear`` modules, which formats replace by their own.
    False for experts fused into one parameter, routers and convolutions."""

    @property
    def parameters(self) -> int:
        """Values of all copies."""
        return self.count * self.rows * self.columns

    @property
    def active_parameters(self) -> int:
        """Values of the copies that run for one token."""
        return self.active * self.rows * self.columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """A layer's softmax attention and what of it is cached, for one token."""

    heads: int
    kv_heads: int
    key_dim: int
    """Size of a query's and a key's head."""
    value_dim: int
    window: int | None = None
    """Tokens that a sliding window sees; None sees all."""
    latent_dim: int | None = None
    """Multi-head latent attention: values of the compressed cache, the rotary part with it."""
    cached_heads: int | None = None
    """Heads whose keys and values are cached where that is not ``kv_heads``: all of them where
    transformers repeats them first (its Falcon of the new decoder), 0 in a layer that reads what
    another one cached (Gemma 3n)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Recurrent state of a linear-attention or Mamba layer: per sequence, whatever its length."""

    elements: int
    """Values of the recurrent state and of the convolution's window together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """One kind of decoder layer."""

    matrices: tuple[Matrix, ...]
    vectors: int
    """Values of all one-dimensional parameters: norms, biases, gates."""
    attention: Attention | None = None
    state: State | None = None
    mlp_values: int = 0
    """Values a token holds at the MLP's peak in transformers' code, without the residual stream:
    3 × the width for a gated MLP of three matrices."""
    attention_values: int = 0
    """Likewise in the attention or recurrent part, N×N scores apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """All layers of a model, and what stands before and after them."""

    hidden_size: int
    vocab_size: int
    tied: bool
    """The output head is the embedding."""
    kinds: tuple[LayerShape, ...]
    """Each different kind of layer, once."""
    layers: tuple[int, ...]
    """For each layer, in order, its kind."""
    vectors: int = 0
    """Values outside the layers: the last norm, a bias of the head."""
    extra: tuple[Matrix, ...] = ()
    """Matrices outside the layers beside embedding and head: learned positions, projections."""
    model_type: str = ""
    """The family, as config.json names it; llama.cpp has rules of its own for some."""
    basis: Basis = "architecture"
    """``plain numbers``: of an architecture that is not known here, taken for a Llama."""
    notes: tuple[str, ...] = ()
    """What a reader of a prediction has to know: the text part alone, a missing module."""
    embedding_size: int | None = None
    """Width of embedding and head where it is not the hidden size (OPT-350M); None where it is."""

    @property
    def embedding(self) -> Matrix:
        """The token embedding, a lookup: one row is read per token."""
        return Matrix(
            name="token_embd",
            rows=self.vocab_size,
            columns=self.embedding_size or self.hidden_size,
            linear=False,
        )

    @property
    def head(self) -> Matrix:
        """The output head; the embedding itself where tied."""
        return replace(self.embedding, name="output", linear=True)

    @property
    def parameters(self) -> int:
        """All parameters, a tied matrix once: what transformers counts on the built model."""
        return self._count(active=False)

    @property
    def active_parameters(self) -> int:
        """Those that one token meets; the embedding counts whole, as publishers count."""
        return self._count(active=True)

    def of_layers(self) -> tuple[LayerShape, ...]:
        """The layers, in order."""
        return tuple(self.kinds[index] for index in self.layers)

    def _count(self, *, active: bool) -> int:
        def values(matrices: tuple[Matrix, ...]) -> int:
            return sum(m.active_parameters if active else m.parameters for m in matrices)

        per_kind = [values(kind.matrices) + kind.vectors for kind in self.kinds]
        outside = self.embedding.parameters * (1 if self.tied else 2)
        outside += values(self.extra) + self.vectors
        return outside + sum(per_kind[index] for index in self.layers)
