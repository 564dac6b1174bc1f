"""Rubrics: what each criterion scores, how they add up, and what is said of a wrong file."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.rewards.judge import Judge, Judgement
from common.rewards.notion import Notion
from common.rewards.reward import TEXT_REWARDS, Reward
from common.rewards.rubric import Rubric, load_rubric, own_functions
from common.rewards.transcript import Transcript
from common.tasks.task import Task
from common.yaml_file import read_yaml

TASK = Task(0, "What is 2*3?", "6")
RIGHT = Transcript("<think> 2*3=6</think><answer> 6</answer>")

RUBRIC = """
name: careful
criteria:
  - name: right
    function: answer_check
    weight: 2
  - name: short
    check: length
    parameters: {of: answer, unit: words, most: 2}
  - name: no_shouting
    check: regex
    parameters: {pattern: "[A-Z]{3}"}
    weight: -1
  - name: marks
    function: own_criteria:marks
    parameters: {full: 5}
    range: [1, 5]
    weight: 0.5
"""
OWN = """
def marks(completion, task, full):
    return full if completion.endswith("</answer>") else 0

def some(completions, tasks, low=0):
    return [None if "six" in completion else low for completion in completions]

def broken(completion, task):
    raise KeyError("no such thing")

def halves(completions, task):
    return 0.0

def swapped(task, completion, full):
    return full

def endless(completion, task):
    return float("inf")
