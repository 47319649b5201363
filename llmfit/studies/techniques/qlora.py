"""QLoRA: the model rests in NF4, and low-rank matrices beside its projections learn.

    bf16 ─► bitsandbytes NF4, frozen ─► peft: W·x + (alpha ÷ rank)·B·A·x ─► steps on A and B

Source: Dettmers et al. 2023, arXiv:2305.14314.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from llmfit.device.execution import TorchDevice
from llmfit.errors import BackendUnavailable
from llmfit.studies.reference import Expected
from llmfit.studies.tuning import load_model

if TYPE_CHECKING:
    import torch

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EXPECTED = Expected(
    memory_saving=(0.94, 1.0), speed=None, accuracy_loss=(0.0, 0.0), effort="medium"
)
"""A 65B model takes less than 48 GB instead of more than 780 GB, at the quality of 16 bits."""
EXPECTED_OF = (
    "QLoRA: Dettmers et al. 2023, arXiv:2305.14314, a 65B model, < 48 GB against > 780 GB of full "
    "fine-tuning in 16 bits"
)
_NEEDS = {"bitsandbytes": "llmfit[bnb]", "peft": "llmfit[studies]"}


def require_packages() -> None:
    """Raise BackendUnavailable, with what to install, where bitsandbytes or peft is missing."""
    for package, extra in _NEEDS.items():
        if find_spec(package) is None:
            raise BackendUnavailable(f"{package} is not installed.", hint=f"pip install '{extra}'")


def load_for_qlora(device: TorchDevice, *, rank: int) -> Any:
    """The embedded model in NF4 with adapters of ``rank`` on all projections, ready to train.

    Norms and embeddings are float32, as peft makes them. It comes in training mode, and must not
    be run in evaluation mode before it has learnt: on a CPU bitsandbytes 0.50 then packs the
    weights for a kernel without a backward pass, and layers below would get no gradients. Raises
    BackendUnavailable.
    """
    import torch
    from transformers import BitsAndBytesConfig

    require_packages()
    if device == "mps":
        raise BackendUnavailable("bitsandbytes trains on no MPS device.")
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    base = load_model(
        device,
        quantization=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
    )
    ready = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    adapters = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(PROJECTIONS),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(ready, adapters).train()


def adapter_parameters(model: Any, rank: int) -> int:
    """rank · (in + out) over all projections that carry an adapter: what should be trainable."""
    return sum(
        rank * (module.in_features + module.out_features)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in PROJECTIONS
    )


def base_weights(model: Any) -> list[torch.Tensor]:
    """Copies of all weights that must not change."""
    return [p.detach().clone() for p in model.parameters() if not p.requires_grad]


def parameter_count(model: Any) -> int:
    """Parameters with packed ones unpacked, two to a byte; a tied one once."""
    return sum(
        2 * p.numel() if hasattr(p, "quant_state") else p.numel() for p in model.parameters()
    )


def held_bytes(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of weights with their block scales, and of the optimizer's state."""
    from llmfit.backends._weights import weights_bytes
    from llmfit.device.allocations import module_bytes, training_bytes

    return training_bytes(model, optimizer) - module_bytes(model) + weights_bytes(model)
