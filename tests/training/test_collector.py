"""Dynamic sampling and overlong handling, with completions from a script."""

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import pytest

from common.algo.aggregation import BatchTotals
from common.errors import UserError
from common.flags.train_config import TrainConfig, resolve_defaults
from common.replay_buffer import experiences_from, totals_of, with_advantages
from common.rewards.answers import is_correct
from common.rewards.judge import Judge
from common.rewards.notion import Notion
from common.rewards.own_function import OwnFunction
from common.rewards.reward import Reward
from common.rewards.transcript import Transcript
from common.rollout.chat import ChatFormat
from common.rollout.generator import Completion, Interrupted, Request
from common.rollout.rollout import single_turn
from common.rollout.trajectory import Segment, Trajectory
from common.tasks.task import Task
from common.tools.calls import CallRecord
from common.training.collector import Collector
from common.training.ranks import ALONE
from common.training.task_order import draws_of_step
from tests.helpers import ScriptedGenerator

TASKS = [Task(number, f"What is {number}+1?", str(number + 1)) for number in range(12)]


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    experiment: ClassVar[str] = "test"


def complete(request: Request) -> Completion:
    """Members of an even task's group answer with lengths 1, 2, ...; of an odd task's all alike."""
    limit = request.max_new_tokens
    length = request.stream.member + 1 if request.stream.task_id % 2 == 0 else 1
    ids = [20] * min(length, limit)
    return Completion(ids, [-1.0] * len(ids), "stop" if length <= limit else "length")


def length_reward(completion: str, task: Task) -> float:
    return float(len(completion))


LENGTH = Judge([Reward("length", length_reward, 1.0)], Notion(is_correct))


def collect(tokenizer, converse=single_turn, judge=LENGTH, interrupted=lambda: False, **flags):
    settings = {"rollouts_per_step": 3, "group_size": 4, "max_completion_tokens": 8, **flags}
    config = resolve_defaults(Config(**settings), bundled=True)
    chat, generator = ChatFormat(tokenizer, ""), ScriptedGenerator(complete)
    return Collector(config, generator, chat, judge, interrupted, ALONE, converse), generator


def test_one_draw_keeps_every_group(tokenizer):
    collector, _ = collect(tokenizer)
    steps = [collector.train(TASKS, step) for step in range(1, 5)]
    assert [(len(groups), others) for groups, others in steps] == [(3, [])] * 4
    seen = sorted(group.task.task_id for groups, _ in steps for group in groups)
    assert seen == list(range(12))


def test_dynamic_sampling_draws_until_enough_groups_have_a_signal(tokenizer):
    collector, generator = collect(tokenizer, dynamic_sampling=4, dynamic_sampling_by="reward")
    groups, others = collector.train(TASKS, 1)
    assert len(groups) == 3
    assert all(group.has_signal and group.task.task_id % 2 == 0 for group in groups)
    drawn = len(generator.requests) // 4
    assert drawn == len(groups) + len(others)
    assert drawn % 3 == 0
    assert 3 < drawn <= 12
    assert len({request.stream.task_id for request in generator.requests}) == drawn


def test_dynamic_sampling_goes_by_right_answers_unless_it_is_told_to_go_by_rewards(tokenizer):
    """Of 12 tasks, each even one has rewards that differ, and 1 and 4 alone have right and wrong
    completions: all are drawn for them, and the batch is filled with the first that differ."""

    def is_right(completion: str, task: Task) -> bool:
        return task.task_id == 1 or (task.task_id == 4 and len(completion) > 2)

    def sometimes_right(openings, **settings):
        done = single_turn(openings, **settings)
        return [
            (trajectory, Transcript("x" * (stream.member + 1)) if task.task_id == 4 else text)
            for (task, stream), (trajectory, text) in zip(openings, done, strict=True)
        ]

    def kept_by(what: str) -> tuple[list[int], list[int]]:
        flags = {"dynamic_sampling": 4, "dynamic_sampling_by": what, "rollouts_per_step": 3}
        judge = Judge(LENGTH.rewards, Notion(is_right))
        collector, _ = collect(tokenizer, sometimes_right, judge, **flags)
        kept, others = collector.train(TASKS, 1)
        return [g.task.task_id for g in kept], [g.task.task_id for g in others]

    order = [task.task_id for draw in draws(4) for task in draw]
    even = [number for number in order if number % 2 == 0 and number != 4]
    kept, others = kept_by("correctness")
    assert kept == [number for number in order if number in (4, *even[:2])]
    assert others == [number for number in order if number not in kept]
    kept, others = kept_by("reward")
    assert kept == [number for number in order if number % 2 == 0][:3]
    assert len(others) < 9


