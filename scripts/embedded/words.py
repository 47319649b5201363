"""The nouns of the small world, and how plain English speaks about them."""

# ruff: noqa: SIM905  (a word list reads better as one string)
from __future__ import annotations

WOMEN = (
    "Anna Clara Ella Greta Ida Kate Mia Nora Olga Rosa Sara Tina Vera Lucy Jane Emma Alice Ruth "
    "Helen Marta Julia Paula Sophie Nina Laura Hanna"
).split()
MEN = (
    "Ben Dan Finn Hugo Jack Karl Leo Max Noah Otto Paul Sam Tom Will Peter Adam Erik Mark "
    "Henry Oscar Simon Felix Robert Victor Martin David"
).split()
PEOPLE = tuple(sorted(WOMEN + MEN))

# Each place with the preposition it takes.
PLACES = {
    "kitchen": "in", "garden": "in", "barn": "in", "attic": "in", "cellar": "in",
    "school": "at", "market": "at", "library": "in", "forest": "in", "river": "at",
    "bridge": "on", "tower": "in", "mill": "at", "harbour": "at", "bakery": "in",
    "station": "at", "meadow": "on", "hill": "on", "cave": "in", "lake": "at",
    "beach": "on", "farm": "on", "inn": "at", "stable": "in", "orchard": "in",
    "hall": "in", "bedroom": "in", "yard": "in", "workshop": "in", "castle": "in",
    "chapel": "in", "theatre": "in", "square": "on", "museum": "in", "windmill": "at",
    "fountain": "at", "lighthouse": "in", "balcony": "on",
}  # fmt: skip

OBJECTS = (
    "key lamp rope ball book map ring cup spoon hat kite drum flute bell letter doll knife candle "
    "mirror brush clock shell feather stone whistle scarf glove hammer pen photo bottle blanket "
    "violin compass necklace pillow ladder kettle magnet puzzle ticket whip trumpet shovel "
    "bracelet telescope wallet thimble"
).split()

CONTAINERS = (
    "box basket drawer chest bag jar bucket cupboard crate sack barrel trunk pot case"
).split()
COLOURS = "red blue green yellow white black brown grey".split()
COUNTED = {
    "apple": "apples", "pear": "pears", "egg": "eggs", "nut": "nuts", "button": "buttons",
    "stamp": "stamps", "cake": "cakes", "plum": "plums", "pencil": "pencils", "marble": "marbles",
    "carrot": "carrots", "flower": "flowers", "shell": "shells", "cherry": "cherries",
    "lemon": "lemons", "peach": "peaches", "biscuit": "biscuits", "ribbon": "ribbons",
    "walnut": "walnuts", "mushroom": "mushrooms",
}  # fmt: skip
NUMBERS = (
    "no one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

# What each animal eats, where it sleeps and the noise it makes: facts that hold in every story.
ANIMALS = {
    "cat": ("fish", "on the cushion", "purred"),
    "dog": ("bone", "in the kennel", "barked"),
    "horse": ("hay", "in the stable", "neighed"),
    "cow": ("grass", "in the shed", "mooed"),
    "rabbit": ("carrot", "in the burrow", "thumped"),
    "hen": ("corn", "in the coop", "clucked"),
    "monkey": ("banana", "in the tree", "chattered"),
    "mouse": ("cheese", "behind the wall", "squeaked"),
    "squirrel": ("nut", "in the hollow oak", "chirped"),
    "bear": ("honey", "in the cave", "growled"),
    "frog": ("fly", "under the lily", "croaked"),
    "bee": ("nectar", "in the hive", "buzzed"),
    "sheep": ("clover", "in the fold", "bleated"),
    "goat": ("thistles", "behind the fence", "stamped"),
    "owl": ("moths", "in the belfry", "hooted"),
    "duck": ("weeds", "among the reeds", "quacked"),
    "parrot": ("mango", "on the perch", "whistled"),
}

# Who makes what, with which tool, and where.
TRADES = {
    "baker": ("bread", "oven", "flour"),
    "smith": ("horseshoes", "anvil", "iron"),
    "tailor": ("coats", "needle", "cloth"),
    "potter": ("jugs", "wheel", "clay"),
    "carpenter": ("chairs", "saw", "wood"),
    "painter": ("pictures", "easel", "paint"),
    "cobbler": ("boots", "awl", "leather"),
    "fisherman": ("trout", "net", "bait"),
    "gardener": ("roses", "spade", "seeds"),
    "weaver": ("carpets", "loom", "wool"),
    "cook": ("soup", "pan", "onions"),
    "printer": ("newspapers", "press", "ink"),
    "jeweller": ("earrings", "tweezers", "silver"),
    "mason": ("walls", "trowel", "bricks"),
    "brewer": ("beer", "kettle", "barley"),
    "scribe": ("charters", "quill", "parchment"),
}

SCENES = (
    "It was a cold {part} in {season}.|The sun was shining on the village.|"
    "A soft wind blew from the {side}.|It was a quiet {part}.|The sky was grey.|"
    "It had rained all night.|The {part} was warm and bright.|Nobody was in a hurry.|"
    "There was snow on the roofs.|The birds were singing in the {season} air.|"
    "The fog came up from the river.|It was the first day of {season}.|"
    "Clouds drifted in from the {side}.|The bells rang in the {part}.|"
    "Children were laughing in the street.|An old woman swept the steps.|Smoke rose from the "
    "chimneys.|A carriage rolled slowly past.|Somewhere a door creaked.|Leaves danced over the "
    "ground.|Everybody spoke about the festival.|The grass was wet with dew.|Thunder rumbled far "
    "away in the {side}.|Swallows circled above the houses.|The {part} smelled of fresh bread.|"
    "Nothing special had happened since {season}.|A strange silence lay over everything.|"
    "The moon was still pale above the mountains."
).split("|")
SCENE_WORDS = {
    "part": ("morning", "afternoon", "evening"),
    "season": ("spring", "summer", "autumn", "winter"),
    "side": ("north", "south", "east", "west"),
}
