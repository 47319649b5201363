"""Stories of everyday life: what follows from what, what people feel, and how the world is."""

from __future__ import annotations

import random

from .cases import CASES
from .words import ANIMALS, COLOURS, OBJECTS, PEOPLE, PLACES, TRADES
from .world import (
    Story,
    close,
    listing,
    objective,
    others,
    pick,
    possessive,
    pronoun,
    scene,
    sentence,
    there,
)


def consequences(rng: random.Random) -> Story:
    """What follows from two conditions; the wrong endings are what the other three would give."""
    label, first, second, results = rng.choice(CASES)
    person = rng.choice(PEOPLE)
    a, b = rng.randrange(2), rng.randrange(2)
    words = {"p": person, "s": pronoun(person), "o": objective(person), "h": possessive(person)}
    told = scene(rng)
    for part in (pick(rng, first[a]), pick(rng, second[b])):
        text = part.format(**words)
        told.append(sentence(text))
    right, *wrong = [results[(2 * a + b + shift) % 4].format(**words) for shift in range(4)]
    return close(
        rng,
        "consequences",
        label,
        told,
        "{x}",
        right,
        wrong,
        leads=("so", "so", "in the end", "and then"),
    )


def feelings(rng: random.Random) -> Story:
    """How somebody feels who wished for one thing and got it, or another."""
    person, giver = rng.sample(PEOPLE, 2)
    wish, given, far = rng.sample(OBJECTS, 3)
    told = scene(rng)
    told.append(
        pick(
            rng,
            f"{person} wished for a {wish}.|{person} wanted a {wish} very much.|"
            f"{person} had always dreamed of a {wish}.",
        )
    )
    told.append(
        pick(
            rng,
            f"{person} did not need a {given}.|{person} had no use for a {given}.|"
            f"The {given} was not what {pronoun(person)} wanted.",
        )
    )
    rng.shuffle(told)
    got = rng.choice((wish, given))
    told.append(
        pick(
            rng,
            f"For {possessive(person)} birthday {giver} brought a {got}.|"
            f"{giver} gave {objective(person)} a {got}.",
        )
    )
    good, bad = rng.choice((("happy", "sad"), ("glad", "sorry"), ("pleased", "angry")))
    mood = good if got == wish else bad
    other = bad if got == wish else good
    ending = f"{pronoun(person)} was {{x}}."
    cells = [
        f"{m} about the {t}"
        for m, t in ((mood, got), (other, got), (mood, given if got == wish else wish), (mood, far))
    ]
    return close(
        rng,
        "feelings",
        pick(rng, "A birthday wish|Giving a present|A wish"),
        told,
        ending,
        cells[0],
        cells[1:],
        leads=("", "so", "now"),
    )


def errand(rng: random.Random) -> Story:
    """Who gets what at the end of an errand that was told in full."""
    sender, runner, target = rng.sample(PEOPLE, 3)
    thing, extra = rng.sample(OBJECTS, 2)
    start, goal = rng.sample(sorted(PLACES), 2)
    told = scene(rng)
    told.append(
        pick(
            rng,
            f"{sender} asked {runner} to bring {target} the {thing}.|"
            f'"Please take the {thing} to {target}," {sender} said to {runner}.|'
            f'{sender} said, "{runner}, {target} needs the {thing}."',
        )
    )
    told.append(f"The {thing} was {there(start)}, and {target} was {there(goal)}.")
    if rng.random() < 0.5:
        told.append(f"There was also a {extra} {there(start)}, but nobody had asked for it.")
    told.append(pick(rng, f"{runner} went to the {start} first.|So {runner} ran to the {start}."))
    told.append(
        pick(
            rng,
            f"{sentence(pronoun(runner))} picked up the {thing} and went on to the {goal}.|"
            f"There {pronoun(runner)} took the {thing} and walked to the {goal}.",
        )
    )
    right = f"{runner} gave the {thing} to {target}"
    wrong = [
        f"{runner} gave the {extra} to {target}",
        f"{runner} gave the {thing} to {sender}",
        f"{target} gave the {thing} to {runner}",
    ]
    return close(
        rng,
        "errand",
        pick(rng, "Running an errand|Bringing a thing|A message"),
        told,
        "{x}.",
        right,
        wrong,
        tail=f"{target} thanked {runner}.",
    )


