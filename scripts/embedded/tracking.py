"""Stories about who is where and who has what: their endings need every sentence before them."""

from __future__ import annotations

import random

from .words import COLOURS, CONTAINERS, OBJECTS, PEOPLE, PLACES
from .world import (
    Story,
    World,
    close,
    listing,
    objective,
    others,
    pick,
    possessive,
    pronoun,
    scene,
    there,
)


def _events(world: World, count: int) -> list[str]:
    return [world.event() for _ in range(count)]


def whereabouts(rng: random.Random) -> Story:
    """Where a person is after several people moved about."""
    world = World(rng, rng.randint(2, 3), 4, rng.randint(1, 2))
    told = scene(rng) + world.opening() + _events(world, rng.randint(2, 6))
    person = rng.choice(world.people)
    right = world.at[person]
    return close(
        rng,
        "whereabouts",
        pick(rng, "Going about|Where people are|A walk around"),
        told,
        f"{person} was " + pick(rng, "{x}.|still {x}.|to be found {x}."),
        there(right),
        [there(p) for p in others(rng, right, world.places, sorted(PLACES))],
        tail=" ".join(world.facts(rng.randint(0, 3))),
    )


def holders(rng: random.Random) -> Story:
    """Who has a thing after it went from hand to hand."""
    place = rng.choice(sorted(PLACES))
    cast = rng.sample(PEOPLE, 4)
    things = rng.sample(OBJECTS, rng.randint(1, 3))
    has = {thing: cast[i] for i, thing in enumerate(things)}
    told = [*scene(rng), f"{listing(cast)} met {there(place)}."]
    told += [pick(rng, f"{p} had the {t}.|{p} brought the {t}.") for t, p in has.items()]
    for _ in range(rng.randint(2, 5)):
        thing = rng.choice(things)
        giver = has[thing]
        taker = rng.choice([p for p in cast if p != giver])
        has[thing] = taker
        told.append(
            pick(
                rng,
                f"{giver} gave the {thing} to {taker}.|{taker} took the {thing} from {giver}.|"
                f"{giver} handed {taker} the {thing}.|{taker} got the {thing} from {giver}.|"
                f"{taker} wanted the {thing}, so {giver} gave it to {objective(taker)}.",
            )
        )
    thing = rng.choice(things)
    rest = [f"{p} had the {t}." for t, p in has.items() if t != thing]
    return close(
        rng,
        "holders",
        pick(rng, f"Passing the {thing}|From hand to hand|Who has the {thing}"),
        told,
        pick(rng, f"the {thing} was with {{x}}.|{{x}} had the {thing}."),
        has[thing],
        others(rng, has[thing], cast, PEOPLE),
        tail=" ".join(rest),
    )


def carried(rng: random.Random) -> Story:
    """Where a thing is after somebody carried it about."""
    world = World(rng, rng.randint(2, 3), 4, rng.randint(1, 2))
    told = scene(rng) + world.opening() + _events(world, rng.randint(4, 9))
    thing = rng.choice(world.things)
    right = world.place_of(thing)
    return close(
        rng,
        "carried",
        pick(rng, f"Looking for the {thing}|Where things are|Lost and found"),
        told,
        f"the {thing} was " + pick(rng, "{x}.|found {x}.|somewhere {x}."),
        there(right),
        [there(p) for p in others(rng, right, world.places, sorted(PLACES))],
        tail=" ".join(world.facts(rng.randint(0, 3))),
    )


def chronicle(rng: random.Random) -> Story:
    """A long account with true statements in between, ending in one more of them."""
    world = World(rng, rng.randint(3, 4), rng.randint(4, 5), rng.randint(2, 4))
    told = scene(rng) + world.opening()
    for _ in range(rng.randint(4, 10)):
        told += _events(world, rng.randint(1, 3)) + world.facts(rng.randint(1, 2))
        told += scene(rng, 0.1)
    person = rng.choice(world.people)
    right = world.at[person]
    return close(
        rng,
        "chronicle",
        pick(rng, "A long day|The village chronicle|What happened that day"),
        told,
        f"{person} was {{x}}.",
        there(right),
        [there(p) for p in others(rng, right, world.places, sorted(PLACES))],
        tail=" ".join(world.facts(3)),
    )


