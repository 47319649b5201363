"""A row's RAM budget, held from the parent's side.

    worker    resident set ─► read every 20 ms ─► above the budget: killed, ``does_not_fit``
              private memory that could never fit is refused by the system (``worker.py``)
              kernel's own peak, at the end: above the budget is ``does_not_fit`` too

The resident set is what a machine of that size would have to hold: interpreter, libraries, mapped
weights. No rlimit is on that: RLIMIT_RSS has had no effect since Linux 2.4.30, RLIMIT_AS counts
addresses that are never touched, RLIMIT_DATA leaves out mapped files. A control group would, and
wants rights that users of a container or a shared machine rarely have.
"""

from __future__ import annotations

from llmfit.device.memory import resident_bytes_of

OWN_STAGES = frozenset({"start", "import", "load", "measure"})
"""Stages whose memory deploying needs. Making the artifact and scoring quality are not among them:
they would be done elsewhere, or not at all."""
POLL_S = 0.02


class RamWatch:
    """The resident set of one worker against its budget, in the stages that count."""

    def __init__(self, pid: int, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.stage = "start"
        self.seen_bytes = 0
        """The largest resident set met in a stage that counts."""
        self._pid = pid

    def exceeded(self) -> bool:
        """Read the resident set; True where it is above the budget now."""
        if self.stage not in OWN_STAGES:
            return False
        now = resident_bytes_of(self._pid)
        if now is None:
            return False
        self.seen_bytes = max(self.seen_bytes, now)
        return now > self.budget_bytes
