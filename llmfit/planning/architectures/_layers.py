"""What differs from layer to layer: sliding windows, and other patterns that configs tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from llmfit.errors import ModelLoadError
from llmfit.foreign.facts import MOST_LAYERS, items, whole_number
from llmfit.planning.architectures._facts import Facts

Windows = Callable[[Facts], list[int | None]]
"""The window of each layer; None where it sees everything."""


def layer_types(facts: Facts, fallback: list[str]) -> list[str]:
    """One type a layer: the config's ``layer_types``, or ``fallback`` where it tells none."""
    types = facts.items("layer_types")
    if types is None:
        return fallback
    if len(types) != len(fallback):
        raise ModelLoadError(
            f"config.json has {len(types)} layer_types for {len(fallback)} layers.",
            hint="a config.json whose layer_types has one item a layer",
        )
    return [str(each) for each in types]


def one_in(facts: Facts, period: int, full: str = "full_attention") -> list[str]:
    """Every ``period``-th layer is ``full``, those between see a window."""
    layers = range(facts.number("num_hidden_layers"))
    return [full if (index + 1) % period == 0 else "sliding_attention" for index in layers]


def of_types(facts: Facts, types: list[str]) -> list[int | None]:
    """The config's window where a layer's type is sliding attention."""
    window = facts.maybe("sliding_window")
    return [window if each == "sliding_attention" else None for each in types]


def nowhere(facts: Facts) -> list[int | None]:
    """No layer has a window, whatever the config says: its code reads none."""
    return [None] * facts.number("num_hidden_layers")


def everywhere(facts: Facts) -> list[int | None]:
    """Every layer has the config's window, if it tells one."""
    return [facts.maybe("sliding_window")] * facts.number("num_hidden_layers")


def by_type(facts: Facts) -> list[int | None]:
    """A window where ``layer_types`` says so, else in every layer."""
    layers = facts.number("num_hidden_layers")
    return of_types(facts, layer_types(facts, ["sliding_attention"] * layers))


def alternating(period: int | None = None) -> Windows:
    """A window in all but every ``period``-th layer, or by ``layer_types``.

    Without a period it is the config's own ``sliding_window_pattern``.
    """

    def windows(facts: Facts) -> list[int | None]:
        every = period or facts.number("sliding_window_pattern")
        return of_types(facts, layer_types(facts, one_in(facts, every)))

    return windows


def after_the_first(facts: Facts) -> list[int | None]:
    """Qwen: a window from layer ``max_window_layers`` on, where ``use_sliding_window`` is set."""
    if not facts.flag("use_sliding_window"):
        return nowhere(facts)
    full, layers = facts.count("max_window_layers"), facts.number("num_hidden_layers")
    types = ["full_attention"] * min(full, layers) + ["sliding_attention"] * max(0, layers - full)
    return of_types(facts, layer_types(facts, types))


def all_but_every_fourth_from_the_first(facts: Facts) -> list[int | None]:
    """Code World Model: layers 0, 4, 8 … see everything."""
    layers = range(facts.number("num_hidden_layers"))
    types = ["sliding_attention" if index % 4 else "full_attention" for index in layers]
    return of_types(facts, layer_types(facts, types))


def without_rope(facts: Facts) -> list[int | None]:
    """SmolLM 3: a window in layers without rotary positions, where ``use_sliding_window``."""
    layers = range(facts.number("num_hidden_layers"))
    period = facts.number("no_rope_layer_interval")
    told = facts.per_layer("no_rope_layers")
    rotary = told if told is not None else [(index + 1) % period != 0 for index in layers]
    windowed = facts.flag("use_sliding_window")
    types = ["sliding_attention" if windowed and not each else "full_attention" for each in rotary]
    return of_types(facts, layer_types(facts, types))


def exaone(facts: Facts) -> list[int | None]:
    """EXAONE: a pattern such as ``LLLG``, or its length; none without a window."""
    pattern = facts.get("sliding_window_pattern")
    if facts.maybe("sliding_window") is None or not pattern:
        return nowhere(facts)
    period = len(pattern) if isinstance(pattern, str) else facts.number("sliding_window_pattern")
    return of_types(facts, layer_types(facts, one_in(facts, period)))


def gpt_neo(facts: Facts) -> list[int | None]:
    """GPT-Neo: ``attention_types`` is a list of (types, how often); local ones see a window."""
    window = facts.maybe("window_size")
    told = facts.items("attention_types") or []
    types = [kind for entry in told for kind in _repeated(entry)]
    return [window if kind == "local" else None for kind in types]


def _repeated(entry: object) -> Iterator[Any]:
    """The types that one item of ``attention_types`` stands for. Raises ModelLoadError."""
    pair = items("attention_types", entry)
    if len(pair) != 2:
        raise ModelLoadError("config.json has attention_types that are not (types, how often).")
    kinds = items("attention_types", pair[0])
    times = whole_number("attention_types", pair[1], most=MOST_LAYERS // max(1, len(kinds)))
    return (kind for _ in range(times) for kind in kinds)


def everywhere_if_used(facts: Facts) -> list[int | None]:
    """Qwen 3 MoE: a window in every layer where ``use_sliding_window`` is set."""
    return everywhere(facts) if facts.flag("use_sliding_window") else nowhere(facts)


def every_second_of_the_first(facts: Facts) -> list[int | None]:
    """Qwen 2 MoE: a window in every second layer up to ``max_window_layers``, where it is used."""
    if not facts.flag("use_sliding_window"):
        return nowhere(facts)
    last = facts.count("max_window_layers")
    types = [
        each if index < last else "full_attention" for index, each in enumerate(one_in(facts, 2))
    ]
    return of_types(facts, layer_types(facts, types))


def after_the_first_where_told(facts: Facts) -> list[int | None]:
    """dots.llm1: a window from layer ``max_window_layers`` on, if it tells one."""
    full, layers = facts.count("max_window_layers"), facts.number("num_hidden_layers")
    types = ["sliding_attention" if index >= full else "full_attention" for index in range(layers)]
    return of_types(facts, layer_types(facts, types))


def llama4_chunks(facts: Facts) -> list[int | None]:
    """Llama 4: layers with rotary positions see the chunk of ``attention_chunk_size`` tokens."""
    layers = range(facts.number("num_hidden_layers"))
    period = facts.number("no_rope_layer_interval")
    rotary = facts.per_layer("no_rope_layers") or [(index + 1) % period != 0 for index in layers]
    types = ["chunked_attention" if each else "full_attention" for each in rotary]
    chunk = facts.maybe("attention_chunk_size")
    told = layer_types(facts, types)
    return [chunk if each == "chunked_attention" else None for each in told]
