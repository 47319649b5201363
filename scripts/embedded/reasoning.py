"""Stories whose endings need counting, comparing, ruling out or looking something up."""

from __future__ import annotations

import itertools
import random

from .words import COLOURS, CONTAINERS, COUNTED, DAYS, NUMBERS, OBJECTS, PEOPLE, PLACES
from .world import Story, close, listing, objective, others, pick, pronoun, scene, sentence, there


def amount(number: int, one: str, many: str) -> str:
    """Return ``no apples``, ``one apple``, ``two apples``: a small number in words."""
    return f"{NUMBERS[number]} {one if number == 1 else many}"


def _near(rng: random.Random, right: int) -> list[int]:
    """Return three wrong numbers close to the right one."""
    close_by = [n for n in range(max(0, right - 3), right + 4) if n != right]
    return rng.sample(close_by, 3)


def counting(rng: random.Random) -> Story:
    """How many things a person has after getting and giving some."""
    one, many = rng.choice(sorted(COUNTED.items()))
    person, friend, third = rng.sample(PEOPLE, 3)
    have = rng.randint(1, 8)
    told = [*scene(rng), f"{person} had {amount(have, one, many)}."]
    for _ in range(rng.randint(1, 3)):
        change = rng.randint(1, 3)
        part = NUMBERS[change]
        if have >= change and rng.random() < 0.5:
            have -= change
            told.append(
                pick(
                    rng,
                    f"{sentence(pronoun(person))} gave {part} to {friend}.|"
                    f"{sentence(pronoun(person))} lost {part} on the way.|"
                    f"{friend} took {part} from {objective(person)}.",
                )
            )
        else:
            have += change
            told.append(
                pick(
                    rng,
                    f"{friend} gave {objective(person)} {part} more.|"
                    f"{sentence(pronoun(person))} found {part} more.|"
                    f"Then {pronoun(person)} got {part} more from {third}.",
                )
            )
        if rng.random() < 0.35:
            told.append(f"That made {NUMBERS[have]}.")
    return close(
        rng,
        "counting",
        pick(rng, f"Counting {many}|Sharing {many}|How many {many}"),
        told,
        f"{person} had {{x}}.",
        amount(have, one, many),
        [amount(n, one, many) for n in _near(rng, have)],
        leads=("in the end", "at last", "now", "after that"),
    )


def market(rng: random.Random) -> Story:
    """How many coins are left after shopping."""
    person = rng.choice(PEOPLE)
    coins = rng.randint(6, 15)
    goods = rng.sample(OBJECTS, rng.randint(1, 3))
    told = [*scene(rng), f"{person} went to the market with {amount(coins, 'coin', 'coins')}."]
    for thing in goods:
        price = rng.randint(1, min(4, coins))
        coins -= price
        told.append(
            pick(
                rng,
                f"{sentence(pronoun(person))} bought a {thing} for "
                f"{amount(price, 'coin', 'coins')}.|The {thing} cost "
                f"{amount(price, 'coin', 'coins')}, and {person} paid.",
            )
        )
        if rng.random() < 0.3:
            told.append(f"Then {pronoun(person)} had {amount(coins, 'coin', 'coins')}.")
        if coins == 0:
            break
    return close(
        rng,
        "market",
        pick(rng, "Shopping at the market|Spending coins|Buying things"),
        told,
        f"{person} had {{x}} left.",
        amount(coins, "coin", "coins"),
        [amount(n, "coin", "coins") for n in _near(rng, coins)],
        leads=("in the end", "at last", "now", "after that"),
    )


SCALES = (
    ("older", "younger", "oldest", "youngest"),
    ("taller", "shorter", "tallest", "shortest"),
    ("faster", "slower", "fastest", "slowest"),
    ("stronger", "weaker", "strongest", "weakest"),
    ("louder", "quieter", "loudest", "quietest"),
    ("richer", "poorer", "richest", "poorest"),
)