def draws(count: int) -> list[list[Task]]:
    config = Config(rollouts_per_step=3, group_size=4, dynamic_sampling=count)
    return draws_of_step(TASKS, 1, config)


def test_dynamic_sampling_gives_up_after_its_draws_and_fills_the_batch(tokenizer):
    odd = [task for task in TASKS if task.task_id % 2]
    collector, generator = collect(tokenizer, dynamic_sampling=2)
    groups, others = collector.train(odd, 1)
    assert len(generator.requests) == 2 * 3 * 4
    assert (len(groups), len(others)) == (3, 3)
    assert not any(group.has_signal for group in groups)
    few = [*odd[:5], TASKS[0]]
    collector, _ = collect(tokenizer, dynamic_sampling=2)
    groups, others = collector.train(few, 1)
    assert len(groups) == len(others) == 3
    assert [group.task.task_id for group in groups if group.has_signal] == [0]
    assert {group.task.task_id for group in (*groups, *others)} == {0, 1, 3, 5, 7, 9}


def test_a_step_does_not_depend_on_how_many_draws_the_step_before_took(tokenizer):
    collector, generator = collect(tokenizer, dynamic_sampling=2)
    alone = collector.train(TASKS, 2)
    generator.requests.clear()
    collector.train(TASKS, 1)
    assert collector.train(TASKS, 2) == alone


def test_a_batch_without_a_single_token_ends_the_run(tokenizer):
    collector, _ = collect(tokenizer)
    rooms = iter([0] * 12 + [0] * 11 + [1])

    def in_what_room_there_is(request: Request) -> Completion:
        room = next(rooms)
        return Completion([20] * room, [-1.0] * room, "context")

    collector._generator = ScriptedGenerator(in_what_room_there_is)
    with pytest.raises(UserError, match=r"^--max-length 160: no token was sampled in step 1, as "):
        collector.train(TASKS, 1)
    groups, _ = collector.train(TASKS, 2)
    assert sum(r.trajectory.num_sampled for group in groups for r in group.rollouts) == 1


def test_the_overlong_penalty_enters_the_reward(tokenizer):
    plain, _ = collect(tokenizer, max_completion_tokens=4)
    punishing, _ = collect(
        tokenizer, max_completion_tokens=4, overlong="penalty", overlong_buffer=0.5
    )
    (plainly, _), (punished, _) = plain.train(TASKS, 1), punishing.train(TASKS, 1)
    for before, after in zip(plainly, punished, strict=True):
        lengths = [rollout.trajectory.num_sampled for rollout in before.rollouts]
        expected = [-max(0, length - 2) / 2 for length in lengths]
        differences = [a - b for a, b in zip(after.rewards, before.rewards, strict=True)]
        assert differences == pytest.approx(expected)
        for rollout, penalty in zip(after.rollouts, expected, strict=True):
            assert rollout.scores["overlong"] == pytest.approx(penalty)
            parts = [
                rollout.weights[name] * (rollout.scores[name] or 0) for name in rollout.weights
            ]
            assert rollout.reward == pytest.approx(sum(parts))


