"""The CPU kernels against other libraries' and closed forms; compiled for this CPU and for any."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest
import torch

from llmfit.kernels import build
from llmfit.kernels.build import find_compiler, why_no_kernels

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")

SHAPES = [(64, 64), (256, 128), (96, 320), (1000, 77), (3001, 1000)]
"""Of the last one two threads take shares in turns; of the others each has its part at once."""
STEP = 2**-8
"""Relative size of a step of bfloat16."""


@pytest.fixture(autouse=True)
def loaded() -> None:
    """The kernels, which must be there where a compiler is."""
    assert why_no_kernels() is None


def matrix(rows: int, inputs: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, inputs, generator=generator) / inputs**0.5).bfloat16()


def row(inputs: int, outlier: float | None = None) -> torch.Tensor:
    x = torch.randn(1, 1, inputs, generator=torch.Generator().manual_seed(9))
    if outlier is not None:
        x[0, 0, inputs // 2] = outlier
    return x.bfloat16()


def assert_rounded(found: torch.Tensor, exact: torch.Tensor, scale: float = 1.0) -> None:
    """``found`` bf16 is ``exact`` within rounding once; sums of size ``scale`` in float32."""
    assert found.dtype == torch.bfloat16 and found.shape == exact.shape
    torch.testing.assert_close(found.double(), exact.double(), rtol=STEP, atol=1e-5 * scale)


@pytest.mark.parametrize("width", [1, 7, 64, 256, 2048])
def test_rms_norm_is_that_of_llama(width: int) -> None:
    """Against transformers' module: a value may be a step of bfloat16 apart, few of them are."""
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    norm = llama.LlamaRMSNorm(width, eps=1e-5).bfloat16()
    norm.weight.data = row(width)[0, 0] + 1
    x = 3 * row(width)
    with torch.inference_mode():
        expected = norm(x)
        found = torch.ops.llmfit.rms_norm(x, norm.weight, 1e-5)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.float(), expected.float(), rtol=2 * STEP, atol=0)
    assert (found != expected).float().mean() < 0.02
    with pytest.raises(RuntimeError, match="one contiguous row"):
        torch.ops.llmfit.rms_norm(x.float(), norm.weight, 1e-5)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("rows", "inputs"), SHAPES)
def test_bf16_is_the_exact_product_rounded_once(rows: int, inputs: int, biased: bool) -> None:
    """Against float64."""
    weight, x = matrix(rows, inputs), row(inputs)
    bias = matrix(1, rows, seed=1)[0] if biased else None
    exact = torch.nn.functional.linear(
        x.double(), weight.double(), None if bias is None else bias.double()
    )
    assert_rounded(torch.ops.llmfit.linear_bf16(x, weight, bias), exact)


@pytest.mark.parametrize("biased", [False, True])
def test_bf16_of_several_matrices_is_that_of_each(biased: bool) -> None:
    """Bit by bit, wherever the threads' shares of the rows begin and end."""
    x, weights = row(320), [matrix(rows, 320, seed=rows) for rows in (701, 96, 902)]
    biases = [matrix(1, len(weight), seed=1)[0] for weight in weights] if biased else []
    alone = [
        torch.ops.llmfit.linear_bf16(x, weight, biases[i] if biased else None)
        for i, weight in enumerate(weights)
    ]
    found = torch.ops.llmfit.linears_bf16(x, weights, biases)
    assert torch.equal(found, torch.cat(alone, dim=-1))
    with pytest.raises(RuntimeError, match="3 weights have 1 biases"):
        torch.ops.llmfit.linears_bf16(x, weights, [biases[0] if biased else x[0, 0]])


@pytest.mark.parametrize("outlier", [None, 9.5])
@pytest.mark.parametrize("threshold", [6.0, 0.0])
@pytest.mark.parametrize(("rows", "inputs"), SHAPES)
def test_int8_equals_bitsandbytes_bit_by_bit(
    rows: int, inputs: int, threshold: float, outlier: float | None
) -> None:
    """LLM.int8() with and without outliers, with a bias, gives the very same numbers."""
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear8bitLt(inputs, rows, has_fp16_weights=False, threshold=threshold)
    layer.weight = bnb.nn.Int8Params(
        matrix(rows, inputs), requires_grad=False, has_fp16_weights=False
    ).to("cpu")
    layer.bias = torch.nn.Parameter(matrix(1, rows, seed=1)[0], requires_grad=False)
    layer.eval()
    x = row(inputs, outlier)
    with torch.inference_mode():
        expected = layer(x)
        state = layer.state
        found = torch.ops.llmfit.linear_int8(x, state.CB, state.SCB, layer.bias, threshold)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("rows", "inputs"), [(64, 64), (256, 128), (96, 320), (4096, 1024)])
