"""The rollouts of a run: its tasks, answered by the policy of the moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import transformers

from common.algo.overlong import soft_overlong_penalty
from common.errors import UserError
from common.flags.train_config import TrainConfig
from common.models.load import check_positions, stop_token_ids
from common.rewards.reward import Reward
from common.rollout.chat import ChatFormat
from common.rollout.generate import Generator, LocalGenerator
from common.rollout.rollout import Conversation, Correctness, rollout, single_turn
from common.rollout.sampling import EVALUATION_STEP, Sampling
from common.rollout.trajectory import Group, Trajectory
from common.tasks.task import Task
from common.training.ranks import ALONE, Ranks
from common.training.task_order import tasks_of_step


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
        ranks: Ranks = ALONE,
        converse: Callable[..., list[Conversation]] = single_turn,
    ) -> None:
        """Once `interrupted` says so, sampling stops by raising `Interrupted`.

        Tasks are split among the `ranks`, and every rank gets the groups of all. `converse` holds
        the conversations, in the manner of `single_turn`.

        Raises `UserError` if the model has fewer positions than `--max-length`.
        """
        check_positions(model, config.max_length)
        self._config = config
        stop_ids = stop_token_ids(model, chat.tokenizer) | chat.turn_end_ids
        self._chat = chat.ending_at(stop_ids)
        self._rewards = rewards
        self._is_correct = is_correct
        self._ranks = ranks
        self._converse = converse
        self.generator: Generator = LocalGenerator(
            model,
            stop_ids,
            config.max_length,
            ends_turn=chat.ends_turn,
            use_bfloat16=config.model_options(model.device).use_bfloat16,
            interrupted=interrupted,
        )

    def train(self, tasks: Sequence[Task], step: int) -> list[Group]:
        """The groups of a step, of which the first is 1.

        With `--dynamic-sampling K` up to K draws of tasks are rolled out, until there are
        `--rollouts-per-step` groups whose rewards differ (DAPO, arXiv 2503.14476). Fewer are
        returned if there were no more, and the last draw as it is if there was none at all. Each
        step has K draws of its own, taken or not, so that no step depends on the one before.

        A group of which a tool left fewer than two rollouts to compare is dropped: it has none.
        Raises `UserError` if that is so of every group.
        """
        draws = self._config.dynamic_sampling
        with_signal: list[Group] = []
        broken: list[Group] = []
        groups: list[Group] = []
        for draw in range((step - 1) * draws, step * draws):
            drawn = tasks_of_step(tasks, draw, self._config)
            rolled_out = self._rollout(drawn, draw, self._config.group_size)
            groups = [group if len(group.rollouts) > 1 else _dropped(group) for group in rolled_out]
            if self._config.overlong == "penalty":
                groups = [self._penalised(group) for group in groups]
            with_signal += [group for group in groups if group.has_signal]
            broken += [_dropped(g) for g in groups if g.errored and not g.has_signal]
            if len(with_signal) >= self._config.rollouts_per_step:
                break
        if draws == 1 or not with_signal:
            _check_scored(groups, f"step {step}")
            return groups
        return with_signal[: self._config.rollouts_per_step] + broken

    def _penalised(self, group: Group) -> Group:
        rollouts = [
            replace(rollout, reward=rollout.reward + self._penalty(rollout.trajectory))
            for rollout in group.rollouts
        ]
        return replace(group, rollouts=rollouts)

    def _penalty(self, trajectory: Trajectory) -> float:
        """By the limit that comes first: of completions, or --max-length less what was given."""
        config, sampled = self._config, trajectory.num_sampled
        room = config.max_length - (len(trajectory.token_ids) - sampled)
        limit = min(config.max_completion_tokens, room)
        return soft_overlong_penalty(
            sampled, limit, config.overlong_buffer, cut=trajectory.truncated
        )

    def evaluate(self, tasks: Sequence[Task]) -> list[Group]:
        """Groups of `--eval-group-size`, with the same random numbers each time.

        Raises `UserError` as `train` does.
        """
        groups = self._rollout(tasks, EVALUATION_STEP, self._config.eval_group_size)
        _check_scored(groups, "an evaluation")
        return groups

    def _rollout(self, tasks: Sequence[Task], step: int, group_size: int) -> list[Group]:
        config = self._config
        converse = partial(
            self._converse,
            generator=self.generator,
            chat=self._chat,
            sampling=Sampling(config.temperature, config.top_p),
            max_completion_tokens=config.max_completion_tokens,
        )
        work = partial(
            rollout,
            step=step,
            group_size=group_size,
            seed=config.seed,
            converse=converse,
            rewards=self._rewards,
            is_correct=self._is_correct,
        )
        return self._ranks.split(tasks, work)


def _dropped(group: Group) -> Group:
    return replace(group, rollouts=[])


def _check_scored(groups: Sequence[Group], where: str) -> None:
    if not any(group.rollouts for group in groups):
        call = groups[0].errored[-1].completion.calls[-1]
        raise UserError(
            f"tool {call.tool}: broke off the conversations of {where}, the last with "
            f"{call.reply!r}; mend it, then --resume"
        )
