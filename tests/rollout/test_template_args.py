"""Arguments of a chat template, and files that hold one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from common.rollout.template_args import check_template_args, parse_template_args, read_template

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("enable_thinking=false", {"enable_thinking": False}),
        ("a=1, b = 1.5 ,c=null", {"a": 1, "b": 1.5, "c": None}),
        ('a=[1, 2],b={"x": "y,z"}', {"a": [1, 2], "b": {"x": "y,z"}}),
        ("effort=low,date=26 Jul 2024", {"effort": "low", "date": "26 Jul 2024"}),
        ('a="1, 2",b=', {"a": "1, 2", "b": ""}),
        ("a=true story,b=2=3", {"a": "true story", "b": "2=3"}),
    ],
)
def test_values_are_json_where_they_can_be_else_text(text, values):
    assert parse_template_args(text) == values


@given(values=st.dictionaries(st.from_regex(r"x\w{0,5}", fullmatch=True), JSON, max_size=4))
def test_whatever_json_has_arrives(values):
    text = ",".join(f"{name}={json.dumps(value)}" for name, value in values.items())
    assert parse_template_args(text) == values


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("enable_thinking", "enable_thinking: not name=value; write enable_thinking=false"),
        ("a=1,,b=2", ",b=2: not name=value"),
        ("a=1,a=2", "a: is given twice"),
        ("messages=1", "messages: is set by the program"),
        (r'x="\ud83d"', r"x: holds half of a surrogate pair, in '\\ud83d'; take it out$"),
        (r'a=1,x=[{"b\u0000": 1}]', r"x: holds a NUL, in 'b\\x00'; take it out$"),
        ("x=" + "[" * 100_000 + "]" * 100_000, "x: is nested too deep; give a flatter value"),
    ],
)
def test_what_cannot_be_meant_is_refused(text, complaint):
    with pytest.raises(UserError, match=f"^--chat-template-args {complaint}"):
        parse_template_args(text)


def test_a_name_that_the_template_does_not_know_is_refused():
    template = "{% if enable_thinking %}<think>{% endif %}"
    check_template_args({"enable_thinking": False}, template)
    with pytest.raises(UserError, match=r"^--chat-template-args thinking: .* does not use it"):
        check_template_args({"thinking": False}, template)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^--chat-template .*none.jinja: cannot be read \(No such"):
        read_template(tmp_path / "none.jinja")
    (tmp_path / "latin").write_bytes(b"\xff")
    with pytest.raises(UserError, match="it is not UTF-8"):
        read_template(tmp_path / "latin")
