"""What is right, what is half right and what is wrong, by hand; and numbers near every oracle."""

import re
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.rewards.answers import (
    answer_check,
    boxed,
    is_correct,
    is_same_answer,
    last_number,
    number_check,
)
from common.tasks.task import Task, final_answer

ORACLES = [
    oracle
    for line in (Path(__file__).parent / "gsm8k_oracles.txt").read_text().splitlines()[1:]
    for oracle in line.split()
]


def answered(text: str) -> str:
    return f"<think>x</think><answer> {text}</answer>"


def score(answer: str, *oracles: str) -> float:
    task = Task(0, "?", oracles[0], alternatives=oracles[1:])
    value = answer_check(answered(answer), task)
    assert is_correct(answered(answer), task) == (value == 1)
    return value


RIGHT = {
    "18": [
        *("18", "18.", "18.0", "18.00", "018", "+18", "1.8e1", "180E-1", "$18", "$ 18", "$18.00"),
        *("18$", "18 €", "US$18", r"\$18", "**18**", "*18*", "__18__", "`18`", "$18$", r"$\$18$"),
        *(r"\(18\)", r"\[18\]", r"\boxed{18}", r"$\boxed{18}$.", r"\boxed{\boxed{18}}", '"18"'),
        *("18 apples", "18 dollars.", "18 eggs per day", "18 miles/hour", "18 km/h", "18kg"),
        *("18 cm^2", "18 m²", r"18\text{ cm}", "18°", r"18^\circ", "18 °C", "$18 per day", "18%"),
        *("18 percent", "18 pounds of apples", " \n18\n"),
    ],
    "70000": [
        *("70,000", "$70,000", "70,000.00", "70 000", "70\u00a0000", "70\u2009000", "70\u202f000"),
        *("7e4", "070000", "70{,}000", r"70\,000", r"70,\!000", "**$70,000**", "70,000 dollars"),
    ],
    "70,000": ["70000", "70000.0", "$70 000"],
    "1450000": ["1,450,000", "1 450 000", "1.45e6"],
    "-5": [
        "-5",
        "- 5",
        "\u22125",
        "\u2212 5",
        "\u20135",
        "-$5",
        "$-5",
        "-5.0",
        "-05",
        "-5 degrees",
    ],
    "0.5": [".5", "0.50", "+.5", "5e-1", "00.5"],
    "50%": ["50%", "50 %", r"50\%", "50 percent", "50.0%", "**50%**"],
    "50": ["50%"],
    "$18": [
        *(
            "18",
            "18 dollars",
            "$18.00",
            "18 US dollars",
            "18 USD",
            "USD 18",
            "18 bucks",
            "$18 a day",
        ),
        "$18 dollars",
    ],
    "18 dollars": ["$18", "18", "18 dollar", "US$18"],
    "18 cents": ["18 cents", "18\u00a2", "18"],
    "18 pounds": ["18 pounds", "\u00a318"],
    "5": ["5 apples", "5 months", "5 teeth", "5 math books", "5km", "5days", "USD5"],
    "5 km": ["5 km", "5km", "5", "5.0 km."],
    "12345": ["12 345"],
    "B": ["B", "b", "(B)", "(b)", "b.", "B)", "[B]", "**B**", r"\boxed{B}", r"\text{(B)}", "B:"],
    "(B)": ["B", "b."],
    "Paris": ["Paris", "paris", " PARIS\n", "**Paris**", "Paris.", r"\boxed{\text{Paris}}"],
    "New York": ["new york", "New\nYork"],
    "1/2": ["1/2", "$1/2$"],
    "18!": ["18!"],
}
HALF_RIGHT = [
    ("The result is 6.", "6"),
    ("x = 6", "6"),
    ("It is 70,000", "70000"),
    ("about $6 in all", "6"),
    (r"The answer is \boxed{6}", "6"),
    ("The answer is **6**.", "6"),
    ("The area is 6 cm^2", "6"),
    ("He earns $18/hour then", "18"),
    ("The share is 50%", "50"),
    ("So -5 it is", "-5"),
    ("It is 5 km", "5 km"),
    ("It is 18cm", "18"),
    ("It is 18cm", "18 cm"),
    ("It is 18 dollars", "$18"),
    ("The answer is $$18$$.", "18"),
    ("\u7b54\u6848\u662f18\u3002", "18"),
    ("The final score is 5", "5"),
    ("(B) None of these", "B"),
    ("the answer is B", "B"),
    ("(B) Paris", "B"),
    ("b) because (b)", "B"),
    ("It's a toss-up, but I'd say b", "B"),
    ("It is Paris.", "Paris"),
    ("in Paris", "Paris"),
    ("**Paris**, I think", "Paris"),
    ("It\u2019s New York", "New York"),
]
WRONG = [
    # Another number, of which the oracle is a part, or the other way round.
    *(("70,000", "70"), ("70", "70000"), ("1,234", "234"), ("234", "1,234"), ("16", "6")),
    *(("12 345", "12"), ("12 345", "345"), ("6.5", "6"), ("1.234", "1,234"), ("1,234", "1.234")),
    *(("12,34", "1234"), ("1,2345", "12345"), ("1,2345", "2345"), ("B12", "12"), ("18th", "18")),
    # Signs.
    *(("5", "-5"), ("-5", "5"), ("- 5", "5"), ("\u22125", "5"), ("\u20135", "5"), ("+-5", "5")),
    *(("negative 18", "18"), ("minus 18", "18"), ("It is - 5", "5")),
    # Percentages, currencies and units.
    *(("50%", "0.5"), ("50", "50%"), ("0.5", "50%"), ("It is 50", "50%"), ("€18", "$18")),
    *(("5 km", "5 m"), ("It is 5 km", "5 m"), ("5 pm", "5 am"), ("1960s", "1960"), ("$5m", "5")),
    *(("18 cents", "$18"), ("18 euros", "$18"), ("€18", "18 dollars"), ("EUR 18", "$18")),
    *(("It is 18 cents", "$18"), ("€18 dollars", "$18"), ("18 pounds", "18 dollars")),
    *(("18 apples", "$18"), ("$18", "18 apples"), ("18 dollars", "18 apples")),
    *(("It is 18cm", "18 m"), ("\u7b54\u6848\u4e0d\u662f18", "18")),
    # Multipliers and fractions.
    *(
        (f"5 {word}", "5")
        for word in (
            *("lakh", "crore", "quadrillion", "quintillion", "gross", "score", "Mrd", "mio", "bil"),
            *(
                "grand",
                "per mille",
                "trillionths",
                "sixteenths",
                "tenth",
                "tens",
                "twice",
                "negated",
            ),
            *("false", "ths"),
        )
    ),
    *(("5 grand", "$5"), ("5xyz", "5"), ("5pqr", "5")),
    # Words that change a number.
    *(("5 thousand", "5"), ("5K", "5"), ("5M", "5"), ("70 k", "70"), ("7 eighths", "7")),
    *(("5 dozen", "5"), ("5 million dollars", "5"), ("18 pi", "18"), ("18π", "18")),
    *(("5 squared", "5"), ("5 less than that", "5"), ("half of 18", "18"), ("not 18", "18")),
    # Lists, expressions, fractions, times and dates.
    *(("6 or 7", "7"), ("1, 2, 3", "2"), ("1 2 3", "2"), ("18, 19", "19"), ("18-19", "18")),
    *(("18 or nineteen", "18"), ("five or 18", "18"), ("18 + 5", "18"), ("18-5", "18")),
    *(("10 - 5", "5"), ("2*9", "9"), ("2 x 9", "9"), ("2 \u00d7 9", "9"), ("2 · 9", "9")),
    *(("18 = 9 + 9", "18"), ("5x", "5"), ("5 x", "5"), ("5ab", "5"), ("x^18", "18")),
    *(("18^2", "18"), ("18²", "18"), ("f(18)", "18"), (r"\sqrt{18}", "18"), (r"18\pi", "18")),
    *(("7/8", "7"), ("7/8", "8"), ("7 / 8", "8"), (r"\frac{7}{8}", "8"), ("½", "2"), ("6½", "6")),
    *(("-1/2", "1/2"), ("11/2", "1/2"), ("1/2/3", "1/2"), ("1/2 + x", "1/2")),
    *(("5:30", "5"), ("5:30", "30"), ("2024-05-01", "5"), ("1.2.3", "1.2"), ("0x12", "12")),
    # No number of ours, or none at all.
    *(
        ("\u0661\u0668", "18"),
        ("\uff11\uff18", "18"),
        ("nan", "18"),
        ("inf", "18"),
        (".", "0"),
        ("", "6"),
    ),
    *(("1e999999999", "1"), ("1e1", "1"), ("--18", "18"), ("#18", "18")),
    # Letters and text.
    *(("A or B", "B"), ("A, B, C, D", "B"), ("ABCD", "B"), ("C", "B"), ("(A) (B)", "B")),
    *(("not B", "B"), ("neither B", "B"), ("all but B", "B"), ("B is wrong", "B")),
    *(("(B) is wrong", "B"), ("all but Paris", "Paris")),
    *(("a, B", "B"), ("-C - B", "B"), ("b or c", "B"), ("a/B", "B")),
    *(("Parisian", "Paris"), ("Paris or London", "Paris"), ("Paris, London", "Paris")),
    *(("London Paris", "Paris"), ("Paris London Rome", "Paris"), ("Paris\nLondon", "Paris")),
    *(("not Paris", "Paris"), ("Paris/London", "Paris"), ("true false", "false"), ("no", "yes")),
]


