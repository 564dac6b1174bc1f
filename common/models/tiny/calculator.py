"""The student behind `--model-name tiny-calculator`: it can use a calculator, but often does not.

Some conversations call the tool well, some misuse it or spell the call wrong, some answer from the
head, where a number of that size is never right. What GRPO can find is to call, to call well, and
to answer with what the tool says.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from common.models.tiny.recipe import Conversation
from common.tasks.calculator_tasks import Calculation, random_calculation
from common.tools.calculator import calculate
from common.tools.calls import parse_calls
from common.tools.toolbox import make_tool

_TOOLBOX = {"calc": calculate}


@dataclass(frozen=True)
class CalculatorStudent:
    """Probabilities of the behaviours that are taught; what is left over answers from the head."""

    calls: float = 0.32
    misuses: float = 0.14
    malforms: float = 0.20
    retries_after_an_error: float = 0.6
    answers_in_tags: float = 0.85

    def conversation(self, rng: random.Random) -> Conversation:
        """The question and all that follows, with the replies that the calculator really gives."""
        toolbox = {name: make_tool(function, name) for name, function in _TOOLBOX.items()}
        calculation = random_calculation(rng, held_out=False)
        messages = [{"role": "user", "content": calculation.question}]
        turn = self._first_turn(rng, calculation)
        while calls := parse_calls(turn, "tags", toolbox):
            call = calls[0]
            reply = (
                str(toolbox[call.name].function(**call.arguments))
                if call.status == "ok"
                else f"error: {call.complaint}"
            )
            messages += [
                {"role": "assistant", "content": turn},
                {"role": "tool", "content": reply},
            ]
            turn = self._next_turn(rng, calculation, reply)
        return [*messages, {"role": "assistant", "content": turn}]

    def _first_turn(self, rng: random.Random, calculation: Calculation) -> str:
        behaviour = rng.random()
        if behaviour < self.calls:
            return _call(str(calculation))
        if behaviour < self.calls + self.misuses:
            return _call(_misread(rng, calculation))
        if behaviour < self.calls + self.misuses + self.malforms:
            return _malformed(rng, calculation)
        return _guess(rng, calculation)

    def _next_turn(self, rng: random.Random, calculation: Calculation, reply: str) -> str:
        if reply.startswith("error:"):
            retries = rng.random() < self.retries_after_an_error
            return _call(str(calculation)) if retries else _guess(rng, calculation)
        if rng.random() < self.answers_in_tags:
            return f"<answer> {reply}</answer>"
        return f"The result is {reply}."


def _call(expression: str) -> str:
    return f"<tool:calc> {expression}</tool>"


def _misread(rng: random.Random, calculation: Calculation) -> str:
    """The expression with one digit or the sign taken for another."""
    text = str(calculation)
    if rng.random() < 0.3:
        return text.replace(*(("*", "+") if calculation.sign == "*" else ("+", "*")))
    place = rng.choice([index for index, character in enumerate(text) if character.isdigit()])
    return text[:place] + rng.choice("123456789") + text[place + 1 :]


def _malformed(rng: random.Random, calculation: Calculation) -> str:
    """A call without its end, of a tool that there is not, or in words that no tool can read."""
    words = str(calculation).replace("*", "times").replace("+", "plus")
    return rng.choice(
        (
            f"<tool:calc> {calculation}",
            f"<tool:search> {calculation}</tool>",
            _call(words),
        )
    )


def _guess(rng: random.Random, calculation: Calculation) -> str:
    """A number of about the right length."""
    length = len(str(calculation.value))
    return f"<answer> {rng.randrange(10 ** (length - 1), 10**length)}</answer>"
