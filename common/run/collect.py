"""The rollouts of a run: its tasks, answered by the policy of the moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import transformers

from common.errors import UserError
from common.models.load import check_positions, stop_token_ids
from common.rewards.reward import Reward
from common.rollout.chat import ChatFormat
from common.rollout.generate import LocalGenerator
from common.rollout.rollout import Correctness, rollout
from common.rollout.sampling import EVALUATION_STEP, Sampling
from common.rollout.trajectory import Group
from common.run.config import TrainConfig
from common.tasks.task import Task


class Collector:
    """Samples and scores groups of completions with one model, by the flags of one run."""

    def __init__(
        self,
        config: TrainConfig,
        model: transformers.PreTrainedModel,
        chat: ChatFormat,
        rewards: Sequence[Reward],
        is_correct: Correctness,
        interrupted: Callable[[], bool],
    ) -> None:
        """Once `interrupted` says so, sampling stops by raising `Interrupted`.

        Raises `UserError` if the model has fewer positions than `--max-length`.
        """
        check_positions(model, config.max_length)
        self._config = config
        self._chat = chat
        self._rewards = rewards
        self._is_correct = is_correct
        self._generator = LocalGenerator(
            model,
            stop_token_ids(model, chat.tokenizer) | chat.turn_end_ids,
            config.max_length,
            use_bfloat16=config.model_options(model.device).use_bfloat16,
            interrupted=interrupted,
        )

    def train(self, tasks: Sequence[Task], step: int) -> list[Group]:
        """Groups of `--group-size` for the tasks of a step."""
        return self._rollout(tasks, step, self._config.group_size)

    def evaluate(self, tasks: Sequence[Task]) -> list[Group]:
        """Groups of `--eval-group-size`, with the same random numbers each time."""
        return self._rollout(tasks, EVALUATION_STEP, self._config.eval_group_size)

    def _rollout(self, tasks: Sequence[Task], step: int, group_size: int) -> list[Group]:
        config = self._config
        return rollout(
            tasks,
            step=step,
            group_size=group_size,
            seed=config.seed,
            generator=self._generator,
            chat=self._chat,
            sampling=Sampling(config.temperature, config.top_p, config.max_completion_tokens),
            rewards=self._rewards,
            is_correct=self._is_correct,
        )


def check_lengths(config: TrainConfig, chat: ChatFormat, tasks: Iterable[Task]) -> None:
    """Raise `UserError` for a task whose prompt leaves no room for an answer."""
    for task in tasks:
        length = len(chat.prompt_ids(task.question))
        if length >= config.max_length:
            raise UserError(
                f"--max-length {config.max_length}: the prompt of task {task.task_id} "
                f"({task.question[:40]!r}) alone has {length} tokens; raise it or drop the task"
            )
