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
# One currency, whatever it is called: what has no sign keeps a name.
_CURRENCY_NAMES = {
    "$": r"dollars?|bucks?|usd|aud|cad",
    "\u00a2": "cents?",
    "\u00a3": "pounds?|quid|gbp",
    "p": "penny|pennies|pence",
    "\u20ac": "euros?|eur",
    "\u00a5": "yen|yuan|renminbi|jpy|cny|rmb|\u5143|\u5186",
    "\u20b9": "rupees?|inr",
    "\u20bd": "rubles?|roubles?|rub",
    "\u20a9": "won|krw|\uc6d0",
    "franc": "francs?|chf",
    "peso": "pesos?|mxn",
}
_OF_A_CURRENCY = {sign: re.compile(names, re.IGNORECASE) for sign, names in _CURRENCY_NAMES.items()}
_NAMED = f"(?i:{'|'.join(_CURRENCY_NAMES.values())})"
_COUNTRY = r"(?i:us|u\.s\.|american|canadian|australian|british|japanese|chinese|indian)"
_CODE = "(?i:usd|aud|cad|gbp|eur|jpy|cny|rmb|inr|rub|krw|chf|mxn)"
_CURRENCY = rf"(?:[A-Z]{{0,2}}[$\u00a2\u00a3\u00a5\u20a0-\u20cf]|{_CODE}(?![a-zA-Z]))"
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
    (?: \s? (?: (?P<percent> % | percent\b | per[ ]cent\b ) | (?P<currency_after>{_CURRENCY})
      | (?: {_COUNTRY} \s )? (?P<currency_named>{_NAMED}) \b ) )?
"""
# What makes another number of the one before it.
_MULTIPLIER = r"""
    (?: hundreds? | thousands? | dozens? | \w*illions? | milliards? | grand | gross | scores? | tens
      | lakhs? | lacs? | crores? | k | bn | bln | mn | mln | mil | mio | mrd | mlrd | bil | tril
      | tn | trn | (?: per[ ]? )? mille | pi | \u03c0 )
"""
_FRACTION = r"""
    (?: hal(?:f|ves) | quarters? | thirds?
      | (?: four | fif | six | seven | eigh | nin | ten | eleven | twelf | \w+teen | \w+tie
        | hundred | thousand | \w*illion )? ths? )
