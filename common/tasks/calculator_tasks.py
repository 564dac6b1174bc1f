"""Tasks that reward a calculator: sums and products of numbers of 2 to 4 digits.

`python -m common.tasks.calculator_tasks` writes `data/calculator_tasks.jsonl` anew.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from common.repository import DATA
from common.tasks.math_tasks import write_tasks
from common.tasks.task import Task, is_held_out

DATA_FILE = DATA / "calculator_tasks.jsonl"

_TRAIN_TASKS, _HELD_OUT_TASKS = 3600, 600
_WORDS = {"+": "plus", "*": "times"}


@dataclass(frozen=True)
class Calculation:
    """A sum of two to four numbers, or a product of two, asked for in signs or in words."""

    numbers: tuple[int, ...]
    sign: str
    in_words: bool

    def __str__(self) -> str:
        return f" {self.sign} ".join(map(str, self.numbers))

    @property
    def value(self) -> int:
        return sum(self.numbers) if self.sign == "+" else math.prod(self.numbers)

    @property
    def question(self) -> str:
        if self.in_words:
            return f"How much is {f' {_WORDS[self.sign]} '.join(map(str, self.numbers))}?"
        return f"What is {self}?"

    def as_task(self, task_id: int) -> Task:
        columns = {
            "num_terms": len(self.numbers),
            "num_digits": max(len(str(number)) for number in self.numbers),
        }
        return Task(task_id, self.question, str(self.value), columns)


def random_calculation(rng: random.Random, *, held_out: bool) -> Calculation:
    """A calculation from the asked side of the split."""
    while True:
        sign = rng.choice("+*")
        count = rng.randint(2, 4) if sign == "+" else 2
        numbers = tuple(_number(rng) for _ in range(count))
        calculation = Calculation(numbers, sign, rng.random() < 0.5)
        if is_held_out(calculation.question) == held_out:
            return calculation


def _number(rng: random.Random) -> int:
    digits = rng.randint(2, 4)
    return rng.randrange(10 ** (digits - 1), 10**digits)


def generate_calculator_tasks(seed: int) -> list[Task]:
    """The tasks of `data/calculator_tasks.jsonl`, shuffled, all distinct."""
    rng = random.Random(seed)
    calculations: dict[str, Calculation] = {}
    for count, held_out in ((_TRAIN_TASKS, False), (_HELD_OUT_TASKS, True)):
        goal = len(calculations) + count
        while len(calculations) < goal:
            calculation = random_calculation(rng, held_out=held_out)
            calculations.setdefault(calculation.question, calculation)
    ordered = list(calculations.values())
    rng.shuffle(ordered)
    return [calculation.as_task(number) for number, calculation in enumerate(ordered)]


if __name__ == "__main__":
    write_tasks(generate_calculator_tasks(seed=0), DATA_FILE)
