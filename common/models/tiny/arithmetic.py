"""The student behind `--model-name tiny`: it can do sums, but mostly does not bother.

A third of the time it reasons step by step and answers in tags, a third of the time it blurts out a
tagged guess, a third of the time it forgets the tags. What GRPO can find is therefore behaviour
(use the tags; think first), and not arithmetic that is missing from the weights.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from common.models.tiny.recipe import Conversation
from common.tasks.math_tasks import Expression, random_expression


@dataclass(frozen=True)
class ArithmeticStudent:
    """Probabilities of the behaviours that are taught; what is left over forgets the tags."""

    thinks: float = 0.35
    guesses: float = 0.35
    guess_is_right: float = 0.15

    def conversation(self, rng: random.Random) -> Conversation:
        """A question, and what the assistant is taught to say."""
        expression = random_expression(rng, terms=(2, 4), digits=1, held_out=False)
        return [
            {"role": "user", "content": expression.question},
            {"role": "assistant", "content": self.completion(rng, expression)},
        ]

    def completion(self, rng: random.Random, expression: Expression) -> str:
        behaviour = rng.random()
        if behaviour < self.thinks:
            return self._think(expression)
        if behaviour < self.thinks + self.guesses:
            return f"<answer> {self._guess(rng, expression)}</answer>"
        return self._forget_tags(rng, expression)

    def _think(self, expression: Expression) -> str:
        values = expression.partial_results
        steps = " ".join(
            f"{before}{sign}{term}={after}"
            for before, sign, term, after in zip(
                values, expression.signs, expression.terms[1:], values[1:], strict=False
            )
        )
        return f"<think> {steps}</think><answer> {values[-1]}</answer>"

    def _guess(self, rng: random.Random, expression: Expression) -> int:
        value = expression.partial_results[-1]
        if rng.random() < self.guess_is_right:
            return value
        return value + rng.choice((-5, -4, -3, -2, -1, 1, 2, 3, 4, 5))

    def _forget_tags(self, rng: random.Random, expression: Expression) -> str:
        value = expression.partial_results[-1]
        return rng.choice(
            (f"The result is {value}.", f"{value}", f"I think it is {value + rng.randint(-3, 3)}.")
        )
