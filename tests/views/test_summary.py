"""What a run says at its end."""

from __future__ import annotations

import json

from common.run.checkpoint import Checkpoints
from common.run.directory import Run, RunDirectory
from common.views.summary import before_and_after

EVALUATED = [
    {"eval/accuracy": 0.25, "eval/returns_mean": 0.3, "eval/format_rate": 0.5},
    {"eval/accuracy": 0.75, "eval/returns_mean": 0.85, "eval/format_rate": 1.0},
]


def sample(step: int, question: str, answer: str, text: str) -> dict[str, object]:
    named = {"question": question, "ground_truth": answer, "completion": text}
    return {"step": step, "split": "held out", **named}


def test_answer_tags_are_not_spoken_of_where_nothing_is_said_of_them(tmp_path):
    directory = RunDirectory(tmp_path, tmp_path)
    rows = [{name: row[name] for name in row if "format" not in name} for row in EVALUATED]
    directory.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = Run(directory, Checkpoints(tmp_path, 2), None, False, writes=True)
    said = before_and_after(run).splitlines()
    assert said[1] == "held-out accuracy 25.0% -> 75.0%, return 0.300 -> 0.850"


def test_each_completion_is_shown_once_below_its_task(tmp_path):
    """Two completions of two tasks, which ask the same and have other answers."""
    directory = RunDirectory(tmp_path, tmp_path)
    samples = [
        sample(step, "Which?", answer, f"{when} {answer}{number}")
        for step, when in ((0, "old"), (2, "between"), (4, "new"))
        for answer in "AB"
        for number in (1, 2)
    ]
    for path, rows in ((directory.metrics_file, EVALUATED), (directory.samples_file, samples)):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = Run(directory, Checkpoints(tmp_path, 2), None, False, writes=True)
    assert before_and_after(run).splitlines() == [
        "",
        "held-out accuracy 25.0% -> 75.0%, return 0.300 -> 0.850, answer tags 50.0% -> 100.0%",
        "",
        "Which?  (A)",
        "  before: old A1",
        "  before: old A2",
        "  after:  new A1",
        "  after:  new A2",
        "",
        "Which?  (B)",
        "  before: old B1",
        "  before: old B2",
        "  after:  new B1",
        "  after:  new B2",
        "",
        f"run: {tmp_path}",
    ]
