"""Tools with state: a class of the user's, with an instance for each conversation.

The convention is that of TRL's environments: `reset(**row)` is told the task, `get_reward()` and
`close()` may be there, and every other public method is a tool.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from common.errors import UserError
from common.own_code import code_of_the_user, import_function
from common.plain_number import finite_number
from common.printable import storable
from common.tasks.task import Task
from common.tools.toolbox import Tool, make_tool

RESERVED = frozenset({"reset", "get_reward", "close"})

_FLAG = "--environment"


class EnvironmentFactory:
    """The class that `--environment` names."""

    def __init__(self, path: str) -> None:
        """Raises `UserError` for what has no `reset`, and for a public method that is no tool."""
        self._path = path
        self._class = import_function(_FLAG, path)
        if not inspect.isclass(self._class):
            raise UserError(f"{_FLAG} {path}: is not a class; name one with a method reset(**row)")
        if not _is_method(getattr(self._class, "reset", None)):
            raise UserError(f"{_FLAG} {path}: has no method reset(**row); add one, with the task")
        self.tools = [
            self._as_tool(name)
            for name, _ in inspect.getmembers(self._class, _is_method)
            if not name.startswith("_") and name not in RESERVED
        ]

    def _as_tool(self, name: str) -> Tool:
        """What the policy is told of a method; without an instance it cannot be run yet."""
        method = inspect.getattr_static(self._class, name)
        try:
            return make_tool(method.__get__(object(), self._class), name)
        except UserError as error:
            raise UserError(
                f"{_FLAG} {self._path}: {error} (a method that is no tool has a name with _)"
            ) from None

    @property
    def gives_reward(self) -> bool:
        return hasattr(self._class, "get_reward")

    def make(self) -> Environment:
        """An instance for one conversation. Raises `UserError` if the class does."""
        with code_of_the_user(_FLAG, self._path):
            instance = self._class()
        return Environment(self._path, instance, self.tools, self.gives_reward)


def _is_method(member: object) -> bool:
    """Whether it was written with `def`: what a class has from `dict` and its like is no tool."""
    return inspect.isfunction(member) or inspect.ismethod(member)


class Environment:
    """The instance of one conversation. Raises `UserError` where a reserved method raises."""

    def __init__(self, path: str, instance: Any, tools: Sequence[Tool], gives_reward: bool) -> None:
        self._path = path
        self._instance = instance
        self._gives_reward = gives_reward
        self._closed = False
        self.tools: Mapping[str, Tool] = {
            tool.name: replace(tool, function=getattr(instance, tool.name)) for tool in tools
        }

    def reset(self, task: Task) -> str:
        """Tell it the task; what it says to open the conversation, or nothing.

        It gets copies of the columns, which all conversations about the task share.
        """
        row = {"question": task.question, "answer": task.answer, **copy.deepcopy({**task.columns})}
        with code_of_the_user(_FLAG, self._path):
            text = self._instance.reset(**row)
        if not isinstance(text, str | None):
            raise UserError(
                f"{_FLAG} {self._path}: reset returned {type(text).__name__}; "
                "it must return text or None"
            )
        return storable(text or "")

    def reward(self) -> float | None:
        """What it makes of the conversation; None if its class gives no reward."""
        if not self._gives_reward:
            return None
        with code_of_the_user(_FLAG, self._path):
            value = self._instance.get_reward()
        number = finite_number(value)
        if number is None:
            raise UserError(
                f"{_FLAG} {self._path}: get_reward gave {value!r}; it must give a finite number"
            )
        return number

    def close(self) -> None:
        """Nothing is asked of it any more. Does nothing the second time."""
        if self._closed or not hasattr(self._instance, "close"):
            return
        self._closed = True
        with code_of_the_user(_FLAG, self._path):
            self._instance.close()

    def abandon(self) -> None:
        """`close` where a tool has failed or may still be at work: what is raised is no news."""
        with suppress(UserError):
            self.close()
