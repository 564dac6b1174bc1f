"""The student behind `--model-name tiny-search`: it can search and read, but often does not.

It learns from worlds of made-up things alone, so that what it answers about a real one it must have
read. Some conversations search well, some search for the wrong thing, some answer from the head,
some in a whole sentence where a word is asked for.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from common.models.tiny.corpus import made_up_name
from common.models.tiny.recipe import Conversation, conversations
from common.tasks.facts import Attribute, Fact, facts, kinds
from common.tasks.search_tasks import Statement, document_text
from common.tools.passages import Passage

# Parts of words as English has them, which syllables alone do not make.
_PARTS = (
    *("age", "all", "an", "and", "ant", "any", "as", "at", "ay", "burg", "calcul", "com", "con"),
    *(
        "elle",
        "en",
        "ent",
        "er",
        "ese",
        "ess",
        "ia",
        "ich",
        "igh",
        "ill",
        "in",
        "ine",
        "ing",
        "ion",
    ),
    *("is", "ish", "ium", "land", "lar", "ly", "mand", "ment", "mount", "now", "ock", "on", "oon"),
    *("or", "orn", "ren", "rocket", "ship", "son", "th", "the", "tin", "ton", "uch", "us", "ver"),
)
_LETTERS = f"{string.ascii_lowercase}{'aeinorst' * 4}"
_OTHER_ATTRIBUTES = ("size", "age", "owner", "colour", "number", "friend", "home", "origin")

_STATEMENTS = (
    "The {a} of {e} is {v}.",
    "The {a} that belongs to {e} is {v}.",
    "The {a} on record for {e} was the {v}.",
    "The {a} in {e} is called {v}.",
    "{e} has {v} for a {a}.",
    "{e} got the {a} {v}.",
    "{v} is the {a} of {e}.",
    "The {v} stands for {e} as its {a}.",
)
_QUESTIONS = (
    "What is the {a} of {e}?",
    "Which {a} has {e}?",
    "Tell me the {a} of {e}.",
    "For {e}, what is the {a}?",
    "{e}: what is its {a}?",
    "By what {a} is {e} known?",
    "Say which is the {a} that belongs to {e}.",
)

_EASY_LESSONS = 10_000


@dataclass(frozen=True)
class SearchStudent:
    """Probabilities of what is taught. By default all is well; see `UNRELIABLE`."""

    searches: float = 1.0
    searches_for_the_entity: float = 1.0
    searches_again: float = 1.0
    """Where the first search was for the wrong thing."""
    quotes: float = 1.0
    answers_in_a_word: float = 1.0
    copies: float = 0.0
    """Conversations that only repeat what was said, from which copying is learned."""
    most_facts: int = 4
    questions: int = 1
    """Asked in a row about the same passages."""

    def conversation(self, rng: random.Random) -> Conversation:
        if rng.random() < self.copies:
            return _copying(rng)
        kind = rng.choice(list(kinds()))
        asked = self._document(rng, kind)
        statement = rng.choice(asked)
        messages = [{"role": "user", "content": _question(rng, statement.fact)}]
        if rng.random() >= self.searches:
            guess = _made_up_value(rng, statement.fact.attribute)
            return [*messages, {"role": "assistant", "content": f"<answer> {guess}</answer>"}]
        attribute = statement.fact.attribute.name
        shown: list[list[Statement]] = []
        if rng.random() >= self.searches_for_the_entity:
            shown = [self._document(rng, kind) for _ in range(2)]
            messages += _search(rng, attribute, shown)
        if not shown or rng.random() < self.searches_again:
            other = kind if rng.random() < 0.9 else rng.choice(list(kinds()))
            shown = [asked, self._document(rng, other)]
            messages += _search(rng, f"{attribute} of {statement.fact.entity}", shown)
        messages.append({"role": "assistant", "content": self._answer(rng, statement, shown)})
        for _ in range(self.questions - 1):
            again = rng.choice(rng.choice(shown))
            messages += [
                {"role": "user", "content": _question(rng, again.fact)},
                {"role": "assistant", "content": self._answer(rng, again, shown)},
            ]
        return messages

    def _document(self, rng: random.Random, kind: str) -> list[Statement]:
        """The statements of a document about a thing that does not exist."""
        entity = _entity(rng)
        attributes = [
            _reworded(rng, known) if rng.random() < 0.4 else known for known in kinds()[kind]
        ]
        if rng.random() < 0.5:
            attributes += [_other_attribute(rng) for _ in range(rng.randint(1, 2))]
        rng.shuffle(attributes)
        return [
            Statement(
                Fact(entity, kind, attribute, _made_up_value(rng, attribute)), rng.randrange(2)
            )
            for attribute in attributes[: self.most_facts]
        ]

    def _answer(
        self, rng: random.Random, statement: Statement, shown: list[list[Statement]]
    ) -> str:
        """From what is shown: the statement asked for, or else one that is nearly that."""
        read = [one for document in shown for one in document]
        if statement not in read:
            same = [one for one in read if one.fact.attribute.name == statement.fact.attribute.name]
            statement = rng.choice(same or read)
        value = statement.fact.value
        thought = f"<think> {statement}</think>"
        if rng.random() >= self.quotes:
            thought, value = "", rng.choice(read).fact.value
        if rng.random() >= self.answers_in_a_word:
            value = str(statement)
        return f"{thought}<answer> {value}</answer>"


UNRELIABLE = SearchStudent(
    searches=0.45,
    searches_for_the_entity=0.75,
    searches_again=0.3,
    quotes=0.8,
    answers_in_a_word=0.85,
)


def lessons(rng: random.Random) -> Iterator[Conversation]:
    """All is well in these: copying and few facts first, then whole passages."""
    for number in range(_EASY_LESSONS):
        facts = 1 + 4 * number // _EASY_LESSONS
        yield SearchStudent(copies=0.3, most_facts=facts, questions=3).conversation(rng)
    student = SearchStudent(copies=0.05, questions=3, searches_for_the_entity=0.95)
    yield from conversations(student, rng)


def _copying(rng: random.Random) -> Conversation:
    words = " ".join(_name(rng) for _ in range(rng.randint(2, 8)))
    return [{"role": "user", "content": words}, {"role": "assistant", "content": f" {words}"}]


def _search(rng: random.Random, query: str, documents: list[list[Statement]]) -> Conversation:
    """The call, and what the tool shows: passages about two things."""
    ranked = documents if rng.random() < 0.75 else documents[::-1]
    passages = [
        Passage(rng.randint(1, 999), "", one[0].fact.entity, document_text(one[0].fact.kind, one))
        for one in ranked
    ]
    return [
        {"role": "assistant", "content": f"<tool:search> {query}</tool>"},
        {"role": "tool", "content": " ".join(map(str, passages))},
    ]


@cache
def _real() -> frozenset[str]:
    """The names of things of which the bundled corpus knows something."""
    return frozenset(known[0].entity for known in facts())


def _entity(rng: random.Random) -> str:
    """A name that nothing of the bundled corpus has."""
    while (name := _name(rng)) in _real():
        pass
    if rng.random() < 0.25:
        return f"{name}{rng.choice('     -')}{_name(rng)}"
    return f"{name} {rng.randint(1, 20)}" if rng.random() < 0.1 else name


def _other_attribute(rng: random.Random) -> Attribute:
    """A property that no real document has, so that more is learned than the names of a few."""
    name = rng.choice(_OTHER_ATTRIBUTES) if rng.random() < 0.3 else _name(rng).lower()
    value = rng.choice(("name", "word", "year", "number"))
    return _reworded(rng, Attribute(name, value, ("", "", ""), ("", "", "")))


def _reworded(rng: random.Random, attribute: Attribute) -> Attribute:
    """In the words of any property, or of none: a question may hold words that nobody knows."""
    statements = rng.sample(_STATEMENTS, 2)
    questions: list[str] = rng.sample(_QUESTIONS, 2)
    if rng.random() < 0.4:
        parts = rng.sample(("{a}", "{e}"), 2)
        between = (_unknown_words(rng), *(f" {part}{_unknown_words(rng)}" for part in parts))
        words = "".join(between).lstrip()
        questions[0] = words[0].upper() + words[1:] + rng.choice("?.")
    named = [text.replace("{a}", attribute.name) for text in (*statements, "", *questions, "")]
    return replace(
        attribute,
        statements=(named[0], named[1], named[2]),
        questions=(named[3], named[4], named[5]),
    )


def _unknown_words(rng: random.Random) -> str:
    return "".join(f" {_name(rng).lower()}" for _ in range(rng.randint(0, 2)))


def _made_up_value(rng: random.Random, attribute: Attribute) -> str:
    if attribute.value == "year":
        return str(rng.randint(1100, 2099))
    if attribute.value == "number":
        return str(rng.randint(1, 10 ** rng.randint(1, 4)))
    if attribute.name == "symbol":
        return _name(rng)[: rng.randint(1, 2)]
    if attribute.value == "name" and rng.random() < 0.08:
        return "".join(rng.choices(string.ascii_uppercase, k=rng.randint(2, 5)))
    value = _name(rng)
    if rng.random() < 0.25:
        value = f"{value} {_name(rng)}"
    return value.lower() if attribute.value == "word" else value


def _name(rng: random.Random) -> str:
    """Of syllables, of parts of words, of any letters: whatever a real name may be spelled like."""
    if rng.random() < 0.4:
        return made_up_name(rng)
    parts = (
        rng.choice(_PARTS)
        if rng.random() < 0.4
        else "".join(rng.choices(_LETTERS, k=rng.randint(1, 3)))
        for _ in range(rng.randint(1, 4))
    )
    return "".join(parts).capitalize()


def _question(rng: random.Random, fact: Fact) -> str:
    return rng.choice(fact.attribute.questions[:2]).format(e=fact.entity)
