"""Prompts that are too long, and questions that are asked twice."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import pytest

from common.errors import UserError
from common.flags.train_config import TrainConfig, resolve_defaults
from common.rollout.chat import ChatFormat
from common.tasks.task import Task
from common.training.conversations import MultiTurnConfig
from common.training.prompts import leave_out_overlong, warnings_about_repeats


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    experiment: ClassVar[str] = "test"


@dataclass(frozen=True, kw_only=True)
class Talk(MultiTurnConfig):
    experiment: ClassVar[str] = "test"


SHORT = [Task(number, f"What is {number}+1?", str(number + 1)) for number in range(9)]
# The tokenizer spells digits one by one, so each of these is as long as its number of digits, and
# a few tokens of the template.
LONG = [Task(20 + number, "1" * (200 + number), "1") for number in range(5)]


def leave_out(tokenizer, train, held_out, **flags):
    config = resolve_defaults(Config(**{"rollouts_per_step": 8, **flags}), bundled=True)
    said: list[str] = []
    chat = ChatFormat(tokenizer, "")
    kept = leave_out_overlong(config, chat, train, held_out, said.append)
    return *kept, said


def test_nothing_is_said_of_prompts_that_fit(tokenizer):
    assert leave_out(tokenizer, SHORT[:8], SHORT[8:]) == (SHORT[:8], SHORT[8:], [])


def test_prompts_that_are_too_long_are_counted_and_the_first_named(tokenizer):
    frame = len(ChatFormat(tokenizer, "").prompt_ids("1")) - 1
    expected = (
        "--max-length 160: 4 of 11 prompts leave no room for an answer: "
        + ", ".join(
            f"line {line} ({length + frame} tokens, '{'1' * 40}')"
            for line, length in ((21, 200), (22, 201), (23, 202))
        )
        + " and 1 more; raise it, or leave them out with --overlong-prompts drop"
    )
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        leave_out(tokenizer, [LONG[0], *SHORT[:7], *LONG[1:3]], [LONG[3]])


def test_they_are_left_out_of_training_and_held_out_tasks_alike(tokenizer):
    train, held_out, said = leave_out(
        tokenizer, [LONG[0], *SHORT[:8]], [LONG[3], SHORT[8]], overlong_prompts="drop"
    )
    assert (train, held_out) == (SHORT[:8], SHORT[8:])
    (line,) = said
    assert line.startswith("left out 2 of 11 prompts, which leave no room within --max-length 160:")
    assert "line 21 (" in line
    assert "line 24 (" in line


def test_that_no_held_out_task_is_left_is_said(tokenizer):
    train, held_out, (line,) = leave_out(
        tokenizer, SHORT[:8], [LONG[0], LONG[1]], overlong_prompts="drop"
    )
    assert (train, held_out) == (SHORT[:8], [])
    assert line.endswith("; no held-out task is left: nothing is evaluated")
    *_, (line,) = leave_out(tokenizer, [LONG[0], *SHORT[:8]], [], overlong_prompts="drop")
    assert "held-out" not in line


def test_what_is_left_must_fill_a_batch(tokenizer):
    with pytest.raises(
        UserError, match="--rollouts-per-step 8: only 7 training tasks have prompts"
    ):
        leave_out(tokenizer, [*SHORT[:7], LONG[0]], [], overlong_prompts="drop")


def test_a_prompt_may_leave_room_for_a_single_token(tokenizer):
    length = len(ChatFormat(tokenizer, "").prompt_ids(SHORT[0].question))
    assert leave_out(tokenizer, SHORT, [], max_length=length + 1)[2] == []
    with pytest.raises(UserError, match="9 of 9 prompts"):
        leave_out(tokenizer, SHORT, [], max_length=length)


def test_lengths_are_those_of_the_prompts(tokenizer):
    chat = ChatFormat(tokenizer, "Be brief.")
    questions = ["2+2?", "", "<|end|>" + tokenizer.eos_token * 3, "a\nb" * 30, "é😀"]
    assert chat.prompt_lengths(questions) == [len(chat.prompt_ids(one)) for one in questions]


def asked(config, train, held_out=()):
    return list(warnings_about_repeats(config, train, held_out))


def test_questions_that_are_there_twice_are_said_with_their_number():
    config = Config(rollouts_per_step=2)
    assert asked(config, SHORT[:5], SHORT[5:]) == []
    again = [Task(30 + task.task_id, task.question, "x") for task in SHORT[:2]]
    assert asked(config, [*SHORT[:5], *again], SHORT[5:]) == [
        "warning: 4 of 7 training tasks ask what another one asks, too, so that a batch may hold "
        "a question twice: line 1, line 2, line 31 and 1 more; keep one of each"
    ]
    assert asked(config, SHORT[2:], [*again, SHORT[8]]) == [
        "warning: 1 of 3 held-out questions are trained on, too, and tell nothing about new ones: "
        "line 9; correct the column held_out, or leave it out"
    ]
    assert asked(Config(rollouts_per_step=1), [*SHORT, *again]) == []


def test_with_an_environment_rows_are_compared_and_not_their_questions():
    train = [Task(n, "Guess.", "1", {"number": n % 3, "held_out": False}) for n in range(3)]
    held_out = [Task(3, "Guess.", "1", {"number": 7, "held_out": True})]
    config = Talk(environment="game:Guessing", rollouts_per_step=2)
    assert asked(config, train, held_out) == []
    assert len(asked(Talk(rollouts_per_step=2), train, held_out)) == 2
    held_out = [Task(3, "Guess.", "1", {"number": 2, "held_out": True})]
    (warning,) = asked(config, train, held_out)
    assert warning.startswith("warning: 1 of 1 held-out questions are trained on")
