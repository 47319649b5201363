"""What was measured of a format before: its newest row in the store."""

from __future__ import annotations

from dataclasses import dataclass

from llmfit.records import Plan, RunRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A row that was measured, and the run that it is of."""

    run_id: str
    row: RunRecord


def find_measured(store_place: str | None, plan: Plan) -> Measured | None:
    """The newest row of this model in this format that ran on this kind of device.

    ``store_place`` of None is the default store. None where there is none. Raises StoreError.
    """
    from llmfit.store.store import Store

    with Store(store_place, to_read=True) as store:
        for line in store.history(plan.model.name):
            if not any(row.backend == plan.backend and row.status == "ok" for row in line.rows):
                continue
            row = store.row(line.run_id, plan.backend)
            if row is not None and row.device == plan.device:
                return Measured(run_id=line.run_id, row=row)
    return None
