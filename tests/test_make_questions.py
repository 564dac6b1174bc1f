"""Questions that are made from a user's documents: what is asked, and that it is there."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from common.command import run_command
from common.tools.passages import Passage, read_documents
from common.tools.search import BM25Retriever
from tests.helpers import SHARED_DATA, load_script

EXPERIMENT = "experiment_multiturn_qa"
TANKS = """\
# Tanks

The oxygen tank was filled to 96 percent before the launch on April 11, 1970.
The Mission Control Center read a pressure of 887 psi at 55:53:20 of the flight.
"""


@pytest.fixture(scope="module")
def maker():
    return load_script(EXPERIMENT, "make_questions")


@pytest.fixture
def ask(maker):
    def questions(body: str) -> list[tuple[str, str, str]]:
        spelling = maker.Spelling.of([body])
        found = maker.questions_of("a.md", "Tanks", body, spelling)
        return [(one.kind, one.statement, one.answer) for one in maker.distinct(list(found))]

    return questions


@pytest.fixture
def make(maker, monkeypatch, capsys):
    def command(folder: Path, output: Path) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of `python make_questions.py`, in this process."""
        flags = ["--documents-path", str(folder), "--output", str(output)]
        monkeypatch.setattr(sys, "argv", ["make_questions.py", *flags])
        code = 0
        try:
            run_command(maker.main, maker.Config)
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return command


def test_dates_numbers_names_and_times_are_asked_for(ask):
    body = TANKS.partition("\n\n")[2]
    assert ask(body) == [
        (
            "date",
            "The oxygen tank was filled to 96 percent before the launch on ____.",
            "April 11, 1970",
        ),
        (
            "number",
            "The oxygen tank was filled to ____ percent before the launch on April 11, 1970.",
            "96",
        ),
        (
            "time",
            "The Mission Control Center read a pressure of 887 psi at ____ of the flight.",
            "55:53:20",
        ),
        (
            "number",
            "The Mission Control Center read a pressure of ____ psi at 55:53:20 of the flight.",
            "887",
        ),
    ]


@pytest.mark.parametrize(
    "sentence",
    [
        "This tank was filled to 96 percent before the launch.",
        "The tank in figure 4 was filled to 96 percent before launch.",
        "The tank was filled to l2 percent on the 3 days before launch.",
        "The tank was filled to 96 percent and 96 pounds were in it.",
        "It was 96 percent.",
        "the tank was filled to 96 percent on the day before launch.",
        "The tank was filled to 25 573.1 pounds on the day before launch.",
    ],
)
def test_what_does_not_stand_alone_or_is_garbled_is_not_asked(ask, sentence):
    assert ask(sentence) == []


def test_a_word_that_is_misread_is_told_by_its_frequent_twin(ask):
    clean = "The module was opened about 7 hours before the crew left."
    assert len(ask(clean)) == 1
    often = "The module was cold. " * 4
    assert ask(f"{often} {clean.replace('module', 'moaule')}") == []


def test_a_name_is_what_is_never_written_small(ask):
    sentence = "The patches of the bags were made of {} in the end."
    assert [kind for kind, *_ in ask(sentence.format("Velcro"))] == ["name"]
    assert ask(f"{sentence.format('Some')} There were some bags.") == []


def test_a_gap_that_two_things_fill_is_not_asked_and_the_same_one_once(ask):
    sentence = "The tank was filled to {} percent on the day before launch. "
    assert len(ask(sentence.format(96) * 2)) == 1
    assert ask(sentence.format(96) + sentence.format(97)) == []


def test_a_cell_is_asked_for_with_its_row_and_column(ask):
    body = "The crew used oxygen and water. The oxygen and the water of the crew ran low.\n\n"
    body += "Crew: Commander; Water: 24; Oxygen: 31.\n\nCrew: Pilot; Water: 20 21; Oxygen: 29."
    body += "\n\nThe commander and the pilot of the crew: a commander, a pilot."
    assert ask(body) == [
        ("cell", "Crew: Commander; Water: ____.", "24"),
        ("cell", "Crew: Pilot; Oxygen: ____.", "29"),
    ]


def test_a_question_is_found_by_its_whole_sentence_in_its_own_document(maker):
    row = "Crew: Pilot; Water: 20 21; Oxygen: 29."
    question = maker.Question("a.md", "cell", "Crew", row, "Crew: Pilot; Oxygen: ____.", "29")
    here = Passage(1, "a.md", "Crew", f"Crew: Commander; Water: 24. {row}")
    elsewhere = Passage(2, "b.md", "Crew", row)
    cut = Passage(3, "a.md", "Crew", "Crew: Pilot; Water: 20 21; Oxygen:")
    for passages, expected in (([here], True), ([elsewhere], False), ([cut], False)):
        retriever = BM25Retriever.build([*passages, Passage(9, "c.md", "Else", "Of no use.")])
        assert maker.is_found(question, retriever, 2) == expected


def test_the_command_writes_tasks_that_its_documents_answer(make, tmp_path):
    (tmp_path / "tanks.md").write_text(TANKS)
    output = tmp_path / "questions.jsonl"
    code, printed, complaint = make(tmp_path, output)
    assert (code, complaint) == (0, "")
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 4
    assert rows[0] == {
        "question": "What belongs in the gap? Tanks: The oxygen tank was filled to 96 percent "
        "before the launch on ____.",
        "answer": "April 11, 1970",
        "document": "tanks.md",
        "kind": "date",
    }
    assert "4 questions" in printed


@pytest.mark.parametrize(
    ("text", "complaint"),
    [(None, "no such directory"), ("It is.", "no sentence or table"), ("\0", "holds no text")],
)
def test_documents_of_which_nothing_can_be_asked(make, tmp_path, text, complaint):
    folder = tmp_path / "documents"
    if text is not None:
        folder.mkdir()
        (folder / "a.md").write_text(text)
    code, _, errors = make(folder, tmp_path / "questions.jsonl")
    assert (code, errors.count("\n")) == (2, 1), errors
    assert complaint in errors
    assert not (tmp_path / "questions.jsonl").exists()


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the Apollo report is not beside the checkout")
def test_a_real_report_gives_hundreds_of_questions_each_answered_in_it(make, tmp_path):
    report = (SHARED_DATA / "apollo13_mission_report.md").read_text(encoding="utf-8")
    (tmp_path / "report.md").write_text(report, encoding="utf-8")
    output = tmp_path / "questions.jsonl"
    assert make(tmp_path, output)[0] == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len({row["question"] for row in rows}) == len(rows) >= 300
    (document,) = read_documents(tmp_path)
    flat = re.sub(r"\s+", " ", document.text)
    for row in rows:
        if row["kind"] != "cell":
            filled = row["question"].replace("____", row["answer"])
            starts = [match.end() for match in re.finditer(": ", row["question"].split("____")[0])]
            assert any(filled[start:] in flat for start in starts), filled