def test_the_overlong_penalty_counts_what_the_length_of_the_sequence_cuts(tokenizer):
    """Prompts leave room for 3 tokens of 8. Completions have 1, 2, 3 and, cut, 3: the penalty grows
    over the last two, so that it is 0, 1/2, 1 and 1."""
    (prompt,) = {len(ChatFormat(tokenizer, "").prompt_ids(task.question)) for task in TASKS[:10]}
    flags = {"max_length": prompt + 3, "rollouts_per_step": 10}
    converse = partial(cut_at_length, max_length=prompt + 3)
    collector, _ = collect(
        tokenizer, converse, LENGTH, overlong="penalty", overlong_buffer=2 / 3, **flags
    )
    groups, _ = collector.train(TASKS[:10], 1)
    penalties = [
        [rollout.reward - len(rollout.completion) for rollout in group.rollouts]
        for group in groups
        if group.task.task_id % 2 == 0
    ]
    assert penalties == [[0, pytest.approx(-0.5), -1, -1]] * 5


def cut_at_length(openings, *, max_length, max_completion_tokens, **settings):
    """As the generator does it, which a script stands in for here."""
    done = single_turn(openings, max_completion_tokens=max_completion_tokens, **settings)
    return [
        (shortened(trajectory, max_length - len(trajectory.segments[0].token_ids)), text)
        for trajectory, text in done
    ]


def shortened(trajectory: Trajectory, room: int) -> Trajectory:
    prompt, sampled = trajectory.segments
    if len(sampled.token_ids) <= room:
        return trajectory
    kept = Segment(sampled.token_ids[:room], True, sampled.log_probs[:room])
    return Trajectory((prompt, kept), "context")


def test_masked_overlong_completions_have_no_token_to_learn_from(tokenizer):
    collector, _ = collect(tokenizer, max_completion_tokens=2)
    groups, _ = collector.train(TASKS, 1)
    kept = experiences_from(groups)
    masked = experiences_from(groups, mask_truncated=True)
    reasons = [r.trajectory.stop_reason for group in groups for r in group.rollouts]
    assert set(reasons) == {"stop", "length"}
    for before, after, reason in zip(kept, masked, reasons, strict=True):
        assert before.sampled.any()
        assert after.sampled.any() == (reason == "stop")
    of_the_others = sum(
        rollout.trajectory.num_sampled
        for group in groups
        for rollout in group.rollouts
        if rollout.trajectory.stop_reason == "stop"
    )
    assert totals_of(masked) == BatchTotals(len(kept), of_the_others)
    for all_tokens in (kept, masked):
        _, learned = with_advantages(groups, all_tokens, lambda batch: batch.rewards)
        first = [float(one.advantages[0]) for one in learned if one.advantages is not None]
        assert first == [reward for group in groups for reward in group.rewards]


def test_evaluation_has_a_temperature_of_its_own(tokenizer):
    asked: list[float] = []

    def converse(openings, *, generator, chat, sampling, max_completion_tokens):
        asked.append(sampling.temperature)
        return single_turn(
            openings,
            generator=generator,
            chat=chat,
            sampling=sampling,
            max_completion_tokens=max_completion_tokens,
        )

    for eval_temperature in (None, 0.0, 0.3):
        flags = {"temperature": 0.7, "eval_temperature": eval_temperature}
        collector, _ = collect(tokenizer, converse, LENGTH, **flags)
        collector.train(TASKS, 1)
        collector.evaluate(TASKS[:1])
    assert asked == [0.7, 0.7, 0.7, 0.0, 0.7, 0.3]


def failing_on(*answers: str, weight: float = 1.0) -> Judge:
    """With a reward that fails on the completions of some tasks, but on none of length 2."""

    def picky(completion: str, task: Task) -> float:
        if task.answer in answers and len(completion) != 2:
            raise ConnectionError("no judge")
        return float(len(completion))

    own = OwnFunction("--reward", "my.py:picky", picky)
    return Judge([*LENGTH.rewards, Reward("picky", own, weight)], Notion(is_correct))


