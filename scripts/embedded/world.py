"""A small world that keeps books: who is where, who holds what, and true sentences about it.

Everything is drawn from a ``random.Random``, so one seed gives one text on every machine.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .words import OBJECTS, PEOPLE, PLACES, SCENE_WORDS, SCENES, WOMEN

LEADS = ("", "", "", "in the end", "at last", "that evening", "after all this", "by then")


@dataclass(frozen=True, slots=True)
class Story:
    """One story whose last sentence follows from the others, with wrong last sentences beside it.

    The surface is ``label: context lead ending tail``; ``wrong`` holds three alternatives to
    ``ending``, of the same grammar, which the context rules out.
    """

    kind: str
    label: str
    context: str
    lead: str
    ending: str
    wrong: tuple[str, str, str]
    tail: str = ""

    def text(self, *, labelled: bool = True) -> str:
        """Return the story as one paragraph; ``labelled`` puts ``label: `` before it."""
        parts = (self.context, self.lead.capitalize(), self.ending, self.tail)
        body = " ".join(part for part in parts if part)
        return f"{self.label}: {body}" if labelled else body


def pick(rng: random.Random, variants: str) -> str:
    """Return one of the variants, which ``|`` separates."""
    return rng.choice(variants.split("|"))


def sentence(text: str) -> str:
    """Return ``text`` with its first letter in upper case and the rest as it is."""
    return text[:1].upper() + text[1:]


def pronoun(name: str) -> str:
    """Return she or he for a person's name."""
    return "she" if name in WOMEN else "he"


def objective(name: str) -> str:
    """Return her or him for a person's name."""
    return "her" if name in WOMEN else "him"


def possessive(name: str) -> str:
    """Return her or his for a person's name."""
    return "her" if name in WOMEN else "his"


def there(place: str) -> str:
    """Return ``in the kitchen``, ``at the market``: a place with its preposition."""
    return f"{PLACES[place]} the {place}"


