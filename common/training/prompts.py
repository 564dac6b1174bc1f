"""Whether the tasks of a run can be asked: what is too long, and what is asked twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from common.errors import UserError
from common.flags.train_config import TrainConfig
from common.rollout.chat import ChatFormat
from common.tasks.task import Task
from common.training.conversations import MultiTurnConfig

# What a tokenizer makes of so many questions fits into the memory of any machine.
_AT_ONCE = 10_000
_NAMED = 3


def leave_out_overlong(
    config: TrainConfig,
    chat: ChatFormat,
    train: Sequence[Task],
    held_out: Sequence[Task],
    say: Callable[[str], object],
) -> tuple[list[Task], list[Task]]:
    """The tasks whose prompts leave room for an answer.

    Raises `UserError` if there are others, unless `--overlong-prompts drop` leaves them out, and if
    what is left does not fill a batch.
    """
    tasks = [*train, *held_out]
    overlong = {
        task.task_id: f"line {task.line} ({length} tokens, {task.question[:40]!r})"
        for task, length in zip(tasks, _prompt_lengths(chat, tasks), strict=True)
        if length >= config.max_length
    }
    if not overlong:
        return [*train], [*held_out]
    which = _first(list(overlong.values()))
    count = f"{len(overlong)} of {len(tasks)} prompts"
    if config.overlong_prompts == "refuse":
        raise UserError(
            f"--max-length {config.max_length}: {count} leave no room for an answer: {which}; "
            "raise it, or leave them out with --overlong-prompts drop"
        )
    train, left = (
        [task for task in part if task.task_id not in overlong] for part in (train, held_out)
    )
    say(
        f"left out {count}, which leave no room within --max-length {config.max_length}: {which}"
        + ("; no held-out task is left: nothing is evaluated" if held_out and not left else "")
    )
    if len(train) < config.rollouts_per_step:
        raise UserError(
            f"--rollouts-per-step {config.rollouts_per_step}: only {len(train)} training tasks "
            f"have prompts that fit into --max-length {config.max_length}; lower it, or raise "
            "--max-length"
        )
    return train, left


def _prompt_lengths(chat: ChatFormat, tasks: Sequence[Task]) -> Iterator[int]:
    for start in range(0, len(tasks), _AT_ONCE):
        yield from chat.prompt_lengths([t.question for t in tasks[start : start + _AT_ONCE]])


def warnings_about_repeats(
    config: TrainConfig, train: Sequence[Task], held_out: Sequence[Task]
) -> Iterator[str]:
    """What is to be said of questions that are both trained on and held out, or there twice.

    With an environment, which opens a conversation by all columns, of rows that are equal.
    """
    by_row = isinstance(config, MultiTurnConfig) and config.environment is not None
    asked = Counter(_asked(task, by_row) for task in train)
    learned = [task for task in held_out if _asked(task, by_row) in asked]
    if learned:
        yield (
            f"warning: {len(learned)} of {len(held_out)} held-out questions are trained on, too, "
            f"and tell nothing about new ones: {_first(_lines(learned))}; correct the column "
            "held_out, or leave it out"
        )
    twice = [task for task in train if asked[_asked(task, by_row)] > 1]
    if twice and config.rollouts_per_step > 1:
        yield (
            f"warning: {len(twice)} of {len(train)} training tasks ask what another one asks, too, "
            f"so that a batch may hold a question twice: {_first(_lines(twice))}; keep one of each"
        )


def _asked(task: Task, by_row: bool) -> str:
    if not by_row:
        return task.question
    columns = {name: value for name, value in task.columns.items() if name != "held_out"}
    return json.dumps([task.question, task.answers, columns], sort_keys=True)


def _lines(tasks: Sequence[Task]) -> list[str]:
    return [f"line {task.line}" for task in tasks]


def _first(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
