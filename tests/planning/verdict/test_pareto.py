"""The Pareto front, against a sweep that finds it another way."""

from __future__ import annotations

import random

from llmfit.planning.verdict.pareto import dominates, front

Point = tuple[float, float]


def higher(a: Point, b: Point) -> bool:
    """Better in the first measure."""
    return a[0] > b[0]


def cheaper(a: Point, b: Point) -> bool:
    """Better in the second measure, of which less is better."""
    return a[1] < b[1]


def swept(points: list[Point]) -> set[Point]:
    """The front of distinct points by a sweep from the highest down, as textbooks find it."""
    kept: set[Point] = set()
    least = float("inf")
    for point in sorted(points, key=lambda p: (-p[0], p[1])):
        if point[1] < least:
            kept.add(point)
            least = point[1]
    return kept


def test_the_front_is_the_swept_one() -> None:
    """On random points with many equal figures, the front is what a sort and one pass find."""
    for seed in range(200):
        rng = random.Random(seed)
        points = [(float(rng.randrange(8)), float(rng.randrange(8))) for _ in range(12)]
        assert set(front(points, (higher, cheaper))) == swept(points)


def test_ties_in_everything_are_all_kept() -> None:
    """Two that differ by less than counts beat neither each other nor anything alone."""
    measures = (lambda a, b: a > b + 1,)
    assert front([5.0, 5.5], measures) == (5.0, 5.5)
    assert front([5.0, 5.5, 7.0], measures) == (7.0,)
    assert not dominates(5.5, 5.0, measures) and dominates(7.0, 5.0, measures)