def listing(items: Sequence[str]) -> str:
    """Return ``a``, ``a and b`` or ``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def scene(rng: random.Random, chance: float = 0.4) -> list[str]:
    """Return a sentence about weather or hour, or with 1 - ``chance`` none."""
    if rng.random() >= chance:
        return []
    return [rng.choice(SCENES).format(**{key: rng.choice(v) for key, v in SCENE_WORDS.items()})]


@functools.cache
def _all_scenes() -> frozenset[str]:
    keys, values = zip(*SCENE_WORDS.items(), strict=True)
    filled = [dict(zip(keys, choice, strict=True)) for choice in itertools.product(*values)]
    return frozenset(text.format(**words) for text in SCENES for words in filled)


def plot(context: str) -> str:
    """Return the context without its sentences about weather and hour, on which nothing rests."""
    return " ".join(s for s in re.split(r"(?<=\.) ", context) if s not in _all_scenes())


def others(rng: random.Random, right: str, near: Sequence[str], far: Sequence[str]) -> list[str]:
    """Return three answers that differ from ``right``: those of the story first, then others."""
    close = [x for x in dict.fromkeys(near) if x != right]
    rng.shuffle(close)
    rest = [x for x in far if x != right and x not in close]
    return (close + rng.sample(rest, min(3, len(rest))))[:3]


def close(
    rng: random.Random,
    kind: str,
    label: str,
    context: Sequence[str],
    template: str,
    right: str,
    wrong: Sequence[str],
    *,
    leads: Sequence[str] = LEADS,
    tail: str = "",
) -> Story:
    """Return the story that ends in ``template`` filled with ``right``; ``{x}`` marks the gap."""
    lead = rng.choice(leads)
    ends = [template.format(x=answer) for answer in (right, *wrong[:3])]
    if not lead:
        ends = [sentence(end) for end in ends]
    if len(set(ends)) != 4:
        raise ValueError(f"{kind}: the endings are not four different ones: {ends}")
    return Story(kind, label, " ".join(context), lead, ends[0], (ends[1], ends[2], ends[3]), tail)


class World:
    """People, places and things; ``event`` changes them and says so, ``fact`` says what holds."""

    def __init__(self, rng: random.Random, people: int, places: int, things: int) -> None:
        self.rng = rng
        self.people = rng.sample(PEOPLE, people)
        self.places = rng.sample(sorted(PLACES), places)
        self.things = rng.sample(OBJECTS, things)
        self.at = {person: rng.choice(self.places) for person in self.people}
        # A thing lies at a place or is with a person.
        self.where = {thing: rng.choice(self.places) for thing in self.things}
        self._subject: str | None = None

    def opening(self) -> list[str]:
        """Return sentences that tell where everybody and everything is."""
        found = []
        for place in self.places:
            here = [person for person in self.people if self.at[person] == place]
            if here:
                verb = "was" if len(here) == 1 else "were"
                found.append(f"{listing(here)} {verb} {there(place)}.")
        for thing in self.things:
            verb = pick(self.rng, "lay|was")
            found.append(f"The {thing} {verb} {there(self.where[thing])}.")
        self.rng.shuffle(found)
        return found

    def place_of(self, thing: str) -> str:
        """Return the place where the thing is, also when somebody carries it."""
        return self.at.get(self.where[thing], self.where[thing])

    def held_by(self, person: str) -> list[str]:
        """Return the things the person carries."""
        return [thing for thing in self.things if self.where[thing] == person]

    def event(self) -> str:
        """Let one possible thing happen and return the sentence that tells it."""
        actor = self.rng.choice(self.people)
        company = [p for p in self.people if p != actor and self.at[p] == self.at[actor]]
        lying = [t for t in self.things if self.where[t] == self.at[actor]]
        held = self.held_by(actor)
        # Taking and giving come first where they are possible: they are what makes a story.
        options = [self._go, self._go]
        options += [self._take] * (3 if lying else 0) + [self._leave] * (1 if held else 0)
        options += [self._give] * (4 if held and company else 0) + [self._stay]
        return self.rng.choice(options)(actor)

    def _name(self, actor: str) -> str:
        same = actor == self._subject
        self._subject = actor
        return sentence(pronoun(actor)) if same and self.rng.random() < 0.6 else actor

    def _go(self, actor: str) -> str:
        goal = self.rng.choice([p for p in self.places if p != self.at[actor]])
        self.at[actor] = goal
        how = pick(self.rng, "went|walked|ran|moved|hurried|travelled")
        return f"{self._name(actor)} {how} to the {goal}."

    def _stay(self, actor: str) -> str:
        how = pick(self.rng, "stayed|waited|sat down and rested|did not move and stayed")
        return f"{self._name(actor)} {how} {there(self.at[actor])}."

    def _take(self, actor: str) -> str:
        thing = self.rng.choice([t for t in self.things if self.where[t] == self.at[actor]])
        self.where[thing] = actor
        how = pick(self.rng, "picked up|took|found and kept|grabbed")
        return f"{self._name(actor)} {how} the {thing}."

    def _leave(self, actor: str) -> str:
        thing = self.rng.choice(self.held_by(actor))
        self.where[thing] = self.at[actor]
        how = pick(self.rng, "put down|left|dropped")
        return f"{self._name(actor)} {how} the {thing} there."

    def _give(self, actor: str) -> str:
        thing = self.rng.choice(self.held_by(actor))
        company = [p for p in self.people if p != actor and self.at[p] == self.at[actor]]
        taker = self.rng.choice(company)
        self.where[thing] = taker
        name = self._name(actor)
        self._subject = None  # Two people were named: a pronoun would not be clear.
        if self.rng.random() < 0.25:
            return f"{taker} took the {thing} from {actor}."
        return pick(
            self.rng,
            f"{name} gave the {thing} to {taker}.|{name} handed the {thing} to {taker}.|"
            f"{name} gave {taker} the {thing}.|{name} passed {taker} the {thing}.",
        )

    def facts(self, limit: int) -> list[str]:
        """Return up to ``limit`` true sentences about what is where, and who has what."""
        found = [f"{person} was {there(self.at[person])}." for person in self.people]
        for thing in self.things:
            holder = self.where[thing]
            if holder in self.at:
                found.append(f"{holder} had the {thing}.")
                found.append(f"The {thing} was with {holder} {there(self.at[holder])}.")
            else:
                found.append(f"The {thing} was {there(holder)}, and nobody had it.")
        idle = [person for person in self.people if not self.held_by(person)]
        found += [f"{person} had nothing." for person in idle]
        return self.rng.sample(found, min(limit, len(found)))
