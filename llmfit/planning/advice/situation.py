"""The situations that the decision guide tells apart; light, for the command line's help."""

from __future__ import annotations

from typing import Literal, get_args

Task = Literal["training", "inference", "edge"]
HardwareKind = Literal["server_gpu", "consumer_gpu", "cpu", "edge"]
TASKS: tuple[Task, ...] = get_args(Task)
HARDWARE_KINDS: tuple[HardwareKind, ...] = get_args(HardwareKind)
