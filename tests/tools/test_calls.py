"""Calls are read from what a model wrote, whatever it wrote."""

import json
from dataclasses import asdict
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.tools.calculator import calculate
from common.tools.calls import MAX_CALL_CHARACTERS, MAX_DEPTH, Call, CallRecord, parse_calls
from common.tools.toolbox import example, make_tool, make_toolbox


def search(query: str, limit: int = 3, exact: bool = False) -> str:
    """Look something up.

    Args:
        query: What to look for.
        limit: How many results.
        exact: Whether every word must occur.
    """
    return f"{query} {limit} {exact}"


async def wait(seconds: float, names: list[str]) -> str:
    """Wait a while.

    Args:
        seconds: How long.
        names: For whom.
    """
    return f"{seconds} {names}"


def half(number: float) -> str:
    """Half of it.

    Args:
        number: Any.
    """
    return str(number / 2)


TOOLBOX = make_toolbox(map(make_tool, (calculate, search, wait, half)))
NO_NAMES = "wait needs the argument 'names'"
NO_FLOAT = "half: the argument 'number' must be float"
NO_OPENING = "there is no <tool:name> before </tool>"


def hermes(**call) -> str:
    return f"<tool_call>{json.dumps(call)}</tool_call>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<tool:calculate>2 + 2</tool>", [Call("ok", "calculate", {"expression": "2 + 2"})]),
        ("so <tool:search>  the moon\n</tool>", [Call("ok", "search", {"query": "the moon"})]),
        (
            "<tool:calculate>1</tool> and <tool:search>x</tool>",
            [Call("ok", "calculate", {"expression": "1"}), Call("ok", "search", {"query": "x"})],
        ),
        ("no call at all", []),
        ("<tool:wait>1.5</tool>", [Call("bad_arguments", "wait", {"seconds": 1.5}, NO_NAMES)]),
        ("<tool:half>3</tool>", [Call("ok", "half", {"number": 3})]),
        ("<tool:half>much</tool>", [Call("bad_arguments", "half", {"number": "much"}, NO_FLOAT)]),
        ("<tool:half>1e999</tool>", [Call("bad_arguments", "half", {"number": "1e999"}, NO_FLOAT)]),
        ("<tool>1</tool>", [Call("unknown_tool", complaint=NO_OPENING)]),
        ("<tool:>1</tool>", [Call("unknown_tool", complaint=NO_OPENING)]),
    ],
)
def test_calls_between_tags(text, expected):
    assert parse_calls(text, "tags", TOOLBOX) == expected


@pytest.mark.parametrize(
    ("text", "status", "complaint"),
    [
        ("<tool:calculate>2 + 2", "unclosed", "no </tool>"),
        (
            "<tool:calc>2</tool>",
            "unknown_tool",
            "there are: calculate, search, wait",
        ),
        ("<tool:wait>3</tool>", "bad_arguments", "needs the argument 'names'"),
        (f"<tool:search>{'x' * 5000}</tool>", "bad_arguments", "at most 4000 characters"),
    ],
)
def test_what_is_wrong_between_tags_is_said(text, status, complaint):
    (call,) = parse_calls(text, "tags", TOOLBOX)
    assert call.status == status
    assert complaint in call.complaint


@pytest.mark.parametrize(
    ("call", "status", "complaint"),
    [
        ({"name": "search", "arguments": {"query": "x", "limit": 2}}, "ok", ""),
        ({"name": "search", "arguments": {"query": "x", "exact": True}}, "ok", ""),
        ({"name": "wait", "arguments": {"seconds": 1, "names": ["a"]}}, "ok", ""),
        ({"name": "wait", "arguments": {"seconds": 1, "names": [1]}}, "bad_arguments", "'names'"),
        (
            {"name": "search", "arguments": {"limit": 2}},
            "bad_arguments",
            "needs the argument",
        ),
        ({"name": "search", "arguments": {"query": 3}}, "bad_arguments", "'query' must be str"),
        (
            {"name": "search", "arguments": {"query": "x", "limit": True}},
            "bad_arguments",
            "'limit' must be int",
        ),
        (
            {"name": "search", "arguments": {"query": "x", "n": 1}},
            "bad_arguments",
            "no argument 'n'",
        ),
        ({"name": "search", "arguments": ["x"]}, "bad_arguments", "must be an object"),
        ({"name": "search"}, "bad_arguments", "needs the argument"),
        ({"name": "rm"}, "unknown_tool", "no tool 'rm'"),
        ({"tool": "search"}, "invalid_json", '"name" and "arguments"'),
        ([1, 2], "invalid_json", '"name" and "arguments"'),
    ],
)
def test_hermes_calls(call, status, complaint):
    (found,) = parse_calls(f"<tool_call>\n{json.dumps(call)}\n</tool_call>", "hermes", TOOLBOX)
    assert found.status == status
    assert complaint in found.complaint