@pytest.mark.parametrize("oracle", RIGHT)
def test_what_is_right_however_it_is_written(oracle):
    assert [answer for answer in RIGHT[oracle] if score(answer, oracle) != 1] == []


@pytest.mark.parametrize(("answer", "oracle"), HALF_RIGHT)
def test_partial_credit_is_for_the_whole_oracle_alone_among_words(answer, oracle):
    assert score(answer, oracle) == 0.5


@pytest.mark.parametrize(("answer", "oracle"), WRONG)
def test_what_is_wrong_has_no_credit_at_all(answer, oracle):
    assert score(answer, oracle) == 0


def test_the_table_of_the_readme_is_true():
    readme = (Path(__file__).parents[2] / "README.md").read_text().splitlines()
    start = readme.index("| oracle | right | half right | wrong |") + 2
    rows = readme[start : readme.index("", start)]
    assert len(rows) == 6
    for row in rows:
        oracles, *columns = (re.findall("`([^`]+)`", cell) for cell in row.split("|")[1:5])
        for expected, answers in zip((1, 0.5, 0), columns, strict=True):
            scores = {(a, o): score(a, o) for a in answers for o in oracles}
            assert scores == dict.fromkeys(scores, expected)


def test_each_of_several_answers_is_right():
    assert score("Big Apple", "New York", "Big Apple") == 1
    assert score("It is 7", "6", "7") == 0.5
    assert score("6 or 7", "6", "7") == 0
    task = Task(0, "?", "6", alternatives=("7",))
    assert number_check(answered("$7"), task) == 1
    assert last_number("So it is 7", task) == 1
    assert boxed(r"\boxed{7}", task) == 1


