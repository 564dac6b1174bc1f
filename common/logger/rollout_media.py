"""What a batch of rollouts looks like: distributions, parts of the reward, and completions."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from common.logger.media import Bars, Histogram, Table
from common.logger.metrics import is_criterion, scores_by_name
from common.rewards.tags import ANSWER_TAG, extract_tag
from common.rollout.trajectory import Group, Rollout

# Of the table of completions, beside the scores.
GENERATION_COLUMNS = (
    *("step", "question", "reasoning", "answer", "ground_truth", "reward"),
    *("advantage", "stop_reason", "completion_tokens"),
)

MOST_GENERATIONS = 12
MOST_CHARACTERS = 4000


def histograms(groups: Sequence[Group]) -> dict[str, Histogram]:
    """Of rewards by function, returns, advantages and lengths."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    values = {
        f"rewards/{name}_hist": scores
        for name, scores in scores_by_name(rollouts).items()
        if not is_criterion(name)
    }
    values["rewards/distribution"] = np.array([rollout.reward for rollout in rollouts])
    values["rollouts/advantages_hist"] = np.array([a for group in groups for a in group.advantages])
    lengths = [rollout.trajectory.num_sampled for rollout in rollouts]
    values["rollouts/completion_tokens_hist"] = np.array(lengths)
    return {name: Histogram.of(numbers) for name, numbers in values.items()}


def reward_breakdown(groups: Sequence[Group]) -> Bars:
    """The mean score of every reward function."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return Bars(
        {
            name: float(scores.mean())
            for name, scores in scores_by_name(rollouts).items()
            if not is_criterion(name)
        }
    )


def as_text(group: Group) -> str:
    """The question and the first conversation about it."""
    messages = group.rollouts[0].completion.messages
    turns = [f"{message.role}: {message.content}" for message in messages]
    return "\n\n".join([group.task.question, *turns])


def generations(step: int, groups: Sequence[Group]) -> Table:
    """The best, the worst and another completion of each group, as many as a table can show."""
    rows: list[list[str | int | float | None]] = []
    columns: list[str] = []
    for group in groups:
        for rollout, advantage in _best_worst_and_another(group, step):
            if len(rows) == MOST_GENERATIONS:
                break
            row = _row(step, group, rollout, advantage)
            columns = list(row)
            rows.append(list(row.values()))
    return Table(columns, rows)


def _best_worst_and_another(group: Group, step: int) -> list[tuple[Rollout, float]]:
    pairs = list(zip(group.rollouts, group.advantages, strict=True))
    if len(pairs) < 3:
        return pairs
    ordered = sorted(pairs, key=lambda pair: pair[0].reward)
    another = random.Random(f"{step} {group.task.task_id}").choice(ordered[1:-1])
    return [ordered[-1], ordered[0], another]


def _row(
    step: int, group: Group, rollout: Rollout, advantage: float
) -> dict[str, str | int | float | None]:
    text = rollout.completion
    return {
        "step": step,
        "question": group.task.question[:MOST_CHARACTERS],
        "reasoning": (extract_tag(text, text.reasoning_tag) or text)[:MOST_CHARACTERS],
        "answer": (extract_tag(text, ANSWER_TAG) or "")[:MOST_CHARACTERS],
        "ground_truth": group.task.answer,
        "reward": rollout.reward,
        **rollout.scores,
        "advantage": advantage,
        "stop_reason": rollout.trajectory.stop_reason,
        "completion_tokens": rollout.trajectory.num_sampled,
    }