"""
_POWER = r"(?: \^?[23] | \^\{[23]\} | [\u00b2\u00b3] )"
_WORD = r"[^\W\d_\u00b2\u00b3]"
_UNIT = rf"°?{_WORD}+ (?: (?: \s | \s?/\s? | - ) {_WORD}+ ){{0,3}} {_POWER}? | °"
_WHOLE_TEXT = re.compile(rf"{_NUMBER} (?: \s{{0,3}} (?P<unit>{_UNIT}) )?", re.VERBOSE)

_KNOWN_UNIT = (
    "(?:m|g|s|h|l|L|km|cm|mm|mi|ft|in|yd|kg|mg|lb|oz|mL|ml|cl|dl|hr|ms|am|pm|AM|PM|°C|°F|°|"
    "lbs|hrs|mins?|secs?|mph|kph|kmh|kcal|cal|kWh|kW|kHz|Hz|[kKMGT]B|ha)"
)

# In prose a number stands alone: it is no part of a word, a fraction, a time, a power or a sum.
_TIMES = r"*^\u00d7÷·"
_OPERATOR = rf"[{_MINUS}+√{_TIMES}]"
_AFTER = rf"""
    (?! \w | [.,:]\d | \s?{_OPERATOR}\s?[\w(\\{{] | \s?[{_TIMES}] | \s?/(?!\s?{_WORD}{{2}})
      | \s?\\[a-zA-Z] | \s[xyzn]\b
      | \s(?:{_MULTIPLIER}|{_FRACTION})\b )
"""
# Of scripts without spaces, all but what makes another number of the next: ordinals, signs, points.
_CJK = r"\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uff08-\uff0c\uff1a\uff1b"
_CHANGING_CJK = (
    "\u7b2c\u8d1f\u8ca0\u52a0\u51cf\u6e1b\u4e58\u9664\u4e0b\u4e4b\u70b9\u9ede\u534a\uc81c"
)
_CJK_TIMES = "\uc2ed\ubc31\ucc9c\ub9cc\uc5b5\uc870\u534a\u500d"
_IN_PROSE = re.compile(
    rf"""(?<![^\s(\[{{\"'=:≈\u2018\u201c{_CJK}]) (?<![{_CHANGING_CJK}]) {_NUMBER}
    (?: (?P<unit>(?-i:{_KNOWN_UNIT})(?:/(?-i:{_KNOWN_UNIT}))?) (?!{_WORD}) )?
    (?: (?=[{_CJK}]) (?![{_CJK_TIMES}]) | {_AFTER} )""",
    re.VERBOSE | re.IGNORECASE,
)
_DENYING_CJK = re.compile("[\u4e0d\u975e\u6ca1\u6c92\u65e0\u7121\u6216]")
_GOES_ON = re.compile(
    rf"(?: {_OPERATOR} | / | [0-9)\]}}]\s?x | [\w)\]}}][(\[{{] | [0-9]: ) \s*\Z", re.VERBOSE
)
_IS_SUBTRACTED_FROM = re.compile(r"(?:[0-9)\]}]|\b[a-zA-Z])\s*\Z")
_UNIT_WITH_POWER = re.compile(rf"(?<!{_WORD})(m|{_WORD}{{2,10}}){_POWER}(?![\w(])", re.VERBOSE)
_LONGEST_LOOK_BACK = 10

# Up to two letters after a number are a unit only if they are here: 5x, 5ab and 5K are not.
_SHORT_UNIT = re.compile(f"{_KNOWN_UNIT}|of|a|an")
_GLUED = re.compile(rf"(?:{_KNOWN_UNIT}|{_NAMED}|{_WORD}{{4,}})(?!{_WORD})")
_NUMBER_WORD = re.compile(
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|"
    "sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|"
    rf"tens|(?:hundred|thousand|dozen)s?|\w*illions?|k|bn|mn|mil|pi|π|{_FRACTION}",
    re.VERBOSE,
)
_AFTER_A_NUMBER = re.compile(_MULTIPLIER, re.VERBOSE)
_DENYING_WORD = re.compile(
    "not|no|nor|never|neither|but|except|without|wrong|incorrect|false|isn|aren|wasn|cannot"
)
_CHANGING_WORD = re.compile(
    "and|or|either|plus|minus|negative|negated|divided|twice|thrice|doubled?|tripled?|halved|"
    "squared|cubed|factorial|root|power|mod|modulo|less|more|fewer|than|below|above|least|most|"
    "between|sin|cos|tan|log|exp|sqrt"
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

        Currency and unit are the same where both are given, and one is not the other: apples are
        no dollars. A percentage is none without its sign.
        """
        if oracle.unit == "%" and not self.unit:
            return False
        said = (self.currency, self.unit.removesuffix("s"))
        expected = (oracle.currency, oracle.unit.removesuffix("s"))
        both = [(one, other) for one, other in zip(said, expected, strict=True) if one and other]
        if not both:
            return not any(said) or not any(expected)
        return all(one == other for one, other in both)


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
    words = _words_of_unit(match)
    number = _as_number(match)
    if not all(map(_is_of_a_unit, words)) or _is_decade_or_million(number, words):
        return None
    # 5xyz is a product, as 5x is.
    is_glued = words and match.start("unit") == match.end("digits")
    if is_glued and not _GLUED.match(match["unit"]):
        return None
    return _with_unit(match)


def numbers_in(prose: str) -> list[Number] | None:
    """Every number in a short text, in order.

    None if a digit belongs to none that stands alone, and where words tell of another number, such
    as `five`, `or` and `minus`.
    """
    if len(prose) > _LONGEST_PROSE:
        return None
    text = _without_powers_of_units(prose)
    if any(map(_tells_another_number, _words(text))) or _DENYING_CJK.search(text):
        return None
    matches = list(_standing_alone(text))
    ends = [0, *(match.end() for match in matches)]
    starts = [*(match.start() for match in matches), len(text)]
    between = "".join(text[end:start] for end, start in zip(ends, starts, strict=True))
    return None if _has_digits(between) else list(map(_with_unit, matches))


def denies(prose: str) -> bool:
    """Whether a short text has a word such as `not` that turns what it says round.

    A clause that begins with `, but` is another one.
    """
    text = re.sub(r",\s+but\b", "", prose)
    return any(_DENYING_WORD.fullmatch(word.lower()) for word in _words(text))


def _words(text: str) -> list[str]:
    return re.findall(rf"{_WORD}+", text)


def last_number_in(prose: str) -> Number | None:
    """The last number in a text; None if that is part of something else, such as `7/8` or `5x`."""
    if len(prose) > _LONGEST_PROSE:
        # Without its first word, which may be a part of one.
        prose = " ".join(prose[-_LONGEST_PROSE:].split(maxsplit=1)[1:])
    text = _without_powers_of_units(prose)
    matches = list(_standing_alone(text))
    if not matches or _has_digits(text[matches[-1].end() :]):
        return None
    return _with_unit(matches[-1])


def _as_number(match: re.Match[str]) -> Number:
    digits = re.sub(rf"[,{_SPACES}]", "", match["digits"])
    sign = match["sign"] or match["sign_second"] or "+"
    value = Decimal(digits) if sign == "+" else Decimal(f"-{digits}")
    signs = ("currency", "currency_first", "currency_after", "currency_named")
    said = [_sign_of(match[sign]) for sign in signs if match[sign]]
    return Number(value, "".join(dict.fromkeys(said)), "%" if match["percent"] else "")


def _with_unit(match: re.Match[str]) -> Number:
    number, words = _as_number(match), _words_of_unit(match)
    return replace(number, unit=" ".join(words).lower()) if words else number


def _sign_of(currency: str) -> str:
    named = (sign for sign, names in _OF_A_CURRENCY.items() if names.fullmatch(currency))
    return next(named, currency[-1:])


def _words_of_unit(match: re.Match[str]) -> list[str]:
    return re.findall(rf"°?{_WORD}+|°", match["unit"] or "")


def _is_of_a_unit(word: str) -> bool:
    changes = _tells_another_number(word) or _AFTER_A_NUMBER.fullmatch(word.lower())
    is_word = len(word) > 2 and not changes
    return is_word or _SHORT_UNIT.fullmatch(word) is not None


def _is_decade_or_million(number: Number, words: Sequence[str]) -> bool:
    """1960s are no 1960 seconds, and $5m no 5 metres."""
    return words[:1] == ["s"] or (number.currency != "" and words[:1] == ["m"])


def _tells_another_number(word: str) -> bool:
    tables = (_NUMBER_WORD, _CHANGING_WORD, _DENYING_WORD)
    return any(words.fullmatch(word.lower()) for words in tables)


def _without_powers_of_units(prose: str) -> str:
    """Prose in which the 2 of cm^2 is no number."""
    return _UNIT_WITH_POWER.sub(r"\1", unadorned(prose))


def _standing_alone(text: str) -> Iterator[re.Match[str]]:
    for match in _IN_PROSE.finditer(text):
        before = text[max(0, match.start() - _LONGEST_LOOK_BACK) : match.start()]
        subtracted = match["sign"] and _IS_SUBTRACTED_FROM.search(before)
        changed = _is_decade_or_million(_as_number(match), _words_of_unit(match))
        if not (subtracted or changed or _GOES_ON.search(before)):
            yield match


def _has_digits(text: str) -> bool:
    """Whether there are numerals of any script, fractions such as ½ among them."""
    return any(map(str.isnumeric, text))
