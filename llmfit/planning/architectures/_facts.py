"""Reading a config's values: other names of a key, family defaults, errors that name the key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmfit.errors import ModelLoadError
from llmfit.foreign import facts as foreign_facts
from llmfit.foreign.facts import (
    LARGEST_NUMBER,
    MOST_EXPERTS,
    MOST_LAYERS,
    MOST_TOKENS,
    finite_number,
    whole_number,
)

_MOST = {
    "num_hidden_layers": MOST_LAYERS,
    "num_experts": MOST_EXPERTS,
    "num_local_experts": MOST_EXPERTS,
    "n_routed_experts": MOST_EXPERTS,
    "moe_num_experts": MOST_EXPERTS,
    "vocab_size": MOST_TOKENS,
    "vocab_size_per_layer_input": MOST_TOKENS,
}
"""Of what objects are made, less than of other numbers."""


class MissingFact(Exception):
    """A value that the architecture needs is neither in the config nor has the family a default."""


class Facts:
    """A config with its family's defaults beneath.

    ``aliases`` maps the name that the builders ask for to the one that the family's configs use,
    e.g. ``hidden_size`` to ``n_embd``; either is understood. A null in the config is a value of
    its own, which hides the default, as in transformers.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        defaults: Mapping[str, Any] | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self._config = config
        self._defaults = defaults or {}
        self._aliases = aliases or {}

    def get(self, key: str) -> Any:
        """The value, of whatever type; None where neither config nor family has one."""
        for name in (key, self._aliases.get(key, key)):
            if name in self._config:
                return self._config[name]
        return self._defaults.get(key)

    def maybe(self, key: str) -> int | None:
        """A whole number above 0, or None where there is none. Raises ModelLoadError otherwise."""
        value = self.get(key)
        return None if value is None else whole_number(key, value, most=self._most(key))

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number above 0. Raises MissingFact, or ModelLoadError for another value."""
        value = self.maybe(key)
        value = default if value is None else value
        if value is None:
            raise MissingFact(key)
        return value

    def count(self, key: str, default: int = 0) -> int:
        """A whole number from 0, e.g. of shared experts. Raises ModelLoadError otherwise."""
        value = self.get(key)
        value = default if value is None else value
        return whole_number(key, value, least=0, most=self._most(key))

    def factor(self, key: str, default: float) -> float:
        """A number above 0, whole or not. Raises ModelLoadError otherwise."""
        value = self.get(key)
        return default if value is None else finite_number(key, value)

    def flag(self, key: str) -> bool:
        """A switch; off where nothing is told."""
        return bool(self.get(key))

    def items(self, key: str) -> list[Any] | None:
        """A list of at most ``MOST_LAYERS``, or None. Raises ModelLoadError for anything else."""
        value = self.get(key)
        return None if value is None else foreign_facts.items(key, value)

    def per_layer(self, key: str) -> list[Any] | None:
        """A list with one item a layer, or None. Raises ModelLoadError for anything else."""
        found, layers = self.items(key), self.number("num_hidden_layers")
        if found is not None and len(found) != layers:
            raise ModelLoadError(
                f"config.json has {len(found)} {key} for {layers} layers.",
                hint=f"a config.json whose {key} has one item a layer",
            )
        return found

    @staticmethod
    def _most(key: str) -> int:
        return _MOST.get(key, LARGEST_NUMBER)
