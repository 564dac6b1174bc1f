"""What ranks tell one another in a step of long completions: recorded sizes, for more ranks than
there are machines here.

python -m benchmarks.exchange          (about 20 seconds)

Ranks are threads, and what they exchange is made by the code of a run. How long that takes is
reckoned from a bandwidth. No model takes part: what it would say is zeros.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
import tyro
from rich.console import Console

from benchmarks.ranks_as_threads import ThreadRanks, on_ranks
from common.flags.objective_flag import load_objective
from common.flags.train_config import TrainConfig, resolve_defaults
from common.logger.experience_sums import ExperienceSums
from common.replay_buffer import Experience, ReplayBuffer, even_parts, experiences_from, totals_of
from common.rewards.transcript import Message, Transcript
from common.rollout.trajectory import Group, Rollout, Segment, Trajectory
from common.tasks.task import Task
from common.training.exchange import hand_over, told, whole_where_logged
from common.training.seeding import stream


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    """Flags at their defaults."""

    experiment: ClassVar[str] = "exchange"


@dataclass(frozen=True)
class ExchangeConfig:
    """One task for each rank."""

    ranks: tuple[int, ...] = (2, 4, 64)
    group_size: int = 8
    """Completions of a task."""
    tokens: int = 8192
    """Of a completion at most; half of it at least."""
    batches: int = 2
    """Optimizer batches of a step: each has other neighbours, whose tokens travel again."""
    gigabits: float = 10.0
    """Per second, to each rank."""


@dataclass(frozen=True)
class Exchanged:
    """Bytes that the rank which hears most is told in a step."""

    outlines: int
    shares: int
    sums: int
    logged: int
    everything: int
    """What it would be told if all had everything as objects, as they had once."""

    @property
    def total(self) -> int:
        return self.outlines + self.shares + self.sums + self.logged


def main(config: ExchangeConfig) -> None:
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"{config.group_size} completions of {config.tokens // 2:,} to {config.tokens:,} tokens "
        f"for each rank, {config.batches} optimizer batches\n"
    )
    console.print(
        "| ranks | outlines | shares | sums | logged conversations (first rank) | all | "
        f"at {config.gigabits:g} Gbit/s | everything as objects | at {config.gigabits:g} Gbit/s |"
    )
    console.print("|" + "---|" * 9)
    for count in config.ranks:
        found = exchanged(config, count)
        parts = (found.outlines, found.shares, found.sums, found.logged, found.total)
        cells = [*map(_megabytes, parts), _seconds(config, found.total)]
        cells += [_megabytes(found.everything), _seconds(config, found.everything)]
        console.print(f"| {count} | {' | '.join(cells)} |")


def exchanged(config: ExchangeConfig, count: int) -> Exchanged:
    """By as many ranks, each the most of all."""
    everything = [_group(config, number, count) for number in range(count)]
    heard = pickle.loads(pickle.dumps(list(map(told, everything))))
    objective = load_objective(resolve_defaults(Config(), bundled=True), use_bfloat16=False)
    outlines = [
        replace(h, task=g.task, holder=g.holder) for h, g in zip(heard, everything, strict=True)
    ]
    known = experiences_from(outlines)

    def step(ranks: ThreadRanks) -> tuple[int, ...]:
        marks: list[int] = []
        own = everything[ranks.index]
        ranks.merge(told(own))
        marks.append(ranks.received)
        experiences = _experiences(own, known)
        _score(ranks, experiences, "log_probs_ref")
        buffer = ReplayBuffer()
        buffer.extend(experiences)
        size = len(experiences) // config.batches
        for batch in buffer.batches(size, stream(0, "shuffle", 0, 0)):
            _score(ranks, batch, "log_probs_old", "entropy")
        marks.append(ranks.received)
        held = [one for one in experiences if one.holder == ranks.index]
        totals = totals_of(experiences)
        ranks.merge(ExperienceSums.of(held, totals, 0.01, objective))
        marks.append(ranks.received)
        groups = [own if g.holder == ranks.index else g for g in outlines]
        whole_where_logged(ranks, groups, groups[:4])
        marks.append(ranks.received)
        return tuple(np.diff([0, *marks]).tolist())

    most = [max(column) for column in zip(*on_ranks(count, step), strict=True)]
    scores = 2 * sum(one.token_ids.numel() for one in known) * 2 * 4
    objects = sum(len(pickle.dumps(group)) for group in everything) + scores
    return Exchanged(*most, everything=objects * (count - 1) // count)


def _group(config: ExchangeConfig, number: int, count: int) -> Group:
    rng = random.Random(number)
    rollouts = []
    for _ in range(config.group_size):
        length = rng.randint(config.tokens // 2, config.tokens)
        ids = tuple(rng.choices(range(150_000), k=length))
        log_probs = tuple(-rng.random() for _ in ids)
        words = " ".join(f"{token % 1000:03d}" for token in ids)
        segments = (Segment(tuple(range(100)), sampled=False), Segment(ids, True, log_probs))
        text = Transcript(words, [Message("assistant", words)])
        reward = float(rng.random() < 0.5)
        scores = {"answer_check": reward, "format": 1.0}
        weights = {"answer_check": 1.0, "format": 0.1}
        rollouts.append(
            Rollout(Trajectory(segments, "stop"), text, scores, reward, reward > 0, weights=weights)
        )
    task = Task(number, "What is the question? " * 20, "42")
    advantages = [0.5] * config.group_size
    return Group(task, rollouts, advantages, holder=number % count)


def _experiences(own: Group, known: Sequence[Experience]) -> list[Experience]:
    """As a rank has them: its own whole, and masks that all threads share."""
    whole = iter(experiences_from([own]))
    found = []
    for one in known:
        if one.holder == own.holder:
            one = replace(next(whole), sampled=one.sampled, turns=one.turns)
        advantages = torch.full((1,), 0.5, dtype=torch.float64).expand(len(one))
        found.append(replace(one, log_probs_old=None, scored_at=0, advantages=advantages))
    return found


def _score(ranks: ThreadRanks, experiences: Sequence[Experience], *names: str) -> None:
    """Hand them out, as for a pass through a model, and have zeros of it."""
    hand_over(ranks, even_parts(experiences, ranks.count))
    for one in experiences:
        is_here = one.holder == ranks.index
        for name in names:
            setattr(one, name, torch.zeros(len(one), device="cpu" if is_here else "meta"))


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.3g} MB"


def _seconds(config: ExchangeConfig, count: int) -> str:
    return f"{count * 8 / (config.gigabits * 1e9):,.3g} s"


if __name__ == "__main__":
    main(tyro.cli(ExchangeConfig))