def comparing(rng: random.Random) -> Story:
    """Who is the oldest, tallest … of a chain told in pairs."""
    cast = rng.sample(PEOPLE, rng.choice((3, 4, 4)))
    up, down, most, least = rng.choice(SCALES)
    pairs = list(itertools.pairwise(cast))
    if rng.random() < 0.6:
        rng.shuffle(pairs)
    told = scene(rng)
    if rng.random() < 0.3:
        told.append(f"{listing(sorted(cast))} were friends.")
    for a, b in pairs:
        told.append(
            pick(
                rng,
                f"{a} was {up} than {b}.|{b} was {down} than {a}.|"
                f"{b} was not as {_plain(up)} as {a}.",
            )
        )
    word, right = rng.choice(((most, cast[0]), (least, cast[-1])))
    other = cast[-1] if word == most else cast[0]
    return close(
        rng,
        "comparing",
        pick(rng, f"Who is the {word}|Comparing friends"),
        told,
        pick(rng, f"the {word} of them all was {{x}}.|{{x}} was the {word} of them."),
        right,
        others(rng, right, cast, PEOPLE),
        leads=("", "so", "this means that"),
        tail=f"The {least if word == most else most} was {other}.",
    )


def _plain(comparative: str) -> str:
    """Return the word itself for its comparative: ``old`` for ``older``."""
    return {
        "older": "old",
        "taller": "tall",
        "faster": "fast",
        "stronger": "strong",
        "louder": "loud",
        "richer": "rich",
    }[comparative]


def race(rng: random.Random) -> Story:
    """Who came first or last, told pair by pair."""
    cast = rng.sample(PEOPLE, 4)
    place = rng.choice(sorted(PLACES))
    pairs = list(itertools.pairwise(cast))
    if rng.random() < 0.7:
        rng.shuffle(pairs)
    told = [*scene(rng), f"Four friends ran a race to the {place}."]
    told += [
        pick(
            rng,
            f"{a} came in just before {b}.|{b} came in right after {a}.|{b} was just behind {a}.",
        )
        for a, b in pairs
    ]
    spot, index = rng.choice((("first", 0), ("last", 3), ("second", 1), ("third", 2)))
    right = cast[index]
    return close(
        rng,
        "race",
        pick(rng, "Running a race|A race among friends"),
        told,
        pick(rng, f"{{x}} came in {spot}.|the one who came in {spot} was {{x}}."),
        right,
        others(rng, right, cast, PEOPLE),
        leads=("", "so", "in this race"),
        tail=f"The order was {listing(cast)}." if rng.random() < 0.7 else "",
    )


def elimination(rng: random.Random) -> Story:
    """Where a hidden thing must be when the other places are ruled out."""
    person, friend = rng.sample(PEOPLE, 2)
    thing = rng.choice(OBJECTS)
    box = rng.choice(CONTAINERS)
    colours = rng.sample(COLOURS, 4)
    right = rng.choice(colours)
    out = [c for c in colours if c != right]
    rng.shuffle(out)
    told = scene(rng)
    told.append(f"{person} lost the {thing}.")
    told.append(f"It had to be in the {', the '.join(colours[:3])} or the {colours[3]} {box}.")
    style = rng.randrange(3)
    if style == 0:
        told += [
            f"The {out[0]} {box} was empty.",
            f"It was not in the {out[1]} {box}.",
            f"{friend} looked in the {out[2]} one and found nothing.",
        ]
    elif style == 1:
        told.append(f"It was neither in the {out[0]} nor in the {out[1]} {box}.")
        told.append(f"{friend} opened the {out[2]} one, but it was empty.")
    else:
        told.append(
            f"{friend} said that it was not in the {out[0]}, the {out[1]} or the {out[2]} {box}."
        )
    return close(
        rng,
        "elimination",
        pick(rng, f"Searching for the {thing}|The lost {thing}"),
        told,
        f"the {thing} was in the {{x}} {box}.",
        right,
        out,
        leads=("", "so", "in the end"),
    )


