"""The pieces that decoder layers are made of, with transformers' biases and llama.cpp's names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmfit.errors import ModelLoadError
from llmfit.foreign.facts import HINT, MOST_KINDS, MOST_MATRICES
from llmfit.planning.architectures._facts import Facts, MissingFact
from llmfit.shape import Attention, LayerShape, Matrix, ModelShape, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One half of a layer: what mixes tokens, or the MLP."""

    matrices: tuple[Matrix, ...] = ()
    vectors: int = 0
    values: int = 0
    """Values that a token holds at this part's peak, beside the residual stream."""
    attention: Attention | None = None
    state: State | None = None


def linear(name: str, rows: int, columns: int, *, bias: bool = False) -> Part:
    """One ``nn.Linear`` with ``rows`` outputs and ``columns`` inputs."""
    return Part(
        matrices=(Matrix(name=name, rows=rows, columns=columns),), vectors=rows if bias else 0
    )


def joined(*parts: Part, values: int = 0, attention: Attention | None = None) -> Part:
    """Several pieces as one part."""
    return Part(
        matrices=tuple(matrix for part in parts for matrix in part.matrices),
        vectors=sum(part.vectors for part in parts),
        values=values,
        attention=attention,
    )


def vectors(count: int) -> Part:
    """One-dimensional parameters of ``count`` values together."""
    return Part(vectors=count)


def with_state(part: Part, state: State) -> Part:
    """A part that keeps a recurrent state."""
    return replace(part, state=state)


def side_by_side(attention: Part, recurrent: Part) -> Part:
    """Attention and a recurrent part on the same input, whose outputs are added."""
    return Part(
        matrices=attention.matrices + recurrent.matrices,
        vectors=attention.vectors + recurrent.vectors,
        values=max(attention.values, recurrent.values),
        attention=attention.attention,
        state=recurrent.state,
    )


def attention(
    *,
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    qkv_bias: bool = False,
    out_bias: bool = False,
    fused: bool = False,
    output_gate: bool = False,
    normed: bool = False,
    rotated_in_32_bits: bool = False,
    window: int | None = None,
    vectors: int = 0,
) -> Part:
    """Softmax attention with grouped queries; ``fused`` has one matrix for q, k and v.

    ``output_gate`` projects a gate of the output with the queries; ``normed`` queries and keys pass
    a norm. ``vectors`` counts what a family adds: those norms, sinks.
    """
    q, kv = heads * head_dim, kv_heads * head_dim
    if fused:
        inward = [linear("attn_qkv", q + 2 * kv, hidden, bias=qkv_bias)]
    else:
        inward = [
            linear("attn_q", 2 * q if output_gate else q, hidden, bias=qkv_bias),
            linear("attn_k", kv, hidden, bias=qkv_bias),
            linear("attn_v", kv, hidden, bias=qkv_bias),
        ]
    return joined(
        *inward,
        linear("attn_output", hidden, q, bias=out_bias),
        Part(vectors=vectors),
        values=attention_values(
            hidden, q, kv, fused=fused, normed=normed, rotated_in_32_bits=rotated_in_32_bits
        )
        + (q if output_gate else 0),
        attention=Attention(
            heads=heads, kv_heads=kv_heads, key_dim=head_dim, value_dim=head_dim, window=window
        ),
    )


def attention_values(
    hidden: int, query: int, key: int, *, fused: bool, normed: bool, rotated_in_32_bits: bool
) -> int:
    """Values that a token holds at the fullest moment before and behind the scores.

    While queries are rotated, ``q * cos + rotate_half(q) * sin`` holds both products and either
    the rotated half or the sum; while keys are, the rotated queries are there too. A norm of the
    queries holds two of them in 32 bits. Queries, keys and values of one fused product live on,
    as views of it, until the layer's output is there.
    Source: transformers 5.23, modeling_llama.py; a test runs it under a count of live bytes.
    """
    turning = 7 if rotated_in_32_bits else 4
    rotated = max(turning * query + 2 * key, 2 * query + (turning + 1) * key)
    in_32_bits = 5 * query if normed else 0
    until_output = 3 * query + 3 * key + hidden if fused else 0
    return max(rotated, in_32_bits, until_output)


def gated_mlp(hidden: int, width: int, *, bias: bool = False, fused: bool = False) -> Part:
    """``down(act(gate(x)) * up(x))``; ``fused`` has gate and up in one matrix.

    Its peak is at the product: activated gate, up and product, of three matrices; of two, the
    fused output is held beside activated half and product.
    """
    down = linear("ffn_down", hidden, width, bias=bias)
    if fused:
        both = linear("ffn_up", 2 * width, hidden, bias=bias)
        return joined(both, down, values=4 * width)
    gate = linear("ffn_gate", width, hidden, bias=bias)
    up = linear("ffn_up", width, hidden, bias=bias)
    return joined(gate, up, down, values=3 * width)


def plain_mlp(hidden: int, width: int, *, bias: bool = False) -> Part:
    """``down(act(up(x)))``: at its peak the width before and after the activation."""
    up = linear("ffn_up", width, hidden, bias=bias)
    return joined(up, linear("ffn_down", hidden, width, bias=bias), values=2 * width)


