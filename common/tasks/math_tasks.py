"""Arithmetic tasks: sums and differences, made without end from a seed.

`python -m common.tasks.math_tasks` writes `data/math_tasks.jsonl` anew.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.repository import DATA
from common.tasks.task import Task, is_held_out

DATA_FILE = DATA / "math_tasks.jsonl"

# (rows, rows held out, terms, digits): most are within reach of the bundled model (at most 4 terms
# of 1 digit); the rest is for larger models and longer answers.
_FILE_PARTS = (
    (5000, 600, (2, 4), 1),
    (900, 100, (5, 8), 1),
    (900, 100, (2, 5), 2),
    (900, 100, (2, 5), 3),
)


@dataclass(frozen=True)
class Expression:
    """A left-to-right chain of additions and subtractions."""

    terms: tuple[int, ...]
    signs: tuple[str, ...]

    def __str__(self) -> str:
        return str(self.terms[0]) + "".join(
            f"{sign}{term}" for sign, term in zip(self.signs, self.terms[1:], strict=True)
        )

    @property
    def partial_results(self) -> list[int]:
        """The value after each term; the last one is the value of the expression."""
        values = [self.terms[0]]
        for sign, term in zip(self.signs, self.terms[1:], strict=True):
            values.append(values[-1] + term if sign == "+" else values[-1] - term)
        return values

    @property
    def question(self) -> str:
        return f"What is {self}?"

    @property
    def num_digits(self) -> int:
        return max(len(str(term)) for term in self.terms)

    def as_task(self, task_id: int) -> Task:
        columns = {"num_terms": len(self.terms), "num_digits": self.num_digits}
        return Task(task_id, self.question, str(self.partial_results[-1]), columns)


def random_expression(
    rng: random.Random, *, terms: tuple[int, int], digits: int, held_out: bool
) -> Expression:
    """An expression of that many terms (inclusive range), from the asked side of the split."""
    while True:
        count = rng.randint(*terms)
        numbers = tuple(rng.randrange(10**digits) for _ in range(count))
        signs = tuple(rng.choice("+-") for _ in range(count - 1))
        expression = Expression(numbers, signs)
        if expression.num_digits == digits and is_held_out(expression.question) == held_out:
            return expression


def distinct_expressions(
    rng: random.Random, *, terms: tuple[int, int], digits: int, held_out: bool
) -> Iterator[Expression]:
    """Like `random_expression`, endlessly, none twice."""
    seen: set[str] = set()
    while True:
        expression = random_expression(rng, terms=terms, digits=digits, held_out=held_out)
        if expression.question not in seen:
            seen.add(expression.question)
            yield expression


def generate_math_tasks(seed: int) -> list[Task]:
    """The tasks of `data/math_tasks.jsonl`, shuffled, all distinct."""
    rng = random.Random(seed)
    expressions: list[Expression] = []
    for train_count, held_out_count, terms, digits in _FILE_PARTS:
        for count, held_out in ((train_count, False), (held_out_count, True)):
            source = distinct_expressions(rng, terms=terms, digits=digits, held_out=held_out)
            expressions.extend(next(source) for _ in range(count))
    rng.shuffle(expressions)
    return [expression.as_task(number) for number, expression in enumerate(expressions)]


def write_tasks(tasks: list[Task], path: Path) -> None:
    rows = ({"question": task.question, "answer": task.answer, **task.columns} for task in tasks)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    write_tasks(generate_math_tasks(seed=0), DATA_FILE)