HABITS = {
    "rain": ("it rained", "when it rains"),
    "sun": ("the sun shone", "when the sun shines"),
    "snow": ("it snowed", "when it snows"),
    "wind": ("the wind blew", "when the wind blows"),
    "fog": ("there was fog", "when there is fog"),
    "frost": ("it froze", "when it freezes"),
}
PASTIMES = {
    "reads": "read",
    "swims": "swam",
    "sings": "sang",
    "paints": "painted",
    "dances": "danced",
    "sleeps": "slept",
    "bakes": "baked",
    "runs": "ran",
    "knits": "knitted",
    "writes": "wrote",
}


def habits(rng: random.Random) -> Story:
    """What a person did, given a rule for each kind of weather."""
    person = rng.choice(PEOPLE)
    weather = rng.sample(sorted(HABITS), rng.choice((3, 4, 4)))
    doing = rng.sample(sorted(PASTIMES), 4)
    told = []
    for kind, verb in zip(weather, doing, strict=False):
        when = HABITS[kind][1]
        told.append(pick(rng, f"{sentence(when)}, {person} {verb}.|{person} {verb} {when}."))
    today = rng.randrange(len(weather))
    told.append(
        f"{pick(rng, 'Today|Yesterday|On Sunday|This morning')} {HABITS[weather[today]][0]}."
    )
    place = there(rng.choice(sorted(PLACES)))
    right = PASTIMES[doing[today]]
    return close(
        rng,
        "habits",
        pick(rng, "Weather and habits|What to do today|Habits"),
        told,
        pick(rng, f"{person} {{x}}.|{person} {{x}} {place}.|{pronoun(person)} {{x}}."),
        right,
        [PASTIMES[v] for v in doing if PASTIMES[v] != right],
        leads=("", "so"),
    )


def calendar(rng: random.Random) -> Story:
    """Which day it is some days before or after another."""
    person = rng.choice(PEOPLE)
    today = rng.randrange(7)
    steps = rng.choice((1, 2, 3, -1, -2))
    event = pick(rng, "the fair|the wedding|the race|the concert|the feast|the harvest|the visit")
    when = {
        1: "the next day",
        2: "two days later",
        3: "three days later",
        -1: "the day before",
        -2: "two days before",
    }[steps]
    told = scene(rng)
    told.append(
        pick(
            rng,
            f"{person} got the letter on {DAYS[today]}.|{person} woke up early on {DAYS[today]}.",
        )
    )
    told.append(
        sentence(f"{event} was {when}.") if steps > 0 else sentence(f"{event} had been {when}.")
    )
    right = DAYS[(today + steps) % 7]
    near = [DAYS[(today + n) % 7] for n in range(-3, 4)]
    return close(
        rng,
        "calendar",
        pick(rng, "Days of the week|Waiting for a day"),
        told,
        f"{event} was on {{x}}.",
        right,
        others(rng, right, near, DAYS),
        leads=("", "so"),
    )


def owners(rng: random.Random) -> Story:
    """Whose thing it is, told by its colour."""
    cast = rng.sample(PEOPLE, 4)
    colours = rng.sample(COLOURS, 4)
    thing = rng.choice(OBJECTS)
    told = scene(rng)
    told.append(pick(rng, f"Four friends had a {thing} each.|Everybody had a {thing}."))
    told += [
        pick(rng, f"The {c} {thing} was {p}'s.|{p} had the {c} one.|{p}'s {thing} was {c}.")
        for p, c in zip(cast, colours, strict=True)
    ]
    index = rng.randrange(4)
    place = there(rng.choice(sorted(PLACES)))
    told.append(
        pick(
            rng,
            f"Somebody left the {colours[index]} {thing} {place}.|"
            f"The {colours[index]} {thing} was lost {place}.",
        )
    )
    return close(
        rng,
        "owners",
        pick(rng, f"Whose {thing} it is|The forgotten {thing}"),
        told,
        pick(rng, "it belonged to {x}.|the owner was {x}."),
        cast[index],
        [p for p in cast if p != cast[index]],
        leads=("", "so"),
    )


STORIES = (counting, market, comparing, race, elimination, habits, calendar, owners)
