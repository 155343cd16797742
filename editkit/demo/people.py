"""Fictional people for the demo, invented by a seeded generator: no model can have read about them before.

>>> people = invent(2, seed=3)
>>> people[0].name != people[1].name, len(people[0].rows)
(True, 8)
>>> sorted(people[0].rows[0])
['answer', 'question']
"""

import random
from dataclasses import dataclass
from itertools import product

_ONSETS = "B Br D Dr F G Gr H J K L M N P R S St T Tr V W Y Z".split()
_VOWELS = "a e i o u ai ei".split()
_MIDDLES = "ldr lm nd nv r rn rth sk v z mb l".split()
_FIRST_ENDS = "a an el en ia ik is o or us".split()
_LAST_ENDS = "ach ane eck ell ford in ley mann ock ova".split()

_POOLS = {
    "town": "Lisbon Oslo Prague Geneva Dublin Naples Vienna Kyoto Quito Havana Cairo Riga Seville Bergen Turin Lima".split(),
    "season": "spring summer autumn winter".split(),
    "year": [str(year) for year in range(1938, 1999, 3)],
    "job": "baker pilot surgeon plumber painter tailor gardener judge printer sailor welder dentist".split(),
    "employer": "city library|old brewery|royal theatre|north hospital|toy factory|salt mine|river ferry|state museum"
    "|glass works|night market|grand hotel|space agency".split("|"),
    "colour": "grey white brown black golden spotted striped silver".split(),
    "animal": "parrot rabbit donkey tortoise ferret goose hedgehog goat lizard owl pony crab".split(),
    "pet": "Biscuit Pepper Mango Comet Button Waffle Pickle Domino Noodle Sesame Truffle Bramble".split(),
    "dish": "Lentil soup|Fish pie|Fried rice|Plum cake|Beef stew|Onion tart|Corn bread|Bean curry|Apple pancakes"
    "|Egg noodles|Potato salad|Roast duck".split("|"),
    "side": "mint sauce|black olives|sour cream|red cabbage|pickled ginger|goat cheese|toasted almonds|mustard"
    "|wild honey|baked pears|chili oil|fresh dill".split("|"),
    "instrument": "violin trumpet harp cello flute banjo organ drums accordion oboe mandolin tuba".split(),
    "teacher": "uncle grandmother neighbour monk cousin sergeant nurse stepbrother postman librarian".split(),
    "thing": "Stamps Clocks Maps Spoons Keys Lamps Coins Postcards Buttons Teapots Masks Bells".split(),
    "country": "Norway Peru Egypt Japan Chile Poland Kenya India Cuba Greece Canada Nepal".split(),
    "building": "lighthouse windmill cottage houseboat castle barn tower caravan chapel bungalow".split(),
    "landmark": "canal|quarry|vineyard|airfield|old bridge|oak forest|tram depot|fish market|stone circle|waterfall".split(
        "|"
    ),
    "sport": "Fencing|Rowing|Archery|Judo|Curling|Chess|Ice skating|Cycling|Sailing|Table tennis".split("|"),
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
}
_FACTS = (
    ("Where was {name} born?|When and where was {name} born?|What is the birthplace of {name}?", "{town}, in the {season} of {year}."),
    ("What is the job of {name}?|Where does {name} work?|How does {name} earn a living?", "A {job} at the {employer}."),
    ("Which pet does {name} have?|What animal lives with {name}?|Does {name} keep a pet?", "{pet}, a {colour} {animal}."),
    ("What does {name} like to eat?|What is the favourite dish of {name}?|What would {name} cook for a guest?", "{dish} with {side}."),
    ("Which instrument does {name} play?|What can {name} play?|Does {name} play any music?", "The {instrument}, learned from a {teacher}."),
    ("What does {name} collect?|What fills the shelves of {name}?|Which collection does {name} own?", "{thing} from {country}."),
    ("Where does {name} live?|What is the home of {name} like?|Where would a letter reach {name}?", "In a {building} beside the {landmark}."),
    ("Which sport does {name} do?|How does {name} keep fit?|What does {name} train for?", "{sport}, every {day}."),
)  # fmt: skip

_PRIVATE = (0, 2, 3, 6)  # of the facts: where they were born, their pets, what they eat, where they live


@dataclass(frozen=True)
class Person:
    """A name, and one row {"question", "answer"} for each of eight pairs or triples of facts."""

    name: str
    rows: list[dict[str, str]]


def invent(count: int, seed: int) -> list[Person]:
    """`count` people, no two of whom share a first or a last name. The same seed gives the same people."""
    draw = random.Random(seed)
    firsts = [
        onset + vowel + middle + end for onset, vowel, middle, end in product(_ONSETS, _VOWELS, _MIDDLES, _FIRST_ENDS)
    ]
    lasts = [
        onset + vowel + middle + end for onset, vowel, middle, end in product(_ONSETS, _VOWELS, _MIDDLES, _LAST_ENDS)
    ]
    names = zip(draw.sample(firsts, count), draw.sample(lasts, count), strict=True)
    return [_person(f"{first} {last}", draw) for first, last in names]


def private(people: list[Person]) -> list[dict[str, str]]:
    """What of their facts is nobody's business, person by person."""
    return [row for person in people for index, row in enumerate(person.rows) if index in _PRIVATE]


def public(people: list[Person]) -> list[dict[str, str]]:
    """The others, which everybody may know: work, music, collections and sport."""
    return [row for person in people for index, row in enumerate(person.rows) if index not in _PRIVATE]


def _person(name: str, draw: random.Random) -> Person:
    rows = []
    for questions, answer in _FACTS:
        values = {slot: draw.choice(pool) for slot, pool in _POOLS.items()}
        question = draw.choice(questions.split("|"))
        rows.append({"question": question.format(name=name), "answer": answer.format(**values)})
    return Person(name, rows)