def animals(rng: random.Random) -> Story:
    """What an animal ate, where it slept, or which noise it made: facts of the world."""
    person = rng.choice(PEOPLE)
    animal, *rest = rng.sample(sorted(ANIMALS), 4)
    colour = rng.choice(COLOURS)
    told = scene(rng)
    told.append(
        pick(
            rng,
            f"{person} had a {colour} {animal}.|{person} met a {colour} {animal} "
            f"{there(rng.choice(sorted(PLACES)))}.|A {colour} {animal} lived with "
            f"{person}.",
        )
    )
    told.append(
        pick(
            rng,
            f"{person} liked to watch it.|It was not afraid of {person}.|"
            f"It was small and clever.|{person} was its best friend.",
        )
    )
    fact = rng.randrange(3)
    if fact == 0:
        told.append(pick(rng, f"The {animal} was hungry.|It had not eaten all day."))
    template = (
        f"the {animal} ate the {{x}}.",
        f"the {animal} went to sleep {{x}}.",
        f"the {animal} {{x}} at {person}.",
    )[fact]
    answers = [ANIMALS[name][fact] for name in (animal, *rest)]
    return close(
        rng,
        "animals",
        pick(rng, f"The {animal} and its friend|Keeping an animal|Animals"),
        told,
        template,
        answers[0],
        answers[1:],
        leads=("", "then", "that evening"),
    )


def trades(rng: random.Random) -> Story:
    """What each of several people made, told through their trades."""
    cast = rng.sample(PEOPLE, 3)
    jobs = rng.sample(sorted(TRADES), 4)
    told = scene(rng)
    told += [
        pick(rng, f"{p} was a {j}.|{p} worked as a {j}.|The {j} was {p}.")
        for p, j in zip(cast, jobs, strict=False)
    ]
    index = rng.randrange(3)
    person = cast[index]
    side = rng.randrange(3)
    template = (
        f"{person} made {{x}}.",
        f"{person} needed the {{x}}.",
        f"{person} ran out of {{x}}.",
    )[side]
    answers = [TRADES[job][side] for job in jobs]
    right = answers.pop(index)
    return close(
        rng,
        "trades",
        pick(rng, "People at work|Trades of the village"),
        told,
        template,
        right,
        answers,
        leads=("", "all day", "one day"),
    )


def preferences(rng: random.Random) -> Story:
    """Who takes what when each person's taste was told, some of it as what they do not like."""
    cast = rng.sample(PEOPLE, 3)
    foods = rng.sample(
        [
            "bread",
            "cheese",
            "soup",
            "fish",
            "cake",
            "rice",
            "beans",
            "honey",
            "eggs",
            "jam",
            "porridge",
            "salad",
        ],
        4,
    )
    told = [*scene(rng), f"{listing(cast)} sat down to eat."]
    likes = list(zip(cast, foods, strict=False))
    for person, food in likes:
        told.append(
            pick(
                rng,
                f"{person} liked only {food}.|{person} always ate {food}.|"
                f"{person} did not like {foods[3]} and asked for {food}.",
            )
        )
    rng.shuffle(likes)
    person, right = likes[0]
    return close(
        rng,
        "preferences",
        pick(rng, "Eating together|At the table|Dinner"),
        told,
        pick(rng, f"{person} ate the {{x}}.|{person} took the {{x}}."),
        right,
        others(rng, right, foods, foods),
        leads=("", "so", "when the food came"),
        tail=" ".join(f"{p} ate the {f}." for p, f in likes[1:]),
    )


STORIES = (consequences, feelings, errand, animals, trades, preferences)
