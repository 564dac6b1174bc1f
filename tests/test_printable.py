"""Text of anybody's cannot steer the terminal that shows it, or end a program that writes it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.printable import (
    all_storable,
    complaint_about_text_in,
    error_as_line,
    line_of,
    printable,
    storable,
    unstorable_in,
)

# As JSON allows it: with halves of surrogate pairs, and NUL.
ANY_TEXT = st.text(st.characters(exclude_categories=[]))


def test_control_characters_are_shown_as_such_and_lines_kept():
    assert printable("a\x1b]0;title\x07\x1b[2Jb\r\x9bc\n\td\x7f") == "a�]0;title��[2Jb��c\n\td�"
    assert printable("naïve 日本 😀") == "naïve 日本 😀"
    assert printable("a\ud83db\udcff\0") == "a�b��"


def test_only_what_no_file_can_hold_is_replaced():
    assert storable("a\ud83db\0\x1b\r\n😀") == "a�b�\x1b\r\n😀"


@given(
    st.recursive(
        ANY_TEXT, lambda part: st.lists(part) | st.dictionaries(ANY_TEXT, part), max_leaves=9
    )
)
def test_whatever_json_holds_is_made_storable(value):
    clean = all_storable(value)
    json.dumps(clean, ensure_ascii=False).encode()
    assert unstorable_in(clean) is None
    assert (clean == value) == (unstorable_in(value) is None)


def test_numbers_and_kinds_of_lists_stay():
    assert all_storable({"a\ud800": (1, None, [2.5, "\0"])}) == {"a�": (1, None, [2.5, "�"])}


def test_what_was_raised_is_one_line():
    class Silent(Exception):
        def __str__(self):
            raise ValueError

    assert error_as_line(OSError("a\n b\ud800\0")) == "OSError: a b��"
    assert error_as_line(Silent()) == "Silent: (its message cannot be shown)"


@pytest.mark.parametrize(("before", "line"), [(b"", 1), (b"a\r\n\r\n", 3), (b"a\rb\n", 3)])
def test_the_line_of_bytes_that_are_no_text(before, line):
    with pytest.raises(UnicodeDecodeError) as caught:
        (before + b"\xff").decode()
    assert line_of(caught.value) == line


def test_what_is_not_storable_is_named():
    assert complaint_about_text_in({"a": ["é", 1, None]}) is None
    half = r"holds half of a surrogate pair, in '\ud83d\n'; take it out"
    assert complaint_about_text_in(["a", {"\ud83d\n": 1}]) == half
    assert complaint_about_text_in("\0" * 99) == f"holds a NUL, in {60 * chr(0)!a}; take it out"
