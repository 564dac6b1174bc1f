"""Tools as plain functions: what a model may call, and what its arguments must be."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from common.errors import UserError
from common.printable import complaint_about_text_in

ToolFunction = Callable[..., str | Awaitable[str]]
AnyFunction = TypeVar("AnyFunction", bound=ToolFunction)
SyncFunction = TypeVar("SyncFunction", bound=Callable[..., object])


@dataclass(frozen=True)
class Tool:
    """A function that a model may call by its name."""

    name: str
    function: ToolFunction
    schema: Mapping[str, Any]
    """JSON schema for the chat template of a model that was trained on them."""
    parameters: Mapping[str, inspect.Parameter]
    example: tuple[str, str] | None = None
    """The text of a call, and what comes back."""
    instant: bool = False
    """Whether it returns at once and depends on its arguments and its instance's state alone."""

    @property
    def main_parameter(self) -> str:
        """What the text between tags is for."""
        return next(iter(self.parameters))

    @property
    def takes_text(self) -> bool:
        """Whether its main argument is text, and not a number or a list of something."""
        return self.accepts(self.main_parameter, "")

    def accepts(self, parameter: str, value: Any) -> bool:
        """Whether a value is of the parameter's type; any is of one that there is not."""
        return _fits(value, get_type_hints(self.function).get(parameter, Any))

    @property
    def needs_one_argument(self) -> bool:
        """Whether text between tags is all that a call needs."""
        needed = [p for p in self.parameters.values() if p.default is inspect.Parameter.empty]
        return [p.name for p in needed] in ([], [self.main_parameter])

    def complaint(self, arguments: Mapping[str, Any]) -> str | None:
        """What is wrong with the arguments of a call, said to the model; None if nothing is."""
        for name in arguments:
            if name not in self.parameters:
                return f"{self.name} has no argument {name!r}; it has {', '.join(self.parameters)}"
        hints = get_type_hints(self.function)
        for name, parameter in self.parameters.items():
            if name not in arguments:
                if parameter.default is inspect.Parameter.empty:
                    return f"{self.name} needs the argument {name!r}"
            elif not _fits(arguments[name], hints[name]):
                return f"{self.name}: the argument {name!r} must be {_type_name(hints[name])}"
        return None


def instant(function: SyncFunction) -> SyncFunction:
    """Promise that a tool returns at once and depends on its arguments alone.

    A method of an environment may depend on the state of its instance, too. Such a tool runs in the
    order of the conversations, so that runs repeat exactly, and has no limit of time. The same
    holds for a reward function, in the order of the completions.
    """
    vars(function)["instant"] = True
    return function


def example(text: str, reply: str) -> Callable[[AnyFunction], AnyFunction]:
    """Show a model that is told of a tool in words how a call of it went."""

    def with_example(function: AnyFunction) -> AnyFunction:
        vars(function)["example"] = (text, reply)
        return function

    return with_example


def make_tool(function: ToolFunction, name: str | None = None) -> Tool:
    """A tool from a function with type hints and a docstring in Google's form.

    Models know it by the function's name unless told another. Raises `UserError` for a function
    that lacks either, that takes no argument, or that is described in what no tokenizer reads.
    """
    from transformers.utils.chat_template_utils import (
        DocstringParsingException,
        TypeHintParsingException,
        get_json_schema,
    )

    name = name or str(getattr(function, "__name__", function))
    try:
        schema = get_json_schema(function)
    except (DocstringParsingException, TypeHintParsingException) as error:
        raise UserError(f"tool {name}: {' '.join(str(error).split())}") from None
    parameters = inspect.signature(function).parameters
    if not parameters:
        raise UserError(f"tool {name}: takes no argument; give it one for the text of a call")
    hints = get_type_hints(function)
    for parameter in parameters:
        if not _is_supported(hints[parameter]):
            raise UserError(
                f"tool {name}: the argument {parameter!r} is {_type_name(hints[parameter])}; "
                "give it a type that JSON has"
            )
    schema["function"]["name"] = name
    shown, is_instant = getattr(function, "example", None), getattr(function, "instant", False)
    if complaint := complaint_about_text_in([schema, list(shown or ())]):
        raise UserError(f"tool {name}: its description {complaint}")
    return Tool(name, function, schema, parameters, shown, is_instant)


def make_toolbox(tools: Iterable[Tool]) -> dict[str, Tool]:
    """Tools by name. Raises `UserError` for a name that two of them have."""
    toolbox: dict[str, Tool] = {}
    for tool in tools:
        if tool.name in toolbox:
            raise UserError(f"tool {tool.name}: there are two of that name; rename one")
        toolbox[tool.name] = tool
    return toolbox


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value that JSON can hold is of a hint's type."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in parts
    if origin in (list, tuple):
        return isinstance(value, list) and all(_fits(item, parts[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, parts[1]) for item in value.values())
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, int | float if hint is float else hint)


def _is_supported(hint: Any) -> bool:
    """Whether `_fits` can tell."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return True
    if origin is tuple:
        return len(set(parts) - {...}) == 1 and _is_supported(parts[0])
    if origin in (list, dict, Union, UnionType):
        return all(map(_is_supported, parts))
    return hint in (str, int, float, bool, list, dict, NoneType, Any)


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)
