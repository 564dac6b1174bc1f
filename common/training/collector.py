"""The rollouts of a run: its tasks, answered by the policy of the moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NoReturn

from common.algo.overlong import OVERLONG, soft_overlong_penalty
from common.errors import UserError
from common.flags.train_config import TrainConfig
from common.rewards.judge import Judge
from common.rollout.chat import ChatFormat
from common.rollout.generator import Generator, Interrupted
from common.rollout.rollout import Conversation, rollout, single_turn
from common.rollout.sampling import EVALUATION_STEP
from common.rollout.trajectory import Group, Trajectory
from common.tasks.task import Task
from common.training.exchange import told
from common.training.ranks import ALONE, Ranks
from common.training.task_order import draws_of_step


class Collector:
    """Samples and scores groups of completions with one model, by the flags of one run."""

    def __init__(
        self,
        config: TrainConfig,
        generator: Generator,
        chat: ChatFormat,
        judge: Judge,
        interrupted: Callable[[], bool],
        ranks: Ranks = ALONE,
        converse: Callable[..., list[Conversation]] = single_turn,
        follow: Callable[[], None] = lambda: None,
    ) -> None:
        """Once `interrupted` says so, scoring stops by raising `Interrupted`.

        Tasks are split among the `ranks`, each of which has its own groups and hears of all others.
        `converse` holds the conversations, in the manner of `single_turn`. `follow` lets the
        generator's model have the weights of the policy.
        """
        self._config = config
        self._generator = generator
        self._chat = chat
        self._judge = judge
        self._interrupted = interrupted
        self._ranks = ranks
        self._converse = converse
        self._follow = follow
        self._version = -1

    def load(self, version: int) -> None:
        """Sample from the policy's weights as they are now, after so many optimizer steps."""
        if version != self._version:
            self._follow()
            self._version = version
        self._ranks.each(lambda: self._generator.load(version))

    def seconds(self) -> Mapping[str, float]:
        """Of phases, where they are not those of the time spent here: there are none."""
        return {}

    def metrics(self) -> Mapping[str, float]:
        """What sampling has cost since this was asked last."""
        return self._generator.metrics()

    def train(self, tasks: Sequence[Task], step: int) -> tuple[list[Group], list[Group]]:
        """The groups of a step, of which the first is 1: those to learn from, and others.

        With `--dynamic-sampling K` up to K draws of tasks are rolled out, until there are
        `--rollouts-per-step` groups that teach (DAPO, arXiv 2503.14476). So many are returned in
        any case, that optimizer batches and their schedule are as planned: where too few teach,
        first those whose rewards differ, then any.

        A group of which a tool or a reward left fewer than two rollouts to compare is dropped: it
        has none. Raises `UserError` if that is so of every group, and if no conversation had room
        for a token.
        """
        config = self._config
        groups: list[Group] = []
        for drawn in draws_of_step(tasks, step, config):
            rolled_out = self._rollout(drawn, step - 1, config.group_size, config.temperature)
            rolled_out = [g if len(g.rollouts) > 1 else _dropped(g) for g in rolled_out]
            if config.overlong == "penalty":
                rolled_out = [self._penalised(group) for group in rolled_out]
            groups += rolled_out
            if sum(map(self._teaches, groups)) >= config.rollouts_per_step:
                break
        self._check_scored(groups, f"step {step}")
        if not any(r.trajectory.num_sampled for group in groups for r in group.rollouts):
            raise UserError(
                f"--max-length {config.max_length}: no token was sampled in step {step}, as what "
                "conversations open with leaves no room; raise it, or lower --max-tool-tokens, "
                "to which an environment's opening is cut"
            )
        values = [(self._teaches(g), g.has_signal, bool(g.rollouts)) for g in groups]
        best_first = sorted(range(len(groups)), key=values.__getitem__, reverse=True)
        kept = set(best_first[: config.rollouts_per_step])
        return (
            [group for number, group in enumerate(groups) if number in kept],
            [group for number, group in enumerate(groups) if number not in kept],
        )

    def _teaches(self, group: Group) -> bool:
        """By what `--dynamic-sampling-by` names."""
        by_reward = self._config.dynamic_sampling_by == "reward"
        return group.has_signal if by_reward else group.is_solved_in_part

    def _penalised(self, group: Group) -> Group:
        """With what is taken for length as one more score, of weight 1."""
        penalties = [self._penalty(rollout.trajectory) for rollout in group.rollouts]
        rollouts = [
            replace(
                rollout,
                scores={**rollout.scores, OVERLONG: penalty},
                weights={**rollout.weights, OVERLONG: 1.0},
                reward=rollout.reward + penalty,
            )
            for rollout, penalty in zip(group.rollouts, penalties, strict=True)
        ]
        return replace(group, rollouts=rollouts)

    def _penalty(self, trajectory: Trajectory) -> float:
        """By the limit that comes first: of completions, or --max-length less what was given."""
        config, sampled = self._config, trajectory.num_sampled
        room = config.max_length - (len(trajectory) - sampled)
        limit = min(config.max_completion_tokens, room)
        return soft_overlong_penalty(
            sampled, limit, config.overlong_buffer, cut=trajectory.truncated
        )

    def evaluate(self, tasks: Sequence[Task]) -> list[Group]:
        """Groups of `--eval-group-size`, with the same random numbers each time.

        Raises `UserError` as `train` does.
        """
        config = self._config
        given = config.eval_temperature
        temperature = config.temperature if given is None else given
        groups = self._rollout(tasks, EVALUATION_STEP, config.eval_group_size, temperature)
        self._check_scored(groups, "an evaluation")
        return groups

    def _rollout(
        self, tasks: Sequence[Task], step: int, group_size: int, temperature: float
    ) -> list[Group]:
        config = self._config
        converse = partial(
            self._converse,
            generator=self._generator,
            chat=self._chat,
            sampling=config.sampling(temperature),
            max_completion_tokens=config.max_completion_tokens,
        )
        work = partial(
            rollout,
            step=step,
            group_size=group_size,
            seed=config.seed,
            converse=converse,
            judge=partial(self._judge, meanwhile=self._stop_if_interrupted),
        )
        groups = self._ranks.split(tasks, work, told)
        return [
            replace(group, task=task, holder=number % self._ranks.count)
            for number, (task, group) in enumerate(zip(tasks, groups, strict=True))
        ]

    def _stop_if_interrupted(self) -> None:
        if self._interrupted():
            raise Interrupted

    def _check_scored(self, groups: Sequence[Group], where: str) -> None:
        if any(group.rollouts for group in groups):
            return

        def refuse() -> NoReturn:
            last = groups[0].errored[-1]
            if last.failure:
                raise UserError(
                    f"{last.failure.source}: left no completion of {where} to compare, the last "
                    f"time: {last.failure.what}; {last.failure.remedy}, then --resume"
                )
            call = last.completion.calls[-1]
            raise UserError(
                f"tool {call.tool}: broke off the conversations of {where}, the last with "
                f"{call.reply!r}; mend it, then --resume"
            )

        # The first rank has the first group whole.
        self._ranks.first(refuse)


def _dropped(group: Group) -> Group:
    return replace(group, rollouts=[])
