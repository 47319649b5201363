"""What a format has to keep to, and what is then best: the two things that a verdict is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from llmfit.errors import UsageError

Objective = Literal["speed", "quality", "memory", "balanced"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)

Place = Literal["gpu", "cpu"]

ACC_NORM_TOLERANCE = 0.01
"""HellaSwag acc_norm may fall by this share of the items (1 point): a row is turned down when
even the upper end of the paired interval is lower. A choice; for scale, the common 4-bit formats
lose 0.5 to 1 point on 8 B models."""

PERPLEXITY_TOLERANCE = 0.05
"""Token perplexity may rise by this share (5 %) of the reference's: a row is turned down when
even the lower end of the paired interval is higher. A choice; for scale, the common 4-bit formats
rise by 3 to 6 % on 8 B models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """Bounds that a row has to stay within; None is no bound. Raises UsageError for what cannot be.

    Memory is that of the whole process: on a GPU with the driver's share, on a CPU with the
    interpreter's.
    """

    memory_bytes: int | None = None
    """GPU memory that a row on a GPU may take."""
    ram_bytes: int | None = None
    """RAM that a row on the CPU may take."""
    margin: float = 0.0
    """Share of either that is to stay free, 0…1."""
    acc_norm_loss: float = ACC_NORM_TOLERANCE
    """Share of HellaSwag's items by which acc_norm may fall: 0.01 is one point."""
    perplexity_rise: float = PERPLEXITY_TOLERANCE
    """Share of the reference's token perplexity by which it may rise."""
    min_tokens_per_s: float | None = None
    """Least decode rate, by the median."""
    device: Place | None = None
    """Only rows that run here."""

    def __post_init__(self) -> None:
        """Check every bound, so that a verdict rests on none that makes no sense."""
        for name in ("memory_bytes", "ram_bytes", "min_tokens_per_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} must be a number above 0, not {value:g}.")
        for name in ("acc_norm_loss", "perplexity_rise"):
            value = getattr(self, name)
            if not value >= 0:
                raise UsageError(f"{name} must be a share of 0 or more, not {value:g}.")
        if not 0 <= self.margin < 1:
            raise UsageError(
                f"margin must be a share from 0 up to but not 1, not {self.margin:g}.",
                hint="0.1 keeps a tenth free",
            )
        if self.device not in (None, *get_args(Place)):
            raise UsageError(f"unknown device {self.device!r}; known are gpu, cpu.")

    def budget_bytes(self, *, on_gpu: bool) -> int | None:
        """What may be taken where the row runs, the margin not yet off."""
        return self.memory_bytes if on_gpu else self.ram_bytes

    def limit_bytes(self, *, on_gpu: bool) -> int | None:
        """What may be taken where the row runs, the margin off; None for no limit."""
        budget = self.budget_bytes(on_gpu=on_gpu)
        return None if budget is None else int(budget * (1 - self.margin))


def check_objective(objective: str) -> None:
    """Raise UsageError, naming those that there are, for an unknown objective."""
    if objective not in OBJECTIVES:
        raise UsageError(f"unknown objective {objective!r}; known are {', '.join(OBJECTIVES)}.")
