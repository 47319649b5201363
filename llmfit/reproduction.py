"""A record, run again: on the same machine, with the same model and files, or not at all.

RECORD ─► its plans ─► inputs unchanged? ─► same machine and versions? ─► job.run_plans
                                                                             └► agreement
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llmfit.backends.registry import get_backend
from llmfit.comparison import DEFAULT_TIME_LIMIT_S
from llmfit.errors import UsageError
from llmfit.executors.base import Limits
from llmfit.executors.local import Local
from llmfit.inputs import changed
from llmfit.job import Observer, run_plans
from llmfit.keeping import Keeping
from llmfit.lookup import find_record
from llmfit.network import is_offline
from llmfit.planning.comparing.agreement import Reproduction, agreement
from llmfit.planning.comparing.comparable import difference_in
from llmfit.planning.memory.prediction import predict_memory
from llmfit.records import Comparison, Environment, Plan, RunRecord, read_record
from llmfit.store.place import check_reachable


def reproduce(
    record: str | Path | RunRecord | Comparison,
    *,
    keeping: Keeping = Keeping(),  # noqa: B008 - frozen
    time_limit_s: float | None = DEFAULT_TIME_LIMIT_S,
    observer: Observer | None = None,
    command: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Reproduction:
    """Run every ok row of ``record`` again and say of each figure whether it agrees.

    ``record`` is a row's or a comparison's JSON file, a run's folder, a run's id in the folder or
    store of ``keeping``, or the record itself. A record that read pickles or ran a model's own code
    does so again only where ``allow_pickle`` or ``trust_remote_code`` say so: it may come from
    anyone. The second run's records are kept there too. Raises
    UsageError, before anything runs, where there is no such record or it holds no row to run, and
    where the model, another input, this machine or a version is not as recorded; ModelNotFound
    where the model is gone; StoreError for a file that is no record.
    """
    check_reachable(keeping.store)
    recorded = find_record(record, keeping)
    rows = tuple(row for row in recorded.rows if row.status == "ok")
    if not rows:
        raise UsageError(
            f"{recorded.name} holds no row that ran, so there is nothing to run again."
        )
    plans = [_plan(row, recorded.name) for row in rows]
    _check_trust(plans, recorded.name, allow_pickle, trust_remote_code)
    _check_inputs(plans, recorded.name)
    with Local().open(plans[0], device=None, measure=True) as site:
        _check_machine(rows, site.environment, recorded.name)
        comparison = run_plans(
            _with_reference(plans, rows, recorded.folder),
            site,
            keeping=keeping,
            limits=Limits(row_s=time_limit_s),
            observer=observer,
            command=command,
        )
    again = {row.backend: row for row in comparison.rows}
    judged = tuple(agreement(row, again[row.backend]) for row in rows)
    return Reproduction(
        record=recorded.name,
        run_id=comparison.run_id,
        rows=judged,
        inside=all(row.inside for row in judged),
        left_out=tuple(
            f"{row.backend}: {row.status} in the record" for row in recorded.rows if row not in rows
        ),
    )


# ---------------------------------------------------------------- may it run here?


def _plan(row: RunRecord, name: str) -> Plan:
    """The plan of a row. Raises UsageError for a record that does not hold all it takes."""
    missing = [
        what
        for what, known in (
            ("plan", row.plan),
            ("environment", row.environment),
            ("content hash of the model", row.plan and row.plan.model.content_hash),
        )
        if known is None
    ]
    if row.plan is None or missing:
        raise UsageError(
            f"{name} cannot be run again: the row {row.backend} records no {missing[0]}.",
            hint="llmfit compare, whose records do",
        )
    # The reference's logits were deleted at the end of the recorded run.
    return replace(row.plan, reference_file=None, offline=row.plan.offline or is_offline())


def _check_trust(
    plans: Sequence[Plan], name: str, allow_pickle: bool, trust_remote_code: bool
) -> None:
    """Raise UsageError where a record would do what its reader did not allow."""
    pickles = any(plan.allow_pickle for plan in plans)
    code = any(plan.trust_remote_code for plan in plans)
    for what, option, refused in (
        ("may read pickles", "--allow-pickle", pickles and not allow_pickle),
        ("may run a model's own code", "--trust-remote-code", code and not trust_remote_code),
    ):
        if refused:
            raise UsageError(
                f"{name} {what}, and a record can come from anyone.",
                hint=f"llmfit reproduce {name} {option}, where you trust the model",
            )


def _check_inputs(plans: Sequence[Plan], name: str) -> None:
    for plan in plans:
        found = changed(plan)
        if found:
            raise UsageError(
                f"{name} cannot be run again: {'; '.join(found)}.",
                hint="put back what was recorded, or llmfit compare for figures of what is there",
            )


def _check_machine(rows: Sequence[RunRecord], machine: Environment, name: str) -> None:
    for row in rows:
        found = difference_in(row.environment or machine, machine)
        if found is not None:
            raise UsageError(
                f"{name} is not compared with a run here: {found} (the record, then this machine).",
                hint="llmfit compare, for figures of this machine",
            )


def _with_reference(
    plans: Sequence[Plan], rows: Sequence[RunRecord], folder: Path | None
) -> list[Plan]:
    """``plans``, and the reference row's before them where a divergence needs its logits."""
    present = {plan.backend for plan in plans}
    for plan, row in zip(plans, rows, strict=True):
        if row.divergence is not None and row.divergence.reference not in present:
            return [_reference_plan(plan, row.divergence.reference, folder), *plans]
    return list(plans)


def _reference_plan(plan: Plan, reference: str, folder: Path | None) -> Plan:
    """The recorded plan of the reference row; without one, ``plan`` in the reference's format."""
    path = folder / f"{reference.replace(':', '-')}.json" if folder else None
    if path is not None and path.is_file():
        beside = read_record(RunRecord, path).plan
        if beside is not None and beside.model.content_hash == plan.model.content_hash:
            return replace(beside, reference_file=None, offline=plan.offline)
    device = plan.device if plan.device in get_backend(reference).devices else "cpu"
    return replace(
        plan,
        backend=reference,
        device=device,
        checkpoint=None,
        kv_cache_dtype=None,  # as in any comparison: the reference keeps 16 bits
        predicted=predict_memory(plan.model, reference, plan.workload, device),
    )