def nested(rng: random.Random) -> Story:
    """Where a small thing is after the container around it was carried away."""
    thing = rng.choice(OBJECTS)
    inner, second = rng.sample(CONTAINERS, 2)
    places = rng.sample(sorted(PLACES), 3)
    cast = rng.sample(PEOPLE, 2)
    told = scene(rng)
    told.append(f"There was a {inner} {there(places[0])} and a {second} {there(places[1])}.")
    chosen = rng.choice((inner, second))
    at = {inner: places[0], second: places[1]}
    told.append(
        pick(
            rng,
            f"{cast[0]} put the {thing} in the {chosen}.|"
            f"{cast[0]} hid the {thing} inside the {chosen}.",
        )
    )
    for _ in range(rng.randint(1, 3)):
        box = rng.choice((inner, second))
        goal = rng.choice([p for p in places if p != at[box]])
        at[box] = goal
        told.append(
            f"{rng.choice(cast)} {pick(rng, 'carried|moved|brought|pulled')} the {box} "
            f"to the {goal}."
        )
    return close(
        rng,
        "nested",
        pick(rng, f"Hiding a {thing}|The {inner} and the {second}|Moving things"),
        told,
        f"the {thing} was " + pick(rng, "{x}.|still inside, {x}."),
        there(at[chosen]),
        [there(p) for p in others(rng, at[chosen], places, sorted(PLACES))],
        tail=f"The {thing} was in the {chosen}.",
    )


def belief(rng: random.Random) -> Story:
    """Where somebody looks first for a thing that was moved, with or without their knowledge."""
    owner, mover = rng.sample(PEOPLE, 2)
    thing = rng.choice(OBJECTS)
    first, second, third = rng.sample(CONTAINERS, 3)
    saw = rng.random() < 0.5
    moved = f"{mover} moved the {thing} from the {first} to the {second}"
    told = scene(rng)
    told.append(f"There was a {first}, a {second} and a {third} in the room.")
    told.append(f"{owner} put the {thing} in the {first}.")
    if saw:
        told.append(pick(rng, f"While {owner} was watching, {moved}.|{moved}, and {owner} saw it."))
        told.append(f"{owner} went out for a while.")
    else:
        told.append(pick(rng, f"Then {owner} went out.|{owner} left the room."))
        told.append(pick(rng, f"{moved}.|While {owner} was away, {moved}."))
    told.append(f"Later {owner} came back and wanted the {thing}.")
    right = second if saw else first
    spare = rng.choice([c for c in CONTAINERS if c not in (first, second, third)])
    wrong = [x for x in (first, second, third, spare) if x != right]
    real = f"The {thing} was in the {second}."
    return close(
        rng,
        "belief",
        pick(rng, f"The moved {thing}|Looking in the wrong place|Hide and seek"),
        told,
        f"{pronoun(owner)} " + pick(rng, "looked in the {x} first.|opened the {x} first."),
        right,
        wrong,
        leads=("", "so", "of course"),
        tail=real,
    )


def swaps(rng: random.Random) -> Story:
    """Who wears which colour after people traded."""
    cast = rng.sample(PEOPLE, 3)
    colours = rng.sample(COLOURS, 4)
    thing = rng.choice(("hat", "scarf", "coat", "glove", "ribbon", "mask"))
    has = dict(zip(cast, colours, strict=False))
    told = scene(rng)
    told.append(listing([f"{p} had a {c} {thing}" for p, c in has.items()]) + ".")
    for _ in range(rng.randint(1, 3)):
        a, b = rng.sample(cast, 2)
        has[a], has[b] = has[b], has[a]
        told.append(
            pick(
                rng,
                f"{a} and {b} swapped.|{a} traded with {b}.|"
                f"{a} gave {b} {possessive(a)} {thing} and got {b}'s.",
            )
        )
        if rng.random() < 0.3:
            told.append(f"Now {a} had the {has[a]} {thing}.")
    person = rng.choice(cast)
    wrong = others(rng, has[person], colours, COLOURS)
    rest = [f"{p} had the {c} {thing}." for p, c in has.items() if p != person]
    return close(
        rng,
        "swaps",
        pick(rng, f"Swapping {thing}s|Trading colours|Changing {thing}s"),
        told,
        f"{person} had the {{x}} {thing}.",
        has[person],
        wrong,
        tail=" ".join(rest),
    )


STORIES = (whereabouts, holders, carried, chronicle, nested, belief, swaps)
