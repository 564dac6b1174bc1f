"""All that is said of a completion: the scores of every reward, their sum, and whether it is right.

Each function is asked once about a completion, however many rewards, criteria of a rubric and
notions of right are made of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from common.errors import UserError
from common.plain_number import finite_number
from common.rewards.notion import Notion
from common.rewards.outcome import Failure, OfBatch, Outcome, RewardFunction
from common.rewards.own_function import OwnFunction, outcomes_of
from common.rewards.reward import Reward, Scorer
from common.rewards.rubric import Rubric
from common.rewards.transcript import Transcript
from common.tasks.task import Task

REWARD_TIMEOUT = 60.0


@dataclass(frozen=True)
class Judgement:
    """What is said of one completion."""

    scores: Mapping[str, float | None]
    """The raw score of every reward, and of a rubric's criteria; None where one does not apply."""
    reward: float
    """The weighted sum of those that apply."""
    correct: bool
    failure: Failure | None = None
    """What came of a function that gave no score, one that counts before one that does not."""
    comparable: bool = True
    """Whether all that counts, and what is right, could be said of it."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """How much the scores count in the sum, by name; those that are only logged are not in."""


class Judge:
    """Asks the functions of a run."""

    def __init__(
        self, rewards: Sequence[Reward], notion: Notion, timeout: float = REWARD_TIMEOUT
    ) -> None:
        """A function of the user's is given up after `timeout` seconds."""
        self.rewards = rewards
        self.notion = notion
        self._timeout = timeout
        self._weights = {reward.name: reward.weight for reward in rewards if reward.weight}
        scorers = (*(reward.function for reward in rewards), notion.function)
        self._functions = list(dict.fromkeys(chain.from_iterable(map(_functions_of, scorers))))

    @property
    def looking_for_tags(self) -> list[str]:
        """What sees nothing but answer tags: the rewards that count, by name, and the accuracy."""
        names = [r.name for r in self.rewards if r.weight and _looks_for_tags(r.function)]
        return [*names, "the accuracy"] if self.right_in_tags else names

    @property
    def right_in_tags(self) -> bool:
        """Whether nothing is right that is not in answer tags."""
        return _looks_for_tags(self.notion.function)

    def __call__(
        self,
        completions: Sequence[Transcript],
        tasks: Sequence[Task],
        meanwhile: Callable[[], object] = lambda: None,
    ) -> list[Judgement]:
        """A judgement of each completion; `meanwhile` is called while there is one to wait for."""
        own = [function for function in self._functions if isinstance(function, OwnFunction)]
        heard: dict[RewardFunction | OwnFunction, Sequence[Outcome]] = {
            **outcomes_of(own, completions, tasks, self._timeout, meanwhile)
        }
        for function in self._functions:
            if isinstance(function, OfBatch):
                heard[function] = function.of_batch(completions, tasks, meanwhile)
            elif not isinstance(function, OwnFunction):
                heard[function] = list(map(function, completions, tasks))
        return [
            self._judged({function: outcomes[number] for function, outcomes in heard.items()})
            for number in range(len(tasks))
        ]

    def _judged(self, heard: Mapping[RewardFunction | OwnFunction, Outcome]) -> Judgement:
        scores: dict[str, float | None] = {}
        failures: list[Failure] = []
        for reward in self.rewards:
            outcome, parts = _said(reward.function, heard)
            if isinstance(outcome, Failure) and reward.weight:
                failures.append(outcome)
            scores[reward.name] = _score(reward.name, outcome)
            scores |= parts
        outcome, _ = _said(self.notion.function, heard)
        if isinstance(outcome, Failure):
            failures.append(outcome)
        only_logged = [said for said in heard.values() if isinstance(said, Failure)]
        counted = [(reward.weight, scores[reward.name]) for reward in self.rewards]
        total = math.fsum(weight * score for weight, score in counted if score is not None)
        return Judgement(
            scores,
            total,
            correct=self.notion.holds(outcome),
            failure=next(iter([*failures, *only_logged]), None),
            comparable=not failures,
            weights=self._weights,
        )


def _functions_of(scorer: Scorer) -> Sequence[RewardFunction | OwnFunction]:
    if isinstance(scorer, Notion):
        return _functions_of(scorer.function)
    if isinstance(scorer, Rubric):
        parts = (_functions_of(criterion.function) for criterion in scorer.criteria)
        return list(chain.from_iterable(parts))
    return [scorer]


def _said(
    scorer: Scorer, heard: Mapping[RewardFunction | OwnFunction, Outcome]
) -> tuple[Outcome, Mapping[str, float | None]]:
    """What follows from what functions say of a completion, with the parts that are logged."""
    if isinstance(scorer, Notion):
        return scorer.score(_said(scorer.function, heard)[0]), {}
    if isinstance(scorer, Rubric):
        return scorer.combined([_said(part.function, heard)[0] for part in scorer.criteria])
    return heard[scorer], {}


def _score(name: str, outcome: Outcome) -> float | None:
    if outcome is None or isinstance(outcome, Failure):
        return None
    number = finite_number(outcome)
    if number is None:
        raise UserError(f"reward {name} gave {outcome!r}; it must give a finite number")
    return number


def _looks_for_tags(scorer: Scorer) -> bool:
    """Whether it gives nothing but for answer tags; a rubric's other criteria give something."""
    if isinstance(scorer, Notion):
        return _looks_for_tags(scorer.function)
    if isinstance(scorer, Rubric):
        return all(_looks_for_tags(c.function) for c in scorer.criteria if c.weight)
    function = getattr(scorer, "func", scorer)
    return getattr(function, "looks_for_answer_tags", False)