def test_what_a_reward_fails_on_is_counted_and_not_learned_from(tokenizer):
    """Task 0's members have lengths 1 to 4: one is scored, which has nothing to compare with."""
    collector, _ = collect(tokenizer, judge=failing_on("1"), rollouts_per_step=12)
    groups = {group.task.task_id: group for group in collector.train(TASKS, 1)[0]}
    assert [len(groups[number].rollouts) for number in (0, 1, 2)] == [0, 4, 4]
    errored = groups[0].errored
    assert [rollout.trajectory.stop_reason for rollout in errored] == ["reward_error"] * 3
    assert all(r.failure and "ConnectionError: no judge" in r.failure.text for r in errored)
    assert [rollout.scores["picky"] for rollout in errored] == [None] * 3


def test_what_is_only_logged_costs_no_completion_where_it_fails(tokenizer):
    collector, _ = collect(tokenizer, judge=failing_on("1", weight=0), rollouts_per_step=12)
    groups = collector.train(TASKS, 1)[0]
    assert [len(group.rollouts) for group in groups] == [4] * len(groups)
    assert sum(r.failure is not None for group in groups for r in group.rollouts) == 3


def test_a_reward_that_fails_on_everything_stops_the_run(tokenizer):
    collector, _ = collect(tokenizer, judge=failing_on("2", "4"), rollouts_per_step=2)
    odd = [TASKS[1], TASKS[3]]
    with pytest.raises(UserError) as caught:
        collector.train(odd, 1)
    said = str(caught.value)
    assert said.startswith("--reward my.py:picky: left no completion of step 1 to compare, the la")
    assert "raised ConnectionError: no judge" in said
    assert said.endswith("; mend it, then --resume")


def test_a_signal_ends_the_wait_for_rewards(tokenizer):
    own = OwnFunction("--reward", "my.py:slow", lambda completion, task: time.sleep(20))
    judge = Judge([Reward("slow", own, 1.0)], Notion(is_correct))
    collector, _ = collect(tokenizer, judge=judge, interrupted=lambda: True)
    started = time.monotonic()
    with pytest.raises(Interrupted):
        collector.train(TASKS, 1)
    assert time.monotonic() - started < 5


def breaking(openings, *, generator, chat, sampling, max_completion_tokens):
    """All conversations about tasks 0 and 3, and all but one about task 6, are broken off."""
    done = single_turn(
        openings,
        generator=generator,
        chat=chat,
        sampling=sampling,
        max_completion_tokens=max_completion_tokens,
    )
    record = CallRecord("fetch", "ok", "error", "no route")

    def is_broken(stream):
        return stream.task_id in (0, 3) or (stream.task_id == 6 and stream.member > 0)

    return [
        (replace(trajectory, stop_reason="error"), Transcript(text, text.messages, [record]))
        if is_broken(stream)
        else (trajectory, text)
        for (_, stream), (trajectory, text) in zip(openings, done, strict=True)
    ]


@pytest.mark.parametrize("draws", [1, 4])
def test_what_a_tool_broke_off_is_counted_and_not_learned_from(tokenizer, draws):
    collector, _ = collect(tokenizer, dynamic_sampling=draws, converse=breaking)
    groups, others = collector.train(TASKS, 1)
    for group in (*groups, *others):
        expected = {0: 4, 3: 4, 6: 3}.get(group.task.task_id, 0)
        assert len(group.errored) == expected
        assert len(group.rollouts) == (0 if expected else 4)
    groups, learned = with_advantages(groups, experiences_from(groups), lambda batch: batch.rewards)
    assert [len(group.advantages) for group in groups] == [len(group.rollouts) for group in groups]
    assert len(learned) == 4 * sum(not group.errored for group in groups)
    if draws == 4:
        assert {group.task.task_id for group in (*groups, *others)} >= {0, 3, 6}
        assert len(learned) == 12


def test_a_tool_that_breaks_off_everything_stops_the_run(tokenizer):
    collector, _ = collect(tokenizer, converse=breaking, rollouts_per_step=1)
    with pytest.raises(UserError, match="tool fetch: broke off the conversations of an evaluation"):
        collector.evaluate(TASKS[:1])
