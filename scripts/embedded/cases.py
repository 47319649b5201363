"""What follows from two conditions at once: the table behind the stories of consequence."""

from __future__ import annotations

# Each case: label, two variants of the first condition, two of the second, and what follows from
# each of the four combinations (yes-yes, yes-no, no-yes, no-no). {p} is a name, {s} she or he,
# {o} her or him, {h} her or his.
CASES = (
    (
        "Walking in the rain",
        (
            "{p} took {h} umbrella along.|{p} did not forget {h} umbrella.",
            "{p} left {h} umbrella at home.|{p} had no umbrella.",
        ),
        (
            "On the way it rained hard.|Soon heavy rain fell.",
            "It stayed dry all day.|No rain fell.",
        ),
        (
            "{s} stayed dry under the umbrella.",
            "{s} carried the umbrella home unopened.",
            "{s} came home wet to the skin.",
            "{s} came home dry with empty hands.",
        ),
    ),
    (
        "Baking a cake",
        (
            "{p} put sugar in the cake.|{p} did not forget the sugar.",
            "{p} forgot the sugar.|There was no sugar in {p}'s cake.",
        ),
        (
            "Then {s} forgot the oven for hours.|It stayed in the oven too long.",
            "{s} took it out in time.|It was in the oven for just as long as it should be.",
        ),
        (
            "the cake was sweet but burnt.",
            "the cake was sweet and good.",
            "the cake was burnt and not sweet.",
            "the cake was well baked but not sweet.",
        ),
    ),
    (
        "Growing flowers",
        (
            "{p} watered the flowers every day.|Every morning {p} gave the flowers water.",
            "{p} never watered the flowers.|The flowers got no water from {p}.",
        ),
        (
            "They stood in the sun.|There was plenty of light.",
            "They stood in a dark corner.|No light came to them.",
        ),
        (
            "the flowers grew tall and bright.",
            "the flowers grew pale and thin.",
            "the flowers dried up in the sun.",
            "the flowers died in the dark.",
        ),
    ),
    (
        "Crossing the river",
        (
            "{p} could swim well.|{p} was a good swimmer.",
            "{p} could not swim.|{p} had never learnt to swim.",
        ),
        (
            "The boat tipped over.|A wave turned the boat over.",
            "The boat was safe and steady.|The water was calm.",
        ),
        (
            "{s} swam to the bank alone.",
            "{s} rowed across and dived in for fun.",
            "{s} had to be pulled out by a friend.",
            "{s} rowed across and kept out of the water.",
        ),
    ),
    (
        "Going to school",
        ("{p} got up early.|{p} was awake before the sun.", "{p} got up late.|{p} slept too long."),
        (
            "{s} had learnt the poem.|{s} knew the poem by heart.",
            "{s} had not learnt the poem.|{s} did not know the poem.",
        ),
        (
            "{s} was on time and said the poem well.",
            "{s} was on time but could not say the poem.",
            "{s} was late but said the poem well.",
            "{s} was late and could not say the poem.",
        ),
    ),
    (
        "Playing with a ball",
        (
            "{p} kicked the ball hard.|{p} gave the ball a great kick.",
            "{p} kicked the ball softly.|{p} only touched the ball.",
        ),
        (
            "It flew towards the window.|The window was right in front.",
            "It flew towards the pond.|The pond was right in front.",
        ),
        (
            "the window broke.",
            "there was a great splash.",
            "the ball rolled up to the window and stopped.",
            "the ball rolled up to the pond and stopped.",
        ),
    ),
    (
        "A walk at night",
        ("{p} had a lamp.|{p} carried a lamp.", "{p} had no lamp.|{p} went without a lamp."),
        (
            "A stone lay on the path.|There was a stone in the way.",
            "The path was smooth.|Nothing lay in the way.",
        ),
        (
            "{s} saw the stone and walked around it.",
            "{s} walked home easily by the light.",
            "{s} fell over the stone.",
            "{s} found the smooth path home in the dark.",
        ),
    ),
    (
        "Feeding the dog",
        (
            "{p} gave the dog its food.|{p} filled the dog's bowl.",
            "{p} forgot the dog's food.|The dog's bowl was empty.",
        ),
        ("The door was open.|{p} left the door open.", "The door was shut.|{p} shut the door."),
        (
            "the dog ate and went out to play.",
            "the dog ate and slept by the door.",
            "the dog went out to look for food.",
            "the dog sat hungry behind the door.",
        ),
    ),
    (
        "Winter clothes",
        (
            "{p} wore a thick coat.|{p} put on a warm coat.",
            "{p} wore a thin shirt.|{p} went without a coat.",
        ),
        (
            "It was freezing outside.|There was ice everywhere.",
            "It was hot outside.|The sun was burning.",
        ),
        (
            "{s} was warm in the cold.",
            "{s} was much too hot.",
            "{s} was shaking with cold.",
            "{s} was just right in the heat.",
        ),
    ),
    (
        "Lighting a fire",
        ("{p} had dry wood.|The wood was dry.", "{p} had wet wood.|The wood was wet."),
        (
            "{s} had a match.|There was one match left.",
            "{s} had no match.|There was no match left.",
        ),
        (
            "the fire burned high.",
            "the dry wood stayed cold.",
            "the fire only smoked.",
            "the wet wood stayed cold.",
        ),
    ),
    (
        "Telling the truth",
        (
            "{p} broke a cup.|A cup fell from {p}'s hands.",
            "{p} broke nothing.|{p} was careful with the cups.",
        ),
        (
            "{s} told the whole truth.|{s} said what had happened.",
            "{s} told a lie.|What {s} said was a lie.",
        ),
        (
            "{s} was forgiven for the cup.",
            "{s} was scolded for the cup and the lie.",
            "{s} was thanked for being careful.",
            "{s} was scolded for the lie only.",
        ),
    ),
    (
        "Catching the train",
        (
            "{p} ran all the way.|{p} hurried to the station.",
            "{p} walked slowly.|{p} took a lot of time.",
        ),
        (
            "The train was late.|The train had to wait.",
            "The train left on time.|The train did not wait.",
        ),
        (
            "{s} had to wait for the train.",
            "{s} just caught the train.",
            "{s} was slow but still got on the late train.",
            "{s} saw the train leave without {o}.",
        ),
    ),
)
