"""Structured cases by hypothesis: JSON objects in which some values are not what is meant."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

Json = Any

_ODD_VALUES: tuple[Json, ...] = (
    None, True, False, 0, 1, 2, 3, 7, -1, -7, 2**31 - 1, 2**31, 2**63, 2**64, 10**9, 10**12, 10**15,
    10**63, -(2**63), 0.0, 0.5, -0.5, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"),
    "", "32000", "auto", "four", "full_attention", "sliding_attention", "mamba", "attention", "moe",
    "sparse", "dense", "M", "x" * 2000, "\x00", "\x1b[31m", "\u202e", "../../etc/passwd",
    "/etc/passwd", [], [[]], [None], [0], [-1], [True], ["x"], [1, 2, 3], [2**63], [1e300],
    ["sliding_attention"] * 32, ["full_attention"] * 7, [1] * 5000, [[["global", "local"], 10**9]],
    [["global"], 3], {}, {"a": 1}, {"type": "linear"}, {"rope_type": "llama3", "factor": 8.0},
    {"rope_type": "yarn", "factor": "four"}, {"rope_type": [1]}, {"full_attention": 3},
)  # fmt: skip

odd_values: SearchStrategy[Json] = st.one_of(
    st.sampled_from(_ODD_VALUES),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
        ),
        max_leaves=8,
    ),
)
"""Wrong types, absurd sizes, and what nobody thought of."""


@st.composite
def changed(draw: DrawFn, wholes: Sequence[dict[str, Json]], extra: Sequence[str] = ()) -> Json:
    """One of ``wholes`` with up to four of its keys, or of ``extra``, odd, gone or moved."""
    content = copy.deepcopy(draw(st.sampled_from(list(wholes))))
    for _ in range(draw(st.integers(0, 4))):
        table = _some_table(draw, content)
        keys = [*table, *extra]
        if not keys:
            break
        key = draw(st.sampled_from(keys))
        what = draw(st.sampled_from(("odd", "odd", "odd", "huge", "gone", "other", "moved")))
        if what == "huge":
            table[key] = draw(st.sampled_from((10**6, 10**9, 2**31 - 1, 10**12)))
        elif what == "odd":
            table[key] = copy.deepcopy(draw(odd_values))
        elif what == "gone":
            table.pop(key, None)
        elif what == "other":  # a value of the right kind, in the wrong place
            table[key] = copy.deepcopy(draw(st.sampled_from([content.get(each) for each in keys])))
        elif key in table:  # where a multimodal model has its language model's
            value = table.pop(key)
            part = content.setdefault("text_config", {})
            if isinstance(part, dict):
                part[key] = value
    return content


def _some_table(draw: DrawFn, content: dict[str, Json]) -> dict[str, Json]:
    """The object itself, or one within it at any depth."""
    table = content
    while True:
        inner = [value for value in _objects(table) if value]
        if not inner or draw(st.booleans()):
            return table
        table = draw(st.sampled_from(inner))


def _objects(table: dict[str, Json]) -> list[dict[str, Json]]:
    values = [value for value in table.values() if isinstance(value, dict)]
    lists = (value for value in table.values() if isinstance(value, list))
    return values + [each for value in lists for each in value[:20] if isinstance(each, dict)]


def as_json(content: Json) -> bytes:
    """JSON as a file has it; half characters are escaped, NaN and Infinity are words."""
    return json.dumps(content).encode()
