"""The GPU's kernels against plain torch operations: relative errors, as JSON.

    python tests/kernels/gpu_cases.py DEVICE

On ``cpu`` Triton's interpreter runs them, where TRITON_INTERPRET=1 is set.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import torch
from torch.nn import functional

from llmfit.backends._int4_codes import Int4Codes
from llmfit.backends._packed_int4 import PackedInt4Linear
from llmfit.decode.joint_linears import JoinLinears
from llmfit.kernels import gpu, gpu_attention

K = 512
ROWS = (48, 17, 7)


def error(output: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative to the norm of what is wanted."""
    output, wanted = output.double().flatten(), wanted.double().flatten()
    return float((output - wanted).norm() / wanted.norm())


def bf16(device: str) -> Iterator[tuple[str, float]]:
    """One and three matrices, with and without biases."""
    x = torch.randn(1, 1, K, device=device).bfloat16()
    weights = [torch.randn(rows, K, device=device).bfloat16() for rows in ROWS]
    biases = [torch.randn(rows, device=device).bfloat16() for rows in ROWS]
    product = torch.cat(weights).float() @ x.float().flatten()
    joint = torch.ops.llmfit_gpu.linears_bf16(x, weights, biases)
    yield "bf16, three with biases", error(joint, product + torch.cat(biases).float())
    alone = torch.ops.llmfit_gpu.linears_bf16(x, weights[:1], [])
    yield "bf16, one", error(alone, product[: ROWS[0]])


def int4_layer(rows: int, dtype: torch.dtype, device: str) -> tuple[PackedInt4Linear, torch.Tensor]:
    """A layer with random codes, and its weights in float32."""
    group = 128
    made = Int4Codes(
        codes=torch.randint(0, 16, (rows, K), dtype=torch.uint8, device=device),
        scales=(torch.rand(K // group, rows, device=device) + 0.5).to(dtype),
        zeros=torch.randint(0, 16, (K // group, rows), device=device).float(),
        bias=None,
        group=group,
    )
    zeros, scales = (
        each.float().t().repeat_interleave(group, 1) for each in (made.zeros, made.scales)
    )
    return PackedInt4Linear(made), (made.codes.float() - zeros) * scales


def int4(device: str) -> Iterator[tuple[str, float]]:
    """One row and several, in both types of scales."""
    for dtype in (torch.float16, torch.bfloat16):
        layer, weights = int4_layer(ROWS[0], dtype, device)
        for rows in (1, 5):
            x = torch.randn(1, rows, K, device=device).to(dtype)
            yield f"int4 {dtype}, {rows} rows", error(layer(x), x.float() @ weights.t())


def int4_joined(device: str) -> Iterator[tuple[str, float]]:
    """Three layers of one input in a compiled graph are one launch, and give what they gave."""
    layers = [int4_layer(rows, torch.bfloat16, device)[0] for rows in ROWS]
    launches = []

    def step(x: torch.Tensor) -> torch.Tensor:
        normed = functional.rms_norm(x.float(), (K,)).bfloat16()
        return torch.cat([layer(normed) for layer in layers], -1)

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        from torch._inductor.compile_fx import compile_fx

        class Counted(JoinLinears):
            def __call__(self, graph: torch.fx.Graph) -> None:
                super().__call__(graph)
                launches.extend(node for node in graph.nodes if "linears" in str(node.target))

        with torch._inductor.config.patch(
            post_grad_custom_pre_pass=Counted(), force_disable_caches=True
        ):
            return compile_fx(graph, inputs)

    x = torch.randn(1, 1, K, device=device).bfloat16()
    compiled = torch.compile(step, backend=backend, fullgraph=True)
    yield "int4, three joined in a graph", error(compiled(x), step(x))
    yield "int4, launches but one", abs(float(len(launches) - 1))


def int8(device: str) -> Iterator[tuple[str, float]]:
    """LLM.int8() with outliers, by its definition."""
    from llmfit.decode.step_kernels import _rounded_to_8_bits

    x = torch.randn(1, 1, K, device=device).bfloat16()
    x[..., 7], x[..., 300] = 8.0, -11.0
    codes = torch.randint(-127, 128, (ROWS[0], K), device=device).to(torch.int8)
    scales = torch.rand(ROWS[0], device=device) / 127
    flat = x.flatten()
    outlying = flat.abs() >= 6.0
    largest = flat.masked_fill(outlying, 0).abs().max().float()
    rounded = (flat.float() * 127 / largest).round() * largest / 127
    seen = torch.where(outlying, flat.float(), rounded)
    yield "int8, what is seen of the inputs", error(_rounded_to_8_bits(flat, 6.0), seen)
    out = torch.ops.llmfit_gpu.linears_packed(
        gpu.int8_fields_of(seen), [codes.view(torch.int32)], [scales], [], None, "int8", K // 4,
        torch.float32,
    )  # fmt: skip
    yield "int8", error(out, (codes.float() * scales[:, None]) @ seen)


def nf4(device: str) -> Iterator[tuple[str, float]]:
    """A layer that bitsandbytes has quantised, and dequantises itself, by each kernel for it."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    from llmfit.decode.step_kernels import _ON_GPU

    layer = Linear4bit(
        K, ROWS[0], bias=True, quant_type="nf4", compress_statistics=False,
        compute_dtype=torch.bfloat16,
    ).to(device)  # fmt: skip
    layer.bias.data = torch.randn(ROWS[0], device=device).bfloat16()
    weights = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    x = torch.randn(1, 1, K, device=device).bfloat16()
    for kernel in _ON_GPU["Linear4bit"]:
        forward = kernel.bind(layer)
        assert forward is not None
        yield kernel.name, error(forward(x), weights @ x.float().flatten() + layer.bias.float())


def attend(device: str) -> Iterator[tuple[str, float]]:
    """Heads that share keys, odd widths, a window, few, all and many slots."""
    shapes = (
        (1, 8, 2, 64, 200, 130, 0),
        (2, 4, 4, 80, 200, 7, 0),
        (1, 6, 2, 32, 300, 300, 50),
        (1, 2, 1, 16, 4500, 4400, 0),  # more parts than are weighed at once
        (1, 2, 1, 16, 4500, 4490, 60),
    )
    for batch, heads, shared, width, capacity, held, window in shapes:
        query = torch.randn(batch, heads, 1, width, device=device).bfloat16()
        keys, values = torch.randn(2, batch, shared, capacity, width, device=device).bfloat16()
        slots = torch.arange(capacity, device=device)
        seen = (slots < held) & (slots >= held - (window or held))
        wanted = functional.scaled_dot_product_attention(
            query.float(), keys.float(), values.float(), attn_mask=seen[None, None, None],
            enable_gqa=True,
        )  # fmt: skip
        count = torch.tensor(held, device=device)
        out = gpu_attention.attend(query, keys, values, count, width**-0.5, window)
        yield f"attend {width} wide, {held} of {capacity}", error(out, wanted.transpose(1, 2))


def main(device: str) -> None:
    """Print all errors."""
    torch.manual_seed(0)
    found: dict[str, float] = {}
    with torch.inference_mode():
        for case in (bf16, int4, int4_joined, int8, nf4, attend):
            found |= dict(case(device))
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
