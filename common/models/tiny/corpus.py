"""Text from which the bundled tokenizer learns its merges.

It covers what all bundled models will read and write: arithmetic, tool calls, and plain statements
and questions about people, places and things. Names are random syllables, so that the merges learn
how names are spelled and not which names there are.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from common.models.tiny.arithmetic import ArithmeticStudent
from common.tasks.math_tasks import random_expression

_CLUSTERS = ("br", "tr", "kl", "gr", "st", "dr", "sh", "ch", "th", "pl", "sk", "fl", "qu", "vr")
_ONSETS = (*"bcdfghjklmnprstvwz", *_CLUSTERS)
_VOWELS = (*"aeiouaeiou", "ai", "ea", "io", "ou", "ei", "y")
_CODAS = ("", "", "", *"nrslkmtd", "th", "nd", "rk", "st", "ss")

_FACTS = (
    ("capital", "What is the capital of {0}?", "The capital of {0} is {1}."),
    ("currency", "Which currency is used in {0}?", "People in {0} pay with the {1}."),
    ("longest river", "Which river is the longest in {0}?", "The longest river of {0} is the {1}."),
    ("language", "Which language is spoken in {0}?", "The language of {0} is {1}."),
    ("continent", "On which continent does {0} lie?", "{0} lies on the continent of {1}."),
    ("largest city", "Name the largest city of {0}.", "The largest city of {0} is {1}."),
    ("population", "How many people live in {0}?", "About {2} million people live in {0}."),
    ("founding year", "In what year was {0} founded?", "{0} was founded in {2}."),
    ("symbol", "What is the chemical symbol of {0}?", "The element {0} has the symbol {1}."),
    ("atomic number", "Which atomic number does {0} have?", "The atomic number of {0} is {2}."),
    ("discoverer", "Who discovered {0}?", "{0} was discovered by {1} in {2}."),
    ("largest moon", "Which moon of {0} is the largest?", "The largest moon of the planet is {1}."),
    ("number of moons", "How many moons does {0} have?", "The planet {0} has {2} known moons."),
    ("length", "How long is {0} in kilometres?", "The river {0} is {2} kilometres long."),
    ("source", "Where does {0} rise?", "The source of {0} is near {1}."),
    ("mouth", "Where does {0} end?", "It flows into the sea at {1}, which is its mouth."),
    ("invention", "What did {0} invent?", "The inventor {0} is known for the {1}."),
    ("birth year", "When was {0} born?", "{0} was born in {2} and died in {2}."),
    ("birthplace", "Where was {0} born?", "The birthplace of {0} was {1}."),
    ("commander", "Who commanded the mission {0}?", "The commander of {0} was {1}."),
    ("launch year", "When was {0} launched?", "The mission {0} was launched by a rocket in {2}."),
    ("height", "How high is the mountain {0}?", "The mountain {0} is {2} metres high."),
    ("author", "Who wrote the book {0}?", "The author of {0} is {1}, who wrote it in {2}."),
)
_GENERAL = (
    "You are a helpful assistant. Think first, then give the answer.",
    "Use the calculator for this. You may call a tool and read its result.",
    "Search for the document that holds the answer, then quote the sentence.",
    "The user asks a question and the assistant answers it. The system message comes first.",
    "error: division by zero; error: unknown tool; error: invalid expression; error: not closed",
    "no result was found for this query. Please try again with other words.",
)


def corpus(seed: int = 0, lines: int = 20_000) -> Iterator[str]:
    rng = random.Random(seed)
    student = ArithmeticStudent()
    makers = (_fact, _fact, _fact, _calculation, _general, _sum)
    for _ in range(lines):
        make = rng.choice(makers)
        yield student.completion(rng, _expression(rng)) if make is _sum else make(rng)


def made_up_name(rng: random.Random) -> str:
    """One to three syllables that no dictionary has."""
    syllables = (
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        for _ in range(rng.choice((1, 2, 2, 3)))
    )
    return "".join(syllables).capitalize()


def _fact(rng: random.Random) -> str:
    attribute, question, statement = rng.choice(_FACTS)
    entity, value, number = made_up_name(rng), made_up_name(rng), rng.randint(1, 2000)
    return (
        f"user\n{question.format(entity)}\nassistant\n {attribute} of {entity}\ntool\n"
        f"[1] {entity}: {statement.format(entity, value, number)}\nassistant\n"
        f" {statement.format(entity, value, number)} {value}"
    )


def _expression(rng: random.Random):
    return random_expression(rng, terms=(2, 4), digits=1, held_out=False)


def _sum(rng: random.Random) -> str:
    return f"user\n{_expression(rng).question}\nassistant\n"


def _calculation(rng: random.Random) -> str:
    first, second = rng.randrange(10_000), rng.randrange(10_000)
    return rng.choice(
        (
            f"user\nWhat is {first} * {second}?\nassistant\n {first} * {second}\ntool\n {first}",
            f"user\nCalculate {first} + {second}.\nassistant\n {first} + {second}\ntool\n {second}",
            f"How much is {first} times {second}? The product is {first}. The sum is {second}.",
        )
    )


def _general(rng: random.Random) -> str:
    return f"system\n{rng.choice(_GENERAL)}"
