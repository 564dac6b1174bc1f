"""The tasks of a run: which are trained on, which are held out, and which each step takes."""

from __future__ import annotations

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

    Which they are depends on the seed and their questions, not on the order or on what else is
    there, and fewer are among more.
    """

    def place(task: Task) -> bytes:
        return blake2b(task.question.encode(), key=str(seed).encode()).digest()

    chosen = {task.task_id for task in sorted(tasks, key=place)[:count]}
    return [task for task in tasks if task.task_id in chosen]


def tasks_of_step(tasks: Sequence[Task], step: int, config: TrainConfig) -> list[Task]:
    """The tasks of a step: pass after pass over all tasks, each pass in an order of its own.

    Depends on seed and step alone, so that any step can be asked for first. What does not fill a
    batch at the end of a pass is left out of that pass: no task is twice in one batch.
    """
    count = config.rollouts_per_step
    number, position = divmod(step, len(tasks) // count)
    order = stream(config.seed, "task order", number).permutation(len(tasks))
    return [tasks[index] for index in order[position * count : (position + 1) * count]]


def is_evaluation_step(config: TrainConfig, step: int) -> bool:
    """At the start, at the end, and every `--eval-interval` steps between."""
    if step in (0, config.max_steps):
        return True
    return config.eval_interval > 0 and step % config.eval_interval == 0
