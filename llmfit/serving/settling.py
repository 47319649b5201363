"""How a format is to be served here: its engine, its context, its share of the memory.

Plan, machine, what is asked ─► planner's prediction ─► Served, notes
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from llmfit.device.cpu import physical_cores
from llmfit.engines.base import Engine, Served
from llmfit.errors import DoesNotFit, UsageError
from llmfit.measure import fit_workload
from llmfit.planner import Machine, predict_row
from llmfit.records import Plan
from llmfit.units import format_bytes

_LEAST_CONTEXT = 16
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The settings, and why they are so."""

    served: Served
    notes: tuple[str, ...] = ()


def settle(
    plan: Plan,
    engine: Engine,
    machine: Machine,
    *,
    context: int | None = None,
    name: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
) -> Settled:
    """The settings that the machine's memory and the model allow; the files are not known yet.

    Without ``context`` it is the longest that is predicted to fit for one answer at a time, at most
    the model's. Raises UsageError for a format or a setting that the engine does not take and a
    context beyond the model's, and DoesNotFit for one beyond the memory.
    """
    engine.require_format(plan.backend)
    engine.require_setting("context", context)
    engine.require_setting("name", name)
    engine.require_setting("threads", plan.threads)
    longest = plan.model.max_position_embeddings
    if context is not None and context > longest:
        raise UsageError(
            f"a context of {context} tokens exceeds {plan.model.name}'s of {longest}.",
            hint=f"--context {longest}",
        )
    work = fit_workload(plan.workload, longest)
    row = predict_row(plan.model, plan.backend, work, machine)
    fits = row.max_context
    notes: list[str] = []
    if fits is None:
        notes.append("what fits is not known of this model: the context is its own")
        fits = longest
    if fits < max(_LEAST_CONTEXT, context or 0):
        budget = machine.budget_bytes(row.device)
        has = "" if budget is None else f" in {format_bytes(budget)}"
        raise DoesNotFit(
            f"{plan.model.name} as {plan.backend} has room for {max(fits, 0)} tokens{has}"
            + ("." if context is None else f", not {context}."),
            hint=f"llmfit plan {plan.model.name}",
        )
    chosen = context or min(fits, longest)
    if chosen < longest:
        bound = "context" if "context" in engine.takes else "the memory holds a context"
        notes.append(f"{bound} of {chosen} of the model's {longest} tokens")
    share = None
    if row.device == "cuda" and machine.gpu is not None and machine.gpu.memory_bytes:
        budget = machine.budget_bytes(row.device) or machine.gpu.memory_bytes
        if budget < machine.gpu.memory_bytes:
            share = budget / machine.gpu.memory_bytes
    served = Served(
        name=name or served_name(plan),
        backend=plan.backend,
        path="",
        device=row.device,
        context=chosen,
        threads=plan.threads or (physical_cores() if row.device == "cpu" else None),
        gpu_share=share,
        host=host,
        port=port,
        trust_remote_code=plan.trust_remote_code,
    )
    if served.device not in engine.devices:
        notes.append(
            f"{engine.label} runs on a GPU, and the context is by this machine's RAM: --gpu NAME "
            "plans for a card"
        )
    return Settled(served=served, notes=(*notes, *engine.notes(served)))


def with_path(settled: Settled, path: str, notes: tuple[str, ...] = ()) -> Settled:
    """The same with its files."""
    return replace(
        settled, served=replace(settled.served, path=path), notes=(*settled.notes, *notes)
    )


def served_name(plan: Plan) -> str:
    """``Llama-3.1-8B-awq``: the last part of the model's name, and the format.

    Of the characters that are safe in every engine's names; others become ``-``.
    """
    last = plan.model.name.rstrip("/").rpartition("/")[2]
    return _UNSAFE.sub("-", f"{last}-{plan.backend}").strip("-.") or "model"
