"""The kernels of a decode step: equal results, in place only while they should be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from llmfit.backends._hf import HfModel
from llmfit.backends.registry import get_backend
from llmfit.decode import step_kernels, step_linears
from llmfit.decode.step_kernels import width_of
from llmfit.decode.step_linears import StepLinears, choose_step_linears
from llmfit.kernels.build import find_compiler
from llmfit.measure import fit_workload
from llmfit.records import ModelSpec, Plan, Workload

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")


class Two(nn.Module):
    """Two unquantised layers, one with a bias."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(96, 160, bias=False, dtype=dtype)
        self.second = nn.Linear(160, 64, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))  # type: ignore[no-any-return]


@pytest.fixture
def preferred(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """llmfit's kernels win every trial: which is faster here is not what is tested."""
    monkeypatch.setattr(step_linears, "_TIE", 0.0)
    yield


def load(backend: str, spec: ModelSpec, cache: str | None = None) -> HfModel:
    plan = Plan(
        backend=backend, model=spec, device="cpu", threads=1, evaluation=None, cache_dir=cache,
        workload=fit_workload(Workload(), spec.max_position_embeddings),
    )  # fmt: skip
    loaded = get_backend(backend).load(plan)
    assert isinstance(loaded, HfModel)
    return loaded


@needs_compiler
@pytest.mark.usefixtures("preferred")
def test_kernels_are_in_place_between_install_and_remove() -> None:
    """One row goes to llmfit's kernel, several to PyTorch's, and all to PyTorch's afterwards."""
    model, x = Two(), torch.randn(1, 3, 96).bfloat16()
    with torch.inference_mode():
        expected = model(x)
        chosen = choose_step_linears(model)
        assert chosen.kernel == "llmfit bf16"
        chosen.install()
        chosen.install()
        assert "forward" in vars(model.first)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
        torch.testing.assert_close(model(x[:, :1]), expected[:, :1], rtol=2**-7, atol=1e-2)
        chosen.remove()
        chosen.remove()
    assert "forward" not in vars(model.first)


@needs_compiler
@pytest.mark.usefixtures("preferred")
def test_a_wrapped_layer_is_left_alone() -> None:
    """What rounds a layer's inputs, or fetches its weights, runs in steps too."""
    model, x = Two(), torch.randn(1, 1, 96).bfloat16()
    plain = model.first.forward
    model.first.forward = lambda x: plain(x.round())  # type: ignore[method-assign]
    wrapped = model.first.forward
    chosen = choose_step_linears(model)
    with torch.inference_mode():
        expected = model(x)
        chosen.install()
        assert model.first.forward is wrapped and "forward" in vars(model.second)
        torch.testing.assert_close(model(x), expected, rtol=2**-7, atol=1e-2)
    chosen.remove()
    assert model.first.forward is wrapped


@needs_compiler
@pytest.mark.usefixtures("preferred")
def test_rows_that_do_not_suit_the_kernel_are_taken() -> None:
    """A row with gaps in memory, and one of another type, which PyTorch itself refuses."""
    model = Two()
    chosen = choose_step_linears(model)
    gaps = torch.randn(1, 1, 192).bfloat16()[..., ::2]
    with torch.inference_mode():
        expected = model(gaps)
        chosen.install()
        torch.testing.assert_close(model(gaps), expected, rtol=2**-7, atol=1e-2)
        with pytest.raises(RuntimeError, match="dtype"):
            model(gaps.float())
    chosen.remove()


def test_other_types_and_devices_are_left_alone() -> None:
    """float32, and weights that are nowhere: the library's kernels, and no trial."""
    for model in (Two(torch.float32), Two().to("meta")):
        chosen = choose_step_linears(model)
        assert chosen.kernel is None and not chosen.trial_s


@needs_compiler
@pytest.mark.usefixtures("preferred")
def test_a_model_that_is_converted_later_runs_by_the_library() -> None:
    """Kernels are bound to bfloat16 weights; in float32 the layers are PyTorch's alone."""
    model, x = Two(), torch.randn(1, 1, 96)
    chosen = choose_step_linears(model)
    assert chosen.kernel == "llmfit bf16"
    model.float()
    with torch.inference_mode():
        expected = model(x)
        chosen.install()
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    chosen.remove()


@needs_compiler
@pytest.mark.usefixtures("preferred")
def test_norms_that_compute_as_llamas_are_taken_where_they_are_asked_for() -> None:
    """Gemma's, whose weight is one less than its factor, is left to transformers."""
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two = Two()
            self.llama, self.gemma = LlamaRMSNorm(96).bfloat16(), GemmaRMSNorm(96).bfloat16()
            self.wrapped = LlamaRMSNorm(96).bfloat16()
            self.wrapped.forward = lambda x: x  # type: ignore[method-assign]

    model = Normed()
    assert not choose_step_linears(model).runs(model.llama)
    assert not choose_step_linears(model, own=False, norms=True).runs(model.llama)
    chosen = choose_step_linears(model, norms=True)
    assert chosen.runs(model.llama) and chosen.runs(model.two.first)
    assert not chosen.runs(model.gemma) and not chosen.runs(model.wrapped)
    assert chosen.notes == ()
    x = torch.randn(1, 1, 96).bfloat16()
    with torch.inference_mode():
        expected = model.llama(x)
        chosen.install()
        torch.testing.assert_close(model.llama(x), expected, rtol=2**-7, atol=0)
        several = torch.randn(1, 3, 96).bfloat16()  # to transformers' own
        torch.testing.assert_close(model.llama(several)[:, 1:2], LlamaRMSNorm.forward(
            model.llama, several[:, 1:2]), rtol=0, atol=0)  # fmt: skip
    chosen.remove()
    assert "forward" not in vars(model.llama)


def test_without_own_kernels_only_pytorchs_are_tried() -> None:
    """The plain rows run what PyTorch has; the trial's seconds are kept."""
    chosen = choose_step_linears(Two(), own=False)
    assert set(chosen.trial_s["Linear"]) == {"Linear", "PyTorch without oneDNN"}
    assert all(seconds > 0 for seconds in chosen.trial_s["Linear"].values())
    assert chosen.kernel in (None, "PyTorch without oneDNN")


@needs_compiler
@pytest.mark.usefixtures("preferred")
def test_a_kernel_with_other_results_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is off by a hundredth is named in a note, and the library's runs."""

    def wrong(layer: nn.Linear) -> step_kernels.Forward:
        return lambda x: nn.functional.linear(x, layer.weight, layer.bias) * 1.01

    kernel = step_kernels.StepKernel("llmfit bf16", wrong)
    monkeypatch.setitem(step_kernels._ON_CPU, "Linear", (kernel,))
    chosen = choose_step_linears(Two())
    assert "llmfit bf16" not in str(chosen.kernel)
    assert any("results differ: llmfit bf16" in note for note in chosen.notes)


def test_what_is_missing_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler the library's kernels run, and the record says why."""
    monkeypatch.setattr(step_linears, "why_no_kernels", lambda: "no C++ compiler")
    chosen = choose_step_linears(Two())
    assert "llmfit" not in str(chosen.kernel)
    assert chosen.notes == ("without llmfit's own decode kernels: no C++ compiler",)


def test_onednn_is_off_only_while_a_step_runs() -> None:
    """And stays as it was where the trial found it faster with it."""
    before = torch.backends.mkldnn.enabled
    with StepLinears(onednn=False).stepping():
        assert not torch._C._get_mkldnn_enabled()
    with StepLinears().stepping():
        assert torch._C._get_mkldnn_enabled() == before
    assert torch._C._get_mkldnn_enabled() == before


@needs_compiler
@pytest.mark.usefixtures("preferred")
@pytest.mark.parametrize(
    ("backend", "module", "kernel"),
    [
        ("int8", "bitsandbytes", "llmfit int8"),
        ("nf4", "bitsandbytes", "llmfit 4-bit"),
        pytest.param("gptq", "gptqmodel", "llmfit int4", marks=pytest.mark.slow),
        pytest.param("awq", "gptqmodel", "llmfit int4", marks=pytest.mark.slow),
    ],
)
def test_every_layer_gives_the_librarys_result(
    backend: str, module: str, kernel: str, embedded: ModelSpec, artifact_cache: str
) -> None:
    """On all layers of the embedded model: int8 exactly, 4 bits within a step of bfloat16."""
    pytest.importorskip(module)
    loaded = load(backend, embedded, str(artifact_cache))
    step = str(loaded.info.kernel.step)
    if kernel not in step:
        pytest.skip(f"this CPU has no packing for it: {step}")
    forwards = loaded._linears._forwards
    assert len(forwards) >= 6 * 7
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        for layer, forward in forwards.items():
            x = torch.randn(1, 1, width_of(layer), generator=generator).bfloat16()
            expected, found = layer.forward(x).float(), forward(x).float()
            if type(layer).__name__ == "Linear8bitLt":
                torch.testing.assert_close(found, expected, rtol=0, atol=0)
            torch.testing.assert_close(
                found, expected, rtol=2**-7, atol=2**-7 * float(expected.norm()) / 16
            )
    loaded.close()


@needs_compiler
def test_many_rows_of_int8_are_bitsandbytes_bit_by_bit(embedded: ModelSpec) -> None:
    """The fused steps around the product change no number, with and without outliers."""
    pytest.importorskip("bitsandbytes")
    loaded = load("int8", embedded)
    assert any("bit-equal" in note for note in loaded.info.notes)
    layers = [m for m in loaded.model.modules() if type(m).__name__ == "Linear8bitLt"]
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        for layer in layers[:9]:
            x = torch.randn(2, 5, int(layer.in_features), generator=generator).bfloat16()  # type: ignore[arg-type]
            for outlier in (0.5, 8.0):
                x[1, 2, 7] = outlier
                x[0, 1, ::11] = outlier
                fused, general = layer.forward(x), type(layer).forward(layer, x)
                torch.testing.assert_close(fused, general, rtol=0, atol=0)
    loaded.close()
