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


def draws_of_step(tasks: Sequence[Task], step: int, config: TrainConfig) -> list[list[Task]]:
    """The tasks of a step, of which the first is 1, draw by draw: `--dynamic-sampling` draws, or
    fewer if there are too few tasks.

    Pass after pass over all tasks, each pass in an order of its own. Depends on seed and step
    alone, so that any step can be asked for first, and is the same whether the step before took all
    of its draws. What does not fill a step at the end of a pass is left out of that pass: no task
    is twice in one step.
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
