"""The tool calls in what a model wrote. Hostile input: it is parsed, bounded, and never trusted."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from common.printable import all_storable
from common.tools.toolbox import Tool

Status = Literal["ok", "unclosed", "invalid_json", "unknown_tool", "bad_arguments"]
Outcome = Literal["answered", "unanswered", "timeout", "error"]
Format = Literal["tags", "hermes", "xml"]

# A call beyond this is refused unread.
MAX_CALL_CHARACTERS = 4000
# Of an integer; larger ones are not what anybody means.
MAX_DIGITS = 30
# Of lists and objects in one another; deeper ones could not be copied or written to a file.
MAX_DEPTH = 30

_TOOL_CALL = re.compile(r"<tool_call>")
_OPENING = {"tags": re.compile(r"<tool:(\w{1,64})>"), "hermes": _TOOL_CALL, "xml": _TOOL_CALL}
_CLOSING = {"tags": "</tool>", "hermes": "</tool_call>", "xml": "</tool_call>"}
_NO_TOOL_CALL = "there is no <tool_call> before </tool_call>"
_NO_OPENING = {
    "tags": "there is no <tool:name> before </tool>",
    "hermes": _NO_TOOL_CALL,
    "xml": _NO_TOOL_CALL,
}
_FUNCTION = re.compile(r"\s*<function=([^<>\n]{1,64})>")
_PARAMETER = re.compile(r"\s*<parameter=([^<>\n]{1,64})>")


@dataclass(frozen=True)
class Call:
    """One attempt to call a tool, and what came of reading it."""

    status: Status
    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    complaint: str = ""
    """For the model, if the status is not `ok`."""

    def record(self, outcome: Outcome, reply: str, seconds: float = 0.0) -> CallRecord:
        """What is kept of the attempt, now that it is known what became of it."""
        return CallRecord(self.name, self.status, outcome, reply, seconds, self.arguments)


@dataclass(frozen=True)
class CallRecord:
    """One attempt to call a tool."""

    tool: str
    """Empty where the attempt could not be read so far."""
    status: Status
    outcome: Outcome
    """`unanswered`: the conversation ended before the call was run; `error`: the tool raised."""
    reply: str
    seconds: float = 0.0
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """As they were read, of values that JSON has; empty where they could not be."""

    @property
    def succeeded(self) -> bool:
        """It was run, and the tool had no complaint."""
        ran = self.status == "ok" and self.outcome == "answered"
        return ran and not self.reply.startswith("error:")


def closing_tag(call_format: Format) -> str:
    """Where a turn that calls a tool ends."""
    return _CLOSING[call_format]


def opens_call(text: str, call_format: Format) -> bool:
    """Whether there is an opening tag, however it goes on."""
    return _OPENING[call_format].search(text) is not None


def parse_calls(text: str, call_format: Format, toolbox: Mapping[str, Tool]) -> list[Call]:
    """Every call in a turn that the model has written, in order, whatever their state."""
    calls: list[Call] = []
    position = 0
    while opening := _OPENING[call_format].search(text, position):
        end = text.find(_CLOSING[call_format], opening.end())
        if end < 0:
            complaint = f"the call has no {_CLOSING[call_format]}"
            calls.append(Call("unclosed", complaint=complaint))
            break
        body = text[opening.end() : end]
        if call_format == "tags":
            calls.append(_from_tag(opening[1], body, toolbox))
        elif call_format == "hermes":
            calls.append(_from_json(body, toolbox))
        else:
            calls.append(_from_xml(body, toolbox))
        position = end + len(_CLOSING[call_format])
    if not calls and _CLOSING[call_format] in text:
        calls.append(Call("unknown_tool", complaint=_NO_OPENING[call_format]))
    return calls


def _from_tag(name: str, body: str, toolbox: Mapping[str, Tool]) -> Call:
    if name not in toolbox:
        return _unknown(name, toolbox)
    if len(body) > MAX_CALL_CHARACTERS:
        return Call("bad_arguments", name, complaint=_TOO_LONG)
    tool, text = toolbox[name], body.strip()
    return _checked(tool, {tool.main_parameter: text if tool.takes_text else _value(text)})


def _from_json(body: str, toolbox: Mapping[str, Tool]) -> Call:
    if len(body) > MAX_CALL_CHARACTERS:
        return Call("invalid_json", complaint=_TOO_LONG)
    try:
        parsed = _parsed(body)
    except (ValueError, RecursionError):
        return Call("invalid_json", complaint="the call is not valid JSON")
    if not isinstance(parsed, dict) or not isinstance(parsed.get("name"), str):
        return Call("invalid_json", complaint='a call is an object with "name" and "arguments"')
    name, arguments = parsed["name"], parsed.get("arguments", {})
    if name not in toolbox:
        return _unknown(name[:64], toolbox)
    if not isinstance(arguments, dict):
        return Call("bad_arguments", name, complaint='"arguments" must be an object')
    return _checked(toolbox[name], arguments)


def _from_xml(body: str, toolbox: Mapping[str, Tool]) -> Call:
    """`<function=name><parameter=x>value</parameter></function>`, as Qwen3-Coder writes it."""
    if len(body) > MAX_CALL_CHARACTERS:
        return Call("bad_arguments", complaint=_TOO_LONG)
    function = _FUNCTION.match(body)
    if not function:
        return Call("unknown_tool", complaint="a call begins with <function=name>")
    name = function[1].strip()
    if name not in toolbox:
        return _unknown(name, toolbox)
    inside, closed, rest = body[function.end() :].rpartition("</function>")
    if not closed:
        return Call("unclosed", name, complaint="the call has no </function>")
    arguments: dict[str, Any] = {}
    position = 0
    while parameter := _PARAMETER.match(inside, position):
        end = inside.find("</parameter>", parameter.end())
        key = parameter[1].strip()
        if end < 0:
            return Call("unclosed", name, complaint=f"the argument {key!r} has no </parameter>")
        if key in arguments:
            return Call("bad_arguments", name, complaint=f"the argument {key!r} is there twice")
        text = inside[parameter.end() : end].removeprefix("\n").removesuffix("\n")
        arguments[key] = _as_declared(toolbox[name], key, text)
        position = end + len("</parameter>")
    if (inside[position:] + rest).strip():
        complaint = "a call holds <parameter=name>value</parameter> and nothing else"
        return Call("bad_arguments", name, complaint=complaint)
    return _checked(toolbox[name], arguments)


def _as_declared(tool: Tool, parameter: str, text: str) -> Any:
    """The value that text stands for, where its parameter wants no text."""
    plain = text.strip()
    if plain in ("null", "None") and tool.accepts(parameter, None):
        return None
    if tool.accepts(parameter, text):
        return text
    # As Python spells them, which models do, too.
    return _value({"True": "true", "False": "false"}.get(plain, plain))


def _checked(tool: Tool, arguments: Mapping[str, Any]) -> Call:
    if complaint := tool.complaint(arguments):
        return Call("bad_arguments", tool.name, arguments, complaint)
    return Call("ok", tool.name, arguments)


def _unknown(name: str, toolbox: Mapping[str, Tool]) -> Call:
    complaint = f"there is no tool {name!r}; there are: {', '.join(toolbox)}"
    return Call("unknown_tool", name, complaint=complaint)


def _value(text: str) -> Any:
    """A number or a list, where text is not asked for; what is neither stays text."""
    try:
        return _parsed(text)
    except (ValueError, RecursionError):
        return text


def _parsed(text: str) -> Any:
    parsed = json.loads(text, parse_constant=_refused, parse_float=_finite, parse_int=_short)
    return _refused("too deep") if _is_deeper(parsed, MAX_DEPTH) else all_storable(parsed)


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, list | dict):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(part, levels - 1) for part in parts)


def _refused(name: str) -> Any:
    raise ValueError(name)


def _finite(digits: str) -> float:
    return value if math.isfinite(value := float(digits)) else _refused(digits)


def _short(digits: str) -> int:
    return int(digits) if len(digits) <= MAX_DIGITS else int(_refused(digits))


_TOO_LONG = f"a call may have at most {MAX_CALL_CHARACTERS} characters"