def experts(
    *,
    hidden: int,
    width: int,
    count: int,
    active: int,
    biases: bool = False,
    linear_router: bool = False,
    weights_in_32_bits: bool = False,
) -> Part:
    """``count`` gated experts, of which a router picks ``active`` for each token.

    transformers holds each kind of matrix fused over the experts, as a parameter, and the router
    as a parameter too in most families. ``biases`` are of the router and of all experts;
    ``weights_in_32_bits`` says that the router's weights, and so the weighted outputs, are.
    """

    def fused(name: str, rows: int, columns: int) -> Matrix:
        return Matrix(
            name=name, rows=rows, columns=columns, count=count, active=active, linear=False
        )

    return Part(
        matrices=(
            Matrix(name="ffn_gate_inp", rows=count, columns=hidden, linear=linear_router),
            fused("ffn_gate_exps", width, hidden),
            fused("ffn_up_exps", width, hidden),
            fused("ffn_down_exps", hidden, width),
        ),
        vectors=count * (1 + 2 * width + hidden) if biases else 0,
        values=_expert_values(
            hidden, width, count, active, biases=biases, weights_in_32_bits=weights_in_32_bits
        ),
    )


def _expert_values(
    hidden: int, width: int, count: int, active: int, *, biases: bool, weights_in_32_bits: bool
) -> int:
    """Values that a token holds at the fullest moment of its ``active`` experts.

    Its copies for each expert live throughout. At the gate there are the fused output, activated
    half and product beside them (with biases: the biases picked for each copy, both halves
    clamped, and what is made of them); when the original order is restored, the experts' outputs,
    the weighted ones and those in order. Indices and router take the rest.
    Source: transformers 5.23, integrations/moe.py, grouped_mm_experts_forward; a test runs it.
    """
    gate = (9 if biases else 4) * width + hidden
    outputs = 2 + 2 * (2 if weights_in_32_bits else 1) + (1 if biases else 0)
    return active * max(gate, outputs * hidden) + 20 * active + count


def plain_experts(*, hidden: int, inputs: int, width: int, count: int, active: int) -> Part:
    """Experts of two matrices, without a gate, on ``inputs`` values."""
    up = Matrix(
        name="ffn_up_exps", rows=width, columns=inputs, count=count, active=active, linear=False
    )
    down = replace(up, name="ffn_down_exps", rows=inputs, columns=width)
    router = Matrix(name="ffn_gate_inp", rows=count, columns=hidden, linear=False)
    return Part(matrices=(router, up, down), values=active * max(2 * width + inputs, 6 * inputs))


def with_shared(
    routed: Part, shared: Part, *, gate: bool = False, shared_first: bool = False
) -> Part:
    """Routed experts beside an MLP that every token meets, and that a ``gate`` may weigh.

    The output of what runs first is held while the other runs.
    """
    if not shared.matrices:
        return routed
    renamed = tuple(replace(matrix, name=f"{matrix.name}_shexp") for matrix in shared.matrices)
    hidden = shared.matrices[0].columns
    weigh = (Matrix(name="ffn_gate_inp_shexp", rows=1, columns=hidden),) if gate else ()
    if shared_first:
        values = max(routed.values + hidden, shared.values)
    else:
        values = max(routed.values, shared.values + hidden)
    return Part(
        matrices=routed.matrices + renamed + weigh,
        vectors=routed.vectors + shared.vectors,
        values=values,
    )


def layer(mixer: Part | None, mlp: Part | None, *, norms: int) -> LayerShape:
    """A layer of what mixes tokens and an MLP, either of which may be absent."""
    mixer, mlp = mixer or Part(), mlp or Part()
    return LayerShape(
        matrices=mixer.matrices + mlp.matrices,
        vectors=mixer.vectors + mlp.vectors + norms,
        attention=mixer.attention,
        state=mixer.state,
        mlp_values=mlp.values,
        attention_values=mixer.values,
    )


def _require_values(matrix: Matrix) -> None:
    if min(matrix.rows, matrix.columns) < 1 or not 0 <= matrix.active <= matrix.count:
        raise ModelLoadError(
            f"config.json makes {matrix.active} of {matrix.count} matrices {matrix.name} of "
            f"{matrix.rows} × {matrix.columns}.",
            hint=HINT,
        )


def _require_few(layers: Sequence[LayerShape], kinds: Sequence[LayerShape]) -> None:
    copies = {kind: sum(matrix.count for matrix in kind.matrices) for kind in kinds}
    matrices = sum(copies[layer] for layer in layers)
    if len(kinds) > MOST_KINDS or matrices > MOST_MATRICES:
        raise ModelLoadError(
            f"config.json tells of {len(kinds)} kinds of layers with {matrices} matrices in all, "
            f"at most {MOST_KINDS} and {MOST_MATRICES} are read.",
            hint=HINT,
        )


def model(
    facts: Facts,
    layers: Sequence[LayerShape],
    *,
    vectors: int,
    can_tie: bool = True,
    extra: tuple[Matrix, ...] = (),
    notes: tuple[str, ...] = (),
) -> ModelShape:
    """The whole of ``layers``, equal ones told once; not all code ties what a config ties.

    Raises ModelLoadError for a matrix without rows or columns, or more layers and experts than can
    be meant, MissingFact without layers.
    """
    kinds = tuple(dict.fromkeys(layers))
    if not kinds:
        raise MissingFact("num_hidden_layers")
    for matrix in (*extra, *(matrix for kind in kinds for matrix in kind.matrices)):
        _require_values(matrix)
    _require_few(layers, kinds)
    index = {kind: position for position, kind in enumerate(kinds)}
    return ModelShape(
        hidden_size=facts.number("hidden_size"),
        vocab_size=facts.number("vocab_size"),
        tied=can_tie and facts.flag("tie_word_embeddings"),
        kinds=kinds,
        layers=tuple(index[each] for each in layers),
        vectors=vectors,
        extra=extra,
        model_type=str(facts.get("model_type") or ""),
        notes=notes,
    )