def test_an_answer_outside_its_tags_does_not_count():
    task = Task(0, "?", "6")
    for completion in ("6", "<answer>6", "<answer>5</answer><answer>6</answer>"):
        assert answer_check(completion, task) == 0
        assert number_check(completion, task) == 0
        assert not is_correct(completion, task)


def test_a_number_check_wants_a_number():
    assert number_check(answered("Paris"), Task(0, "?", "Paris")) == 0
    assert number_check(answered("It is 6"), Task(0, "?", "6")) == 0
    assert number_check(answered("$6.0"), Task(0, "?", "6")) == 1


@pytest.mark.parametrize(
    ("text", "oracle", "expected"),
    [
        ("So 3 + 4 = 7", "7", 1),
        ("in 2 steps: 18 apples", "18", 1),
        ("<answer>18</answer>", "18", 1),
        ("#### 70,000\n\nI hope that this helps!", "70000", 1),
        ("He earns $18/day.", "18", 1),
        ("$18 + $5 = $23$", "23", 1),
        (r"**Answer:** \boxed{18}.", "18", 1),
        ("so x = \u22125", "-5", 1),
        ("It is 18 cm^2, or 18 m²", "18", 1),
        ("$$18$$", "18", 1),
        ("The answer is $$18$$.", "18", 1),
        ("18km", "18", 1),
        ("18cm.", "18", 1),
        ("18kg", "18", 1),
        ("18km/h", "18", 1),
        ("it is 18cm^2", "18", 1),
        ("USD18", "18", 1),
        ("\u7b54\u6848\u662f18\u3002", "18", 1),
        ("\u7b54\u6848\u662f18\u4e2a", "18", 1),
        ("\u7b54\u6848\u662f\u8d1f18", "18", 0),
        ("\u7b2c18", "18", 0),
        ("18\u4e07", "18", 0),
        ("18\ub9cc", "18", 0),
        ("18M", "18", 0),
        ("$18m", "18", 0),
        ("in the 18s", "18", 0),
        ("It is 18xyz", "18", 0),
        ("It is 18 lakh", "18", 0),
        ("18cm", "18 m", 0),
        ("18 euros", "$18", 0),
        ("<think>5</think>It is 6", "6", 1),
        ("<think>18</think>No idea", "18", 0),
        ("<think>18", "18", 0),
        ("18, or rather 19", "18", 0),
        ("The answer is -5", "5", 0),
        ("It is 7/8", "8", 0),
        ("10-5", "5", 0),
        ("10 - 5", "5", 0),
        ("It is the 18th", "18", 0),
        ("It is 70 thousand", "70", 0),
        ("at 5:30", "30", 0),
        ("none", "18", 0),
        ("7" + " so" * 1_000_000, "7", 0),
    ],
)
def test_the_last_number_after_the_thought(text, oracle, expected):
    assert last_number(text, Task(0, "?", oracle)) == expected


