"""Streams of stories for training, scoring and calibration that never share a story.

Three locks keep them apart: each stream draws its seeds from a range of its own; a story belongs to
the stream that a hash of its context names, so that chance cannot repeat one elsewhere; and no
stream but the training one takes a story whose plot, without its weather, was trained on.
"""

from __future__ import annotations

import functools
import random
import zlib
from collections.abc import Iterator, Mapping

from . import daily, reasoning, tracking
from .world import Story, plot

SEPARATOR = "<|endoftext|>"
SEED_RANGE = 100_000_000
STREAMS = ("train", "questions", "text", "calibration")
# Sixteenths of all contexts that belong to each stream.
_SHARES = {"train": 13, "questions": 1, "text": 1, "calibration": 1}

KINDS = {make.__name__: make for make in (*tracking.STORIES, *reasoning.STORIES, *daily.STORIES)}
# How often a kind is drawn in running text: hard ones more often, since they need more practice.
TEXT_MIX: Mapping[str, int] = {
    "whereabouts": 3, "holders": 5, "carried": 5, "chronicle": 3, "nested": 4, "belief": 3,
    "swaps": 4, "counting": 5, "market": 3, "comparing": 4, "race": 4, "elimination": 3,
    "habits": 3, "calendar": 2, "owners": 3, "consequences": 4, "feelings": 3, "errand": 2,
    "animals": 2, "trades": 3, "preferences": 2,
}  # fmt: skip

# Kinds of so few plots that chance repeats some of them.
_NARROW = {"counting", "market", "animals", "calendar", "consequences"}
# Training reads no further than this, so that the plots it saw can be known.
TRAINING_SEEDS = 260_000


def stream_of(story: Story) -> str:
    """Return the name of the one stream that the story may appear in."""
    slot = zlib.crc32(story.context.encode()) % 16
    for name in STREAMS:
        slot -= _SHARES[name]
        if slot < 0:
            return name
    raise AssertionError("the shares do not sum to 16")


def _draw(seed: int, mix: Mapping[str, int]) -> tuple[random.Random, str]:
    """Return the generator of one seed and the kind of story that it draws first."""
    rng = random.Random(seed)
    return rng, rng.choices(list(mix), list(mix.values()))[0]


@functools.cache
def _trained_plots() -> frozenset[str]:
    """Return the plots of narrow kinds in the training stream."""
    found = set()
    for seed in range(TRAINING_SEEDS):
        rng, kind = _draw(seed, TEXT_MIX)
        if kind in _NARROW and stream_of(story := KINDS[kind](rng)) == "train":
            found.add(plot(story.context))
    return frozenset(found)


def stories(
    stream: str, start: int = 0, mix: Mapping[str, int] = TEXT_MIX
) -> Iterator[tuple[int, Story]]:
    """Yield (seed, story) of one stream, seeds rising from the stream's own range.

    ``start`` skips that many seeds. ``mix`` gives the weight of each kind of story. The training
    stream ends after TRAINING_SEEDS seeds.
    """
    training = stream == "train"
    first = STREAMS.index(stream) * SEED_RANGE
    for seed in range(first + start, first + (TRAINING_SEEDS if training else SEED_RANGE)):
        rng, kind = _draw(seed, mix)
        story = KINDS[kind](rng)
        if stream_of(story) != stream:
            continue
        if training or kind not in _NARROW or plot(story.context) not in _trained_plots():
            yield seed, story


def documents(stream: str, start: int = 0) -> Iterator[str]:
    """Yield the texts of one stream, three of four with their label in front."""
    for seed, story in stories(stream, start):
        yield story.text(labelled=seed % 4 != 0)


def sample_text(stream: str, size_bytes: int) -> str:
    """Return documents of ``stream`` until ``size_bytes`` is reached, parted by separator lines."""
    found: list[str] = []
    length = 0
    for text in documents(stream):
        found.append(text)
        length += len(text.encode()) + len(SEPARATOR) + 2
        if length >= size_bytes:
            break
    return f"\n{SEPARATOR}\n".join(found) + "\n"


def split_text(text: str) -> list[str]:
    """Return the documents of a text that ``sample_text`` made."""
    return [part.strip("\n") for part in text.split(f"\n{SEPARATOR}\n")]
