"""Functions of the user's: both forms, their time, what they may return, what is said of faults."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.rewards.outcome import Failure, Outcome
from common.rewards.own_function import OwnFunction, outcomes_of
from common.rewards.transcript import Transcript
from common.tasks.task import Task
from common.tools.toolbox import instant

TASKS = [Task(number, "?", str(number)) for number in range(64)]
COMPLETIONS = [Transcript("x" * number) for number in range(64)]


def heard(function: Callable[..., Any], count: int = 64, timeout: float = 5.0) -> list[Outcome]:
    own = OwnFunction("--reward", "my.py:f", function).bound()
    said = outcomes_of([own], COMPLETIONS[:count], TASKS[:count], timeout, lambda: None)
    return said[own]


def sleeping(completion, task):
    time.sleep(0.05)
    return len(completion)


async def sleeping_async(completion, task):
    await asyncio.sleep(0.05)
    return len(completion)


@pytest.mark.parametrize("function", [sleeping, sleeping_async])
def test_64_completions_of_50_ms_each_take_less_than_a_second_and_keep_their_order(function):
    started = time.monotonic()
    assert heard(function) == list(range(64))
    assert time.monotonic() - started < 1


def test_functions_run_beside_one_another():
    """Three that take 0.3 s each, of one completion, take less than the 0.9 s of all."""
    own = [OwnFunction("--reward", "f", lambda c, t: time.sleep(0.3)) for _ in range(3)]
    started = time.monotonic()
    said = outcomes_of(own, COMPLETIONS[:1], TASKS[:1], 5.0, lambda: None)
    assert time.monotonic() - started < 0.7
    assert list(said.values()) == [[None]] * 3


def test_the_batch_form_is_called_once_with_lists():
    seen = []

    def of_batch(completions, tasks):
        seen.append((completions, tasks))
        return [int(task.answer) + 0.5 for task in tasks]

    async def of_batch_async(completions, tasks):
        return np.arange(len(completions))

    assert heard(of_batch, 3) == [0.5, 1.5, 2.5]
    assert seen == [(COMPLETIONS[:3], TASKS[:3])]
    assert heard(of_batch_async, 3) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("value", "score"),
    [
        (True, 1.0),
        (3, 3.0),
        (np.float32(0.5), 0.5),
        (np.int64(-2), -2.0),
        (np.bool_(True), 1.0),
        (np.array([0.25]), 0.25),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (torch.tensor([True]), 1.0),
        (None, None),
    ],
)
def test_numbers_of_any_library_are_numbers_and_none_does_not_apply(value, score):
    (outcome,) = heard(lambda completion, task: value, 1)
    assert outcome == score
    assert type(outcome) is type(score)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("1", "gave '1'; it must give a finite number, or None"),
        (float("nan"), "gave nan; "),
        (np.float64("inf"), "gave np.float64(inf); "),
        (10**400, "gave 10000"),
        (np.ones(2), "gave array([1., 1.]); "),
        ("\ud83d\x1b[2J", r"gave '\ud83d\x1b[2J'; "),
    ],
)
def test_what_is_no_finite_number_is_a_failure_and_not_a_zero(value, shown):
    (outcome,) = heard(lambda completion, task: value, 1)
    assert isinstance(outcome, Failure)
    assert outcome.kind == "reward_error"
    assert outcome.text.startswith(f"--reward my.py:f: {shown}")


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([1.0], "gave 1 scores for 3 completions; give one for each"),
        (0.5, "gave 0.5; give a list with a score for each completion"),
        ("abc", "gave 'abc'; give a list"),
        (torch.tensor(0.5), "gave tensor(0.5000); give a list"),
        (np.array(0.5), "gave array(0.5); give a list"),
        (torch.zeros(3, device="meta"), "raised RuntimeError: Tensor.item() cannot be called"),
    ],
)
def test_a_batch_form_gives_one_score_for_each(values, shown):
    outcomes = heard(lambda completions, tasks: values, 3)
    assert [shown in outcome.text for outcome in outcomes if isinstance(outcome, Failure)] == [
        True
    ] * 3


def test_work_that_waits_for_python_is_not_late():
    """24 that compute for 100 ms each take 2.4 s; none of them takes the 2 s that it may."""

    def computing(completion, task):
        started = time.thread_time()
        while time.thread_time() - started < 0.1:
            pass
        return len(completion)

    assert heard(computing, 24, timeout=2.0) == list(range(24))


def test_many_that_hang_are_given_up_together():
    async def hanging(completion, task):
        await asyncio.sleep(5)

    started = time.monotonic()
    for function in (hanging, lambda completion, task: time.sleep(5)):
        assert {str(o) for o in heard(function, timeout=0.3)} == {
            str(Failure("--reward my.py:f", "no score within 0.3 s", "reward_timeout"))
        }
    # One after the other they would take 20 s each.
    assert time.monotonic() - started < 4


class Unshown:
    def __repr__(self):
        raise LookupError("no name")


@pytest.mark.parametrize("error", [asyncio.CancelledError("x"), KeyboardInterrupt("x")])
def test_what_would_end_a_thread_or_a_task_is_a_failure_like_any(error):
    def raising(completion, task):
        raise error

    async def raising_async(completion, task):
        raise error

    for function in (raising, raising_async):
        (outcome,) = heard(function, 1)
        assert isinstance(outcome, Failure)
        assert f"raised {type(error).__name__}: x (" in outcome.text


def test_what_cannot_be_shown_is_a_failure_like_any():
    (outcome,) = heard(lambda completion, task: Unshown(), 1)
    assert isinstance(outcome, Failure)
    assert "raised LookupError: no name (" in outcome.text


def test_ctrl_c_is_no_failure_of_a_function_in_the_main_thread():
    @instant
    def interrupted(completion, task):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heard(interrupted, 1)


def test_what_one_completion_fails_on_is_its_own_affair():
    def picky(completion, task):
        if len(completion) == 1:
            raise ValueError("no \ud83d\x1b[2J\ngood")
        if len(completion) == 2:
            raise SystemExit
        if len(completion) == 3:
            time.sleep(2)
        return len(completion)

    started = time.monotonic()
    outcomes = heard(picky, 5, timeout=0.3)
    assert time.monotonic() - started < 1
    assert (outcomes[0], outcomes[4]) == (0, 4)
    raised, left, late = outcomes[1:4]
    assert isinstance(raised, Failure)
    assert isinstance(left, Failure)
    assert "raised ValueError: no \ufffd\ufffd[2J good (" in raised.text
    assert "SystemExit" in left.text
    expected = Failure("--reward my.py:f", "no score within 0.3 s", "reward_timeout")
    assert late == expected


def test_a_batch_that_takes_too_long_has_no_scores():
    outcomes = heard(lambda completions, tasks: time.sleep(1), 2, timeout=0.1)
    assert [o.kind for o in outcomes if isinstance(o, Failure)] == ["reward_timeout"] * 2


def test_an_instant_function_is_called_here_in_order():
    order: list[tuple[str, bool]] = []

    @instant
    def listed(completion, task):
        order.append((task.answer, threading.current_thread() is threading.main_thread()))
        return 0.0

    heard(listed)
    assert order == [(str(number), True) for number in range(64)]


def test_whoever_waits_may_stop():
    def stop():
        raise InterruptedError

    own = OwnFunction("--reward", "my.py:f", lambda completion, task: time.sleep(5))
    started = time.monotonic()
    with pytest.raises(InterruptedError):
        outcomes_of([own], COMPLETIONS[:1], TASKS[:1], 60.0, stop)
    assert time.monotonic() - started < 1


def with_an_option(completion, task, strict=False):
    return 1.0


def one(completion):
    return 1.0


def three(completion, task, rubric):
    return 1.0


def half(completions, task):
    return [1.0]


def other_half(completion, tasks):
    return 1.0


def the_wrong_way_round(tasks, completions):
    return [1.0]


def swapped(task, completion):
    return 1.0


def task_first(task, text):
    return 1.0


def task_last(completion, limit=9, task=None):
    return 1.0


@pytest.mark.parametrize("flag", ["--reward", "--correct", "--rubric-file"])
def test_a_signature_of_neither_form_says_which_there_are(flag):
    OwnFunction(flag, "my.py:f", with_an_option).bound()
    OwnFunction(flag, "my.py:f", three).bound(rubric="x")
    for function, takes in (
        (one, "completion"),
        (three, "completion, task, rubric"),
        (half, "completions, task"),
        (other_half, "completion, tasks"),
        (the_wrong_way_round, "tasks, completions"),
        (swapped, "task, completion"),
        (task_first, "task, text"),
        (task_last, "completion, limit, task"),
    ):
        with pytest.raises(UserError) as caught:
            OwnFunction(flag, "my.py:f", function).bound()
        assert str(caught.value) == (
            f"{flag} my.py:f: takes ({takes}); write (completion, task), which gives the score "
            "of one completion, or (completions, tasks), which gives a list with those of a batch"
        )
