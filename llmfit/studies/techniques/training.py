"""Techniques of training, step by step in turns: BF16 autocast, checkpointing, QLoRA.

Sizes in, a Found of each technique out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmfit.benchmark import speedup
from llmfit.studies.base import StudyContext
from llmfit.studies.techniques import qlora
from llmfit.studies.techniques.base import (
    TEXT_ACCURACY,
    Sizes,
    held_out,
    require_room,
    side,
    step_bytes,
)
from llmfit.studies.techniques.found import Details, Found, Loss
from llmfit.studies.tuning import (
    TRAINING_TEXT,
    Draws,
    load_model,
    mean_loss,
    next_token_accuracy,
    sequences,
    step_case,
    text_loss,
)
from llmfit.study_records import BenchmarkResult, StudyCheck

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BF16, CHECKPOINTING, QLORA = "mixed precision BF16", "gradient checkpointing", "QLoRA"


def training_steps(context: StudyContext, sizes: Sizes) -> tuple[Found, ...]:
    """The same steps in float32, in BF16 autocast, and with checkpointing, in turns."""
    import torch

    data = sequences(TRAINING_TEXT, tokens=sizes.step_tokens, seed=context.seed)
    unseen = held_out(context, sizes, sizes.tokens)
    models = [load_model(context.device, in_float32=True) for _ in range(3)]
    plain, mixed, checkpointed = models
    require_room(step_bytes(plain, sizes.step_batch, sizes.step_tokens), context, "a step")
    _checkpoint(checkpointed)
    cases = [
        step_case(
            name,
            model,
            torch.optim.AdamW(model.parameters(), lr=1e-4),
            Draws(data, sizes.step_batch, seed=context.seed, device=context.device),
            device=context.device,
            bf16=model is mixed,
        )
        for name, model in zip(("float32", BF16, CHECKPOINTING), models, strict=True)
    ]
    results = context.bench.run_in_turns(cases, n_warmup=1, n_runs=sizes.runs)
    accuracies = [next_token_accuracy(model, unseen, context.device) for model in models]
    found = [
        _against_step(BF16, results[0], results[1], accuracies[0] - accuracies[1]),
        _against_step(CHECKPOINTING, results[0], results[2], accuracies[0] - accuracies[2]),
    ]
    ids = Draws(data, sizes.step_batch, seed=context.seed, device=context.device)()
    check = same_gradients(load_model(context.device, in_float32=True), ids)
    return (
        replace(found[0], benchmarks=tuple(results)),
        replace(found[1], checks=(check,)),
    )


def _against_step(name: str, before: BenchmarkResult, after: BenchmarkResult, lost: float) -> Found:
    return Found(
        technique=name,
        before=side("a training step in float32", before, before.peak_bytes),
        after=side(name, after, after.peak_bytes),
        memory_of="a training step",
        speed=speedup(before, after),
        lost=Loss(share=lost, of=f"{TEXT_ACCURACY}, after equal steps"),
    )


def _checkpoint(model: Any) -> None:
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


def same_gradients(model: Any, ids: Tensor) -> StudyCheck:
    """Gradients of one batch without and with checkpointing, in one model."""
    import torch

    model.train()
    kinds = []
    for checkpointed in (False, True):
        if checkpointed:
            _checkpoint(model)
        model.zero_grad(set_to_none=True)
        text_loss(model, ids).backward()
        kinds.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    model.activation_checkpointing_disable()
    largest = max(float((a - b).abs().max()) for a, b in zip(*kinds, strict=True))
    scale = max(float(each.abs().max()) for each in kinds[0])
    equal = all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*kinds, strict=True))
    return StudyCheck(
        name="gradients with and without checkpointing are equal",
        holds=equal,
        detail=f"largest difference {largest:.1e}, largest gradient {scale:.1e}",
    )


# ---------------------------------------------------------------- QLoRA


def low_rank(context: StudyContext, sizes: Sizes) -> tuple[Found, ...]:
    """Steps of QLoRA and of full fine-tuning with AdamW in float32, in turns on the same text."""
    import torch

    data = sequences(TRAINING_TEXT, tokens=sizes.tokens, seed=context.seed, most=sizes.held_out)
    unseen = held_out(context, sizes, sizes.tokens)
    adapted = qlora.load_for_qlora(context.device, rank=sizes.rank)
    whole = load_model(context.device, in_float32=True)
    require_room(step_bytes(whole, sizes.batch, sizes.tokens), context, "full fine-tuning")
    resting = qlora.base_weights(adapted)
    first = mean_loss(adapted, data, context.device)
    optimizers = (
        torch.optim.AdamW(_trainable(whole), lr=1e-4),
        torch.optim.AdamW(_trainable(adapted), lr=1e-3),
    )
    cases = [
        step_case(
            name,
            model,
            optimizer,
            Draws(data, sizes.batch, seed=context.seed, device=context.device),
            device=context.device,
        )
        for name, model, optimizer in zip(
            ("full fine-tuning", QLORA), (whole, adapted), optimizers, strict=True
        )
    ]
    before, after = context.bench.run_in_turns(cases, n_warmup=1, n_runs=sizes.qlora_steps)
    last = mean_loss(adapted, data, context.device)
    optimizers[1].zero_grad(set_to_none=True)
    held = qlora.held_bytes(adapted, optimizers[1])
    # Before the first run in evaluation mode, which packs the weights anew on a CPU.
    checks = _low_rank_checks(adapted, sizes.rank, resting, first, last)
    full, low = (next_token_accuracy(model, unseen, context.device) for model in (whole, adapted))
    parameters = qlora.parameter_count(adapted)
    return (
        Found(
            technique=QLORA,
            before=side("a step of full fine-tuning", before, before.held_bytes),
            after=side(QLORA, after, held),
            memory_of="weights and optimizer state",
            speed=speedup(before, after),
            lost=Loss(share=full - low, of=f"{TEXT_ACCURACY}, after equal steps"),
            details=Details(
                parameters=parameters,
                trainable=sum(p.numel() for p in _trainable(adapted)) / parameters,
                steps=2 + len(after.warmup_s) + sizes.qlora_steps,  # two before the times: memory
                first_loss=first,
                last_loss=last,
                held_bytes=held,
            ),
            checks=checks,
            notes=(
                "QLoRA's range is not in the table of techniques: it is that of "
                "arXiv:2305.14314. Its block scales count, and norms and embeddings are float32.",
            ),
            benchmarks=(before, after),
        ),
    )


def _low_rank_checks(
    adapted: Any, rank: int, resting: list[torch.Tensor], first: float, last: float
) -> tuple[StudyCheck, ...]:
    import torch

    trained = sum(p.numel() for p in _trainable(adapted))
    should = qlora.adapter_parameters(adapted, rank)
    now = qlora.base_weights(adapted)
    same = all(torch.equal(a, b) for a, b in zip(resting, now, strict=True))
    return (
        StudyCheck(
            name="QLoRA trains rank × (in + out) parameters of each projection",
            holds=trained == should,
            detail=f"{trained:,} trained, {should:,} by the formula",
        ),
        StudyCheck(
            name="QLoRA: the loss falls",
            holds=last < first,
            detail=f"{first:.3f} before, {last:.3f} after, on the text that it learns from",
        ),
        StudyCheck(
            name="QLoRA leaves the base weights as they were",
            holds=same,
            detail=f"{len(now)} tensors compared bit by bit",
        ),
    )


def _trainable(model: Any) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]
