"""What ranks tell one another, by ranks that are threads of one process."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.ranks_as_threads import ThreadRanks, on_ranks
from common.logger.media import Histogram
from common.logger.metrics import evaluation_metrics, rollout_metrics
from common.logger.tool_metrics import conversation_metrics, tool_evaluation_metrics
from common.models.kept_sets import KeptSets
from common.replay_buffer import SCORES, Experience, ReplayBuffer, elsewhere, experiences_from
from common.rewards.outcome import Failure
from common.rewards.transcript import Message, Transcript
from common.rollout.trajectory import Group, Rollout, Segment, Trajectory
from common.tasks.task import Task
from common.tools.calls import CallRecord
from common.training.exchange import (
    hand_over,
    merged_histogram,
    tell_scores,
    told,
    whole_where_logged,
)
from tests.distributed.worker import make_learner, make_policy
from tests.helpers import random_experiences

CALLS = [
    CallRecord("calculator", "ok", "answered", "4", 0.25, {"expression": "2+2"}),
    CallRecord("calculator", "ok", "answered", "error: no", 0.5, {"expression": "2+"}),
    CallRecord("", "invalid_json", "answered", "the call is not valid JSON"),
    CallRecord("search", "ok", "timeout", "error: took too long", 2.0),
]
FAILURE = Failure("--reward a", "raised")


@st.composite
def rollouts(draw: st.DrawFn, errored: bool = False) -> Rollout:
    segments = []
    for number, length in enumerate(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))):
        ids = tuple(range(length))
        sampled = number % 2 == 1
        segments.append(Segment(ids, sampled, (-0.5,) * length if sampled else ()))
    stop = "tool_timeout" if errored else draw(st.sampled_from(["answered", "length"]))
    text = draw(st.sampled_from(["", "4", "<answer>4</answer>", "<answer>4</answer><answer>"]))
    others = [Message("assistant", "x"), Message("tool", "x"), Message("user", "x")]
    messages = [Message("assistant", text), *draw(st.lists(st.sampled_from(others), max_size=3))]
    reward = draw(st.floats(-1, 1))
    return Rollout(
        Trajectory(tuple(segments), stop),
        Transcript(text, messages, draw(st.lists(st.sampled_from(CALLS), max_size=3))),
        {"a": reward, "b": draw(st.none() | st.just(1.0))},
        reward,
        draw(st.booleans()),
        draw(st.none() | st.just(FAILURE)),
    )


@st.composite
def batches(draw: st.DrawFn) -> list[Group]:
    groups = []
    for number in range(draw(st.integers(1, 5))):
        some = draw(st.lists(rollouts(), min_size=1, max_size=3))
        broken = draw(st.lists(rollouts(errored=True), max_size=2))
        advantages = [float(rank) for rank in range(len(some))]
        groups.append(Group(Task(number, f"Q{number}", "4"), some, advantages, errored=broken))
    return groups


def heard(groups: Sequence[Group]) -> list[Group]:
    """As a rank has them that has sampled none of them."""
    travelled = pickle.loads(pickle.dumps([told(group) for group in groups]))
    return [
        replace(new, task=old.task, holder=1) for new, old in zip(travelled, groups, strict=True)
    ]


@given(groups=batches())
def test_statistics_of_what_ranks_hear_are_those_of_the_rollouts(groups):
    for metrics in (
        rollout_metrics,
        conversation_metrics,
        tool_evaluation_metrics,
        lambda some: evaluation_metrics(some, tags=True),
    ):
        assert metrics(heard(groups)) == metrics(groups)
    for one, other in zip(experiences_from(groups), experiences_from(heard(groups)), strict=True):
        assert torch.equal(one.sampled, other.sampled)
        assert torch.equal(one.turns, other.turns)
        assert len(one) == len(other)


def test_what_ranks_hear_has_neither_tokens_nor_words_and_says_so():
    rollout = Rollout(
        Trajectory((Segment((5, 6), True, (-1.0, -1.0)),), "stop"),
        Transcript("secret", [Message("assistant", "secret")], CALLS),
        {},
        1.0,
        True,
    )
    group = Group(Task(0, "two and two", "4"), [rollout])
    travelled = pickle.dumps(told(group))
    for word in (b"secret", b"two and two", b"2+2", b"too long"):
        assert word not in travelled
    (outline,), (other,) = (heard([group])[0].rollouts for _ in range(2))
    for read in (
        lambda: outline.completion.strip(),
        lambda: outline.completion.messages,
        lambda: str(outline.completion),
        lambda: f"{outline.completion}",
        lambda: outline.trajectory.token_ids,
        lambda: outline.trajectory.log_probs,
        lambda: {outline.completion},
        lambda: outline.completion == other.completion,
        lambda: outline.trajectory == other.trajectory,
    ):
        with pytest.raises(LookupError, match="with the rank that sampled it"):
            read()
    with pytest.raises(TypeError):
        assert "secret" in outline.completion
    with pytest.raises(AttributeError):
        outline.completion.calls[0].reply  # noqa: B018
    with pytest.raises(ValueError, match="which rank has the group of task 0 whole"):
        experiences_from([replace(one, holder=None) for one in heard([group])])
    (experience,) = experiences_from(heard([group]))
    with pytest.raises((RuntimeError, NotImplementedError)):
        experience.log_probs_sampler.tolist()


@st.composite
def held_experiences(draw: st.DrawFn, count: int) -> list[Experience]:
    """With any of the fields that may be there, held by any of so many ranks."""
    rng = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    found = []
    for number in range(draw(st.integers(1, 7))):
        length = draw(st.integers(1, 5))
        sampled = torch.rand(length, generator=rng) < 0.6
        scores: dict[str, Any] = {
            name: torch.where(sampled, torch.randn(length, generator=rng), 0.0).double()
            for name in SCORES
            if draw(st.booleans())
        }
        kept = None
        if draw(st.booleans()):
            kept = KeptSets.of([np.arange(draw(st.integers(0, 3))) for _ in range(length)])
        found.append(
            Experience(
                number,
                torch.randint(0, 300, (length,), generator=rng),
                sampled,
                torch.zeros(length, dtype=torch.long),
                torch.where(sampled, -torch.rand(length, generator=rng), 0.0),
                **{"log_probs_old": None, **scores},
                kept=kept,
                holder=draw(st.integers(0, count - 1)),
            )
        )
    return found


def as_seen_by(rank: int, everything: Sequence[Experience]) -> list[Experience]:
    seen = [replace(one) for one in everything]
    for one in seen:
        if one.holder != rank:
            one.forget()
    return seen


def assert_same(one: Experience, other: Experience) -> None:
    for name in ("token_ids", "log_probs_sampler", *SCORES):
        value, wanted = getattr(one, name), getattr(other, name)
        assert (value is None) == (wanted is None), name
        if wanted is not None:
            assert torch.equal(value, wanted), name
            assert value.dtype == wanted.dtype
    assert one.kept == other.kept


@settings(deadline=None)
@given(data=st.data(), count=st.integers(2, 3))
def test_experiences_are_whole_where_they_are_handed_and_nowhere_else(data, count):
    everything = data.draw(held_experiences(count))
    # Twice, as a batch does not end where it is scored.
    takers = [data.draw(st.permutations(range(len(everything)))) for _ in range(2)]

    def work(ranks: ThreadRanks) -> list[Experience]:
        seen = as_seen_by(ranks.index, everything)
        for taker in takers:
            parts = [[seen[n] for n in taker if n % count == rank] for rank in range(count)]
            hand_over(ranks, parts)
        return seen

    for rank, seen in enumerate(on_ranks(count, work)):
        for number, (one, original) in enumerate(zip(seen, everything, strict=True)):
            assert one.holder == number % count
            if one.holder == rank:
                assert_same(one, original)
            else:
                assert one.token_ids.is_meta
                assert one.kept is None
                for name in SCORES:
                    value, wanted = getattr(one, name), getattr(original, name)
                    assert (value is None) == (wanted is None)
                    assert value is None or value.is_meta


@settings(deadline=None)
@given(data=st.data())
def test_scores_are_told_to_all_where_advantages_are_made_of_them(data):
    everything = data.draw(held_experiences(3))

    def work(ranks: ThreadRanks) -> list[Experience]:
        seen = as_seen_by(ranks.index, everything)
        tell_scores(ranks, seen)
        return seen

    for rank, seen in enumerate(on_ranks(3, work)):
        for one, original in zip(seen, everything, strict=True):
            for name in SCORES:
                value, wanted = getattr(one, name), getattr(original, name)
                assert (value is None) == (wanted is None)
                assert wanted is None or torch.equal(value, wanted)
            assert one.token_ids.is_meta == (one.holder != rank)


def test_nothing_travels_that_is_where_it_belongs():
    def work(ranks: ThreadRanks) -> int:
        made_by_hand = Experience(
            0,
            torch.tensor([1, 2]),
            torch.tensor([False, True]),
            torch.tensor([-1, 0]),
            torch.zeros(2),
            None,
        )
        own = replace(made_by_hand, holder=1)
        hand_over(ranks, [[made_by_hand], [own]])
        hand_over(ranks, [[made_by_hand], [own]])
        return ranks.exchanges

    assert on_ranks(2, work) == [0, 0]


def test_what_travels_grows_with_the_tokens_of_a_share_and_not_with_the_ranks():
    """Four bytes of id, and as many of each log-prob and entropy."""
    length, each = 8_000, 4

    def work(ranks: ThreadRanks) -> int:
        everything = [
            Experience(
                number,
                torch.ones(length, dtype=torch.long),
                torch.ones(length, dtype=torch.bool),
                torch.zeros(length, dtype=torch.long),
                torch.zeros(length),
                torch.zeros(length),
                log_probs_ref=torch.zeros(length),
                entropy=torch.zeros(length),
                holder=number % ranks.count,
            )
            for number in range(each * ranks.count)
        ]
        seen = as_seen_by(ranks.index, everything)
        shifted = [
            [one for n, one in enumerate(seen) if (n + 1) % ranks.count == rank]
            for rank in range(ranks.count)
        ]
        hand_over(ranks, shifted)
        return ranks.received

    for count in (2, 4):
        for received in on_ranks(count, work):
            assert received == pytest.approx(each * length * 5 * 4, rel=0.01)


@given(values=st.lists(st.lists(st.floats(-5, 5), max_size=4), min_size=3, max_size=3))
@settings(deadline=None)
def test_a_histogram_is_that_of_the_values_of_all_ranks(values):
    def work(ranks: ThreadRanks) -> Histogram:
        return merged_histogram(ranks, np.array(values[ranks.index], dtype=np.float64))

    expected = Histogram.of([value for share in values for value in share])
    assert on_ranks(3, work) == [expected] * 3


def test_the_first_rank_has_whole_what_it_logs():
    def rollout(word: str, stop: str = "stop") -> Rollout:
        trajectory = Trajectory((Segment((1,), True, (-1.0,)),), stop)
        return Rollout(trajectory, Transcript(word, [Message("assistant", word)]), {}, 1.0, True)

    whole = [
        Group(
            Task(number, f"Q{number}", "4"),
            [rollout(f"right {number}")],
            [float(number)],
            errored=[rollout(f"broken {number}", "error")] * (number == 3),
            holder=number % 2,
        )
        for number in range(6)
    ]

    def work(ranks: ThreadRanks) -> list[Group]:
        outlines = [replace(o, holder=g.holder) for o, g in zip(heard(whole), whole, strict=True)]
        seen = [w if w.holder == ranks.index else o for w, o in zip(whole, outlines, strict=True)]
        return whole_where_logged(ranks, seen, seen[:2])

    first, second = on_ranks(2, work)
    assert [group.rollouts[0].completion for group in (*first[:3], first[4])] == [
        "right 0",
        "right 1",
        "right 2",
        "right 4",
    ]
    assert first[3].errored[0].completion == "broken 3"
    assert [group.advantages for group in first] == [group.advantages for group in whole]
    for group, number in ((first[3], 3), (first[5], 5), (second[0], 0), (second[4], 4)):
        assert group.task == whole[number].task
        with pytest.raises(LookupError):
            str(group.rollouts[0].completion)


def test_numbers_that_are_elsewhere_cannot_be_computed_with():
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(elsewhere(2).sum())


@pytest.mark.parametrize("records", [False, True])
def test_whether_something_is_known_is_the_same_on_all_ranks(records):
    """Also where a script leaves out `batch.record`, which keeps the entropies: what one rank had
    and another had not could not be handed over in the next epoch."""
    everything = [
        replace(one, log_probs_old=None, scored_at=0, holder=number % 2)
        for number, one in enumerate(random_experiences(9))
    ]

    def learn(ranks: ThreadRanks) -> list[Experience]:
        learner = make_learner(make_policy(torch.float32), ranks, 4)
        learner.config = replace(learner.config, epochs_per_step=2, train_batch_size=4)
        seen, buffer = as_seen_by(ranks.index, everything), ReplayBuffer()
        buffer.extend(seen)
        for batch in learner.optimizer_batches(1, buffer):
            for micro in batch.micro_batches():
                log_probs, entropy = learner.policy(
                    micro.token_ids, micro.attention_mask, micro.sampled
                )
                tokens = micro.tokens(log_probs, batch.totals)
                loss = -(log_probs * tokens.advantages).sum()
                loss.backward()
                if records:
                    log_ratio = log_probs - tokens.log_probs_old
                    batch.record(micro, log_ratio, loss, 0.0, entropy, None, None)
            batch.step(learner.optimizer)
        return seen

    first, second = on_ranks(2, learn)
    for one, other in zip(first, second, strict=True):
        assert one.holder == other.holder
        for name in SCORES:
            assert (getattr(one, name) is None) == (getattr(other, name) is None)
        held, told_of = (one, other) if one.holder == 0 else (other, one)
        assert held.log_probs_old is not None
        assert not held.log_probs_old.is_meta
        assert told_of.token_ids.is_meta
    assert any(one.entropy is None for one in first) != records
