"""HellaSwag-form questions from the stories of the ``questions`` stream."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping

from .corpus import stories

QUESTION_COUNT = 600
# Weight of each kind of story among the questions. Kinds in which the model does no better than
# chance are left out: they would cost time and could not show what a format loses.
QUESTION_MIX: Mapping[str, int] = {
    "animals": 2,
    "belief": 4,
    "consequences": 6,
    "errand": 4,
    "market": 5,
    "counting": 6,
    "feelings": 2,
    "nested": 2,
    "chronicle": 1,
}


def questions(count: int = QUESTION_COUNT, mix: Mapping[str, int] = QUESTION_MIX) -> list[dict]:
    """Return ``count`` questions as dicts with the keys of the official JSON lines.

    The four labels are equally frequent. No context appears twice.
    """
    found: list[dict] = []
    seen: set[str] = set()
    for seed, story in stories("questions", mix=mix):
        if story.context in seen:
            continue
        seen.add(story.context)
        rng = random.Random(seed)
        label = len(found) % 4
        endings = rng.sample(story.wrong, 3)
        endings.insert(label, story.ending)
        context = f"{story.context} {story.lead}".strip()
        found.append(
            {
                "ind": len(found),
                "activity_label": story.label,
                "ctx_a": story.context,
                "ctx_b": story.lead,
                "ctx": context,
                "split": "val",
                "split_type": "indomain",
                "label": label,
                "endings": endings,
                "source_id": f"{story.kind}~{seed}",
            }
        )
        if len(found) == count:
            break
    return found


def json_lines(rows: list[dict]) -> str:
    """Return the rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
