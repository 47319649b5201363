"""Figures of a level from times that are known, by hand."""

from __future__ import annotations

import pytest

from llmfit.serving.judging import level, saturation
from llmfit.serving_records import LoadLevel, RequestTrace


def trace(started_s: float, chunks_s: tuple[float, ...], tokens: int | None = None) -> RequestTrace:
    return RequestTrace(
        started_s=started_s,
        chunks_s=chunks_s,
        ended_s=chunks_s[-1],
        new_tokens=len(chunks_s) if tokens is None else tokens,
        prompt_tokens=10,
    )


def test_the_figures_of_a_level() -> None:
    """Two answers and a failure: rates by the time of all, distributions by the two."""
    failed = RequestTrace(started_s=0.0, ended_s=4.0, error="status 500: no")
    found = level(2, [trace(0.0, (1.0, 2.0, 4.0)), failed, trace(1.0, (0.5, 1.0))])
    assert (found.requests, found.duration_s, found.new_tokens) == (3, 4.0, 5)
    assert found.tokens_per_s == 5 / 4 and found.requests_per_s == 2 / 4
    assert found.ttft is not None and found.ttft.mean_s == 0.75 and found.ttft.p50_s == 0.75
    assert found.itl is not None and found.itl.p50_s == 1.0  # of 1, 2 and 0.5
    assert found.tpot is not None and found.tpot.mean_s == (1.5 + 0.5) / 2
    assert found.latency is not None and found.latency.mean_s == 2.5
    assert found.prompt_tokens == 10 and found.errors == {"status 500: no": 1}


def test_a_piece_may_be_several_tokens() -> None:
    """Time per output token goes by the server's count, the gaps by what came."""
    found = level(1, [trace(0.0, (1.0, 3.0), tokens=5)])
    assert found.tokens_per_s == 5 / 3
    assert found.tpot is not None and found.tpot.p50_s == 2 / 4
    assert found.itl is not None and found.itl.p50_s == 2.0


def test_nothing_answered_is_unknown() -> None:
    """No figure is made up where every request failed."""
    found = level(1, [RequestTrace(started_s=0.0, ended_s=1.0, error="no")])
    assert (found.tokens_per_s, found.ttft, found.itl, found.tpot) == (None, None, None, None)
    assert found.errors == {"no": 1}


@pytest.mark.parametrize(
    ("rates", "at"),
    [
        ([(1, 100.0), (4, 390.0), (16, 400.0)], 4),
        ([(1, 100.0), (4, 105.0), (16, 400.0)], None),
        ([(1, 100.0), (4, 90.0), (16, 109.0)], 1),
        ([(1, 100.0)], None),
        ([(1, None), (4, 100.0), (16, 100.0)], 4),
    ],
)
def test_where_a_server_is_saturated(rates: list[tuple[int, float | None]], at: int | None) -> None:
    """The smallest concurrency that no higher one exceeds by a tenth; unknown at the last one."""
    levels = [
        LoadLevel(
            concurrency=concurrency, requests=1, duration_s=1.0, new_tokens=1, tokens_per_s=rate,
            requests_per_s=None, ttft=None, itl=None, tpot=None, latency=None,
        )
        for concurrency, rate in rates
    ]  # fmt: skip
    assert saturation(levels) == at
