"""The tasks of a run: which are trained on, which are held out, and which each step takes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b

from common.errors import UserError
from common.flags.train_config import TrainConfig
from common.tasks.task import Task, select_tasks, split_tasks
from common.tasks.task_file import load_tasks
from common.training.seeding import stream


def load_task_split(config: TrainConfig) -> tuple[list[Task], list[Task]]:
    """Training tasks and held-out tasks, as many as the config asks for, drawn by its seed.

    Raises `UserError` if the training tasks do not fill one rollout batch.
    """
    path = config.tasks_file
    tasks = select_tasks(load_tasks(path, config.column_types), config.max_terms, config.max_digits)
    train, held_out = split_tasks(tasks)
    train = drawn(train, config.max_prompts, config.seed)
    if len(train) < config.rollouts_per_step:
        raise UserError(
            f"--rollouts-per-step {config.rollouts_per_step}: only {len(train)} training tasks in "
            f"{path}; lower it, give more data, or loosen --max-prompts, --max-terms, --max-digits"
        )
    return train, drawn(held_out, config.eval_samples, config.seed)


def drawn(tasks: Sequence[Task], count: int | None, seed: int) -> list[Task]:
    """So many of the tasks, in their order.

    Which they are depends on the seed and on what is in them, not on the order or on tasks with
    other questions, and fewer are among more. Of tasks with the same question one has the place of
    the question, each other a place of its own, so that none is likelier than another.
    """

    def place(text: str) -> bytes:
        return blake2b(text.encode(), key=str(seed).encode()).digest()

    rows = [(_row_of(task), task) for task in tasks]
    places: dict[int, bytes] = {}
    seen: Counter[str] = Counter()
    for row, task in sorted(rows, key=lambda pair: (place(pair[0]), pair[1].task_id)):
        text = f"{row} {seen[row]}" if seen[task.question] else task.question
        places[task.task_id] = place(text)
        seen.update((task.question, row))
    chosen = set(sorted(places, key=places.__getitem__)[:count])
    return [task for task in tasks if task.task_id in chosen]


def _row_of(task: Task) -> str:
    """All that is in a task, whatever the order of its columns."""
    return json.dumps([task.question, task.answers, task.columns], sort_keys=True)


def draws_of_step(tasks: Sequence[Task], step: int, config: TrainConfig) -> list[list[Task]]:
    """The tasks of a step, of which the first is 1, draw by draw: `--dynamic-sampling` draws, or
    fewer if there are too few tasks.

    Pass after pass deals the tasks out to steps, each pass in an order of its own. All draws of a
    step are its own, taken or not: with K draws a pass is over after a K-th of the steps, and tasks
    in draws that were not needed are not sampled in that pass. So this depends on seed and step
    alone, and any step can be asked for first. What does not fill a step at the end of a pass is
    left out of that pass: no task is twice in one step.
    """
    size = config.rollouts_per_step
    draws = min(config.dynamic_sampling, len(tasks) // size)
    number, position = divmod(step - 1, len(tasks) // (draws * size))
    order = stream(config.seed, "task order", number).permutation(len(tasks))
    starts = range(position * draws * size, (position + 1) * draws * size, size)
    return [[tasks[index] for index in order[start : start + size]] for start in starts]


def is_evaluation_step(config: TrainConfig, step: int) -> bool:
    """At the start, at the end, and every `--eval-interval` steps between."""
    if step in (0, config.max_steps):
        return True
    return config.eval_interval > 0 and step % config.eval_interval == 0