@pytest.mark.parametrize(
    "body",
    [
        "{'name': 'search'}",
        "",
        '{"name": "search", "arguments": {"query": NaN}}',
        "[" * 3000,
        '{"name": "search", "arguments": {"query": ' + "9" * 3900 + "e999}}",
        " " * (MAX_CALL_CHARACTERS + 1),
    ],
    ids=["quotes", "empty", "NaN", "deep", "huge number", "long"],
)
def test_what_is_no_json_is_said_to_be_none(body):
    (call,) = parse_calls(f"<tool_call>{body}</tool_call>", "hermes", TOOLBOX)
    assert call.status in ("invalid_json", "bad_arguments")
    assert call.complaint


def test_lists_in_lists_are_read_as_long_as_they_can_be_copied_and_written():
    def nested(levels: int) -> str:
        arguments = '{"seconds": 1, "names": ' + "[" * levels + "]" * levels + "}"
        return f'<tool_call>{{"name": "wait", "arguments": {arguments}}}</tool_call>'

    # The call and its arguments are two of the levels.
    (deep,) = parse_calls(nested(MAX_DEPTH - 2), "hermes", TOOLBOX)
    assert deep.status == "bad_arguments"
    assert json.loads(json.dumps(asdict(deep.record("unanswered", ""))))["arguments"]["names"]
    (deeper,) = parse_calls(nested(MAX_DEPTH - 1), "hermes", TOOLBOX)
    assert (deeper.status, deeper.arguments) == ("invalid_json", {})


def test_a_record_has_the_arguments_as_they_were_read_and_nothing_else_of_a_call():
    for text, arguments in (
        (hermes(name="search", arguments={"query": "x", "limit": 2}), {"query": "x", "limit": 2}),
        (hermes(name="search", arguments={"query": 3}), {"query": 3}),
        (hermes(name="rm", arguments={"path": "/"}), {}),
        ("<tool_call>{", {}),
    ):
        (call,) = parse_calls(text, "hermes", TOOLBOX)
        record = call.record("unanswered", "no", 0.5)
        assert record == CallRecord(call.name, call.status, "unanswered", "no", 0.5, arguments)


def test_a_call_that_never_ends_is_the_last():
    calls = parse_calls(hermes(name="rm") + "<tool_call>{", "hermes", TOOLBOX)
    assert [call.status for call in calls] == ["unknown_tool", "unclosed"]


PIECES = st.sampled_from(
    [
        *("<function=search>", "</function>", "<parameter=query>", "</parameter>", "<parameter="),
        *("<tool:", "<tool:search>", "</tool>", "<tool_call>", "</tool_call>", "</answer>"),
        *('{"name": "search"', ', "arguments": {"query": "x"}', "}", "\0", "<", ">", "é", "1"),
    ]
)


def xml(name: str, **parameters: str) -> str:
    written = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in parameters.items())
    return f"<tool_call>\n<function={name}>\n{written}</function>\n</tool_call>"


QUERY = "<parameter=query>\nx\n</parameter>"
SEARCHED = {"query": "x", "limit": 2, "exact": True}


@pytest.mark.parametrize(
    ("text", "status", "expected"),
    [
        (xml("search", query="x", limit="2", exact="True"), "ok", SEARCHED),
        (f"So: <tool_call><function=search>{QUERY}</function></tool_call>", "ok", {"query": "x"}),
        (xml("search", query="12"), "ok", {"query": "12"}),
        (
            xml("search", query="\n a\n\nb <b>&amp;</b> "),
            "ok",
            {"query": "\n a\n\nb <b>&amp;</b> "},
        ),
        (
            xml("wait", seconds="1.5", names='["a", "b"]'),
            "ok",
            {"seconds": 1.5, "names": ["a", "b"]},
        ),
        (xml("half", number="3"), "ok", {"number": 3}),
        (xml("half", number="__import__('os')"), "bad_arguments", "'number' must be float"),
        (xml("half", number="NaN"), "bad_arguments", "'number' must be float"),
        (xml("half", number="[" * 3000), "bad_arguments", "'number' must be float"),
        (xml("half", number="9" * 31), "bad_arguments", "'number' must be float"),
        (xml("search", query="x", n="1"), "bad_arguments", "no argument 'n'"),
        (xml("search", limit="1"), "bad_arguments", "needs the argument 'query'"),
        (xml("search", query="x" * MAX_CALL_CHARACTERS), "bad_arguments", "at most 4000"),
        (xml("rm"), "unknown_tool", "there is no tool 'rm'"),
        (hermes(name="search"), "unknown_tool", "a call begins with <function=name>"),
        (f"{QUERY}</tool_call>", "unknown_tool", "there is no <tool_call> before </tool_call>"),
        ("<tool_call><function=search>", "unclosed", "the call has no </tool_call>"),
        (f"<tool_call><function=search>{QUERY}</tool_call>", "unclosed", "has no </function>"),
        (xml("search", query="x").replace("</parameter>", ""), "unclosed", "has no </parameter>"),
        (
            f"<tool_call><function=search>{QUERY}{QUERY}</function></tool_call>",
            "bad_arguments",
            "'query' is there twice",
        ),
        (
            f"<tool_call><function=search>{QUERY} or so</function></tool_call>",
            "bad_arguments",
            "and nothing else",
        ),
    ],
)
def test_xml_is_read_and_its_values_are_of_the_declared_types(text, status, expected):
    (call,) = parse_calls(text, "xml", TOOLBOX)
    assert call.status == status
    if status == "ok":
        assert call.arguments == expected
        types = {name: type(value) for name, value in call.arguments.items()}
        assert types == {name: type(value) for name, value in expected.items()}
    else:
        assert expected in call.complaint


