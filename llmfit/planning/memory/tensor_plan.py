"""How transformers' own plan shards a family's weights over several GPUs, and one GPU's share.

    ModelShape ─► plan of its family ─► may it be shared by N? ─► shape of one GPU's share
                  (columns, rows)        why_not                  share

Sharded by outputs (``colwise``), a matrix gives each GPU a part of its rows; by inputs
(``rowwise``), of its columns. Embedding and output head are sharded over the vocabulary. Norms,
routers and biases count whole on every GPU: of biases of sharded outputs that is an upper bound.

Source: transformers 5.23, ``base_model_tp_plan`` of each configuration class, ``_tp_plan`` of each
model, distributed/tensor_parallel.py and mixin.py; a test builds the models and asks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from llmfit.shape import Attention, LayerShape, Matrix, ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlan:
    """The matrices that are sharded, by llama.cpp's names."""

    columns: frozenset[str]
    """By outputs."""
    rows: frozenset[str]
    """By inputs."""
    heads: bool = True
    """Each GPU attends with its own heads alone, and caches those; False: all heads everywhere."""
    mlp: bool = True
    """Each GPU holds its part of the MLP's values alone."""


_QKV = frozenset({"attn_q", "attn_k", "attn_v"})
_OUTPUT = frozenset({"attn_output"})
_DENSE = TensorPlan(
    columns=_QKV | {"ffn_gate", "ffn_up"},
    rows=_OUTPUT | {"ffn_down"},
)
_EXPERTS = TensorPlan(
    columns=_DENSE.columns | {"ffn_gate_exps", "ffn_up_exps"},
    rows=_DENSE.rows | {"ffn_down_exps"},
    mlp=False,
)
_SHARED_EXPERTS = replace(
    _EXPERTS,
    columns=_EXPERTS.columns | {"ffn_gate_shexp", "ffn_up_shexp"},
    rows=_EXPERTS.rows | {"ffn_down_shexp"},
)
_EXPERTS_ALONE = TensorPlan(
    columns=frozenset({"ffn_gate_exps", "ffn_up_exps"}),
    rows=frozenset({"ffn_down_exps"}),
    heads=False,
    mlp=False,
)
_FUSED_QKV = replace(_DENSE, columns=frozenset({"attn_qkv", "ffn_up"}), heads=False, mlp=False)

_PLANS: dict[str, TensorPlan] = {
    **dict.fromkeys(
        (
            "apertus", "arcee", "cohere", "cohere2", "cwm", "ernie4_5", "exaone4", "gemma",
            "gemma2", "gemma3_text", "granite", "helium", "internlm3", "iquestcoder",
            "llama", "ministral", "ministral3", "mistral", "nemotron", "olmo", "phi", "qwen2",
            "qwen3", "seed_oss", "smollm3", "starcoder2", "vaultgemma",
        ),
        _DENSE,
    ),
    **dict.fromkeys(("glm", "glm4"), replace(_DENSE, mlp=False)),
    **dict.fromkeys(("olmo2", "olmo3"), replace(_DENSE, heads=False)),
    "phi3": _FUSED_QKV,
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "exaone_moe"), _EXPERTS),
    **dict.fromkeys(("dots1", "ernie4_5_moe", "glm4_moe"), _SHARED_EXPERTS),
    **dict.fromkeys(("flex_olmo", "minimax_m2", "olmoe"), replace(_EXPERTS, heads=False)),
    **dict.fromkeys(
        ("granitemoe", "granitemoeshared", "hunyuan_v1_moe", "phimoe"), _EXPERTS_ALONE
    ),
}  # fmt: skip

FAMILIES = tuple(_PLANS)
"""The model types whose plan is known here."""


def why_not(shape: ModelShape, gpus: int) -> str | None:
    """Why ``gpus`` GPUs cannot share the model by transformers' plan; None where they can."""
    plan = _PLANS.get(shape.model_type)
    if plan is None:
        return (
            f"of transformers' plans for tensor parallelism, none is known here for a "
            f"{shape.model_type or 'model of this family'}"
        )
    for kind in shape.kinds:
        attention = kind.attention
        if plan.heads and attention is not None:
            for what, count in (("query", attention.heads), ("key", attention.kv_heads)):
                if count % gpus:
                    return f"its {count} {what} heads cannot be shared out over {gpus} GPUs"
        for matrix in kind.matrices:
            if matrix.count > 1 and matrix.name in plan.columns and matrix.rows % gpus:
                return f"its experts of width {matrix.rows} cannot be cut into {gpus} equal parts"
    return None


def share(shape: ModelShape, gpus: int, rank: int = 0) -> ModelShape:
    """What GPU ``rank`` of ``gpus`` holds; its vocabulary is the part of it whose weights it has.

    The first has the largest share. Raises ValueError where ``why_not`` names a reason.
    """
    reason = why_not(shape, gpus)
    if reason is not None:
        raise ValueError(reason)
    plan = _PLANS[shape.model_type]
    return replace(
        shape,
        kinds=tuple(_share_of_layer(kind, plan, gpus, rank) for kind in shape.kinds),
        vocab_size=_part(shape.vocab_size, gpus, rank),
    )


def _share_of_layer(kind: LayerShape, plan: TensorPlan, gpus: int, rank: int) -> LayerShape:
    def cut(matrix: Matrix) -> Matrix:
        if matrix.name in plan.columns:
            return replace(matrix, rows=_part(matrix.rows, gpus, rank))
        if matrix.name in plan.rows:
            return replace(matrix, columns=_part(matrix.columns, gpus, rank))
        return matrix

    width = max((m.rows for m in kind.matrices if m.name == "ffn_up"), default=0)
    mlp_values = kind.mlp_values
    if plan.mlp and width:
        mlp_values = mlp_values * _part(width, gpus, rank) // width
    return replace(
        kind,
        matrices=tuple(map(cut, kind.matrices)),
        attention=_share_of_heads(kind.attention, gpus) if plan.heads else kind.attention,
        mlp_values=mlp_values,
        attention_values=-(-kind.attention_values // gpus) if plan.heads else kind.attention_values,
    )


def _share_of_heads(attention: Attention | None, gpus: int) -> Attention | None:
    if attention is None:
        return None
    cached = attention.cached_heads
    return replace(
        attention,
        heads=attention.heads // gpus,
        kv_heads=attention.kv_heads // gpus,
        cached_heads=None if cached is None else cached // gpus,
    )


def _part(size: int, gpus: int, rank: int) -> int:
    """Rank's part of ``size``: equal ones, rounded up, and what is left for the last.

    Source: PyTorch's DTensor, Shard, which cuts as ``torch.chunk`` does.
    """
    each = -(-size // gpus)
    return max(0, min(each, size - rank * each))
