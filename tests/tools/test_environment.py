"""A class of the user's as an environment: which of its methods are tools, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import pytest

from common.errors import UserError
from common.tasks.task import Task
from common.tools.environment import EnvironmentFactory
from common.tools.toolbox import instant


class Board:
    """What games share."""

    def look(self, where: str = "here") -> str:
        """Look around.

        Args:
            where: At what.
        """
        return f"{where}: {self.height}"

    @cached_property
    def height(self) -> int:
        """No tool: it is not called."""
        return 8


class Game(dict, Board):
    """Has what a class can have, and two kinds of tools; what comes from dict is none of them."""

    size = 8

    class Piece:
        """No tool either."""

    def reset(self, **row: object) -> str | None:
        self.row = row
        return str(row["text"]) if "text" in row else None

    @instant
    def move(self, steps: int) -> str:
        """Move on.

        Args:
            steps: How far.
        """
        self.at = getattr(self, "at", 0) + steps
        return str(self.at)

    @staticmethod
    def rules(chapter: str) -> str:
        """Read the rules.

        Args:
            chapter: Which.
        """
        return f"rules of {chapter}"

    def _cheat(self):
        return self.row

    def get_reward(self) -> int:
        return self.at

    def close(self) -> None:
        self.at = -1


class Empty:
    """An environment needs no more than this."""

    def reset(self, **row: object) -> None:
        pass


def factory(name: str) -> EnvironmentFactory:
    return EnvironmentFactory(f"{__name__}:{name}")


def test_every_public_method_but_the_reserved_ones_is_a_tool_without_self():
    tools = {tool.name: tool for tool in factory("Game").tools}
    assert list(tools) == ["look", "move", "rules"]
    assert [tool.instant for tool in tools.values()] == [False, True, False]
    move = tools["move"].schema["function"]
    assert move["parameters"]["properties"] == {
        "steps": {"type": "integer", "description": "How far."}
    }
    assert move["description"] == "Move on."
    assert tools["move"].main_parameter == "steps"
    assert not tools["move"].takes_text
    assert tools["move"].complaint({"steps": "two"}) == "move: the argument 'steps' must be int"
    assert tools["look"].complaint({}) is None


def test_the_tools_of_an_instance_have_its_state_and_no_others():
    game = factory("Game")
    first, second = game.make(), game.make()
    assert first.tools["move"].function(steps=2) == "2"
    assert first.tools["move"].function(steps=3) == "5"
    assert second.tools["move"].function(steps=1) == "1"
    assert second.tools["rules"].function(chapter="one") == "rules of one"
    assert second.tools["look"].function() == "here: 8"
    assert (first.reward(), second.reward()) == (5.0, 1.0)


def test_a_class_without_reward_and_close_is_an_environment():
    empty = factory("Empty")
    assert empty.tools == []
    assert not empty.gives_reward
    environment = empty.make()
    assert environment.reset(Task(0, "?", "4")) == ""
    assert environment.reward() is None
    environment.close()


@dataclass
class Remembering:
    rows: list = field(default_factory=list)

    def reset(self, question: str, answer: str, cards: list[int], **row: object) -> str:
        REMEMBERED.append((question, answer, list(cards), row))
        cards.clear()
        return "half \ud83d"


REMEMBERED: list[tuple] = []


def test_reset_gets_the_row_and_may_do_with_it_what_it_likes():
    task = Task(0, "What now?", "4", {"cards": [1, 2], "held_out": True})
    environments = factory("Remembering")
    REMEMBERED.clear()
    assert environments.make().reset(task) == "half \N{REPLACEMENT CHARACTER}"
    environments.make().reset(task)
    assert REMEMBERED == [("What now?", "4", [1, 2], {"held_out": True})] * 2


def play(task: Task) -> str:
    return task.question


class WithoutReset:
    pass


class Undocumented(Empty):
    def guess(self, number: int) -> str:
        return str(number)


class Untyped(Empty):
    def guess(self, number):
        """Guess.

        Args:
            number: What.
        """
        return str(number)


class WithoutArgument(Empty):
    def wait(self) -> str:
        """Wait."""
        return ""


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("play", ":play: is not a class; name one with a method reset(**row)"),
        ("WithoutReset", ":WithoutReset: has no method reset(**row); add one"),
        ("Undocumented", ":Undocumented: tool guess: "),
        ("Untyped", ":Untyped: tool guess: "),
        ("WithoutArgument", ":WithoutArgument: tool wait: takes no argument"),
        ("Nothing", "has no function 'Nothing'"),
    ],
)
def test_a_class_that_is_no_environment_is_refused_by_name(name, complaint):
    with pytest.raises(UserError) as refused:
        factory(name)
    assert str(refused.value).startswith("--environment ")
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


class FailsToBegin(Empty):
    def __init__(self) -> None:
        raise ConnectionError("no route\nto host")


class FailsToReset:
    def reset(self, number: int, **row: object) -> None:
        raise ConnectionError("no route\nto host")


class ResetsToANumber:
    def reset(self, **row: object) -> int:
        return 3


class FailsToJudge(Empty):
    def get_reward(self) -> float:
        return 1 / 0


class GivesNothing(Empty):
    def get_reward(self) -> None:
        pass


class GivesNoNumber(Empty):
    def get_reward(self) -> float:
        return float("nan")


class FailsToClose(Empty):
    def close(self) -> None:
        raise ConnectionError("no route\nto host")


@pytest.mark.parametrize(
    ("name", "columns", "complaint"),
    [
        ("FailsToBegin", {}, "raised ConnectionError: no route to host"),
        ("FailsToReset", {"number": 3}, "raised ConnectionError: no route to host"),
        ("FailsToReset", {}, "missing 1 required positional argument: 'number'"),
        ("ResetsToANumber", {}, "reset returned int; it must return text or None"),
        ("FailsToJudge", {}, "raised ZeroDivisionError: division by zero"),
        ("GivesNothing", {}, "get_reward gave None; it must give a finite number"),
        ("GivesNoNumber", {}, "get_reward gave nan; it must give a finite number"),
        ("FailsToClose", {}, "raised ConnectionError: no route to host"),
    ],
)
def test_what_a_reserved_method_does_wrong_is_said_in_one_line(name, columns, complaint):
    with pytest.raises(UserError) as refused:  # noqa: PT012
        environment = factory(name).make()
        environment.reset(Task(0, "?", "4", columns))
        environment.reward()
        environment.close()
    assert f"--environment {__name__}:{name}: " in str(refused.value)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_abandoned_is_closed_and_its_failure_is_no_news():
    environment = factory("FailsToClose").make()
    environment.abandon()
    environment.close()
