"""Search tasks: short documents about real things, and questions that one of them answers.

`python -m common.tasks.search_tasks` writes `data/search/` anew.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common.repository import DATA
from common.tasks.facts import Fact, facts
from common.tasks.task import Task

SEARCH_DATA = DATA / "search"
DOCUMENTS = SEARCH_DATA / "documents"
QUESTIONS = SEARCH_DATA / "questions.jsonl"

# Of the entities that are kept for evaluation, this share of statements has words that training
# never sees.
_NEW_STATEMENTS = 1 / 5
_NEW = 2


@dataclass(frozen=True)
class Statement:
    """A fact in the words of its document."""

    fact: Fact
    wording: int

    def __str__(self) -> str:
        template = self.fact.attribute.statements[self.wording]
        return template.format(e=self.fact.entity, v=self.fact.value)


def is_held_out_entity(entity: str) -> bool:
    """A fifth of all entities, chosen by hash: no question about one is trained on."""
    return zlib.crc32(entity.encode()) % 5 == 0


def document_name(entity: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", entity.lower()).strip("_") + ".md"


def document_text(kind: str, statements: Sequence[Statement]) -> str:
    """What a document says after its title."""
    entity = statements[0].fact.entity
    article = "an" if kind[0] in "aeiou" else "a"
    return " ".join([f"{entity} is {article} {kind}.", *map(str, statements)])


def worded(rng: random.Random, known: Sequence[Fact]) -> list[Statement]:
    """The statements of an entity's document, each in words of its own."""
    new = _NEW_STATEMENTS if is_held_out_entity(known[0].entity) else 0.0
    return [Statement(fact, _NEW if rng.random() < new else rng.randrange(2)) for fact in known]


def tasks_about(statements: Sequence[Statement], first_id: int) -> Iterator[Task]:
    """Every question about an entity; in new words only if it is held out."""
    entity = statements[0].fact.entity
    held_out = is_held_out_entity(entity)
    for statement in statements:
        for wording in range(3 if held_out else 2):
            fact = statement.fact
            columns = {
                "document": document_name(entity),
                "attribute": fact.attribute.name,
                "held_out": held_out,
                "new_wording": wording == _NEW or statement.wording == _NEW,
            }
            question = fact.attribute.questions[wording].format(e=entity)
            yield Task(first_id, question, fact.value, columns)
            first_id += 1


def generate(seed: int) -> tuple[dict[str, str], list[Task]]:
    """Documents by file name, and the questions."""
    rng = random.Random(seed)
    documents: dict[str, str] = {}
    tasks: list[Task] = []
    for known in facts():
        statements = worded(rng, known)
        text = document_text(known[0].kind, statements)
        documents[document_name(known[0].entity)] = f"# {known[0].entity}\n\n{text}\n"
        tasks += tasks_about(statements, len(tasks))
    rng.shuffle(tasks)
    return documents, tasks


def write(documents: dict[str, str], tasks: Sequence[Task]) -> None:
    shutil.rmtree(DOCUMENTS, ignore_errors=True)
    DOCUMENTS.mkdir(parents=True)
    for name, text in documents.items():
        (DOCUMENTS / name).write_text(text, encoding="utf-8")
    rows = ({"question": task.question, "answer": task.answer, **task.columns} for task in tasks)
    QUESTIONS.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    write(*generate(seed=0))
