"""Numbers as people write them, read exactly and in bounded time.

    70000   70,000   70 000   $70,000.00   +070000   7e4   70,000 dollars   **70,000**

are one number. A spelling that could be two numbers, a list or an expression is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from common.rewards.markup import bare, unadorned

# Longer text is no number, and in prose only so much of it is looked at.
_LONGEST_NUMBER = 200
_LONGEST_PROSE = 2000

_MINUS = "-\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"
_SIGN = f"[{_MINUS}+]"
_CURRENCY = "(?:[A-Z]{0,2}[$\u00a2\u00a3\u00a5\u20a0-\u20cf])"
_SPACES = " \u00a0\u2009\u202f"
# With separators every group has three digits, and the separators are alike.
_DIGITS = rf"""
    (?: [1-9][0-9]{{0,2}} (?P<separator>[,{_SPACES}]) [0-9]{{3}}
        (?: (?P=separator) [0-9]{{3}} )* (?: \.[0-9]* )?
      | (?: [0-9]+ (?: \.[0-9]* )? | \.[0-9]+ ) (?: [eE] [+-]? [0-9]{{1,3}} )? )
"""
_NUMBER = rf"""
    (?: (?P<sign>{_SIGN}) \s? (?: (?P<currency>{_CURRENCY}) \s? )?
      | (?P<currency_first>{_CURRENCY}) \s? (?P<sign_second>{_SIGN})? )?
    (?P<digits>{_DIGITS})
    (?: \s? (?: (?P<percent> % | percent\b | per[ ]cent\b ) | (?P<currency_after>{_CURRENCY}) ) )?