@pytest.mark.parametrize(
    ("text", "oracle", "expected"),
    [
        (r"So \boxed{18}.", "18", 1),
        (r"first \boxed{17}, then \boxed{18}", "18", 1),
        (r"first \boxed{18}, then \boxed{17}", "18", 0),
        (r"\boxed{\text{Paris}}", "Paris", 1),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", 1),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}", 1),
        (r"\boxed{\boxed{18}}", "18", 1),
        (r"\boxed{It is 18}", "18", 0),
        (r"<think>\boxed{18}</think> done", "18", 0),
        (r"<think>\boxed{17}</think>\boxed{18}", "18", 1),
        (r"\boxed{18", "18", 0),
        (r"\boxed{}", "18", 0),
        ("18", "18", 0),
    ],
)
def test_the_last_box_after_the_thought(text, oracle, expected):
    assert boxed(text, Task(0, "?", oracle)) == expected


def spellings(oracle: str) -> list[str]:
    """Eight and more ways in which a person writes the whole number."""
    number = int(oracle.replace(",", ""))
    sign, size = "-" if number < 0 else "", abs(number)
    grouped = f"{size:,}"
    return [
        f"{number}",
        f"{sign}{grouped}",
        f"{sign}${grouped}.00",
        f"{number}.0",
        f"{sign}{grouped}".replace(",", "\N{THIN SPACE}"),
        f"{sign}{grouped}".replace(",", "\N{NO-BREAK SPACE}"),
        f"{sign}{grouped}".replace("-", "\N{MINUS SIGN}") + " dollars.",
        f"**{sign}{grouped}**",
        rf"\boxed{{{number}}}",
        f"{sign}0{size}",
        f"{number}e0",
    ]


def test_every_oracle_of_gsm8k_in_many_spellings_is_right():
    for oracle in ORACLES:
        for written in spellings(oracle):
            for expected in (oracle, final_answer(f"so\n#### {oracle}")):
                assert score(written, expected) == 1, written
                assert number_check(answered(written), Task(0, "?", expected)) == 1, written
                assert last_number(f"The answer is {written}", Task(0, "?", expected)) == 1, written


def wrong_numbers(oracle: str) -> Iterator[str]:
    """Numbers near a whole one, and its digits with separators where none belong."""
    number = int(oracle.replace(",", ""))
    digits = str(abs(number))
    sign = "-" if number < 0 else ""
    near = [Decimal(number + off) for off in (-100, -10, -2, -1, 1, 2, 10, 100)]
    near += [Decimal(number) * Decimal(10) ** power for power in (-3, -2, -1, 1, 2, 3)]
    near += [Decimal(number) + Decimal(off) for off in ("0.5", "-0.5", "0.01", "0.001")]
    near += [-Decimal(number)]
    for place in range(len(digits)):
        swapped = [*digits]
        swapped[place - 1], swapped[place] = swapped[place], swapped[place - 1]
        near += [Decimal(sign + "".join(swapped))]
        near += [Decimal(sign + digits[:place] + new + digits[place + 1 :]) for new in "0159"]
        near += [Decimal(sign + (digits[:place] + digits[place + 1 :] or "0"))]
        near += [Decimal(sign + digits[:place] + digits[place] + digits[place:])]
    for turn, other in enumerate(sorted({f"{value:f}" for value in near if value != number})):
        yield (other, f"It is ${other}", f"**{other} dollars**")[turn % 3]
    for place in range(1, len(digits)):
        if place != len(digits) - 3:
            yield f"{sign}{digits[:place]},{digits[place:]}"
            yield f"{sign}{digits[:place]} {digits[place:]}"


def test_no_number_near_an_oracle_of_gsm8k_earns_half():
    wrong = [(answer, oracle) for oracle in ORACLES for answer in wrong_numbers(oracle)]
    assert len(ORACLES) == 353
    assert len(wrong) > 10_000
    assert [
        (answer, oracle)
        for answer, oracle in wrong
        if answer_check(answered(answer), Task(0, "?", oracle)) >= 0.5
    ] == []


def test_hostile_answers_are_refused_quickly():
    many = 200_000
    hostile = [
        *("9" * many, "1" + ",000" * many, "1 " * many, "1e" + "9" * many),
        *("1e999999999", "-" * many + "5", "(" * many, r"\boxed{" * many),
        *(r"\boxed{" * many + "6" + "}" * many, r"\text{" * many, "**" * many),
        *("$" * many, "." * many, " " * many + "5x", "it is " * many, "a" * many),
    ]
    started = time.perf_counter()
    for answer in hostile:
        for oracle in ("5", "B", "it is", "a" * 5000, r"\boxed{5}"):
            task = Task(0, "?", oracle)
            assert answer_check(answered(answer), task) == 0
            assert last_number(answer, task) == 0
            assert boxed(answer, task) == 0
    assert time.perf_counter() - started < 10


@given(st.text(), st.text(min_size=1))
def test_any_text_is_scored_and_equals_itself(text, oracle):
    assert score(text, oracle) in (0, 0.5, 1)
    assert is_same_answer(text, text)
