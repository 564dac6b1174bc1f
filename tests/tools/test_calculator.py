"""The calculator is exact, and survives everything that a model may write."""

import gc
import time
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.tools.calculator import CalculatorError, calculate, evaluate


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("2 + 2", "4"),
        ("12 * 34 - 5", "403"),
        ("0.1 + 0.2", "0.3"),
        ("1 / 3 * 3", "1"),
        ("1/8", "0.125"),
        ("1/3", "0.333333333333"),
        ("-7 // 2", "-4"),
        ("-7 % 3", "2"),
        ("2 ** 10", "1024"),
        ("2 ** -2", "0.25"),
        ("-2 ** 2", "-4"),
        ("(1 + 2) * (3 - 4)", "-3"),
        ("sqrt(144)", "12"),
        ("sqrt(2)", "1.41421356237"),
        ("2 ** 0.5", "1.41421356237"),
        ("round(2.675, 2)", "2.68"),
        ("round(7 / 2)", "4"),
        ("max(3, 9, 4) - min(2, 1)", "8"),
        ("floor(-1.5) + ceil(-1.5)", "-3"),
        ("99999999999999999999 + 1", "100000000000000000000"),
        ("1 / 1024", "0.0009765625"),
        (".5 + 5.", "5.5"),
        ("-1/3", "-0.333333333333"),
        ("2000000/3", "666666.666667"),
        ("+".join(["1"] * 100), "100"),
        ("1e3 + 1", "1001"),
        ("1.5E+3 / 5", "300"),
        ("25e-2", "0.25"),
        ("1e600 / 1e599", "10"),
        ("\n2\t+\u00a02\u2009*\r\n3\u3000", "8"),
        ("max(1,\n    2)", "2"),
    ],
)
def test_results(expression, result):
    assert calculate(expression) == result


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("", "nothing to calculate"),
        ("   ", "nothing to calculate"),
        ("1 / 0", "division by zero"),
        ("5 % (2 - 2)", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("9**9**9**9", "too large"),
        ("2 ** 100000", "too large"),
        ("(10 ** 300) * (10 ** 400)", "too large"),
        ("2 ^ 3", "write ** for powers"),
        ("2 + 2 =", "only what is to be calculated"),
        ("1,000 + 1", "without commas"),
        ("__import__('os')", "does not belong"),
        ("exec(1)", "no function 'exec'"),
        ("sqrt(-1)", "no square root"),
        ("sqrt(1, 2)", "does not take 2"),
        ("max(0)", "does not take 1"),
        ("2 +", "not an arithmetic expression"),
        ("x + 1", "'x' is not a number"),
        ("0x10", "not a plain number"),
        ("1e", "not an arithmetic expression"),
        ("1e5j", "not a plain number"),
        ("1e603", "too large"),
        ("1e-1001", "an exponent beyond 1000"),
        ("1e" + "9" * 190, "an exponent beyond 1000"),
        ("12\u00a0345", "not an arithmetic expression"),
        ("3j", "not a plain number"),
        ("True", "not a plain number"),
        ("1 if 2 else 3", "not arithmetic"),
        ("2 and 3", "not arithmetic"),
        ("(1).real", "not arithmetic"),
        ("-" * 10_000 + "1", "too many"),
        ("-" * 150 + "1", "deep"),
        ("(" * 10_000 + "1" + ")" * 10_000, "too many"),
        ("2 ** 0.3", "whole number"),
        ("\uff11 + 1", "does not belong"),
        ("1 + \0", "does not belong"),
        ("٣ + 1", "does not belong"),
        ("max(*1)", "not arithmetic"),
        ("max(a=1)", "does not belong"),
    ],
)
def test_complaints(expression, complaint):
    message = calculate(expression)
    assert message.startswith("error: ")
    assert complaint in message
    assert len(message) < 300


HOSTILE = st.one_of(
    st.text(max_size=250),
    st.text(alphabet="0123456789.+-*/%() ,_eEjx'\"[]{}=^:\0\uff11", max_size=250),
    st.lists(
        st.sampled_from(
            [
                "9**9",
                "**",
                "1",
                "(",
                ")",
                "-",
                "sqrt(",
                "max(",
                "__import__",
                "lambda:",
                "1/3",
                "//",
            ]
        ),
        max_size=60,
    ).map("".join),
    st.integers(0, 20_000).map(lambda count: "(" * count + "1" + ")" * count),
    st.integers(0, 20_000).map(lambda count: "-" * count + "1"),
)


@settings(max_examples=600, suppress_health_check=[HealthCheck.too_slow], database=None)
@given(HOSTILE)
def test_hostile_text_is_answered_quickly_and_never_raises(text):
    # A collection of the garbage of all the other tests is not the calculator's time.
    gc.disable()
    try:
        start = time.thread_time()
        assert isinstance(calculate(text), str)
        assert time.thread_time() - start < 0.05
    finally:
        gc.enable()


@given(
    st.recursive(
        st.integers(0, 999).map(str),
        lambda parts: st.tuples(parts, st.sampled_from("+-*"), parts).map(
            lambda three: f"({three[0]} {three[1]} {three[2]})"
        ),
        max_leaves=12,
    )
)
def test_whole_numbers_are_pythons(expression):
    try:
        value = evaluate(expression)
    except CalculatorError:
        assert len(expression) > 200
        return
    assert value == Fraction(eval(expression))  # our own text, not a model's
