"""A calculator that is exact, and that nothing written into it can harm.

The expression comes from a model, so nothing is evaluated: its syntax tree is walked, node by node,
and whatever is not arithmetic has a message of its own. Length, depth, exponents and the size of
every intermediate number are bounded.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction

from common.tools.toolbox import example, instant

# Checked before parsing: a row of 10,000 minus signs exhausts the memory of Python's parser.
MAX_CHARACTERS = 200
# A sum of a hundred terms is that deep.
MAX_DEPTH = 100
MAX_EXPONENT = 1000
# Of numerator and denominator, so that the longest number has about 600 digits.
MAX_BITS = 2000
# Of a result that no decimal expansion ends.
SIGNIFICANT_DIGITS = 12

_LITERAL = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE]([-+]?\d+))?", re.ASCII)
_ALLOWED = re.compile(r"[0-9A-Za-z_ .,+\-*/%()]", re.ASCII)


class CalculatorError(Exception):
    """What is wrong with an expression, said to whoever wrote it."""


@instant
@example("(12 + 5) * 3", "51")
def calculate(expression: str) -> str:
    """Calculate an arithmetic expression.

    Args:
        expression: Numbers, + - * / // % **, parentheses; abs ceil floor max min round sqrt.
    """
    try:
        return show(evaluate(expression))
    except CalculatorError as error:
        return f"error: {error}"


def evaluate(expression: str) -> Fraction:
    """The exact value. Raises `CalculatorError` and nothing else."""
    # One space for each piece of white space: an expression stays as long as it is.
    text = re.sub(r"\s", " ", expression[: MAX_CHARACTERS + 1]).strip()
    if len(expression) > MAX_CHARACTERS:
        raise CalculatorError(
            f"{len(expression)} characters are too many; at most {MAX_CHARACTERS} are allowed"
        )
    if not text:
        raise CalculatorError("there is nothing to calculate")
    for character in text:
        if not _ALLOWED.match(character):
            raise CalculatorError(_stray(character))
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise CalculatorError(f"{text!r} is not an arithmetic expression") from None
    return _value(tree.body, text, MAX_DEPTH)


def _stray(character: str) -> str:
    hints = {"^": "; write ** for powers", "=": "; write only what is to be calculated"}
    return f"{character!r} does not belong in an expression{hints.get(character, '')}"


def _value(node: ast.expr, source: str, depth: int) -> Fraction:
    if depth == 0:
        raise CalculatorError(f"nested more than {MAX_DEPTH} deep")
    match node:
        case ast.Constant():
            return _literal(ast.get_source_segment(source, node) or "")
        case ast.UnaryOp(op=ast.UAdd() | ast.USub()):
            value = _value(node.operand, source, depth - 1)
            return -value if isinstance(node.op, ast.USub) else value
        case ast.BinOp():
            operator = _OPERATORS.get(type(node.op))
            if operator is None:
                raise CalculatorError("the operators are + - * / // % **")
            left = _value(node.left, source, depth - 1)
            return _bounded(operator(left, _value(node.right, source, depth - 1)))
        case ast.Call(func=ast.Name(id=name)) if not node.keywords:
            arguments = [_value(argument, source, depth - 1) for argument in node.args]
            return _bounded(_call(name, arguments))
        case ast.Tuple():
            raise CalculatorError("write numbers without commas: 1000, not 1,000")
        case ast.Name(id=name):
            raise CalculatorError(f"{name!r} is not a number")
        case _:
            raise CalculatorError(f"{type(node).__name__} is not arithmetic")


def _literal(text: str) -> Fraction:
    match = _LITERAL.fullmatch(text)
    if match is None:
        raise CalculatorError(f"{text!r} is not a plain number")
    if abs(int(match[1] or 0)) > MAX_EXPONENT:
        raise CalculatorError(f"an exponent beyond {MAX_EXPONENT} is too large")
    return _bounded(Fraction(text))


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise CalculatorError("the result is too large")
    return value


def _divided(operation: Callable[[Fraction, Fraction], Fraction]) -> Callable:
    def divide(left: Fraction, right: Fraction) -> Fraction:
        if right == 0:
            raise CalculatorError("division by zero")
        return operation(left, right)

    return divide


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        if exponent == Fraction(1, 2):
            return _square_root(base)
        raise CalculatorError("an exponent must be a whole number")
    if abs(exponent) > MAX_EXPONENT:
        raise CalculatorError(f"an exponent beyond {MAX_EXPONENT} is too large")
    if base == 0 and exponent < 0:
        raise CalculatorError("division by zero")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base) != 1 and (bits - 1) * abs(exponent) > MAX_BITS:
        raise CalculatorError("the result is too large")
    return base ** int(exponent)


def _square_root(value: Fraction) -> Fraction:
    """Exact for squares of fractions, else to more digits than are shown."""
    if value < 0:
        raise CalculatorError("a negative number has no square root")
    numerator, denominator = math.isqrt(value.numerator), math.isqrt(value.denominator)
    if numerator**2 == value.numerator and denominator**2 == value.denominator:
        return Fraction(numerator, denominator)
    scale = 10 ** (2 * SIGNIFICANT_DIGITS)
    scaled = value.numerator * value.denominator * scale**2
    return Fraction(math.isqrt(scaled), value.denominator * scale)


def _call(name: str, arguments: list[Fraction]) -> Fraction:
    if name not in _FUNCTIONS:
        raise CalculatorError(f"there is no function {name!r}; there are {', '.join(_FUNCTIONS)}")
    least, most, function = _FUNCTIONS[name]
    if not least <= len(arguments) <= most:
        raise CalculatorError(f"{name} does not take {len(arguments)} numbers")
    return Fraction(function(*arguments))


def _round(value: Fraction, digits: Fraction = Fraction(0)) -> Fraction:
    if digits.denominator != 1 or abs(digits) > SIGNIFICANT_DIGITS:
        raise CalculatorError(f"round takes 0 to {SIGNIFICANT_DIGITS} digits")
    return Fraction(round(value, int(digits)))


_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
    ast.Div: _divided(lambda left, right: left / right),
    ast.FloorDiv: _divided(lambda left, right: Fraction(left // right)),
    ast.Mod: _divided(lambda left, right: left % right),
    ast.Pow: _power,
}

# Fewest and most arguments, and what it does.
_FUNCTIONS: dict[str, tuple[int, int, Callable]] = {
    "abs": (1, 1, abs),
    "ceil": (1, 1, math.ceil),
    "floor": (1, 1, math.floor),
    "max": (2, 20, max),
    "min": (2, 20, min),
    "round": (1, 2, _round),
    "sqrt": (1, 1, _square_root),
}


def show(value: Fraction) -> str:
    """All digits if at most `SIGNIFICANT_DIGITS` follow the point, else that many significant."""
    if value.denominator == 1:
        return str(value.numerator)
    scaled = value * 10**SIGNIFICANT_DIGITS
    if scaled.denominator == 1:
        sign, digits = ("-" if value < 0 else ""), str(abs(scaled.numerator))
        digits = digits.rjust(SIGNIFICANT_DIGITS + 1, "0")
        whole, places = digits[:-SIGNIFICANT_DIGITS], digits[-SIGNIFICANT_DIGITS:]
        return f"{sign}{whole}.{places.rstrip('0')}"
    rounded = Context(prec=SIGNIFICANT_DIGITS).divide(
        Decimal(value.numerator), Decimal(value.denominator)
    )
    return f"{rounded.normalize():f}" if abs(rounded) >= Decimal("1e-6") else f"{rounded:e}"