def test_4bit_is_what_the_packed_codes_say(rows: int, inputs: int, biased: bool) -> None:
    """NF4 in bitsandbytes' packing for CPUs: the table's values times the blocks' magnitudes."""
    functional = pytest.importorskip("bitsandbytes.functional")
    packed, state = functional.quantize_4bit(
        matrix(rows, inputs), blocksize=64, quant_type="nf4", quant_storage=torch.uint8
    )
    bytes_ = packed.reshape(-1).int()
    codes = torch.stack([bytes_ >> 4, bytes_ & 15], dim=1).view(rows, inputs // 64, 64)
    table = state.code.bfloat16()
    packed, state = functional._convert_weight_packed_for_cpu(packed, state)
    blocks = state.absmax.t().double()  # [rows, blocks], in bf16 before
    weights = (table.double()[codes] * blocks[:, :, None]).view(rows, inputs)
    bias = matrix(1, rows, seed=1)[0] if biased else None
    x = row(inputs)
    found = torch.ops.llmfit.linear_4bit_packed(x, packed, state.absmax, table, bias, 64)
    product = x.double() @ weights.t()
    if bias is None:
        assert_rounded(found, product)
    else:  # rounded before the bias is added, as bitsandbytes does
        assert_rounded(found, product.bfloat16().double() + bias.double(), scale=1000)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize(("rows", "inputs"), [(64, 128), (256, 384), (4096, 1024)])
def test_int4_is_what_pytorchs_packing_says(rows: int, inputs: int, group: int) -> None:
    """scale × (code − 8) + zero, and PyTorch's own product over the same packed weights."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("PyTorch packs int4 otherwise without AVX-512")
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (rows, inputs), dtype=torch.int32, generator=generator)
    scales = (torch.rand(inputs // group, rows, 2, generator=generator) / 50).bfloat16()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    x = row(inputs)
    by_group = (codes.double() - 8).view(rows, inputs // group, group)
    scale, zero = (scales[..., at].t().double()[:, :, None] for at in (0, 1))
    exact = x.double() @ (by_group * scale + zero).view(rows, inputs).t()
    found = torch.ops.llmfit.linear_int4(x, packed, scales, None, group)
    assert_rounded(found, exact)
    theirs = torch.ops.aten._weight_int4pack_mm_for_cpu(x[0], packed, group, scales)
    torch.testing.assert_close(found[0], theirs, rtol=2 * STEP, atol=1e-5)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize(("rows", "inputs"), [(64, 64), (96, 320), (4096, 1024)])
def test_unpacked_4bit_weights_are_bitsandbytes_own(
    rows: int, inputs: int, quant_type: str
) -> None:
    """Its dequantisation before it packs them for CPUs, bit by bit, also of some rows alone."""
    functional = pytest.importorskip("bitsandbytes.functional")
    packed, state = functional.quantize_4bit(
        matrix(rows, inputs), blocksize=64, quant_type=quant_type, quant_storage=torch.uint8
    )
    expected = functional.dequantize_4bit(packed, state)
    table = state.code.float()
    packed, state = functional._convert_weight_packed_for_cpu(packed, state)
    unpack = torch.ops.llmfit.unpack_4bit_packed
    assert torch.equal(unpack(packed, state.absmax, table, 64, 0, rows), expected)
    some = unpack(packed, state.absmax, table, 64, 32, 64)
    assert torch.equal(some, expected[32:64])


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("held", [1, 16, 37])
@pytest.mark.parametrize(
    ("heads", "shared", "width", "out_width"),
    [(4, 4, 64, 64), (8, 2, 32, 32), (6, 3, 80, 48), (4, 1, 33, 17), (2, 2, 128, 128)],
)
def test_attention_equals_sdpa(
    heads: int, shared: int, width: int, out_width: int, held: int, window: int
) -> None:
    """Grouped queries, odd widths, a sliding window, part of a buffer: as PyTorch in float64."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    query, keys = random(2, heads, 1, width), random(2, shared, 40, width)
    values = random(2, shared, 40, out_width)
    seen = slice(max(0, held - window) if window else 0, held)
    exact = torch.nn.functional.scaled_dot_product_attention(
        query.double(), keys[:, :, seen].double(), values[:, :, seen].double(), scale=0.2,
        enable_gqa=True,
    )  # fmt: skip
    found = torch.ops.llmfit.attend(query, keys, values, torch.tensor(held), 0.2, window)
    assert_rounded(found, exact.transpose(1, 2))


@pytest.mark.parametrize("inputs", [64, 80])
@pytest.mark.parametrize("place", [0, 33, -1])
def test_a_nan_is_not_rounded_to_a_number(inputs: int, place: int) -> None:
    """A broken model would be scored as a sound one: int8 codes and maxima lose a NaN."""
    x = row(inputs)
    x[..., place] = torch.nan
    codes, sizes = matrix(8, inputs).mul(30).to(torch.int8), torch.ones(8)
    assert torch.ops.llmfit.linear_int8(x, codes, sizes, None, 6.0).isnan().all()
    rows = torch.cat([row(inputs).view(1, -1), x.view(1, -1)])
    _, largest, _ = torch.ops.llmfit.quantize_int8(rows, 6.0)
    assert largest.isnan().tolist() == [False, True]
    keys, values = torch.randn(2, 1, 1, 40, inputs).bfloat16()
    keys[0, 0, 3, place] = torch.nan
    query = torch.randn(1, 1, 1, inputs).bfloat16()
    assert torch.ops.llmfit.attend(query, keys, values, torch.tensor(40), 0.2, 0).isnan().all()


def test_what_would_be_read_beyond_its_end_is_refused() -> None:
    """Wrong types, sizes and strides are errors of Python's, and no crash."""
    weight, x = matrix(64, 64), row(64)
    ops = torch.ops.llmfit
    codes, absmax = torch.zeros(64, 32, dtype=torch.uint8), torch.ones(1, 64).bfloat16()
    keys = torch.zeros(1, 2, 4, 64).bfloat16()
    wrong = [
        lambda: ops.linear_bf16(x.float(), weight, None),
        lambda: ops.linear_bf16(row(32), weight, None),
        lambda: ops.linear_bf16(torch.cat([x, x]), weight, None),
        lambda: ops.linear_bf16(x, weight.t(), None),
        lambda: ops.linear_bf16(x, weight, x[0, 0, :3]),
        lambda: ops.linear_int8(x, weight, torch.ones(64), None, 6.0),
        lambda: ops.linear_int8(x, weight.to(torch.int8), torch.ones(3), None, 6.0),
        lambda: ops.linear_4bit_packed(x, codes[:1], absmax, x[0, 0, :16], None, 64),
        lambda: ops.linear_4bit_packed(x, codes, absmax, x[0, 0, :16], None, 48),
        lambda: ops.linear_int4(x, codes, absmax.view(1, 32, 2), None, 64),
        lambda: ops.unpack_4bit_packed(codes, absmax, torch.ones(16), 48, 0, 64),
        lambda: ops.unpack_4bit_packed(codes, absmax, torch.ones(15), 64, 0, 64),
        lambda: ops.unpack_4bit_packed(codes, absmax, torch.ones(16), 64, 0, 96),
        lambda: ops.unpack_4bit_packed(codes, absmax, torch.ones(16), 64, 16, 48),
        lambda: ops.unpack_4bit_packed(codes[:32], absmax, torch.ones(16), 64, 0, 64),
        lambda: ops.attend(keys[:, :, :1], keys, keys, torch.tensor(5), 1.0, 0),
        lambda: ops.attend(keys[:, :, :1], keys, keys[:, :1], torch.tensor(1), 1.0, 0),
    ]
    for call in wrong:
        with pytest.raises(RuntimeError, match="llmfit"):
            call()


@pytest.mark.slow
def test_the_loops_for_any_cpu_give_the_same(tmp_path: Path) -> None:
    """Compiled without this CPU's own instructions, everything above holds."""
    cache = tmp_path / "llmfit" / "kernels"
    cache.mkdir(parents=True)
    script = (
        "import sys, pytest; from llmfit.kernels import build; "
        "build._native = lambda: '-DLLMFIT_PORTABLE'; "
        f"sys.exit(pytest.main(['-q', '-m', 'not slow', '-p', 'no:cacheprovider', {__file__!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert len(list(cache.glob("*.so"))) == 1


def test_a_cxx_of_several_words_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """``ccache g++`` is no program's name: the compiler on the PATH is taken."""
    without = find_compiler()
    monkeypatch.setenv("CXX", "ccache g++")
    assert find_compiler() == without


def test_without_a_compiler_the_reason_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None on the PATH and one that is not there: a reason, no exception, nothing loaded."""
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no C++ compiler" in str(why_no_kernels.__wrapped__())
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no C++ compiler" in str(why_no_kernels.__wrapped__())


def test_what_the_compiler_says_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that refuses: the end of its words are the reason, and no half file is left."""
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / name)
    source = tmp_path / "broken.cpp"
    source.write_text("this is no C++;")
    monkeypatch.setattr(build, "SOURCE", source)
    assert "error" in str(why_no_kernels.__wrapped__())
    assert not list((tmp_path / "llmfit" / "kernels").glob("*"))


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_no_reason(tmp_path: Path) -> None:
    """The kernels are then compiled for this process alone, and nothing is left of it."""
    cache, scratch = tmp_path / "cache", tmp_path / "scratch"
    cache.write_text("a file where the folder should be")
    scratch.mkdir()
    script = (
        "import torch; from llmfit.kernels.build import why_no_kernels\n"
        "assert why_no_kernels() is None, why_no_kernels()\n"
        "x = torch.ones(1, 32, dtype=torch.bfloat16)\n"
        "assert torch.ops.llmfit.linear_bf16(x, x, None).item() == 32\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"XDG_CACHE_HOME": str(cache), "TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(scratch.iterdir())