"""


NEVER = Notion(lambda completion, task: False)


def judged(rubric: Rubric, completion: Transcript) -> Judgement:
    """With weight 0.5."""
    return Judge([Reward("rubric", rubric, 0.5)], NEVER)([completion], [TASK])[0]


@pytest.fixture
def load(tmp_path, monkeypatch):
    (tmp_path / "own_criteria.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_criteria", raising=False)

    def rubric(text: str):
        path = tmp_path / "rubric.yaml"
        path.write_text(text)
        return load_rubric(path, TEXT_REWARDS)

    return rubric


def test_the_weighted_mean_of_scaled_criteria(load):
    """(2 * 1 + 1 * 1 - 1 * 0 + 0.5 * 1) / (2 + 1 + 1 + 0.5) where all but the third are met."""
    rubric = load(RUBRIC)
    judgement = judged(rubric, RIGHT)
    assert judgement.scores == {
        "rubric": pytest.approx(3.5 / 4.5),
        "criteria/careful/right": 1.0,
        "criteria/careful/short": 1.0,
        "criteria/careful/no_shouting": 0.0,
        "criteria/careful/marks": 5.0,
    }
    wordy = judged(rubric, Transcript("<answer> IT is 6</answer> as ABC says"))
    # Partial credit 0.5 for an answer that contains the oracle's; marks 0 is held at 1, which is 0.
    assert wordy.scores["rubric"] == pytest.approx((2 * 0.5 + 0 - 1 + 0) / 4.5)
    assert wordy.scores["criteria/careful/marks"] == 1.0
    assert (judgement.reward, wordy.reward) == pytest.approx((0.5 * 3.5 / 4.5, 0.0))


def test_a_criterion_that_does_not_apply_counts_for_nothing(load):
    """(1 * 1 + 3 * 0.5) / 4 where both apply; 1 / 1 without the second; nothing without any."""
    rubric = load(
        "name: r\ncriteria:\n  - {name: a, function: 'own_criteria:some', weight: 3, parameters: "
        "{low: 0.5}}\n  - {name: b, check: length}\n"
    )
    both, one = judged(rubric, RIGHT), judged(rubric, Transcript("six"))
    assert both.scores == {"rubric": 0.625, "criteria/r/a": 0.5, "criteria/r/b": 1.0}
    assert one.scores == {"rubric": 1.0, "criteria/r/a": None, "criteria/r/b": 1.0}
    alone = judged(load("criteria: [{name: a, function: 'own_criteria:some'}]"), Transcript("six"))
    assert (alone.scores["rubric"], alone.reward, alone.failure) == (None, 0.0, None)


@pytest.mark.parametrize(
    ("check", "completion", "expected"),
    [
        ('check: regex\n    parameters: {pattern: "a+b"}', "xaab", 1),
        ('check: regex\n    parameters: {pattern: "a+b"}', "xAAB", 0),
        ('check: regex\n    parameters: {pattern: "a+b", ignore_case: true}', "xAAB", 1),
        ('check: contains\n    parameters: {text: "a.b"}', "aXb a.b", 1),
        ('check: contains\n    parameters: {text: "a.b"}', "aXb", 0),
        ('check: contains\n    parameters: {text: "7", of: answer}', "7 <answer> 6</answer>", 0),
        ("check: length\n    parameters: {least: 3, most: 4}", "abcd", 1),
        ("check: length\n    parameters: {least: 3, most: 4}", "abcde", 0),
        ("check: length\n    parameters: {unit: words, least: 3}", "a b", 0),
        ("check: numeric\n    parameters: {tolerance: 0.5}", "<answer> 6.5</answer>", 1),
        ("check: numeric\n    parameters: {tolerance: 0.5}", "<answer> 6.51</answer>", 0),
        (
            "check: numeric\n    parameters: {tolerance: 0.1, relative: true}",
            "<answer> 5.4</answer>",
            1,
        ),
        ("check: numeric\n    parameters: {tolerance: 1e-1}", "<answer> six</answer>", 0),
        ("check: numeric\n    parameters: {tolerance: 0.3}", "<answer> $6.3</answer>", 1),
        ("check: numeric\n    parameters: {tolerance: 1}", "<think><answer>6</answer></think>", 0),
        ("function: format_approx", "<answer> 6", 0.25),
    ],
)
def test_checks(load, check, completion, expected):
    rubric = load(f"name: r\ncriteria:\n  - name: c\n    {check}\n")
    assert judged(rubric, Transcript(completion)).scores["rubric"] == expected


@settings(max_examples=25)
@given(st.text(), st.lists(st.floats(-3, 3).filter(bool), min_size=1, max_size=4))
def test_any_text_scores_between_the_sums_of_the_signed_weights(tmp_path_factory, text, weights):
    path = tmp_path_factory.mktemp("rubric") / "rubric.yaml"
    entries = "".join(
        f"  - {{name: c{i}, check: length, parameters: {{most: {i}}}, weight: {weight!r}}}\n"
        for i, weight in enumerate(weights)
    )
    path.write_text(f"name: r\ncriteria:\n{entries}")
    value = judged(load_rubric(path, {}), Transcript(text)).scores["rubric"]
    assert value is not None
    assert -1 - 1e-9 <= value <= 1 + 1e-9


@pytest.mark.parametrize(
    ("text", "complaints"),
    [
        ("criteria: [", ["line 1: not valid YAML"]),
        ("- a", ["has no list `criteria`"]),
        ("criteria: []", ["criteria, weight: none is above or below 0"]),
        ("name: x y\ncriteria: []", ["name: 'x y' is no name"]),
        ("colour: red\ncriteria: []", ["colour: unknown field"]),
        ("criteria: [a]", ["criterion 1: is no mapping"]),
        (
            "criteria: [{name: a, function: answer_check}, {name: a, check: length}]",
            ["criterion a, name: there are 2 of that name"],
        ),
        ("criteria: [{name: a}]", ["criterion a, function: give either this or `check`"]),
        (
            "criteria: [{name: a, function: f, weight: .nan}, {name: b, check: c, range: [1, 0]}]",
            [
                "criterion a, weight: nan is not a finite number",
                "criterion a, function: 'f' is unknown; there are answer_check",
                "criterion b, range: [1, 0] is not [low, high]",
                "criterion b, check: 'c' is unknown; there are regex",
            ],
        ),
        ("criteria: [{name: a, check: length, weight: 0}]", ["none is above or below 0"]),
        ("criteria: [{name: a, check: length, wieght: 1}]", ["criterion a, wieght: unknown field"]),
        (
            "criteria: [{name: a, check: length, parameters: {longest: 3}}]",
            ["criterion a, parameters: 'longest' is unknown; there are of, unit, least, most"],
        ),
        (
            "criteria: [{name: a, check: regex, parameters: {pattern: '('}}]",
            ["criterion a, parameters: missing ), unterminated subpattern at position 0"],
        ),
        ("criteria: [{name: a, check: regex}]", ["criterion a, parameters: 'pattern' is missing"]),
        (
            "criteria: [{name: a, check: contains, parameters: {text: 3}}]",
            ["criterion a, parameters: text: 3 is not of type str"],
        ),
        (
            "criteria: [{name: a, check: length, parameters: {of: 'a b'}}]",
            ["criterion a, parameters: of: 'a b' is neither"],
        ),
        ("criteria: [{name: a, function: 'own_criteria:none'}]", ["has no function 'none'"]),
        (
            "criteria: [{name: a, function: 'own_criteria:marks', parameters: {most: 1}}]",
            ["criterion a, parameters: 'most' is unknown; there are full"],
        ),
        (
            "criteria: [{name: a, function: 'own_criteria:halves'}]",
            ["criterion a, function: --rubric-file own_criteria:halves: takes (completions, task)"],
        ),
        (
            "criteria: [{name: a, function: 'own_criteria:swapped', parameters: {full: 1}}]",
            ["criterion a, function: --rubric-file own_criteria:swapped: takes (task, completion,"],
        ),
        ("criteria: [{name: a, name: b}]", ["line 1: not valid YAML ('name' is there twice)"]),
    ],
)
def test_every_mistake_is_a_line_that_names_criterion_and_field(load, text, complaints):
    with pytest.raises(UserError) as caught:
        load(text)
    lines = str(caught.value).split("\nerror: ")
    assert all(line.startswith("--rubric-file ") for line in lines)
    for line, complaint in zip(lines, complaints, strict=True):
        assert complaint in line


@pytest.mark.parametrize(
    ("function", "complaint"), [("broken", "KeyError: 'no such thing'"), ("endless", "gave inf")]
)
def test_a_function_of_the_users_that_fails_is_named(load, function, complaint):
    rubric = load(f"criteria: [{{name: a, function: 'own_criteria:{function}'}}]")
    judgement = judged(rubric, RIGHT)
    assert judgement.failure is not None
    assert judgement.failure.text.startswith(f"--rubric-file own_criteria:{function}: ")
    assert complaint in judgement.failure.text
    assert judgement.scores == {"rubric": None, "criteria/rubric/a": None}


def test_a_file_of_the_users_is_found_from_the_rubric(load, tmp_path, monkeypatch):
    rubric = (
        "criteria: [{name: a, function: 'own_criteria.py:marks', parameters: {full: 1}}, "
        "{name: b, check: length}, {name: c, function: 'own_criteria:broken'}]"
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    judge = Judge([Reward("rubric", load(rubric), 1.0)], NEVER)
    assert judge([RIGHT], [TASK])[0].scores["criteria/rubric/a"] == 1
    path = tmp_path / "rubric.yaml"
    assert own_functions(path) == {
        "own_criteria.py:marks": f"{tmp_path}/own_criteria.py:marks",
        "own_criteria:broken": "own_criteria:broken",
    }
    with pytest.raises(UserError, match=r"criterion a, function: .*/lost\.py:f: no such file"):
        load("criteria: [{name: a, function: 'lost.py:f'}]")


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^--rubric-file .*nothing\.yaml: cannot be read"):
        load_rubric(tmp_path / "nothing.yaml", {})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-7", 5e-7),
        ("1E3", 1000.0),
        ("+.5", 0.5),
        ("3", 3),
        ("1.", 1.0),
        ("-2.5e+4", -25000.0),
        ("1_000", 1000),
        ("e5", "e5"),
        ("5e", "5e"),
        ("yes", True),
        ("1.2.3", "1.2.3"),
        ("v1e5", "v1e5"),
    ],
)
def test_numbers_of_yaml(tmp_path: Path, text, value):
    (tmp_path / "a.yaml").write_text(f"x: {text}\n")
    read = read_yaml("--file", tmp_path / "a.yaml")["x"]
    assert read == value
    assert type(read) is type(value)
    assert not (isinstance(read, float) and math.isnan(read))


def test_yaml_makes_no_objects(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("x: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(UserError, match="line 1: not valid YAML"):
        read_yaml("--file", tmp_path / "a.yaml")
