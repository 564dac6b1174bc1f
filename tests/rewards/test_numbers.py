"""Reading numbers as people write them."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.rewards.numbers import Number, last_number_in, numbers_in, read_number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,234.50", Number(Decimal("1234.5"))),
        ("-$1,234", Number(Decimal(-1234), currency="$")),
        ("US$ 5", Number(Decimal(5), currency="$")),
        ("5 €", Number(Decimal(5), currency="€")),
        ("50 %", Number(Decimal(50), unit="%")),
        ("5 Square Feet.", Number(Decimal(5), unit="square feet")),
        ("5 m/s^2", Number(Decimal(5), unit="m s")),
        ("1e300", Number(Decimal("1e300"))),
        ("1e1000", None),
        ("1" * 201, None),
        ("0,123", None),
        ("1,234 567", None),
        ("1 2", None),
        ("five", None),
        ("", None),
    ],
)
def test_what_a_text_says(text, expected):
    assert read_number(text) == expected


@pytest.mark.parametrize(
    ("prose", "expected"),
    [
        ("from 6 to 1,000", [6, 1000]),
        ("-6, then +6", [-6, 6]),
        ("x = 6; y = 7", [6, 7]),
        ("nothing", []),
        ("5 apples and 6", None),
        ("the 5th of 6", None),
        ("6/7", None),
        ("6 of seven", None),
        ("6 \u0667", None),
    ],
)
def test_the_numbers_in_prose(prose, expected):
    numbers = numbers_in(prose)
    assert (numbers and [number.value for number in numbers]) == expected


def test_a_number_that_was_cut_is_not_read():
    assert last_number_in("7" * 3000) is None
    assert last_number_in("12345" + "." * 1997) is None
    assert last_number_in("x" * 3000 + " 12345") == Number(Decimal(12345))


@given(st.decimals(-(10**12), 10**12, allow_nan=False, allow_infinity=False))
def test_numbers_survive_every_spelling(value):
    for written in (f"{value:f}", f"{value:,f}", f"{value:,f}".replace(",", "\u202f")):
        number = read_number(written)
        assert number is not None
        assert number.value == value
        assert [one.value for one in numbers_in(f"it is {written}!") or []] == [value]
        assert last_number_in(f"it is {written}!") == number


@given(st.text(max_size=200))
def test_reading_any_text_gives_a_finite_number_or_none(text):
    for number in (read_number(text), last_number_in(text)):
        assert number is None or number.value.is_finite()


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9), st.sampled_from("+-*/^x,;|="))
def test_two_numbers_are_never_read_as_one(first, second, between):
    for written in (f"{first} {between} {second}", f"{first} {between}{second}"):
        assert read_number(written) is None