"""
_POWER = r"(?: \^?[23] | \^\{[23]\} | [\u00b2\u00b3] )"
_WORD = r"[^\W\d_\u00b2\u00b3]"
_UNIT = rf"°?{_WORD}+ (?: (?: \s | \s?/\s? | - ) {_WORD}+ ){{0,3}} {_POWER}? | °"
_WHOLE_TEXT = re.compile(rf"{_NUMBER} (?: \s{{0,3}} (?P<unit>{_UNIT}) )?", re.VERBOSE)

# In prose a number stands alone: it is no part of a word, a fraction, a time, a power or a sum.
_TIMES = r"*^\u00d7÷·"
_OPERATOR = rf"[{_MINUS}+√{_TIMES}]"
_AFTER = rf"""
    (?! \w | [.,:]\d | \s?{_OPERATOR}\s?[\w(\\{{] | \s?[{_TIMES}] | \s?/(?!\s?{_WORD}{{2}})
      | \s?\\[a-zA-Z] | \s[xyzn]\b
      | \s(?:hundred|thousand|million|billion|trillion|dozen|k|bn|mn|mil|pi|π)\b )
"""
_IN_PROSE = re.compile(
    rf"(?<![^\s(\[{{\"'=:≈\u2018\u201c]) {_NUMBER} {_AFTER}", re.VERBOSE | re.IGNORECASE
)
_GOES_ON = re.compile(
    rf"(?: {_OPERATOR} | / | [0-9)\]}}]\s?x | [\w)\]}}][(\[{{] | [0-9]: ) \s*\Z", re.VERBOSE
)
_IS_SUBTRACTED_FROM = re.compile(r"(?:[0-9)\]}]|\b[a-zA-Z])\s*\Z")
_UNIT_WITH_POWER = re.compile(rf"\b(m|{_WORD}{{2,10}}){_POWER}(?![\w(])", re.VERBOSE)
_LONGEST_LOOK_BACK = 10

# Up to two letters after a number are a unit only if they are here: 5x, 5ab and 5K are not.
_SHORT_UNIT = re.compile(
    "m|g|s|h|l|L|km|cm|mm|mi|ft|in|yd|kg|mg|lb|oz|mL|ml|cl|dl|hr|ms|am|pm|AM|PM|°|°C|°F|of|a|an"
)
_NUMBER_WORD = re.compile(
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|"
    "sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|"
    "(?:hundred|thousand|million|billion|trillion|dozen)s?|k|bn|mn|mil|pi|π|half|halves|"
    "(?:third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth)s?"
)
_CHANGING_WORD = re.compile(
    "and|or|not|no|nor|never|neither|either|but|except|without|wrong|incorrect|isn|aren|wasn|plus|"
    "minus|negative|divided|squared|cubed|factorial|root|power|mod|modulo|less|more|fewer|than|"
    "below|above|least|most|between|sin|cos|tan|log|exp|sqrt|xyz|abc|ths"
)


@dataclass(frozen=True)
class Number:
    """A number, and what was said of it."""

    value: Decimal
    currency: str = ""
    unit: str = ""
    """The words after it, or `%`."""

    def equals(self, oracle: Number) -> bool:
        return self.value == oracle.value and self.measures_as(oracle)

    def measures_as(self, oracle: Number) -> bool:
        """Whether the values can be compared.

        Currency and unit are the same where both are given. A percentage is none without its sign.
        """
        if oracle.unit == "%" and not self.unit:
            return False
        return all(
            not said or not expected or said == expected
            for said, expected in (
                (self.currency, oracle.currency),
                (self.unit.removesuffix("s"), oracle.unit.removesuffix("s")),
            )
        )


def read_number(text: str) -> Number | None:
    """The number that a text is, apart from emphasis, a box, a full stop, a currency and a unit.

    None for anything else: a list, an expression, a range, and a number that a word after it
    changes (`5 thousand`, `7 eighths`, `5x`).
    """
    if len(text) > _LONGEST_NUMBER:
        return None
    match = _WHOLE_TEXT.fullmatch(bare(text))
    if match is None:
        return None
    words = re.findall(rf"°?{_WORD}+|°", match["unit"] or "")
    number = _as_number(match)
    if not all(map(_is_of_a_unit, words)) or _is_decade_or_million(number, words):
        return None
    return replace(number, unit=" ".join(words).lower()) if words else number


def numbers_in(prose: str) -> list[Number] | None:
    """Every number in a short text, in order.

    None if a digit belongs to none that stands alone, and where words tell of another number, such
    as `five`, `or` and `minus`.
    """
    if len(prose) > _LONGEST_PROSE:
        return None
    text = _without_powers_of_units(prose)
    if any(map(_tells_another_number, re.findall(rf"{_WORD}+", text))):
        return None
    matches = list(_standing_alone(text))
    ends = [0, *(match.end() for match in matches)]
    starts = [*(match.start() for match in matches), len(text)]
    between = "".join(text[end:start] for end, start in zip(ends, starts, strict=True))
    return None if _has_digits(between) else list(map(_as_number, matches))


def last_number_in(prose: str) -> Number | None:
    """The last number in a text; None if that is part of something else, such as `7/8` or `5x`."""
    if len(prose) > _LONGEST_PROSE:
        # Without its first word, which may be a part of one.
        prose = " ".join(prose[-_LONGEST_PROSE:].split(maxsplit=1)[1:])
    text = _without_powers_of_units(prose)
    matches = list(_standing_alone(text))
    if not matches or _has_digits(text[matches[-1].end() :]):
        return None
    return _as_number(matches[-1])


def _as_number(match: re.Match[str]) -> Number:
    digits = re.sub(rf"[,{_SPACES}]", "", match["digits"])
    sign = match["sign"] or match["sign_second"] or "+"
    value = Decimal(digits) if sign == "+" else Decimal(f"-{digits}")
    currency = match["currency"] or match["currency_first"] or match["currency_after"] or ""
    return Number(value, currency[-1:], "%" if match["percent"] else "")


def _is_of_a_unit(word: str) -> bool:
    is_word = len(word) > 2 and not _tells_another_number(word)
    return is_word or _SHORT_UNIT.fullmatch(word) is not None


def _is_decade_or_million(number: Number, words: Sequence[str]) -> bool:
    """1960s are no 1960 seconds, and $5m no 5 metres."""
    return words[:1] == ["s"] or (number.currency != "" and words[:1] == ["m"])


def _tells_another_number(word: str) -> bool:
    return any(words.fullmatch(word.lower()) for words in (_NUMBER_WORD, _CHANGING_WORD))


def _without_powers_of_units(prose: str) -> str:
    """Prose in which the 2 of cm^2 is no number."""
    return _UNIT_WITH_POWER.sub(r"\1", unadorned(prose))


def _standing_alone(text: str) -> Iterator[re.Match[str]]:
    for match in _IN_PROSE.finditer(text):
        before = text[max(0, match.start() - _LONGEST_LOOK_BACK) : match.start()]
        subtracted = match["sign"] and _IS_SUBTRACTED_FROM.search(before)
        if not subtracted and not _GOES_ON.search(before):
            yield match


def _has_digits(text: str) -> bool:
    """Whether there are numerals of any script, fractions such as ½ among them."""
    return any(map(str.isnumeric, text))
