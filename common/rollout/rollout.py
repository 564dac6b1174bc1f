"""From tasks to scored groups: G conversations per task, all of a step together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from common.models.kept_sets import KeptSets
from common.rewards.judge import Judgement
from common.rewards.transcript import Transcript
from common.rollout.chat import ChatFormat
from common.rollout.generator import Completion, Generator, Request, generate
from common.rollout.sampling import Sampling, StreamKey
from common.rollout.trajectory import Group, Rollout, Segment, Trajectory
from common.tasks.task import Task

Conversation = tuple[Trajectory, Transcript]
Converse = Callable[[Sequence[tuple[Task, StreamKey]]], list[Conversation]]
Judging = Callable[[Sequence[Transcript], Sequence[Task]], list[Judgement]]


def rollout(
    tasks: Sequence[Task],
    *,
    step: int,
    group_size: int,
    seed: int,
    converse: Converse,
    judge: Judging,
) -> list[Group]:
    """One group of scored conversations per task, in the order of the tasks.

    `converse` holds a conversation about each task, with the random numbers of its stream; `judge`
    says what each is worth.
    """
    openings = [
        (task, StreamKey(seed, step, task.task_id, member))
        for task in tasks
        for member in range(group_size)
    ]
    conversations = converse(openings)
    judgements = judge([text for _, text in conversations], [task for task, _ in openings])
    rollouts = list(map(_judged, conversations, judgements))
    return [
        _group(task, rollouts[number * group_size : (number + 1) * group_size])
        for number, task in enumerate(tasks)
    ]


def single_turn(
    openings: Sequence[tuple[Task, StreamKey]],
    *,
    generator: Generator,
    chat: ChatFormat,
    sampling: Sampling,
    max_completion_tokens: int,
) -> list[Conversation]:
    """The question and one completion, all in one batch."""
    prompts = {task.task_id: tuple(chat.prompt_ids(task.question)) for task, _ in openings}
    requests = [
        Request(prompts[task.task_id], stream, max_completion_tokens) for task, stream in openings
    ]
    trajectories = map(as_trajectory, requests, generate(generator, requests, sampling))
    return [(trajectory, chat.transcript(trajectory)) for trajectory in trajectories]


def as_trajectory(request: Request, completion: Completion) -> Trajectory:
    prompt = Segment(request.prompt_ids, sampled=False)
    return Trajectory((prompt, as_segment(completion)), completion.stop_reason)


def as_segment(completion: Completion) -> Segment:
    return Segment(
        tuple(completion.token_ids),
        sampled=True,
        log_probs=tuple(completion.log_probs),
        kept=KeptSets.of(completion.kept) if completion.kept else None,
    )


def _judged(conversation: Conversation, judgement: Judgement) -> Rollout:
    trajectory, transcript = conversation
    failure = None if trajectory.errored else judgement.failure
    if failure and not judgement.comparable:
        trajectory = replace(trajectory, stop_reason=failure.kind)
    return Rollout(
        trajectory,
        transcript,
        judgement.scores,
        judgement.reward,
        judgement.correct,
        failure,
        judgement.weights,
    )


def _group(task: Task, rollouts: Sequence[Rollout]) -> Group:
    """Errored rollouts are data, but no part of the baseline."""
    return Group(
        task,
        [rollout for rollout in rollouts if not rollout.trajectory.errored],
        errored=[rollout for rollout in rollouts if rollout.trajectory.errored],
    )