@given(query=st.text(max_size=200).filter(lambda text: "</" not in text))
def test_any_text_is_an_argument_as_it_is(query):
    (call,) = parse_calls(xml("search", query=query), "xml", TOOLBOX)
    assert (call.status, call.arguments) == ("ok", {"query": query})


@settings(max_examples=500)
@given(st.one_of(st.text(max_size=300), st.lists(PIECES, max_size=40).map("".join)))
@pytest.mark.parametrize("call_format", ["tags", "hermes", "xml"])
def test_whatever_is_written_is_read(call_format, text):
    for call in parse_calls(text, call_format, TOOLBOX):
        assert (call.status == "ok") == (call.complaint == "")
        if call.status == "ok":
            assert TOOLBOX[call.name].complaint(call.arguments) is None


def without_hints(query):
    """Look.

    Args:
        query: What.
    """
    return query


def without_docstring(query: str) -> str:
    return query


def without_arguments() -> str:
    """Look."""
    return ""


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (without_hints, "missing a type hint"),
        (without_docstring, "no docstring"),
        (without_arguments, "takes no argument"),
    ],
)
def test_a_function_that_is_no_tool_is_refused_by_name(function, complaint):
    with pytest.raises(UserError, match=complaint) as failure:
        make_tool(function)
    assert function.__name__ in str(failure.value)


def half_described(text: str) -> str:
    """Say \ud83d.

    Args:
        text: Anything.
    """
    return text


def half_argument(text: str) -> str:
    """Say it.

    Args:
        text: Half \ud83d of it.
    """
    return text


def half_choice(text: Literal["a", "\ud83d"]) -> str:
    """Say it.

    Args:
        text: One of two.
    """
    return text


@example("a", "half \ud83d of it")
def half_shown(text: str) -> str:
    """Say it.

    Args:
        text: Anything.
    """
    return text


@pytest.mark.parametrize("function", [half_described, half_argument, half_choice, half_shown])
def test_what_no_tokenizer_reads_is_refused_where_models_are_told_of_a_tool(function):
    where = rf"^tool {function.__name__}: its description holds half of a surrogate pair, in '"
    with pytest.raises(UserError, match=where) as caught:
        make_tool(function)
    assert str(caught.value).isascii()


def test_a_name_that_two_tools_have_is_refused():
    with pytest.raises(UserError, match="tool search: there are two"):
        make_toolbox([make_tool(search), make_tool(search)])


def test_the_schema_is_that_of_hints_and_docstring():
    schema = TOOLBOX["search"].schema["function"]
    assert schema["name"] == "search"
    assert schema["parameters"]["required"] == ["query"]
    assert schema["parameters"]["properties"]["limit"] == {
        "type": "integer",
        "description": "How many results.",
    }


def convert(
    unit: Literal["c", "f"],
    at: dict[str, int],
    pair: tuple[int, int] = (0, 0),
    note: str | None = None,
    extra: Any = 0,
) -> str:
    """Take all that JSON has.

    Args:
        unit: One of two.
        at: Numbers by name.
        pair: Two of them.
        note: Text or nothing.
        extra: Anything.
    """
    return f"{unit} {at} {pair} {note} {extra}"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"unit": "c", "at": {"x": 1}}, None),
        ({"unit": "c", "at": {}, "pair": [1, 2], "note": None, "extra": [{}]}, None),
        ({"unit": "k", "at": {}}, "'unit' must be"),
        ({"unit": "c", "at": {"x": "1"}}, "'at' must be"),
        ({"unit": "c", "at": {}, "pair": ["1"]}, "'pair' must be"),
        ({"unit": "c", "at": {}, "note": 3}, "'note' must be"),
    ],
)
def test_every_type_that_json_has_is_checked(arguments, complaint):
    said = make_tool(convert).complaint(arguments)
    assert said is None if complaint is None else complaint in str(said)


def test_a_type_that_json_has_not_is_refused():
    def odd(moment: complex) -> str:
        """Odd.

        Args:
            moment: When.
        """
        return ""

    with pytest.raises(UserError, match="tool odd: "):
        make_tool(odd)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 31, "NaN", "Infinity"])
def test_numbers_of_no_sensible_size_are_refused(number):
    text = f'<tool_call>{{"name": "half", "arguments": {{"number": {number}}}}}</tool_call>'
    (call,) = parse_calls(text, "hermes", TOOLBOX)
    assert call.status == "invalid_json"
