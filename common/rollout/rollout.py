"""From tasks to scored groups: G conversations per task, all of a step in one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from common.rewards.reward import Reward, score
from common.rollout.chat import ChatFormat
from common.rollout.generate import Completion, Generator, Request
from common.rollout.sampling import Sampling, StreamKey
from common.rollout.trajectory import Group, Rollout, Segment, Trajectory
from common.tasks.task import Task

Correctness = Callable[[str, Task], bool]


def rollout(
    tasks: Sequence[Task],
    *,
    step: int,
    group_size: int,
    seed: int,
    generator: Generator,
    chat: ChatFormat,
    sampling: Sampling,
    rewards: Sequence[Reward],
    is_correct: Correctness,
) -> list[Group]:
    """One group of scored completions per task, in the order of the tasks."""
    requests = [
        Request(tuple(prompt_ids), StreamKey(seed, step, task.task_id, member))
        for task in tasks
        for prompt_ids in [chat.prompt_ids(task.question)]
        for member in range(group_size)
    ]
    completions = generator.generate(requests, sampling)
    groups: list[Group] = []
    for number, task in enumerate(tasks):
        members = range(number * group_size, (number + 1) * group_size)
        rollouts = [
            _scored(as_trajectory(requests[i], completions[i]), chat, task, rewards, is_correct)
            for i in members
        ]
        groups.append(Group(task, rollouts))
    return groups


def as_trajectory(request: Request, completion: Completion) -> Trajectory:
    prompt = Segment(request.prompt_ids, sampled=False)
    reply = Segment(
        tuple(completion.token_ids), sampled=True, log_probs=tuple(completion.log_probs)
    )
    return Trajectory((prompt, reply), completion.stop_reason)


def _scored(
    trajectory: Trajectory,
    chat: ChatFormat,
    task: Task,
    rewards: Sequence[Reward],
    is_correct: Correctness,
) -> Rollout:
    completion = chat.decode(trajectory.sampled_ids)
    scores, reward = score(rewards, completion, task)
    return Rollout(trajectory, completion, scores, reward, is_correct(completion, task))


def with_advantages(
    groups: Sequence[Group], advantages: Callable[[torch.Tensor], torch.Tensor]
) -> list[Group]:
    """Each group with `advantages` of its rewards; computed in float64, where it costs nothing."""
    return [
        replace(
            group,
            advantages=advantages(torch.tensor(group.rewards, dtype=torch.float64)).tolist(),
        )
        for group in groups
    ]
